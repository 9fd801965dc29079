// A stem at another sample rate. Runs on the generator's own thread, never in the audio callback.
#ifndef SELVA_RESAMPLE_HPP
#define SELVA_RESAMPLE_HPP

#include "../c/selva.h"

#include <cmath>
#include <vector>

namespace selva_plugin {

inline int common_divisor(int a, int b) { return b ? common_divisor(b, a % b) : a; }

// Band-limited interpolation: a sinc of 64 zero crossings on each side under a Kaiser window (beta 12, side lobes below
// -115 dB), with its coefficients computed once for each of the output's phases. Of the lower rate's Nyquist frequency,
// 0.89 passes and what lies above 1.01 is removed. Sample 0 stays sample 0. NULL if memory is short.
inline selva_audio *resampled(const selva_audio &source, int rate_hz) {
    const double pi = 3.14159265358979323846, beta = 12.0, crossings = 64.0;
    const int divisor = common_divisor(source.sample_rate_hz, rate_hz);
    const long long up = rate_hz / divisor, down = source.sample_rate_hz / divisor;
    const double cut = 0.95 * std::fmin(1.0, double(rate_hz) / source.sample_rate_hz), reach = crossings / cut;
    const long long half = (long long)std::ceil(reach), taps = 2 * half + 1;
    auto bessel = [](double x) {
        double sum = 1, term = 1;
        for (int k = 1; k < 60; k++) sum += term *= (x / (2 * k)) * (x / (2 * k));
        return sum;
    };
    std::vector<double> table((size_t)(up * taps));
    for (long long phase = 0; phase < up; phase++) {
        for (long long tap = 0; tap < taps; tap++) {
            const double t = double(tap - half) - double(phase) / double(up), x = pi * cut * t, edge = t / reach;
            const double window = std::fabs(edge) < 1 ? bessel(beta * std::sqrt(1 - edge * edge)) / bessel(beta) : 0;
            table[(size_t)(phase * taps + tap)] = cut * window * (x == 0 ? 1 : std::sin(x) / x);
        }
    }
    const long long frames = (long long)source.frames, count = (frames * up + down - 1) / down;
    selva_audio *result = selva_audio_new((size_t)count, rate_hz);
    for (long long k = 0; result && k < count; k++) {
        const long long centre = k * down / up;
        const double *row = &table[(size_t)((k * down % up) * taps)];
        double sum = 0;
        for (long long tap = 0; tap < taps; tap++) {
            const long long place = centre + tap - half;
            if (place >= 0 && place < frames) sum += row[tap] * source.samples[place];
        }
        result->samples[k] = float(sum);
    }
    return result;
}

} // namespace selva_plugin

#endif
