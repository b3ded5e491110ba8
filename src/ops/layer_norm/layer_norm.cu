// Layer norm of rows [rows, dim]. Each warp has one row; sums within it are in f32, in a fixed order. Compiled once per storage
// type; statistics and parameters are always f32. Needs `storage.cuh`, `parts.cuh` and `rows.cuh` in front of it.

// Calls `body` for the `dim` elements of a warp's row, as `each_pack` does.
template <class Body> DEVICE void in_row(int dim, bool wide, const Body &body) {
    each_pack(threadIdx.x % 32, 32, dim, wide, body);
}

// y = the normalised rows of x. Mean and 1 / sqrt(var + eps) of each row are written, or read if they are `given`.
KERNEL(ln_forward)(const scalar *x, int rows, int dim, const float *weight, const float *bias, int given,
                   float *statistics, scalar *y) {
    int row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    bool wide = dim % WIDE == 0 && begin_wide(x, y);
    x += (size_t)row * dim;
    y += (size_t)row * dim;
    statistics += (size_t)row * 2;
    float mean, inv_std;
    if (given) {
        mean = statistics[0];
        inv_std = statistics[1];
    } else {
        float sum = 0.0f, squares = 0.0f;
        in_row(dim, wide, [&](auto pack, int c) {
            auto values = pack.at(x + c);
            for (int e = 0; e < pack.COUNT; e++) sum += values[e];
        });
        mean = warp_sum(sum) / (float)dim;
        in_row(dim, wide, [&](auto pack, int c) {
            auto values = pack.at(x + c);
            for (int e = 0; e < pack.COUNT; e++) {
                float d = values[e] - mean;
                squares += d * d;
            }
        });
        inv_std = 1.0f / sqrtf(warp_sum(squares) / (float)dim + 1e-6f);
        if (threadIdx.x % 32 == 0) {
            statistics[0] = mean;
            statistics[1] = inv_std;
        }
    }
    in_row(dim, wide, [&](auto pack, int c) {
        auto values = pack.at(x + c);
        for (int e = 0; e < pack.COUNT; e++) values.set(e, (values[e] - mean) * inv_std * weight[c + e] + bias[c + e]);
        values.store(y + c);
    });
}

// gx = inv_std (g - mean(g) - xhat mean(g xhat)) with g = gy weight. The result is added to gx if `accumulate` is set.
KERNEL(ln_backward)(const scalar *x, const float *statistics, int rows, int dim, const float *weight, const scalar *gy,
                    int accumulate, scalar *gx) {
    int row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= rows) return;
    bool wide = dim % WIDE == 0 && begin_wide(x, gy, gx);
    x += (size_t)row * dim;
    gy += (size_t)row * dim;
    gx += (size_t)row * dim;
    float mean = statistics[(size_t)row * 2], inv_std = statistics[(size_t)row * 2 + 1], sum = 0.0f, along = 0.0f;
    in_row(dim, wide, [&](auto pack, int c) {
        auto values = pack.at(x + c), slopes = pack.at(gy + c);
        for (int e = 0; e < pack.COUNT; e++) {
            float g = slopes[e] * weight[c + e];
            sum += g;
            along += g * ((values[e] - mean) * inv_std);
        }
    });
    sum = warp_sum(sum) / (float)dim;
    along = warp_sum(along) / (float)dim;
    in_row(dim, wide, [&](auto pack, int c) {
        auto values = pack.at(x + c), slopes = pack.at(gy + c), results = values;
        if (accumulate) results = pack.at(gx + c);
        for (int e = 0; e < pack.COUNT; e++) {
            float normalised = (values[e] - mean) * inv_std;
            float result = inv_std * (slopes[e] * weight[c + e] - sum - normalised * along);
            results.set(e, accumulate ? results[e] + result : result);
        }
        results.store(gx + c);
    });
}

// Partial sums of the gradients of weight and bias, for each piece of the rows: [pieces, 2, dim].
KERNEL(ln_backward_params)(const scalar *x, const float *statistics, const scalar *gy, int dim, Shares shares, int part, int piece,
                           float *sums) {
    float *out = sums + (size_t)blockIdx.y * 2 * dim;
    sum_piece<2>(shares, piece_of(blockIdx.y, part, piece), dim,
        [&](auto pack, int row, int c, auto &sums) {
            size_t at = (size_t)row * dim + c;
            float mean = statistics[(size_t)row * 2], inv_std = statistics[(size_t)row * 2 + 1];
            auto values = pack.at(x + at), slopes = pack.at(gy + at);
            for (int e = 0; e < pack.COUNT; e++) {
                sums[0][e] += slopes[e] * ((values[e] - mean) * inv_std);
                sums[1][e] += slopes[e];
            }
        },
        [&](int c, const float (&sums)[2]) {
            out[c] = sums[0];
            out[dim + c] = sums[1];
        });
}
