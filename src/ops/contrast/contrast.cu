// Contrastive logits, computed for one chunk of candidates at a time. A matrix product computes the dot products s [rows, n] of
// candidates and anchors, and the kernels reduce them, so that only sums remain. A logit is s * scale.
//
// Candidate j belongs to anchor a if j / own is (a + shift) mod n. With `alone`, the logits of anchor a do not include candidate
// a.

struct Pairs {
    int n, own, shift, alone;
    DEVICE_MEMBER bool counts(int anchor, int candidate) const { return !alone || candidate != anchor; }
    DEVICE_MEMBER bool belongs(int anchor, int candidate) const { return candidate / own == (anchor + shift) % n; }
};

// For each part of the rows and each anchor, writes the largest s and the sum of exp((s - largest) scale) to `parts` [parts, 2,
// n]. Also writes the logits of each anchor's own candidates to `own_logits` [n, own]. A block has 32 anchors and reads 8 rows of
// its part at a time.
KERNEL(contrast_sums)(const float *s, int rows, int first, int part_rows, int n, int own, int shift, int alone, float scale,
                      float *parts, float *own_logits) {
    SHARED float shared[8][32];
    Pairs pairs = {n, own, shift, alone};
    int column = threadIdx.x % 32, line = threadIdx.x / 32, a = blockIdx.x * 32 + column;
    int begin = blockIdx.y * part_rows, end = begin + part_rows < rows ? begin + part_rows : rows;
    float largest = -infinity();
    for (int row = begin + line; a < n && row < end; row += 8) {
        float value = s[(size_t)row * n + a];
        if (pairs.belongs(a, first + row)) own_logits[(size_t)a * own + (first + row) % own] = value * scale;
        // A NaN is not skipped. A later value may replace it here, but it makes the sum below NaN, so that it is noticed.
        if (pairs.counts(a, first + row) && !(value <= largest)) largest = value;
    }
    shared[line][column] = largest;
    __syncthreads();
    largest = shared[0][column];
    for (int i = 1; i < 8; i++) largest = shared[i][column] <= largest ? largest : shared[i][column];
    float sum = 0.0f;
    for (int row = begin + line; a < n && row < end; row += 8)
        if (pairs.counts(a, first + row)) sum += expf((s[(size_t)row * n + a] - largest) * scale);
    __syncthreads();
    shared[line][column] = sum;
    __syncthreads();
    if (a >= n || line > 0) return;
    sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += shared[i][column];
    float *out = parts + (size_t)(first / part_rows + blockIdx.y) * 2 * n;
    out[a] = largest;
    out[n + a] = sum;
}

// all [n] = log of the sum of exp over all parts. Adds the parts in order.
KERNEL(contrast_combine)(const float *parts, int count, int n, float scale, float *all) {
    int a = blockIdx.x * 256 + threadIdx.x;
    if (a >= n) return;
    float largest = -infinity();
    for (int part = 0; part < count; part++) {
        float value = parts[(size_t)part * 2 * n + a];
        if (!(value <= largest)) largest = value;
    }
    double sum = 0.0;
    for (int part = 0; part < count; part++) {
        const float *values = parts + (size_t)part * 2 * n;
        // A part that contains only the anchor itself has no largest value, and its sum is 0.
        if (values[n + a] != 0.0f) sum += (double)(values[n + a] * expf((values[a] - largest) * scale));
    }
    all[a] = largest * scale + (float)log(sum);
}

// Replaces s by its gradient, computed from the gradients of `all` [n] and of the own logits [n, own].
KERNEL(contrast_slopes)(float *s, int rows, int first, int n, int own, int shift, int alone, float scale, const float *all,
                        const float *g_all, const float *g_own) {
    Pairs pairs = {n, own, shift, alone};
    for (int i = blockIdx.x * 256 + threadIdx.x; i < rows * n; i += gridDim.x * 256) {
        int a = i % n, candidate = first + i / n;
        float slope = pairs.counts(a, candidate) ? g_all[a] * expf(s[i] * scale - all[a]) : 0.0f;
        if (pairs.belongs(a, candidate)) slope += g_own[(size_t)a * own + candidate % own];
        s[i] = slope * scale;
    }
}

// out [n (k + 1), dim]: each row of a [n, dim], followed by its k rows of b [n k, dim].
KERNEL(interleave)(const float *a, const float *b, int k, int dim, int length, float *out) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= length) return;
    int row = i / dim, column = i % dim, n = row / (k + 1), j = row % (k + 1);
    out[i] = j == 0 ? a[(size_t)n * dim + column] : b[((size_t)n * k + j - 1) * dim + column];
}

KERNEL(scale_rows)(const float *rows, const float *factors, int dim, int length, float *out) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < length) out[i] = rows[i] * factors[i / dim];
}
