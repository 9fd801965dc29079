// What a solver does to the state of the flow between two runs of the network, one thread per number.
// Floats are float32; (B, T, Z) arrays are contiguous; `size` is B * T * Z. kernels.ptx is made from this file by
// `python -m selva_bench.gpu.compile_kernels`.

// state = (1 - w) state + w known, with the weight w of each of the `length` rows T. `known` is not read where w is 0.
extern "C" __global__ void blend(float* state, const float* known, const float* weights, unsigned size,
                                 unsigned length, unsigned width) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    const float w = weights[i / width % length];
    if (w > 0.0f) state[i] = (1.0f - w) * state[i] + w * known[i];
}

// state = next + gain (change - last change), where change = next - state. The change is kept for the next call.
// With the gain 0 it is next itself, and the last change is not read.
extern "C" __global__ void advance(float* state, const float* next, float* last, const float* gain, unsigned size) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    const float change = next[i] - state[i];
    const float g = *gain;
    state[i] = g > 0.0f ? next[i] + g * (change - last[i]) : next[i];
    last[i] = change;
}
