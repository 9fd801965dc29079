// Uses the plug-in's generator as a host would; one command a line of stdin. What an audio callback would call is
// called under the guard of rt_guard.h.
#ifdef WITHOUT_GUARD // a sanitizer replaces malloc itself
static int guard;
#else
#include "rt_guard.h"
#endif

#include "generator.hpp"
#include "resample.hpp"

#include <chrono>
#include <cstdio>
#include <algorithm>
#include <iostream>
#include <memory>
#include <sstream>
#include <vector>

using namespace selva_plugin;

static void play(Generator &generator, std::istream &words) {
    std::string file;
    long long position;
    uint32_t count, block;
    words >> file >> position >> count >> block;
    std::vector<float> left(count, 9.f), right(count, 9.f);
    for (uint32_t done = 0; done < count; done += block) {
        const uint32_t size = std::min(block, count - done);
        guard = 1;
        generator.play(&left[done], &right[done], size, position + done);
        guard = 0;
    }
    if (left != right) std::puts("channels differ");
    FILE *out = std::fopen(file.c_str(), "wb");
    std::fwrite(left.data(), sizeof(float), count, out);
    std::fclose(out);
}

// Plays all the time on a thread of its own, as a host's audio thread does, while `number` changes are made on this one.
static void race(Generator &generator, int number) {
    std::atomic<bool> stop{false};
    std::thread audio([&] {
        float left[64], right[64];
        for (int block = 0; !stop; block++) {
            generator.press(block / 50 % 2);
            generator.play(left, right, 64, block % 20 * 64);
        }
    });
    const std::string stem = generator.get("stem");
    for (int k = 0; k < number; k++) {
        generator.set("position_s", k % 2 ? "0.01" : "0");
        generator.set_rate(k % 3 ? 48000 : 44100);
        generator.set("stem", k % 5 ? stem : "");
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    stop = true;
    audio.join();
}

static void wait_for(Generator &generator, int status) {
    for (int k = 0; k < 3000 && generator.status != status; k++) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::string message = generator.get("message");
    std::replace(message.begin(), message.end(), '\n', ' ');
    std::printf("%d %g %s\n", int(generator.status), double(generator.progress), message.c_str());
}

static int resample(const char *from, const char *to, int rate_hz) {
    char why[SELVA_TEXT];
    selva_audio *source = selva_read_wav(from, why), *result = source ? resampled(*source, rate_hz) : nullptr;
    if (!result) return 2;
    FILE *out = std::fopen(to, "wb");
    std::fwrite(result->samples, sizeof(float), result->frames, out);
    std::fclose(out);
    selva_audio_free(source);
    selva_audio_free(result);
    return 0;
}

int main(int count, char **words) {
    if (count == 4) return resample(words[1], words[2], std::atoi(words[3]));
    if (count == 2) { // whether the guard works
        static std::mutex mutex;
        guard = 1;
        if (std::string(words[1]) == "lock") mutex.lock();
        else words[0] = new char[2];
        return 0;
    }
    std::vector<std::unique_ptr<Generator>> all;
    size_t chosen = 0;
    std::string line, command, key, value;
    while (std::getline(std::cin, line)) {
        std::istringstream rest(line);
        rest >> command;
        if (command == "new") {
            double rate_hz;
            rest >> rate_hz;
            chosen = all.size();
            all.emplace_back(new Generator(rate_hz));
            continue;
        }
        Generator &generator = *all[chosen];
        int number = 0;
        if (command == "set") {
            rest >> key;
            std::getline(rest >> std::ws, value);
            generator.set(key, value);
        } else if (command == "get") {
            rest >> key;
            std::puts(generator.get(key).c_str());
        } else if (command == "play") {
            play(generator, rest);
        } else {
            rest >> number;
            guard = command == "press";
            if (command == "press") generator.press(number != 0);
            guard = 0;
            if (command == "choose") chosen = size_t(number);
            if (command == "seed") generator.seed = number;
            if (command == "rate") generator.set_rate(number);
            if (command == "wait") wait_for(generator, number);
            if (command == "race") race(generator, number);
            if (command == "sleep") std::this_thread::sleep_for(std::chrono::milliseconds(number));
        }
        std::fflush(stdout);
    }
}
