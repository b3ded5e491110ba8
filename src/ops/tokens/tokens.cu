// Operations between images and tokens [n, tokens, width]. The first token of a sample is the class token. Compiled once per
// storage type; parameters, positions and features are always f32. Needs `storage.cuh` in front of it.

// Tokens from embedded patches [n, tokens - 1, width] without bias: adds the positions, and the class token (first token) or the
// bias (all other tokens).
KERNEL(embed_tokens)(const scalar *embedded, const float *positions, const float *cls, const float *bias, int tokens,
                     int width, int length, scalar *x) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        int c = i % width, row = i / width, token = row % tokens, sample = row / tokens;
        float value = positions[token * width + c] + (token ? bias[c] : cls[c]);
        if (token) value += to_float(embedded[(size_t)(row - sample - 1) * width + c]);
        from_float(x[i], value);
    }
}

// The class tokens of all samples, [n, width].
KERNEL(class_tokens)(const scalar *x, int tokens, int width, int length, float *cls) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256)
        cls[i] = to_float(x[(size_t)(i / width) * tokens * width + i % width]);
}

// Tokens that are zero except for the class tokens.
KERNEL(spread_class_tokens)(const float *cls, int tokens, int width, int length, scalar *x) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        int row = i / width;
        from_float(x[i], row % tokens ? 0.0f : cls[row / tokens * width + i % width]);
    }
}

// All tokens except the class tokens, [n, tokens - 1, width].
KERNEL(patch_tokens)(const scalar *x, int tokens, int width, int length, scalar *patches) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        int row = i / width;
        patches[i] = x[(size_t)(row + row / (tokens - 1) + 1) * width + i % width];
    }
}

// Weights, by cubic convolution with a = -0.75, of the four source cells around cell i of `to` cells along an axis of `from`
// cells. Writes the first source cell to `first`.
DEVICE void cubic(int from, int to, int i, int &first, double (&weights)[4]) {
    double source = ((double)i + 0.5) * (double)from / (double)to - 0.5, whole = floor(source), t = source - whole;
    const double a = -0.75;
    for (int k = 0; k < 4; k++) {
        double d = k < 2 ? t + (double)(1 - k) : (double)(k - 1) - t;
        weights[k] = d <= 1.0 ? ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0 : ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
    }
    first = (int)whole - 1;
}

// Positions [1 + h w, width] from those of a grid of another size. The border cell stands in for cells beyond the border.
KERNEL(interpolate_positions)(const float *positions, int grid, int h, int w, int width, float *out) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= (1 + h * w) * width) return;
    int c = i % width, cell = i / width - 1;
    if (cell < 0) {
        out[i] = positions[c];
        return;
    }
    int top, left;
    double down[4], along[4], value = 0.0;
    cubic(grid, h, cell / w, top, down);
    cubic(grid, w, cell % w, left, along);
    for (int ky = 0; ky < 4; ky++) {
        int y = top + ky;
        y = y < 0 ? 0 : y >= grid ? grid - 1 : y;
        double line = 0.0;
        for (int kx = 0; kx < 4; kx++) {
            int x = left + kx;
            x = x < 0 ? 0 : x >= grid ? grid - 1 : x;
            line += along[kx] * (double)positions[(size_t)(1 + y * grid + x) * width + c];
        }
        value += down[ky] * line;
    }
    out[i] = (float)value;
}
