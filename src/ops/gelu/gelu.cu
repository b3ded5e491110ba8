// The exact GELU, y = x Phi(x), and its gradient. Compiled once per storage: HALF 0 is f32, 1 is f16.

#if HALF
typedef half_t scalar;
#else
typedef float scalar;
#endif

// Phi(x), the standard normal distribution function.
DEVICE float below(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

KERNEL(gelu)(const scalar *x, int length, scalar *y) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        float value = to_float(x[i]);
        from_float(y[i], value * below(value));
    }
}

// g becomes g (Phi(x) + x phi(x)), phi being the normal density; y becomes x Phi(x) again.
KERNEL(gelu_backward)(const scalar *x, int length, scalar *g, scalar *y) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        float value = to_float(x[i]), share = below(value);
        float density = 0.39894228040143268f * expf(-0.5f * value * value);
        from_float(g[i], to_float(g[i]) * (share + value * density));
        from_float(y[i], value * share);
    }
}
