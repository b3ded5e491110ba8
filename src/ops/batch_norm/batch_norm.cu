// Batch normalisation over rows of channels [rows, channels], fused with ReLU and residual.
//
// Statistics are taken per piece of the rows and combined in f64, in order within a part of the batch and as a tree over its
// parts: results repeat bit by bit, and a large mean costs no precision. Where several ranks have parts, each has a branch of the
// tree. Compiled once per storage: HALF 0 is f32, 1 is f16; statistics and coefficients are f32 either way.
//
// Behind `parts.cuh`.

#if HALF
typedef half_t scalar;
#else
typedef float scalar;
#endif

// A block has 32 channels and 8 of its piece's rows at a time.
DEVICE int channel_of() { return blockIdx.x * 32 + threadIdx.x % 32; }

// The sum of the block's 8 values per channel, in order.
DEVICE float sum_of_lines(float value, float (*shared)[32]) {
    int line = threadIdx.x / 32, c = threadIdx.x % 32;
    __syncthreads();
    shared[line][c] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += shared[i][c];
    return sum;
}

// Per piece: mean and summed squared deviation, [pieces, 2, channels].
KERNEL(bn_moments)(const scalar *x, int channels, int part, int piece, float *pieces) {
    SHARED float shared[8][32];
    int c = channel_of(), line = threadIdx.x / 32;
    Piece rows = piece_of(blockIdx.y, part, piece);
    bool there = c < channels;
    // Deviations are from the piece's first row: it is near the mean, as far as the spread goes.
    float origin = there ? to_float(x[(size_t)rows.begin * channels + c]) : 0.0f;
    float sum = 0.0f, squares = 0.0f;
    for (int row = rows.begin + line; there && row < rows.end; row += 8) {
        float d = to_float(x[(size_t)row * channels + c]) - origin;
        sum += d;
        squares += d * d;
    }
    sum = sum_of_lines(sum, shared);
    squares = sum_of_lines(squares, shared);
    if (there && line == 0) {
        float *out = pieces + (size_t)blockIdx.y * 2 * channels;
        float n = (float)(rows.end - rows.begin);
        out[c] = origin + sum / n;
        out[channels + c] = squares - sum * (sum / n);
    }
}

// Statistics of some rows: how many, mean, summed squared deviation from it.
struct Spread {
    double rows, mean, deviation;
};
DEVICE Spread joined(Spread left, Spread right) {
    double total = left.rows + right.rows, delta = right.mean - left.mean;
    double mean = left.mean + delta * right.rows / total;
    return Spread{total, mean, left.deviation + (right.deviation + delta * delta * left.rows * right.rows / total)};
}

// The branch of the tree that the parts here are: mean and summed squared deviation [2, channels]. A block has 32 channels.
KERNEL(bn_branch)(const float *values, int parts, int channels, int part, int piece, double *branch) {
    SHARED Spread shared[8][32];
    int c = channel_of(), pieces = (part + piece - 1) / piece;
    bool there = c < channels;
    Spread all = tree_of_block<Spread>(parts, there, [&](int i) {
        Spread sum = {0.0, 0.0, 0.0};
        for (int at = i * pieces; at < (i + 1) * pieces; at++) {
            Piece rows = piece_of(at, part, piece);
            const float *value = values + (size_t)at * 2 * channels + c;
            sum = joined(sum, Spread{(double)(rows.end - rows.begin), (double)value[0], (double)value[channels]});
        }
        return sum;
    }, shared);
    if (!there || threadIdx.x >= 32) return;
    branch[c] = all.mean;
    branch[channels + c] = all.deviation;
}

// From the branches of all ranks, of `rows` rows each: moments [3, channels], which are mean, biased variance, 1 / sqrt(var + eps);
// affine [2, channels]: scale and shift of the normalisation, with weight and bias where there are any. Running statistics, where
// there are any, move.
KERNEL(bn_combine)(const double *branches, int count, int rows, int channels, const float *weight, const float *bias,
                   float *running_mean, float *running_var, float *moments, float *affine) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c >= channels) return;
    Spread all = tree<Spread>(0, count, [&](int i) {
        const double *branch = branches + (size_t)i * 2 * channels + c;
        return Spread{(double)rows, branch[0], branch[channels]};
    });
    double mean = all.mean, var = all.deviation / all.rows;
    float inv_std = (float)(1.0 / sqrt(var + 1e-5));
    moments[c] = (float)mean;
    moments[channels + c] = (float)var;
    moments[2 * channels + c] = inv_std;
    float scale = weight ? inv_std * weight[c] : inv_std;
    affine[c] = scale;
    affine[channels + c] = (bias ? bias[c] : 0.0f) - (float)mean * scale;
    if (running_mean) {
        double unbias = all.rows / (all.rows > 1.0 ? all.rows - 1.0 : 1.0);
        running_mean[c] = (float)(0.9 * (double)running_mean[c] + 0.1 * (double)(float)mean);
        running_var[c] = (float)(0.9 * (double)running_var[c] + 0.1 * (double)(float)var * unbias);
    }
}

// The affine map of running statistics (eval mode).
KERNEL(bn_eval)(int channels, const float *mean, const float *var, const float *weight, const float *bias, float *affine) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c >= channels) return;
    float scale = (float)(1.0 / sqrt((double)var[c] + 1e-5));
    if (weight) scale *= weight[c];
    affine[c] = scale;
    affine[channels + c] = (bias ? bias[c] : 0.0f) - mean[c] * scale;
}

// out = x * scale + shift, plus a residual (as it is, or with an affine map of its own), through a ReLU or not.
KERNEL(bn_apply)(const scalar *x, const float *affine, const scalar *residual, const float *residual_affine, int relu,
                 int channels, int length, scalar *out) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        int c = i % channels;
        float value = to_float(x[i]) * affine[c] + affine[channels + c];
        if (residual) {
            float r = to_float(residual[i]);
            value += residual_affine ? r * residual_affine[c] + residual_affine[channels + c] : r;
        }
        // Keeps a NaN, so that it is noticed.
        from_float(out[i], relu && value < 0.0f ? 0.0f : value);
    }
}

// Per piece: sums of the gradient g and of g (x - mean), [pieces, 2, channels]. Where `output` is given, g counts only where
// that is positive: the gradient before the ReLU behind the normalisation.
KERNEL(bn_backward_sums)(const scalar *x, const scalar *g, const scalar *output, const float *moments, int channels,
                         int part, int piece, float *pieces) {
    SHARED float shared[8][32];
    int c = channel_of(), line = threadIdx.x / 32;
    Piece rows = piece_of(blockIdx.y, part, piece);
    bool there = c < channels;
    float mean = there ? moments[c] : 0.0f, sum = 0.0f, product = 0.0f;
    for (int row = rows.begin + line; there && row < rows.end; row += 8) {
        size_t i = (size_t)row * channels + c;
        float value = to_float(g[i]);
        if (output && !(to_float(output[i]) > 0.0f)) value = 0.0f;
        sum += value;
        product += value * (to_float(x[i]) - mean);
    }
    sum = sum_of_lines(sum, shared);
    product = sum_of_lines(product, shared);
    if (there && line == 0) {
        float *out = pieces + (size_t)blockIdx.y * 2 * channels;
        out[c] = sum;
        out[channels + c] = product;
    }
}

// What the backward pass sums over rows: g, and g (x - mean).
struct Slopes {
    double g, product;
};
DEVICE Slopes joined(Slopes left, Slopes right) {
    return Slopes{left.g + right.g, left.product + right.product};
}

// The branch of the tree that the parts here are: both sums [2, channels]. A block has 32 channels.
KERNEL(bn_backward_branch)(const float *values, int parts, int channels, int pieces, double *branch) {
    SHARED Slopes shared[8][32];
    int c = channel_of();
    bool there = c < channels;
    Slopes all = tree_of_block<Slopes>(parts, there, [&](int i) {
        Slopes sum = {0.0, 0.0};
        for (int at = i * pieces; at < (i + 1) * pieces; at++) {
            const float *value = values + (size_t)at * 2 * channels + c;
            sum = joined(sum, Slopes{(double)value[0], (double)value[channels]});
        }
        return sum;
    }, shared);
    if (!there || threadIdx.x >= 32) return;
    branch[c] = all.g;
    branch[channels + c] = all.product;
}

// From the branches of all ranks, of `rows` rows in all: adds to the gradients of weight and bias, where they are given, and turns
// the sums into the coefficients [3, channels] of gx = a g + b x + d, which is w inv_std (g - mean(g) - xhat mean(g xhat)).
KERNEL(bn_backward_combine)(const double *branches, int count, int rows, int channels, const float *moments,
                            const float *weight, float *g_weight, float *g_bias, float *coefficients) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c >= channels) return;
    Slopes all = tree<Slopes>(0, count, [&](int i) {
        const double *branch = branches + (size_t)i * 2 * channels + c;
        return Slopes{branch[0], branch[channels]};
    });
    double sum = all.g, product = all.product;
    float mean = moments[c], inv_std = moments[2 * channels + c];
    float g = (float)sum, g_normalised = (float)(product * (double)inv_std);
    if (g_weight) g_weight[c] += g_normalised;
    if (g_bias) g_bias[c] += g;
    float factor = weight ? weight[c] * inv_std : inv_std;
    float slope = g_normalised / (float)rows * inv_std;
    coefficients[c] = factor;
    coefficients[channels + c] = -factor * slope;
    coefficients[2 * channels + c] = factor * (slope * mean - g / (float)rows);
}

// gx = a g + b x + d, or added to gx; g is masked by `output` as in bn_backward_sums, and the masked g is kept in `masked`,
// where it is given. `gx` or `masked` may be `g` itself.
KERNEL(bn_backward_input)(const scalar *x, const scalar *g, const scalar *output, const float *coefficients,
                          int channels, int length, scalar *masked, scalar *gx, int accumulate) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        int c = i % channels;
        float value = to_float(g[i]);
        if (output && !(to_float(output[i]) > 0.0f)) value = 0.0f;
        float result = coefficients[c] * value + coefficients[channels + c] * to_float(x[i]) + coefficients[2 * channels + c];
        if (masked) from_float(masked[i], value);
        from_float(gx[i], accumulate ? to_float(gx[i]) + result : result);
    }
}

// g goes from the gradient of a ReLU's output to that of its input.
KERNEL(relu_backward)(const scalar *output, int length, scalar *g) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256)
        if (!(to_float(output[i]) > 0.0f)) from_float(g[i], 0.0f);
}

// to = from, in the other storage or the same.
KERNEL(narrow)(const float *from, int length, scalar *to) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) from_float(to[i], from[i]);
}
KERNEL(widen)(const scalar *from, int length, float *to) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) to[i] = to_float(from[i]);
}
// to += from.
KERNEL(add)(const scalar *from, int length, scalar *to) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256)
        from_float(to[i], to_float(to[i]) + to_float(from[i]));
}
