// Pooling of channels-last images: 3x3 maximum of stride 2 with padding 1, and the global average. Compiled once per storage;
// features and sums are f32 either way. Compiled after `storage.cuh`.

// For each of V elements, which of its window's pixels won.
template <int V> struct alignas(V) Winners {
    unsigned char argmax[V];
};

// y = max over 3x3 windows; `argmax` keeps which of the window's nine pixels won (the first of equals). A NaN wins over
// everything.
KERNEL(max_pool)(const scalar *x, int h, int w, int channels, int oh, int ow, int length, scalar *y, unsigned char *argmax) {
    in_packs(length, channels % WIDE == 0 && begin_wide(x, y, argmax), [&](auto pack, int at) {
        typedef decltype(pack) Values;
        int pixel = at / channels, c = at - pixel * channels, line = pixel / ow, n = line / oh;
        int oy = line - n * oh, ox = pixel - line * ow;
        Values best;
        Winners<Values::COUNT> winners;
        bool none = true;
        for (int offset = 0; offset < 9; offset++) {
            int iy = oy * 2 + offset / 3 - 1, ix = ox * 2 + offset % 3 - 1;
            if (iy < 0 || ix < 0 || iy >= h || ix >= w) continue;
            Values values = Values::at(x + ((size_t)(n * h + iy) * w + ix) * channels + c);
            for (int e = 0; e < Values::COUNT; e++)
                if (none || values[e] > best[e] || values[e] != values[e])
                    best.elements[e] = values.elements[e], winners.argmax[e] = (unsigned char)offset;
            none = false;
        }
        best.store(y + at);
        *(Winners<Values::COUNT> *)(argmax + at) = winners;
    });
}

// gx: every pixel sums the gradients of the windows in which it won.
KERNEL(max_pool_backward)(const scalar *gy, const unsigned char *argmax, int h, int w, int channels, int oh, int ow,
                          int length, scalar *gx) {
    in_packs(length, channels % WIDE == 0 && begin_wide(gy, argmax, gx), [&](auto pack, int at) {
        typedef decltype(pack) Values;
        int pixel = at / channels, c = at - pixel * channels, line = pixel / w, n = line / h;
        int iy = line - n * h, ix = pixel - line * w;
        float sums[Values::COUNT];
        for (int e = 0; e < Values::COUNT; e++) sums[e] = 0.0f;
        for (int offset = 0; offset < 9; offset++) {
            int y = iy + 1 - offset / 3, x = ix + 1 - offset % 3;
            if (y < 0 || x < 0 || y % 2 || x % 2 || y / 2 >= oh || x / 2 >= ow) continue;
            size_t from = ((size_t)(n * oh + y / 2) * ow + x / 2) * channels + c;
            Values slopes = Values::at(gy + from);
            Winners<Values::COUNT> winners = *(const Winners<Values::COUNT> *)(argmax + from);
            for (int e = 0; e < Values::COUNT; e++)
                if (winners.argmax[e] == offset) sums[e] += slopes[e];
        }
        Values results;
        for (int e = 0; e < Values::COUNT; e++) results.set(e, sums[e]);
        results.store(gx + at);
    });
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
