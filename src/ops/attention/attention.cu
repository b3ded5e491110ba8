// Softmax attention of several heads within each sample, tile by tile: no matrix of all weights exists. Queries, keys and values
// are stored as [samples, tokens, 3, heads, head width]. Compiled once per arithmetic, after `matmul.cuh`.
//
// A block has a sample's head (x), a tile of queries or keys (y) and D columns of the head's width (z). If heads are wider than
// D, each block still goes through all columns to compute the weights. Sums run in an order that the shapes alone determine.

// Keys per step, and queries per step or block of the backward pass: as many as shared memory has room for.
const int TILE = WIDE == 8 ? 64 : 32;
// Queries of a block in the forward pass.
const int ROWS = 64;

// A head of a sample: pointers to its elements in the first token.
struct Head {
    const scalar *q, *k, *v;
    int tokens, dim, width, chunks, own;

    DEVICE_MEMBER void set(const scalar *qkv, int tokens_, int heads, int dim_, int columns) {
        tokens = tokens_, dim = dim_, width = heads * dim_;
        q = qkv + (size_t)(blockIdx.x / heads) * tokens * 3 * width + blockIdx.x % heads * dim;
        k = q + width, v = k + width;
        chunks = (dim + columns - 1) / columns, own = blockIdx.z;
    }

    // Offset of the head's first element in a tensor [samples, tokens, parts, heads, head width].
    DEVICE_MEMBER size_t place(int heads, int parts) const {
        return (size_t)(blockIdx.x / heads) * tokens * parts * width + blockIdx.x % heads * dim;
    }

    // Loads columns c to c + D of the tokens from `first` on into a tile [SIZE][D + WIDE], with zeros beyond the tokens or the
    // head.
    template <int SIZE, int D>
    DEVICE_MEMBER void load(const scalar *from, int stride, int first, int c, scalar *tile) const {
        from += c;
        if (c + D <= dim && (size_t)from % 16 == 0 && stride % WIDE == 0) {
            for (int i = threadIdx.x; i < SIZE * D / WIDE; i += 256) {
                int row = i / (D / WIDE), at = i % (D / WIDE) * WIDE;
                Bits16 value = {{0, 0, 0, 0}};
                if (first + row < tokens) value = *(const Bits16 *)(from + (size_t)(first + row) * stride + at);
                *(Bits16 *)(tile + row * (D + WIDE) + at) = value;
            }
        } else {
            for (int i = threadIdx.x; i < SIZE * D; i += 256) {
                int row = i / D, at = i % D;
                scalar value;
                from_float(value, 0.0f);
                if (first + row < tokens && c + at < dim) value = from[(size_t)(first + row) * stride + at];
                tile[row * (D + WIDE) + at] = value;
            }
        }
    }
};

// A value per row of an accumulator A, kept by each thread that has a part of the row.
template <class A> struct PerRow {
    float values[A::TM][A::HALVES];

    DEVICE_MEMBER void fill(float value) {
        for (int i = 0; i < A::TM; i++)
            for (int h = 0; h < A::HALVES; h++) values[i][h] = value;
    }

    DEVICE_MEMBER void load(const float *from, int first, int tokens) {
        for (int i = 0; i < A::TM; i++)
            for (int h = 0; h < A::HALVES; h++) {
                int row = first + A::row(i, 2 * h);
                values[i][h] = row < tokens ? from[row] : 0.0f;
            }
    }

    // Combines the parts that threads have of each row: to their maximum, or to their sum in order.
    template <bool LARGEST> DEVICE_MEMBER void combine(float (*shares)[17]) {
        __syncthreads();
        for (int i = 0; i < A::TM; i++)
            for (int h = 0; h < A::HALVES; h++) shares[A::row(i, 2 * h)][A::slot()] = values[i][h];
        __syncthreads();
        for (int i = 0; i < A::TM; i++)
            for (int h = 0; h < A::HALVES; h++) {
                const float *parts = shares[A::row(i, 2 * h)];
                float value = parts[0];
                for (int s = 1; s < A::SLOTS; s++) value = LARGEST ? (parts[s] > value ? parts[s] : value) : value + parts[s];
                values[i][h] = value;
            }
    }
};

// y = softmax(q k^T scale) v, and in `logs`, unless it is null, the logarithm of each query's summed exponentials, [samples,
// heads, tokens]. Maximum and sum are those of the keys so far; sums so far are rescaled when the maximum grows.
template <int D>
DEVICE void forward(int tokens, int heads, int dim, float scale, const scalar *qkv, scalar *y, float *logs) {
    typedef Layout<D + WIDE, true> Deep;
    typedef Layout<D + WIDE, false> Flat;
    typedef Layout<TILE + WIDE, true> Weights;
    typedef Accumulator<ROWS, TILE> Scores;
    SHARED scalar q[ROWS * (D + WIDE)], k[TILE * (D + WIDE)], v[TILE * (D + WIDE)], weights[ROWS * (TILE + WIDE)];
    SHARED float shares[ROWS][17];
    Head head;
    head.set(qkv, tokens, heads, dim, D);
    int m = blockIdx.y * ROWS, stride = 3 * head.width;
    Scores s;
    Accumulator<ROWS, D> sums;
    PerRow<Scores> largest, total;
    sums.clear();
    largest.fill(-infinity());
    total.fill(0.0f);
    for (int n = 0; n < tokens; n += TILE) {
        s.clear();
        for (int i = 1; i <= head.chunks; i++) { // the block's own columns come last
            int c = (head.own + i) % head.chunks * D;
            __syncthreads();
            if (head.chunks > 1 || n == 0) head.load<ROWS, D>(head.q, stride, m, c, q);
            head.load<TILE, D>(head.k, stride, n, c, k);
            if (i == head.chunks) head.load<TILE, D>(head.v, stride, n, c, v);
            __syncthreads();
            s.template add<Deep, Deep, D>(q, k);
        }
        PerRow<Scores> most, sum;
        most.fill(-infinity());
#pragma unroll
        for (int i = 0; i < Scores::TM; i++)
#pragma unroll
            for (int j = 0; j < Scores::TN; j++)
#pragma unroll
                for (int e = 0; e < Scores::EACH; e++) {
                    float &best = most.values[i][e / 2], score = s.sums[i][j][e];
                    if (n + s.column(j, e) < tokens && score > best) best = score;
                }
        most.template combine<true>(shares);
        sum.fill(0.0f);
#pragma unroll
        for (int i = 0; i < Scores::TM; i++) {
            float factors[Scores::HALVES];
#pragma unroll
            for (int h = 0; h < Scores::HALVES; h++) {
                float before = largest.values[i][h], now = most.values[i][h] > before ? most.values[i][h] : before;
                factors[h] = expf((before - now) * scale);
                largest.values[i][h] = now;
                total.values[i][h] *= factors[h];
            }
#pragma unroll
            for (int j = 0; j < Scores::TN; j++)
#pragma unroll
                for (int e = 0; e < Scores::EACH; e++) {
                    int column = s.column(j, e);
                    float weight = n + column < tokens ? expf((s.sums[i][j][e] - largest.values[i][e / 2]) * scale) : 0.0f;
                    sum.values[i][e / 2] += weight;
                    from_float(weights[s.row(i, e) * (TILE + WIDE) + column], weight);
                }
#pragma unroll
            for (int j = 0; j < Accumulator<ROWS, D>::TN; j++)
#pragma unroll
                for (int e = 0; e < Scores::EACH; e++) sums.sums[i][j][e] *= factors[e / 2];
        }
        sum.template combine<false>(shares); // its barrier is also that for `weights`
        for (int i = 0; i < Scores::TM; i++)
            for (int h = 0; h < Scores::HALVES; h++) total.values[i][h] += sum.values[i][h];
        sums.template add<Weights, Flat, TILE>(weights, v);
    }
    y += head.place(heads, 1);
#pragma unroll
    for (int i = 0; i < Scores::TM; i++) {
#pragma unroll
        for (int j = 0; j < Accumulator<ROWS, D>::TN; j++)
#pragma unroll
            for (int e = 0; e < Scores::EACH; e++) {
                int row = m + sums.row(i, e), c = head.own * D + sums.column(j, e);
                if (row < tokens && c < dim) from_float(y[(size_t)row * head.width + c], sums.sums[i][j][e] / total.values[i][e / 2]);
            }
        for (int h = 0; h < Scores::HALVES; h++) {
            int row = m + s.row(i, 2 * h);
            if (logs && head.own == 0 && s.slot() == 0 && row < tokens)
                logs[(size_t)blockIdx.x * tokens + row] = largest.values[i][h] * scale + logf(total.values[i][h]);
        }
    }
}

// The dot product of each query's output and its gradient, [samples, heads, tokens]. Each warp computes one.
KERNEL(attention_along)(int tokens, int heads, int dim, int count, const scalar *y, const scalar *gy, float *along) {
    int i = blockIdx.x * 8 + threadIdx.x / 32;
    if (i >= count) return;
    int token = i / heads % tokens, head = i % heads, sample = i / heads / tokens;
    size_t at = (size_t)i * dim;
    float sum = 0.0f;
    for (int c = threadIdx.x % 32; c < dim; c += 32) sum += to_float(y[at + c]) * to_float(gy[at + c]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) along[((size_t)sample * heads + head) * tokens + token] = sum;
}

// Computations on a tile of queries and a tile of keys that both backward kernels share.
template <int D> struct Backward {
    typedef Layout<D + WIDE, true> Deep;
    typedef Layout<D + WIDE, false> Flat;
    typedef Accumulator<TILE, TILE> Scores;
    Head head;
    const scalar *gy;
    Scores s, g;

    // Computes the weights into s and the gradients of the logits into g, for the queries from m and the keys from n on. Leaves
    // the block's own columns of all four tiles in shared memory. `queries` and `keys` say whether their tiles differ from those
    // of the last call, and must be loaded.
    DEVICE_MEMBER void weights(int m, int n, bool queries, bool keys, float scale, const float *logs, const float *along,
                               scalar *q, scalar *k, scalar *v, scalar *gy_tile) {
        s.clear();
        g.clear();
        int stride = 3 * head.width;
        for (int i = 1; i <= head.chunks; i++) {
            int c = (head.own + i) % head.chunks * D;
            __syncthreads();
            if (queries || head.chunks > 1) {
                head.load<TILE, D>(head.q, stride, m, c, q);
                head.load<TILE, D>(gy, head.width, m, c, gy_tile);
            }
            if (keys || head.chunks > 1) {
                head.load<TILE, D>(head.k, stride, n, c, k);
                head.load<TILE, D>(head.v, stride, n, c, v);
            }
            __syncthreads();
            s.template add<Deep, Deep, D>(q, k);
            g.template add<Deep, Deep, D>(gy_tile, v);
        }
        PerRow<Scores> log, mean;
        log.load(logs, m, head.tokens);
        mean.load(along, m, head.tokens);
#pragma unroll
        for (int i = 0; i < Scores::TM; i++)
#pragma unroll
            for (int j = 0; j < Scores::TN; j++)
#pragma unroll
                for (int e = 0; e < Scores::EACH; e++) {
                    bool there = n + s.column(j, e) < head.tokens && m + s.row(i, e) < head.tokens;
                    float weight = there ? expf(s.sums[i][j][e] * scale - log.values[i][e / 2]) : 0.0f;
                    s.sums[i][j][e] = weight;
                    g.sums[i][j][e] = weight * (g.sums[i][j][e] - mean.values[i][e / 2]) * scale;
                }
    }

    // Stores an accumulator as a tile [TILE][TILE + WIDE].
    DEVICE_MEMBER static void store(const Scores &values, scalar *tile) {
#pragma unroll
        for (int i = 0; i < Scores::TM; i++)
#pragma unroll
            for (int j = 0; j < Scores::TN; j++)
#pragma unroll
                for (int e = 0; e < Scores::EACH; e++)
                    from_float(tile[values.row(i, e) * (TILE + WIDE) + values.column(j, e)], values.sums[i][j][e]);
    }

    // Writes the sums of the tokens from `first` on to the gradient of queries, keys or values.
    DEVICE_MEMBER void write(const Accumulator<TILE, D> &sums, int first, scalar *to) const {
#pragma unroll
        for (int i = 0; i < Accumulator<TILE, D>::TM; i++)
#pragma unroll
            for (int j = 0; j < Accumulator<TILE, D>::TN; j++)
#pragma unroll
                for (int e = 0; e < Scores::EACH; e++) {
                    int row = first + sums.row(i, e), c = head.own * D + sums.column(j, e);
                    if (row < head.tokens && c < head.dim) from_float(to[(size_t)row * 3 * head.width + c], sums.sums[i][j][e]);
                }
    }
};

// The gradient of the queries.
template <int D>
DEVICE void backward_queries(int tokens, int heads, int dim, float scale, const scalar *qkv, const scalar *gy,
                             const float *logs, const float *along, scalar *g_qkv) {
    SHARED scalar q[TILE * (D + WIDE)], k[TILE * (D + WIDE)], v[TILE * (D + WIDE)], g[TILE * (D + WIDE)];
    SHARED scalar tile[TILE * (TILE + WIDE)];
    Backward<D> pass;
    pass.head.set(qkv, tokens, heads, dim, D);
    pass.gy = gy + pass.head.place(heads, 1);
    logs += (size_t)blockIdx.x * tokens;
    along += (size_t)blockIdx.x * tokens;
    Accumulator<TILE, D> sums;
    sums.clear();
    int m = blockIdx.y * TILE;
    for (int n = 0; n < tokens; n += TILE) {
        pass.weights(m, n, n == 0, true, scale, logs, along, q, k, v, g);
        pass.store(pass.g, tile);
        __syncthreads();
        sums.template add<Layout<TILE + WIDE, true>, typename Backward<D>::Flat, TILE>(tile, k);
    }
    pass.write(sums, m, g_qkv + pass.head.place(heads, 3));
}

// The gradients of keys and values.
template <int D>
DEVICE void backward_keys(int tokens, int heads, int dim, float scale, const scalar *qkv, const scalar *gy,
                          const float *logs, const float *along, scalar *g_qkv) {
    SHARED scalar q[TILE * (D + WIDE)], k[TILE * (D + WIDE)], v[TILE * (D + WIDE)], g[TILE * (D + WIDE)];
    SHARED scalar tile[TILE * (TILE + WIDE)];
    typedef Layout<TILE + WIDE, false> Turned;
    Backward<D> pass;
    pass.head.set(qkv, tokens, heads, dim, D);
    pass.gy = gy + pass.head.place(heads, 1);
    logs += (size_t)blockIdx.x * tokens;
    along += (size_t)blockIdx.x * tokens;
    Accumulator<TILE, D> keys, values;
    keys.clear();
    values.clear();
    int n = blockIdx.y * TILE;
    for (int m = 0; m < tokens; m += TILE) {
        pass.weights(m, n, true, m == 0, scale, logs, along, q, k, v, g);
        pass.store(pass.s, tile);
        __syncthreads();
        values.template add<Turned, typename Backward<D>::Flat, TILE>(tile, g);
        __syncthreads();
        pass.store(pass.g, tile);
        __syncthreads();
        keys.template add<Turned, typename Backward<D>::Flat, TILE>(tile, q);
    }
    scalar *to = g_qkv + pass.head.place(heads, 3);
    pass.write(keys, n, to + pass.head.width);
    pass.write(values, n, to + 2 * pass.head.width);
}

#define PASSES(D)                                                                                                      \
    KERNEL(attention_forward_##D)(int tokens, int heads, int dim, float scale, const scalar *qkv, scalar *y,           \
                                  float *logs) {                                                                       \
        forward<D>(tokens, heads, dim, scale, qkv, y, logs);                                                           \
    }                                                                                                                  \
    KERNEL(attention_queries_##D)(int tokens, int heads, int dim, float scale, const scalar *qkv, const scalar *gy,    \
                                  const float *logs, const float *along, scalar *g_qkv) {                              \
        backward_queries<D>(tokens, heads, dim, scale, qkv, gy, logs, along, g_qkv);                                   \
    }                                                                                                                  \
    KERNEL(attention_keys_##D)(int tokens, int heads, int dim, float scale, const scalar *qkv, const scalar *gy,       \
                               const float *logs, const float *along, scalar *g_qkv) {                                 \
        backward_keys<D>(tokens, heads, dim, scale, qkv, gy, logs, along, g_qkv);                                      \
    }

PASSES(32)
PASSES(64)
