// Batch normalisation over rows of channels [rows, channels], fused with ReLU and residual.
//
// Statistics are taken per piece of the rows and combined in f64, in a fixed order within a part of the batch and as a tree over
// its parts: results repeat bit by bit, and a large mean costs no precision. If the parts are on several ranks, each rank has a
// branch of the tree. Compiled once per storage; statistics and coefficients are f32 either way.
//
// Compiled after `storage.cuh`, `parts.cuh` and `rows.cuh`.

// Per piece: mean and summed squared deviation, [pieces, 2, channels].
KERNEL(bn_moments)(const scalar *x, int channels, Shares shares, int part, int piece, float *pieces) {
    Piece rows = piece_of(blockIdx.y, part, piece);
    float *out = pieces + (size_t)blockIdx.y * 2 * channels;
    // Deviations are taken from the piece's first row, which is about as near the mean as the other values are.
    const scalar *origin = x + (size_t)rows.begin * channels;
    sum_piece<2>(shares, rows, channels,
        [&](auto pack, int row, int c, auto &sums) {
            typedef decltype(pack) Values;
            Values values = Values::at(x + (size_t)row * channels + c), from = Values::at(origin + c);
            for (int e = 0; e < Values::COUNT; e++) {
                float d = values[e] - from[e];
                sums[0][e] += d;
                sums[1][e] += d * d;
            }
        },
        [&](int c, const float (&sums)[2]) {
            float n = (float)(rows.end - rows.begin);
            out[c] = to_float(origin[c]) + sums[0] / n;
            out[channels + c] = sums[1] - sums[0] * (sums[0] / n);
        });
}

// Channel of a thread where a block has 32 channels, and 8 threads for each.
DEVICE int channel_of() { return blockIdx.x * 32 + threadIdx.x % 32; }

// The sum of `term(i)` over i in 0 .. count, for each of the block's 32 channels. Each of a channel's 8 threads sums every
// eighth term, and the threads' sums are added in order.
template <class Term> DEVICE double sum_of_block(int count, bool there, const Term &term) {
    SHARED double shared[8][32];
    int line = threadIdx.x / 32, lane = threadIdx.x % 32;
    double sum = 0.0;
    for (int i = line; there && i < count; i += 8) sum += term(i);
    __syncthreads();
    shared[line][lane] = sum;
    __syncthreads();
    sum = 0.0;
    for (int i = 0; i < 8; i++) sum += shared[i][lane];
    return sum;
}

// Per part of the batch, from its pieces: mean and summed squared deviation, [parts, 2, channels].
KERNEL(bn_parts)(const float *values, int channels, int part, int piece, double *parts) {
    int c = channel_of(), pieces = (part + piece - 1) / piece;
    bool there = c < channels;
    values += (size_t)blockIdx.y * pieces * 2 * channels;
    auto rows = [&](int i) {
        Piece rows = piece_of(i, part, piece);
        return (double)(rows.end - rows.begin);
    };
    double mean = sum_of_block(pieces, there, [&](int i) { return rows(i) * (double)values[(size_t)i * 2 * channels + c]; });
    mean /= (double)part;
    double deviation = sum_of_block(pieces, there, [&](int i) {
        const float *value = values + (size_t)i * 2 * channels + c;
        double delta = (double)value[0] - mean;
        return (double)value[channels] + rows(i) * delta * delta;
    });
    if (!there || threadIdx.x >= 32) return;
    parts += (size_t)blockIdx.y * 2 * channels;
    parts[c] = mean;
    parts[channels + c] = deviation;
}

// Statistics of some rows: their number, mean, and summed squared deviation from it.
struct Spread {
    double rows, mean, deviation;
};
DEVICE Spread joined(Spread left, Spread right) {
    double total = left.rows + right.rows, delta = right.mean - left.mean;
    double mean = left.mean + delta * right.rows / total;
    return Spread{total, mean, left.deviation + (right.deviation + delta * delta * left.rows * right.rows / total)};
}

// The tree's branch over this rank's parts, of `rows` rows each: mean and summed squared deviation [2, channels]. A block has 32
// channels.
KERNEL(bn_branch)(const double *values, int parts, int channels, int rows, double *branch) {
    SHARED Spread shared[8][32];
    int c = channel_of();
    bool there = c < channels;
    Spread all = tree_of_block<Spread>(parts, there, [&](int i) {
        const double *value = values + (size_t)i * 2 * channels + c;
        return Spread{(double)rows, value[0], value[channels]};
    }, shared);
    if (!there || threadIdx.x >= 32) return;
    branch[c] = all.mean;
    branch[channels + c] = all.deviation;
}

// From the branches of all ranks, of `rows` rows each: moments [3, channels], which are mean, biased variance, 1 / sqrt(var +
// eps); affine [2, channels]: scale and shift of the normalisation, with weight and bias unless they are null. Running
// statistics are updated unless they are null.
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

// out = x * scale + shift, plus a residual unless it is null (as it is, or through its own affine map), through a ReLU if
// `relu`.
KERNEL(bn_apply)(const scalar *x, const float *affine, const scalar *residual, const float *residual_affine, int relu,
                 int channels, Shares shares, int count, int piece, scalar *out) {
    Piece rows = piece_of(blockIdx.y, count, piece);
    share_rows(shares, rows.begin, channels, [&](auto pack, int c, int i, int step) {
        typedef decltype(pack) Values;
        float scale[Values::COUNT], shift[Values::COUNT], r_scale[Values::COUNT], r_shift[Values::COUNT];
        read_channels(scale, affine + c);
        read_channels(shift, affine + channels + c);
        if (residual_affine) {
            read_channels(r_scale, residual_affine + c);
            read_channels(r_shift, residual_affine + channels + c);
        }
#pragma unroll 2
        for (; i < rows.end; i += step) {
            size_t at = (size_t)i * channels + c;
            Values values = Values::at(x + at), others = values, results;
            if (residual) others = Values::at(residual + at);
            for (int e = 0; e < Values::COUNT; e++) {
                float value = values[e] * scale[e] + shift[e];
                if (residual) value += residual_affine ? others[e] * r_scale[e] + r_shift[e] : others[e];
                // Keeps a NaN, so that it is noticed.
                results.set(e, relu && value < 0.0f ? 0.0f : value);
            }
            results.store(out + at);
        }
    });
}

// Per piece: sums of the gradient g and of g (x - mean), [pieces, 2, channels]. Unless `output` is null, g counts only where
// `output` is positive: it is the gradient of the input of the ReLU after the normalisation.
KERNEL(bn_backward_sums)(const scalar *x, const scalar *g, const scalar *output, const float *moments, int channels, Shares shares,
                         int part, int piece, float *pieces) {
    float *out = pieces + (size_t)blockIdx.y * 2 * channels;
    sum_piece<2>(shares, piece_of(blockIdx.y, part, piece), channels,
        [&](auto pack, int row, int c, auto &sums) {
            typedef decltype(pack) Values;
            size_t at = (size_t)row * channels + c;
            Values values = Values::at(x + at), slopes = Values::at(g + at), outputs = values;
            if (output) outputs = Values::at(output + at);
            float mean[Values::COUNT];
            read_channels(mean, moments + c);
            for (int e = 0; e < Values::COUNT; e++) {
                float slope = output && !(outputs[e] > 0.0f) ? 0.0f : slopes[e];
                sums[0][e] += slope;
                sums[1][e] += slope * (values[e] - mean[e]);
            }
        },
        [&](int c, const float (&sums)[2]) {
            out[c] = sums[0];
            out[channels + c] = sums[1];
        });
}

// Sums over rows in the backward pass: of g, and of g (x - mean).
struct Slopes {
    double g, product;
};
DEVICE Slopes joined(Slopes left, Slopes right) {
    return Slopes{left.g + right.g, left.product + right.product};
}

// Per part of the batch, from its pieces: both sums, [parts, 2, channels].
KERNEL(bn_backward_parts)(const float *values, int channels, int pieces, double *parts) {
    int c = channel_of();
    bool there = c < channels;
    values += (size_t)blockIdx.y * pieces * 2 * channels;
    double sums[2];
    for (int which = 0; which < 2; which++)
        sums[which] = sum_of_block(pieces, there, [&](int i) { return (double)values[(size_t)(2 * i + which) * channels + c]; });
    if (!there || threadIdx.x >= 32) return;
    parts += (size_t)blockIdx.y * 2 * channels;
    parts[c] = sums[0];
    parts[channels + c] = sums[1];
}

// The tree's branch over this rank's parts: both sums [2, channels]. A block has 32 channels.
KERNEL(bn_backward_branch)(const double *values, int parts, int channels, double *branch) {
    SHARED Slopes shared[8][32];
    int c = channel_of();
    bool there = c < channels;
    Slopes all = tree_of_block<Slopes>(parts, there, [&](int i) {
        const double *value = values + (size_t)i * 2 * channels + c;
        return Slopes{value[0], value[channels]};
    }, shared);
    if (!there || threadIdx.x >= 32) return;
    branch[c] = all.g;
    branch[channels + c] = all.product;
}

// From the branches of all ranks, of `rows` rows in all: adds to the gradients of weight and bias, unless they are null, and
// turns the sums into the coefficients [3, channels] of gx = a g + b x + d, which is w inv_std (g - mean(g) - xhat mean(g
// xhat)).
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

// gx = a g + b x + d, or added to gx with `accumulate`. g is masked by `output` as in bn_backward_sums, and the masked g is
// stored in `masked` unless that is null. `gx` or `masked` may be `g` itself.
KERNEL(bn_backward_input)(const scalar *x, const scalar *g, const scalar *output, const float *coefficients, int channels,
                          Shares shares, int count, int piece, scalar *masked, scalar *gx, int accumulate) {
    Piece rows = piece_of(blockIdx.y, count, piece);
    share_rows(shares, rows.begin, channels, [&](auto pack, int c, int i, int step) {
        typedef decltype(pack) Values;
        float a[Values::COUNT], b[Values::COUNT], d[Values::COUNT];
        read_channels(a, coefficients + c);
        read_channels(b, coefficients + channels + c);
        read_channels(d, coefficients + 2 * channels + c);
#pragma unroll 2
        for (; i < rows.end; i += step) {
            size_t at = (size_t)i * channels + c;
            Values values = Values::at(x + at), slopes = Values::at(g + at), others = values, results;
            if (output) {
                others = Values::at(output + at);
                for (int e = 0; e < Values::COUNT; e++)
                    if (!(others[e] > 0.0f)) slopes.set(e, 0.0f);
            }
            if (accumulate) others = Values::at(gx + at);
            for (int e = 0; e < Values::COUNT; e++) {
                float result = a[e] * slopes[e] + b[e] * values[e] + d[e];
                results.set(e, accumulate ? others[e] + result : result);
            }
            if (masked) slopes.store(masked + at);
            results.store(gx + at);
        }
    });
}

// Turns g from the gradient of a ReLU's output into that of its input.
KERNEL(relu_backward)(const scalar *output, int length, scalar *g) {
    in_packs(length, length % WIDE == 0 && begin_wide(output, g), [&](auto pack, int at) {
        typedef decltype(pack) Values;
        Values outputs = Values::at(output + at), slopes = Values::at(g + at);
        for (int e = 0; e < Values::COUNT; e++)
            if (!(outputs[e] > 0.0f)) slopes.set(e, 0.0f);
        slopes.store(g + at);
    });
}

// to = from, from f32 to this storage or back.
KERNEL(narrow)(const float *from, int length, scalar *to) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) from_float(to[i], from[i]);
}
KERNEL(widen)(const scalar *from, int length, float *to) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) to[i] = to_float(from[i]);
}
// to += from.
KERNEL(add)(const scalar *from, int length, scalar *to) {
    in_packs(length, length % WIDE == 0 && begin_wide(from, to), [&](auto pack, int at) {
        typedef decltype(pack) Values;
        Values values = Values::at(from + at), sums = Values::at(to + at);
        for (int e = 0; e < Values::COUNT; e++) sums.set(e, sums[e] + values[e]);
        sums.store(to + at);
    });
}
