// Pooling of channels-last images: 3x3 maximum of stride 2 with padding 1, and the global average.
// Compiled once per storage: HALF 0 is f32, 1 is f16; features and sums are f32 either way.

#if HALF
typedef half_t scalar;
#else
typedef float scalar;
#endif

// y = max over 3x3 windows; `taps` keeps which of its nine pixels won (the first of equals). A NaN wins over everything.
KERNEL(max_pool)(const scalar *x, int h, int w, int channels, int oh, int ow, int length, scalar *y, unsigned char *taps) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        int c = i % channels, ox = i / channels % ow, oy = i / channels / ow % oh, n = i / channels / ow / oh;
        float best = 0.0f;
        int winner = -1;
        for (int tap = 0; tap < 9; tap++) {
            int iy = oy * 2 + tap / 3 - 1, ix = ox * 2 + tap % 3 - 1;
            if (iy < 0 || ix < 0 || iy >= h || ix >= w) continue;
            float value = to_float(x[((size_t)(n * h + iy) * w + ix) * channels + c]);
            if (winner < 0 || value > best || value != value) {
                best = value;
                winner = tap;
            }
        }
        from_float(y[i], best);
        taps[i] = (unsigned char)winner;
    }
}

// gx: every pixel gathers from the windows that it won.
KERNEL(max_pool_backward)(const scalar *gy, const unsigned char *taps, int h, int w, int channels, int oh, int ow,
                          int length, scalar *gx) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        int c = i % channels, ix = i / channels % w, iy = i / channels / w % h, n = i / channels / w / h;
        float sum = 0.0f;
        for (int tap = 0; tap < 9; tap++) {
            int y = iy + 1 - tap / 3, x = ix + 1 - tap % 3;
            if (y < 0 || x < 0 || y % 2 || x % 2 || y / 2 >= oh || x / 2 >= ow) continue;
            size_t at = ((size_t)(n * oh + y / 2) * ow + x / 2) * channels + c;
            if (taps[at] == tap) sum += to_float(gy[at]);
        }
        from_float(gx[i], sum);
    }
}

// features [n, channels] = mean over each image's pixels.
KERNEL(average_pool)(const scalar *x, int area, int channels, int length, float *features) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= length) return;
    const scalar *from = x + (size_t)(i / channels) * area * channels + i % channels;
    float sum = 0.0f;
    for (int p = 0; p < area; p++) sum += to_float(from[(size_t)p * channels]);
    features[i] = sum / (float)area;
}

KERNEL(average_pool_backward)(const float *g_features, int area, int channels, int length, scalar *gx) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256)
        from_float(gx[i], g_features[i / channels / area * channels + i % channels] / (float)area);
}
