// The exact GELU, y = x Phi(x), and its gradient. Compiled once per storage type. Needs `storage.cuh` in front of it.

// Phi(x), the standard normal distribution function.
DEVICE float below(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

KERNEL(gelu)(const scalar *x, int length, scalar *y) {
    in_packs(length, length % WIDE == 0 && begin_wide(x, y), [&](auto pack, int at) {
        typedef decltype(pack) Values;
        Values values = Values::at(x + at);
        for (int e = 0; e < Values::COUNT; e++) values.set(e, values[e] * below(values[e]));
        values.store(y + at);
    });
}

// Multiplies g by Phi(x) + x phi(x), where phi is the normal density. Computes y = x Phi(x) again.
KERNEL(gelu_backward)(const scalar *x, int length, scalar *g, scalar *y) {
    in_packs(length, length % WIDE == 0 && begin_wide(x, g, y), [&](auto pack, int at) {
        typedef decltype(pack) Values;
        Values values = Values::at(x + at), slopes = Values::at(g + at);
        for (int e = 0; e < Values::COUNT; e++) {
            float value = values[e], share = below(value);
            float density = 0.39894228040143268f * expf(-0.5f * value * value);
            slopes.set(e, slopes[e] * (share + value * density));
            values.set(e, value * share);
        }
        slopes.store(g + at);
        values.store(y + at);
    });
}
