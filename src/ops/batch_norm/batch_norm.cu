// Batch normalisation over rows of channels [rows, channels], fused with ReLU and residual.
//
// Statistics are taken per part of the rows and combined in order, in f64: results repeat bit by bit, and a large mean
// costs no precision. Compiled once per storage: HALF 0 is f32, 1 is f16; statistics and coefficients are f32 either way.

#if HALF
typedef half_t scalar;
#else
typedef float scalar;
#endif

// A block has 32 channels and 8 of its part's rows at a time.
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

// Per part: mean and summed squared deviation, [parts, 2, channels].
KERNEL(bn_moments)(const scalar *x, int rows, int channels, int part_rows, float *parts) {
    SHARED float shared[8][32];
    int c = channel_of(), line = threadIdx.x / 32;
    int begin = blockIdx.y * part_rows, end = begin + part_rows < rows ? begin + part_rows : rows;
    bool there = c < channels;
    // Deviations are from the part's first row: it is near the mean, as far as the spread goes.
    float origin = there ? to_float(x[(size_t)begin * channels + c]) : 0.0f;
    float sum = 0.0f, squares = 0.0f;
    for (int row = begin + line; there && row < end; row += 8) {
        float d = to_float(x[(size_t)row * channels + c]) - origin;
        sum += d;
        squares += d * d;
    }
    sum = sum_of_lines(sum, shared);
    squares = sum_of_lines(squares, shared);
    if (there && line == 0) {
        float *out = parts + (size_t)blockIdx.y * 2 * channels;
        float n = (float)(end - begin);
        out[c] = origin + sum / n;
        out[channels + c] = squares - sum * (sum / n);
    }
}

// Moments [3, channels]: mean, biased variance, 1 / sqrt(var + eps); affine [2, channels]: scale and shift of the
// normalisation, with weight and bias where there are any. Running statistics, where there are any, move.
KERNEL(bn_combine)(const float *parts, int count, int rows, int channels, int part_rows, const float *weight,
                   const float *bias, float *running_mean, float *running_var, float *moments, float *affine) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c >= channels) return;
    double mean = 0.0, deviation = 0.0, seen = 0.0;
    for (int part = 0; part < count; part++) {
        const float *values = parts + (size_t)part * 2 * channels;
        int left = rows - part * part_rows;
        double n = left < part_rows ? left : part_rows, total = seen + n;
        double delta = (double)values[c] - mean;
        mean += delta * n / total;
        deviation += (double)values[channels + c] + delta * delta * seen * n / total;
        seen = total;
    }
    double var = deviation / seen;
    float inv_std = (float)(1.0 / sqrt(var + 1e-5));
    moments[c] = (float)mean;
    moments[channels + c] = (float)var;
    moments[2 * channels + c] = inv_std;
    float scale = weight ? inv_std * weight[c] : inv_std;
    affine[c] = scale;
    affine[channels + c] = (bias ? bias[c] : 0.0f) - (float)mean * scale;
    if (running_mean) {
        double unbias = (double)rows / (rows > 1 ? rows - 1.0 : 1.0);
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

// Per part: sums of the gradient g and of g (x - mean), [parts, 2, channels]. Where `output` is given, g counts only where
// that is positive: the gradient before the ReLU behind the normalisation.
KERNEL(bn_backward_sums)(const scalar *x, const scalar *g, const scalar *output, const float *moments, int rows,
                         int channels, int part_rows, float *parts) {
    SHARED float shared[8][32];
    int c = channel_of(), line = threadIdx.x / 32;
    int begin = blockIdx.y * part_rows, end = begin + part_rows < rows ? begin + part_rows : rows;
    bool there = c < channels;
    float mean = there ? moments[c] : 0.0f, sum = 0.0f, product = 0.0f;
    for (int row = begin + line; there && row < end; row += 8) {
        size_t i = (size_t)row * channels + c;
        float value = to_float(g[i]);
        if (output && !(to_float(output[i]) > 0.0f)) value = 0.0f;
        sum += value;
        product += value * (to_float(x[i]) - mean);
    }
    sum = sum_of_lines(sum, shared);
    product = sum_of_lines(product, shared);
    if (there && line == 0) {
        float *out = parts + (size_t)blockIdx.y * 2 * channels;
        out[c] = sum;
        out[channels + c] = product;
    }
}

// Adds to the gradients of weight and bias, and turns the sums into the coefficients [3, channels] of
// gx = a g + b x + d, which is w inv_std (g - mean(g) - xhat mean(g xhat)).
KERNEL(bn_backward_combine)(const float *parts, int count, int rows, int channels, const float *moments,
                            const float *weight, float *g_weight, float *g_bias, float *coefficients) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c >= channels) return;
    double sum = 0.0, product = 0.0;
    for (int part = 0; part < count; part++) {
        sum += (double)parts[(size_t)part * 2 * channels + c];
        product += (double)parts[((size_t)part * 2 + 1) * channels + c];
    }
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
