// Sinkhorn's normalisation of scores [rows, columns], in place. Sums are f64, in a fixed order.

// The largest value of all threads of the block. Every thread gets the result.
DEVICE float block_max(float value) {
    SHARED float shared[256];
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int width = 128; width > 0; width /= 2) {
        if (threadIdx.x < width) shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + width]);
        __syncthreads();
    }
    return shared[0];
}

// Writes the largest score of each block's share.
KERNEL(sinkhorn_max)(const float *scores, int count, float *maxima) {
    float most = -infinity();
    for (int i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) most = fmaxf(most, scores[i]);
    most = block_max(most);
    if (threadIdx.x == 0) maxima[blockIdx.x] = most;
}

// q = exp((score - most) / epsilon), where `most` is the largest of up to 256 maxima.
KERNEL(sinkhorn_exp)(float *scores, int count, const float *maxima, int blocks, float inverse) {
    float most = block_max(threadIdx.x < blocks ? maxima[threadIdx.x] : -infinity());
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < count) scores[i] = expf((scores[i] - most) * inverse);
}

// Column sums of each piece of rows, [pieces, columns].
KERNEL(sinkhorn_columns)(const float *q, int rows, int columns, int piece, double *sums) {
    int c = blockIdx.x * 256 + threadIdx.x, begin = blockIdx.y * piece;
    if (c >= columns) return;
    double sum = 0.0;
    for (int row = begin; row < begin + piece && row < rows; row++) sum += (double)q[(size_t)row * columns + c];
    sums[(size_t)blockIdx.y * columns + c] = sum;
}

// The factor that brings the sum of each column to 1 / columns.
KERNEL(sinkhorn_factors)(const double *sums, int pieces, int columns, float *factors) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c >= columns) return;
    double sum = 0.0;
    for (int piece = 0; piece < pieces; piece++) sum += sums[(size_t)piece * columns + c];
    factors[c] = (float)(1.0 / (sum * (double)columns));
}

// Multiplies the elements of the block's row by the factors of their columns, then scales the row so that its sum is 1 / rows.
KERNEL(sinkhorn_rows)(float *q, int rows, int columns, const float *factors) {
    SHARED double shared[256];
    float *row = q + (size_t)blockIdx.x * columns;
    double sum = 0.0;
    for (int c = threadIdx.x; c < columns; c += 256) {
        float value = row[c] * factors[c];
        row[c] = value;
        sum += (double)value;
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (int width = 128; width > 0; width /= 2) {
        if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
        __syncthreads();
    }
    float factor = (float)(1.0 / (shared[0] * (double)rows));
    for (int c = threadIdx.x; c < columns; c += 256) row[c] *= factor;
}

// y = q * factor
KERNEL(sinkhorn_scale)(const float *q, int count, float factor, float *y) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < count) y[i] = q[i] * factor;
}
