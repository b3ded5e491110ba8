// Optimisers, their loss scaling, and the moving average, over flat buffers in f32.
//
// A block has a chunk of one tensor. `state` is five floats on the device, so that no step waits for the host:
enum { SCALE, GOOD, SKIP, SKIPPED, TAKEN };

struct Chunk {
    int offset, length, tensor, weight;
};

#define EACH_OF_CHUNK(i)                                                                                               \
    Chunk chunk = chunks[blockIdx.x];                                                                                  \
    if (state[SKIP] != 0.0f) return;                                                                                   \
    for (int i = chunk.offset + (int)threadIdx.x; i < chunk.offset + chunk.length; i += 256)

// m <- mu m + (g + wd p), p <- p - lr m; tensors of one axis are not decayed.
KERNEL(sgd_step)(const Chunk *chunks, const float *state, float *p, const float *g, float *m, float lr, float mu, float wd) {
    EACH_OF_CHUNK(i) {
        float moment = mu * m[i] + (g[i] + (chunk.weight ? wd : 0.0f) * p[i]);
        m[i] = moment;
        p[i] -= lr * moment;
    }
}

// Coefficients that depend on how many steps were taken: rate, correction.
KERNEL(adamw_prepare)(const float *state, double lr, double beta1, double beta2, float *coefficients) {
    if (threadIdx.x > 0) return;
    double steps = state[TAKEN];
    coefficients[0] = (float)(lr / (1.0 - pow(beta1, steps)));
    coefficients[1] = (float)(1.0 / sqrt(1.0 - pow(beta2, steps)));
}

KERNEL(adamw_step)(const Chunk *chunks, const float *state, float *p, const float *g, float *m, float *v,
                   const float *coefficients, float keep, float b1, float c1, float b2, float c2, float eps) {
    EACH_OF_CHUNK(i) {
        m[i] = b1 * m[i] + c1 * g[i];
        v[i] = b2 * v[i] + c2 * g[i] * g[i];
        p[i] = p[i] * keep - coefficients[0] * m[i] / (sqrtf(v[i]) * coefficients[1] + eps);
    }
}

// Per chunk: squared norms of p and of g + wd p, [chunks, 2].
KERNEL(lars_norms)(const Chunk *chunks, const float *p, const float *g, float wd, double *norms) {
    SHARED double shared[2][256];
    Chunk chunk = chunks[blockIdx.x];
    double p_norm = 0.0, d_norm = 0.0;
    for (int i = chunk.offset + (int)threadIdx.x; i < chunk.offset + chunk.length; i += 256) {
        double d = (double)(g[i] + wd * p[i]);
        p_norm += (double)p[i] * (double)p[i];
        d_norm += d * d;
    }
    shared[0][threadIdx.x] = p_norm;
    shared[1][threadIdx.x] = d_norm;
    __syncthreads();
    for (int width = 128; width > 0; width /= 2) {
        if (threadIdx.x < width)
            for (int i = 0; i < 2; i++) shared[i][threadIdx.x] += shared[i][threadIdx.x + width];
        __syncthreads();
    }
    if (threadIdx.x < 2) norms[2 * blockIdx.x + threadIdx.x] = shared[threadIdx.x][0];
}

// Per tensor: eta |p| / |d|, or 1 where either is zero and for tensors of one axis. A tensor's chunks are neighbours.
KERNEL(lars_trust)(const Chunk *chunks, int count, const double *norms, double eta, float *trust) {
    int first = blockIdx.x * 256 + threadIdx.x;
    if (first >= count || (first > 0 && chunks[first - 1].tensor == chunks[first].tensor)) return;
    double p_norm = 0.0, d_norm = 0.0;
    for (int i = first; i < count && chunks[i].tensor == chunks[first].tensor; i++) {
        p_norm += norms[2 * i];
        d_norm += norms[2 * i + 1];
    }
    bool scales = chunks[first].weight && p_norm > 0.0 && d_norm > 0.0;
    trust[chunks[first].tensor] = scales ? (float)(eta * sqrt(p_norm) / sqrt(d_norm)) : 1.0f;
}

KERNEL(lars_step)(const Chunk *chunks, const float *state, float *p, const float *g, float *m, const float *trust,
                  float lr, float mu, float wd) {
    EACH_OF_CHUNK(i) {
        float moment = mu * m[i] + (g[i] + (chunk.weight ? wd : 0.0f) * p[i]) * trust[chunk.tensor];
        m[i] = moment;
        p[i] -= lr * moment;
    }
}

// target <- keep target + take source
KERNEL(ema)(float *target, const float *source, int length, float keep, float take) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256)
        target[i] = keep * target[i] + take * source[i];
}

// values *= factor, and divided by the loss scale where `unscale`, multiplied by it where `rescale`.
KERNEL(scale)(float *values, int length, float factor, const float *state, int unscale, int rescale) {
    if (unscale) factor /= state[SCALE];
    if (rescale) factor *= state[SCALE];
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) values[i] *= factor;
}

// Per block: whether any value is infinite or NaN.
KERNEL(find_non_finite)(const float *values, int length, int *found) {
    SHARED int any[256];
    int mine = 0;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256)
        mine |= !(values[i] - values[i] == 0.0f);
    any[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < 256; i++) mine |= any[i];
    found[blockIdx.x] = mine;
}

// Before an update: whether it is skipped, and the loss scale from then on: halved when something overflowed, doubled
// after so many steps in a row that did not. Without `found` no update is skipped.
KERNEL(begin_update)(const int *found, int blocks, int growth_interval, float *state) {
    if (threadIdx.x > 0) return;
    int skip = 0;
    for (int i = 0; found && i < blocks; i++) skip |= found[i];
    state[SKIP] = (float)skip;
    if (skip) {
        state[SCALE] = state[SCALE] > 1.0f ? state[SCALE] / 2.0f : 1.0f;
        state[GOOD] = 0.0f;
        state[SKIPPED] += 1.0f;
        return;
    }
    state[TAKEN] += 1.0f;
    state[GOOD] += 1.0f;
    if (found && state[GOOD] >= growth_interval) {
        state[GOOD] = 0.0f;
        if (state[SCALE] < 16777216.0f) state[SCALE] *= 2.0f;
    }
}
