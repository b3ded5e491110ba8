// Scales rows to unit length, and the gradient of this operation. One block per row.

DEVICE float block_sum(float value) {
    SHARED float shared[256];
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int width = 128; width > 0; width /= 2) {
        if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
        __syncthreads();
    }
    return shared[0];
}

DEVICE float inverse_norm(const float *row, int dim) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < dim; i += 256) squares += row[i] * row[i];
    float norm = sqrtf(block_sum(squares));
    return 1.0f / (norm > 1e-12f ? norm : 1e-12f);
}

// y = x / max(|x|, 1e-12). y may be x. Writes the lengths to `norms` if it is given.
KERNEL(normalize_forward)(const float *x, int dim, float *y, float *norms) {
    const float *row = x + (size_t)blockIdx.x * dim;
    float inverse = inverse_norm(row, dim);
    if (norms && threadIdx.x == 0) norms[blockIdx.x] = 1.0f / inverse;
    for (int i = threadIdx.x; i < dim; i += 256) y[(size_t)blockIdx.x * dim + i] = row[i] * inverse;
}

// gx += (gy - y (y . gy)) / |x|
KERNEL(normalize_backward)(const float *x, const float *y, const float *gy, int dim, float *gx) {
    size_t at = (size_t)blockIdx.x * dim;
    float product = 0.0f;
    for (int i = threadIdx.x; i < dim; i += 256) product += y[at + i] * gy[at + i];
    float along = block_sum(product), inverse = inverse_norm(x + at, dim);
    for (int i = threadIdx.x; i < dim; i += 256) gx[at + i] += (gy[at + i] - y[at + i] * along) * inverse;
}
