// Optimisers, their loss scaling, and the moving average, over flat buffers in f32.
//
// Each block updates a chunk of one tensor. `state` is an array of six floats on the device, so that no step waits for the host.
// UNSCALE is the factor that removes the loss scale from the gradients of this update.
enum { SCALE, GOOD, SKIP, SKIPPED, TAKEN, UNSCALE };

struct Chunk {
    int offset, length, tensor, weight, moves;
};

// The mean gradient over the batches of an update: `g` is the sum of their gradients, and `share` is one over their number. The
// first `scaled` elements of `g` carry the loss scale.
#define GRADIENTS const float *g, int scaled, float share
DEVICE float gradient(int i, const float *state, GRADIENTS) {
    return g[i] * (i < scaled ? state[UNSCALE] : 1.0f) * share;
}

// The buffers that the pass over the parameters also updates. Each pointer may be null.
// target: the average of the first `shared` parameters, target <- keep target + take p.
// narrow, narrow_target: copies of the first `encoder` parameters, and of their average, in the encoder's storage type.
#define FOLLOWERS float *target, int shared, float keep, float take, scalar *narrow, scalar *narrow_target, int encoder
DEVICE void follow(int i, float p, FOLLOWERS) {
    if (narrow && i < encoder) from_float(narrow[i], p);
    if (!target || i >= shared) return;
    // `product` prevents fused multiply-adds. So the average has the same bits in every kernel, with a step or by itself.
    float average = product(keep, target[i]) + product(take, p);
    target[i] = average;
    if (narrow_target && i < encoder) from_float(narrow_target[i], average);
}
#define FOLLOW(i, p) follow(i, p, target, shared, keep, take, narrow, narrow_target, encoder)

// Loops over the elements i of the block's chunk. `moves` is whether the tensor is trained and the update is not skipped. The
// buffers of FOLLOW are updated either way.
#define EACH_OF_CHUNK(i)                                                                                               \
    Chunk chunk = chunks[blockIdx.x];                                                                                  \
    bool moves = chunk.moves && state[SKIP] == 0.0f;                                                                   \
    for (int i = chunk.offset + (int)threadIdx.x; i < chunk.offset + chunk.length; i += 256)

// m <- mu m + (g + wd p), p <- p - lr m; tensors of one axis are not decayed.
KERNEL(sgd_step)(const Chunk *chunks, const float *state, float *p, GRADIENTS, float *m, FOLLOWERS, float lr, float mu,
                 float wd) {
    EACH_OF_CHUNK(i) {
        float value = p[i];
        if (moves) {
            float moment = mu * m[i] + (gradient(i, state, g, scaled, share) + (chunk.weight ? wd : 0.0f) * value);
            m[i] = moment;
            p[i] = value = value - lr * moment;
        }
        FOLLOW(i, value);
    }
}

// The coefficients that depend on the number of updates so far: rate, correction.
KERNEL(adamw_prepare)(const float *state, double lr, double beta1, double beta2, float *coefficients) {
    if (threadIdx.x > 0) return;
    double steps = state[TAKEN];
    coefficients[0] = (float)(lr / (1.0 - pow(beta1, steps)));
    coefficients[1] = (float)(1.0 / sqrt(1.0 - pow(beta2, steps)));
}

KERNEL(adamw_step)(const Chunk *chunks, const float *state, float *p, GRADIENTS, float *m, FOLLOWERS, float *v,
                   const float *coefficients, float decay, float b1, float c1, float b2, float c2, float eps) {
    EACH_OF_CHUNK(i) {
        float value = p[i];
        if (moves) {
            float slope = gradient(i, state, g, scaled, share);
            m[i] = b1 * m[i] + c1 * slope;
            v[i] = b2 * v[i] + c2 * slope * slope;
            p[i] = value = value * decay - coefficients[0] * m[i] / (sqrtf(v[i]) * coefficients[1] + eps);
        }
        FOLLOW(i, value);
    }
}

// Per chunk: squared norms of p and of g + wd p, [chunks, 2].
KERNEL(lars_norms)(const Chunk *chunks, const float *state, const float *p, GRADIENTS, float wd, double *norms) {
    SHARED double shared[2][256];
    Chunk chunk = chunks[blockIdx.x];
    double p_norm = 0.0, d_norm = 0.0;
    for (int i = chunk.offset + (int)threadIdx.x; i < chunk.offset + chunk.length; i += 256) {
        double d = (double)(gradient(i, state, g, scaled, share) + wd * p[i]);
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

// Per tensor: eta |p| / |d|, or 1 if either is zero or the tensor has one axis. The chunks of a tensor are consecutive.
KERNEL(lars_trust)(const Chunk *chunks, int count, const double *norms, double eta, float *trust) {
    // There is a warp per chunk. Only the warp of a tensor's first chunk continues, and adds up all chunks of the tensor.
    int first = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (first >= count || (first > 0 && chunks[first - 1].tensor == chunks[first].tensor)) return;
    double p_norm = 0.0, d_norm = 0.0;
    for (int i = first + lane; i < count && chunks[i].tensor == chunks[first].tensor; i += 32) {
        p_norm += norms[2 * i];
        d_norm += norms[2 * i + 1];
    }
    for (int step = 16; step > 0; step /= 2) {
        p_norm += warp_value(p_norm, lane ^ step);
        d_norm += warp_value(d_norm, lane ^ step);
    }
    if (lane > 0) return;
    bool scales = chunks[first].weight && p_norm > 0.0 && d_norm > 0.0;
    trust[chunks[first].tensor] = scales ? (float)(eta * sqrt(p_norm) / sqrt(d_norm)) : 1.0f;
}

KERNEL(lars_step)(const Chunk *chunks, const float *state, float *p, GRADIENTS, float *m, FOLLOWERS, const float *trust,
                  float lr, float mu, float wd) {
    EACH_OF_CHUNK(i) {
        float value = p[i];
        if (moves) {
            float slope = gradient(i, state, g, scaled, share) + (chunk.weight ? wd : 0.0f) * value;
            float moment = mu * m[i] + slope * trust[chunk.tensor];
            m[i] = moment;
            p[i] = value = value - lr * moment;
        }
        FOLLOW(i, value);
    }
}

// Updates the average and the copies when the parameters have not changed.
KERNEL(follow_all)(const float *p, int length, FOLLOWERS) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) FOLLOW(i, p[i]);
}

// values *= the loss scale.
KERNEL(scale)(float *values, int length, const float *state) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) values[i] *= state[SCALE];
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

// Runs before an update. Decides whether the update is skipped, and sets the loss scale of the next step: it is halved (down to
// 1) if a gradient overflowed, and doubled (up to 2^24) after `growth_interval` consecutive updates without overflow. Without
// `found`, no update is skipped and the scale stays.
KERNEL(begin_update)(const int *found, int blocks, int growth_interval, float *state) {
    if (threadIdx.x > 0) return;
    int skip = 0;
    for (int i = 0; found && i < blocks; i++) skip |= found[i];
    state[SKIP] = (float)skip;
    state[UNSCALE] = 1.0f / state[SCALE];
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
