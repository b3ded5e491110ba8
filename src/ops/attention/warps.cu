// Attention in 16 bits for heads of at most 64 columns, a multiple of a 16-byte load. A warp has 16 queries, or 16 keys, and
// keeps their values in registers: logits become weights, and weights a factor of the next product, without going through
// memory. Compiled after `attention.cu`, for storages of 16 bits.

#if MATH >= 2

// Rows of a warp and of a block; keys or queries of a step.
const int WARP_ROWS = 16, BLOCK_ROWS = 8 * WARP_ROWS, OTHERS = 64;
// Keys or queries of a step whose logits are in registers at the same time in the backward pass.
const int SOME = 32;

// Offset of element (row, c) in a tile.
template <int D> DEVICE int place(int row, int c) { return Swizzled<OTHERS, D, true>::place(row, c); }

// Starts copying the rows from `first` on to a tile. Rows beyond the tokens and columns beyond the head are zero.
template <int ROWS, int D>
DEVICE void bring(const Head &head, const scalar *from, int stride, int first, scalar *tile) {
    for (int i = threadIdx.x; i < ROWS * D / WIDE; i += 256) {
        int row = i / (D / WIDE), c = i % (D / WIDE) * WIDE;
        bool there = first + row < head.tokens && c < head.dim;
        copy_later(tile + place<D>(row, c), there ? from + (size_t)(first + row) * stride + c : nullptr);
    }
}

DEVICE unsigned int both(float first, float second) {
    scalar values[2];
    from_float(values[0], first);
    from_float(values[1], second);
    return values[0].bits | (unsigned int)values[1].bits << 16;
}

DEVICE void multiply_add(float (&sums)[4], const unsigned int (&a)[4], unsigned int first, unsigned int second) {
    unsigned int b[2] = {first, second};
#if MATH == 2
    mma_m16n8k16_f16(sums, a, b);
#else
    mma_m16n8k16_bf16(sums, a, b);
#endif
}

// The warp's rows of a tile as left operand of products over the columns.
template <int D> struct Own {
    unsigned int words[D / 16][4];

    DEVICE_MEMBER void load(const scalar *tile) {
        int lane = threadIdx.x % 32, row = threadIdx.x / 32 * WARP_ROWS + lane % 16;
#pragma unroll
        for (int k = 0; k < D / 16; k++) load_matrices(words[k], tile + place<D>(row, k * 16 + lane / 16 * 8));
    }

    // sums [16, 8 N] = products with the rows of a tile from `first` on.
    template <int N> DEVICE_MEMBER void multiply(const scalar *tile, int first, float (&sums)[N][4]) const {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            for (int e = 0; e < 4; e++) sums[n][e] = sums[n + 1][e] = 0.0f;
            int row = first + n * 8 + lane / 16 * 8 + lane % 8;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                unsigned int b[4];
                load_matrices(b, tile + place<D>(row, k * 16 + lane / 8 % 2 * 8));
                multiply_add(sums[n], words[k], b[0], b[1]);
                multiply_add(sums[n + 1], words[k], b[2], b[3]);
            }
        }
    }
};

// The warp's rows of a result [16, D].
template <int D> struct Result {
    float sums[D / 8][4];

    DEVICE_MEMBER void clear() {
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            for (int e = 0; e < 4; e++) sums[n][e] = 0.0f;
    }

    // sums += factors [16, 8 N] times rows of a tile, from `first` on.
    template <int N> DEVICE_MEMBER void add(const float (&factors)[N][4], const scalar *tile, int first) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < N / 2; k++) {
            const float(&left)[4] = factors[2 * k], (&right)[4] = factors[2 * k + 1];
            unsigned int a[4] = {both(left[0], left[1]), both(left[2], left[3]), both(right[0], right[1]), both(right[2], right[3])};
            int row = first + k * 16 + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                unsigned int b[4];
                load_turned_matrices(b, tile + place<D>(row, n * 8 + lane / 16 * 8));
                multiply_add(sums[n], a, b[0], b[1]);
                multiply_add(sums[n + 1], a, b[2], b[3]);
            }
        }
    }

    // Writes its rows, each times its factor, to the tokens from `first` on.
    DEVICE_MEMBER void write(const Head &head, int first, const float (&factors)[2], scalar *to, int stride) const {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = first + lane / 4 + h * 8;
            if (row >= head.tokens) continue;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                int c = n * 8 + lane % 4 * 2;
                if (c >= head.dim) continue;
                unsigned int values = both(sums[n][2 * h] * factors[h], sums[n][2 * h + 1] * factors[h]);
                *(unsigned int *)(to + (size_t)row * stride + c) = values;
            }
        }
    }
};

// Maximum and sum over the four threads that share a row.
DEVICE float largest_of_four(float value) {
    for (int step = 1; step < 4; step *= 2) {
        float other = warp_value(value, (int)(threadIdx.x % 32) ^ step);
        value = other > value ? other : value;
    }
    return value;
}
DEVICE float sum_of_four(float value) {
    for (int step = 1; step < 4; step *= 2) value += warp_value(value, (int)(threadIdx.x % 32) ^ step);
    return value;
}

// Shared memory of a kernel: the two tiles of each of two steps. The block's own rows are loaded to the same memory first.
template <int D> struct Stages {
    scalar tiles[2][2][OTHERS * D];
};

// Goes through the rows of two tensors in steps. While `body` works on two tiles, the next ones are being copied. `body` gets
// the two tiles and the number of their first row.
template <int D, class Body>
DEVICE void each_step(const Head &head, const scalar *a, int stride_a, const scalar *b, int stride_b, Stages<D> &stages, const Body &body) {
    int stage = 0;
    bring<OTHERS, D>(head, a, stride_a, 0, stages.tiles[0][0]);
    bring<OTHERS, D>(head, b, stride_b, 0, stages.tiles[0][1]);
    end_of_copies();
    for (int first = 0; first < head.tokens; first += OTHERS, stage ^= 1) {
        if (first + OTHERS < head.tokens) {
            bring<OTHERS, D>(head, a, stride_a, first + OTHERS, stages.tiles[stage ^ 1][0]);
            bring<OTHERS, D>(head, b, stride_b, first + OTHERS, stages.tiles[stage ^ 1][1]);
        }
        end_of_copies();
        wait_for_copies<1>();
        __syncthreads();
        body(stages.tiles[stage][0], stages.tiles[stage][1], first);
        __syncthreads(); // all threads are done with the tiles
    }
}

// Starts copying the block's own rows of a tensor to the memory of two tiles.
template <int D> DEVICE void bring_own(const Head &head, const scalar *from, int stride, scalar (&tiles)[2][OTHERS * D]) {
    bring<BLOCK_ROWS, D>(head, from, stride, blockIdx.y * BLOCK_ROWS, tiles[0]);
}

// Waits until the copies of all threads have arrived.
DEVICE void wait_for_all_copies() {
    end_of_copies();
    wait_for_copies<0>();
    __syncthreads();
}

const float LOG2_E = 1.44269504f;

// The forward pass, with the results of `forward`.
template <int D>
DEVICE void forward_of_warps(int tokens, int heads, int dim, float scale, const scalar *qkv, scalar *y, float *logs, Stages<D> &stages) {
    Head head;
    head.set(qkv, tokens, heads, dim, D);
    int lane = threadIdx.x % 32, stride = 3 * head.width, m = blockIdx.y * BLOCK_ROWS + threadIdx.x / 32 * WARP_ROWS;
    Own<D> q;
    bring_own<D>(head, head.q, stride, stages.tiles[0]);
    wait_for_all_copies();
    q.load(stages.tiles[0][0]);
    __syncthreads(); // the tiles may be overwritten
    Result<D> sums;
    sums.clear();
    float largest[2] = {-infinity(), -infinity()}, total[2] = {0.0f, 0.0f}, by = scale * LOG2_E;
    each_step<D>(head, head.k, stride, head.v, stride, stages, [&](const scalar *k, const scalar *v, int n) {
        float s[OTHERS / 8][4];
        q.multiply(k, 0, s);
        float most[2] = {-infinity(), -infinity()};
#pragma unroll
        for (int j = 0; j < OTHERS / 8; j++)
            for (int e = 0; e < 4; e++) {
                if (n + j * 8 + lane % 4 * 2 + e % 2 >= tokens) s[j][e] = -infinity();
                if (s[j][e] > most[e / 2]) most[e / 2] = s[j][e];
            }
        for (int h = 0; h < 2; h++) {
            float now = largest_of_four(most[h]);
            now = now > largest[h] ? now : largest[h];
            float factor = exp2f((largest[h] - now) * by);
            largest[h] = now;
            total[h] *= factor;
#pragma unroll
            for (int j = 0; j < D / 8; j++) sums.sums[j][2 * h] *= factor, sums.sums[j][2 * h + 1] *= factor;
        }
#pragma unroll
        for (int j = 0; j < OTHERS / 8; j++)
            for (int e = 0; e < 4; e++) {
                s[j][e] = exp2f((s[j][e] - largest[e / 2]) * by);
                total[e / 2] += s[j][e];
            }
        sums.add(s, v, 0);
    });
    float factors[2];
    for (int h = 0; h < 2; h++) {
        total[h] = sum_of_four(total[h]);
        factors[h] = 1.0f / total[h];
        int row = m + lane / 4 + h * 8;
        if (logs && lane % 4 == 0 && row < tokens) logs[(size_t)blockIdx.x * tokens + row] = largest[h] * scale + logf(total[h]);
    }
    sums.write(head, m, factors, y + head.place(heads, 1), head.width);
}

// The gradient of the queries.
template <int D>
DEVICE void queries_of_warps(int tokens, int heads, int dim, float scale, const scalar *qkv, const scalar *gy, const float *logs,
                             const float *along, scalar *g_qkv, Stages<D> &stages) {
    Head head;
    head.set(qkv, tokens, heads, dim, D);
    int lane = threadIdx.x % 32, stride = 3 * head.width, m = blockIdx.y * BLOCK_ROWS + threadIdx.x / 32 * WARP_ROWS;
    Own<D> q, g;
    bring_own<D>(head, head.q, stride, stages.tiles[0]);
    bring_own<D>(head, gy + head.place(heads, 1), head.width, stages.tiles[1]);
    wait_for_all_copies();
    q.load(stages.tiles[0][0]);
    g.load(stages.tiles[1][0]);
    __syncthreads(); // the tiles may be overwritten
    float log[2], mean[2];
    for (int h = 0; h < 2; h++) {
        int row = m + lane / 4 + h * 8;
        log[h] = row < tokens ? logs[(size_t)blockIdx.x * tokens + row] : 0.0f;
        mean[h] = row < tokens ? along[(size_t)blockIdx.x * tokens + row] : 0.0f;
    }
    Result<D> sums;
    sums.clear();
    each_step<D>(head, head.k, stride, head.v, stride, stages, [&](const scalar *k, const scalar *v, int n) {
        for (int some = 0; some < OTHERS; some += SOME) {
            float s[SOME / 8][4], slopes[SOME / 8][4];
            q.multiply(k, some, s);
            g.multiply(v, some, slopes);
#pragma unroll
            for (int j = 0; j < SOME / 8; j++)
                for (int e = 0; e < 4; e++) {
                    bool there = n + some + j * 8 + lane % 4 * 2 + e % 2 < tokens;
                    float weight = there ? exp2f((s[j][e] * scale - log[e / 2]) * LOG2_E) : 0.0f;
                    slopes[j][e] = weight * (slopes[j][e] - mean[e / 2]) * scale;
                }
            sums.add(slopes, k, some);
        }
    });
    float ones[2] = {1.0f, 1.0f};
    sums.write(head, m, ones, g_qkv + head.place(heads, 3), stride);
}

// The gradients of keys and values.
template <int D>
DEVICE void keys_of_warps(int tokens, int heads, int dim, float scale, const scalar *qkv, const scalar *gy, const float *logs,
                          const float *along, scalar *g_qkv, Stages<D> &stages) {
    Head head;
    head.set(qkv, tokens, heads, dim, D);
    int lane = threadIdx.x % 32, stride = 3 * head.width, n = blockIdx.y * BLOCK_ROWS + threadIdx.x / 32 * WARP_ROWS;
    Own<D> k, v;
    bring_own<D>(head, head.k, stride, stages.tiles[0]);
    bring_own<D>(head, head.v, stride, stages.tiles[1]);
    wait_for_all_copies();
    k.load(stages.tiles[0][0]);
    v.load(stages.tiles[1][0]);
    __syncthreads(); // the tiles may be overwritten
    logs += (size_t)blockIdx.x * tokens;
    along += (size_t)blockIdx.x * tokens;
    Result<D> keys, values;
    keys.clear();
    values.clear();
    each_step<D>(head, head.q, stride, gy + head.place(heads, 1), head.width, stages, [&](const scalar *q, const scalar *g, int m) {
        for (int some = 0; some < OTHERS; some += SOME) {
            float weights[SOME / 8][4], slopes[SOME / 8][4];
            k.multiply(q, some, weights);
            v.multiply(g, some, slopes);
#pragma unroll
            for (int j = 0; j < SOME / 8; j++)
                for (int e = 0; e < 2; e++) { // the thread's two keys share the query
                    int query = m + some + j * 8 + lane % 4 * 2 + e;
                    bool there = query < tokens;
                    float log = there ? logs[query] : 0.0f, mean = there ? along[query] : 0.0f;
                    for (int i = e; i < 4; i += 2) {
                        weights[j][i] = there ? exp2f((weights[j][i] * scale - log) * LOG2_E) : 0.0f;
                        slopes[j][i] = weights[j][i] * (slopes[j][i] - mean) * scale;
                    }
                }
            values.add(weights, g, some);
            keys.add(slopes, q, some);
        }
    });
    float ones[2] = {1.0f, 1.0f};
    scalar *to = g_qkv + head.place(heads, 3);
    keys.write(head, n, ones, to + head.width, stride);
    values.write(head, n, ones, to + 2 * head.width, stride);
}

#define WARP_PASSES(D)                                                                                                         \
    KERNEL_OF_TWO(attention_warps_forward_##D)(int tokens, int heads, int dim, float scale, const scalar *qkv, scalar *y,      \
                                               float *logs) {                                                                  \
        SHARED Stages<D> stages;                                                                                               \
        forward_of_warps<D>(tokens, heads, dim, scale, qkv, y, logs, stages);                                                  \
    }                                                                                                                          \
    KERNEL_OF_TWO(attention_warps_queries_##D)(int tokens, int heads, int dim, float scale, const scalar *qkv,                 \
                                               const scalar *gy, const float *logs, const float *along, scalar *g_qkv) {       \
        SHARED Stages<D> stages;                                                                                               \
        queries_of_warps<D>(tokens, heads, dim, scale, qkv, gy, logs, along, g_qkv, stages);                                   \
    }                                                                                                                          \
    KERNEL(attention_warps_keys_##D)(int tokens, int heads, int dim, float scale, const scalar *qkv, const scalar *gy,         \
                                     const float *logs, const float *along, scalar *g_qkv) {                                   \
        SHARED Stages<D> stages;                                                                                               \
        keys_of_warps<D>(tokens, heads, dim, scale, qkv, gy, logs, along, g_qkv, stages);                                      \
    }

WARP_PASSES(32)
WARP_PASSES(64)

#endif
