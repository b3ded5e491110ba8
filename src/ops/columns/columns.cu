// Sums over the rows of matrices [rows, columns], by parts of the rows that are added in order: results repeat bit by bit.
// Compiled once per storage: HALF 0 is f32, 1 is f16; sums are f32 either way.

#if HALF
typedef half_t scalar;
#else
typedef float scalar;
#endif

// Per part the sums of its rows, [parts, columns]. A block has 32 columns and 8 rows at a time.
KERNEL(column_sums)(const scalar *x, int rows, int columns, int part_rows, float *parts) {
    SHARED float shared[8][32];
    int lane = threadIdx.x % 32, line = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    int begin = blockIdx.y * part_rows, end = begin + part_rows < rows ? begin + part_rows : rows;
    float sum = 0.0f;
    for (int row = begin + line; c < columns && row < end; row += 8) sum += to_float(x[(size_t)row * columns + c]);
    shared[line][lane] = sum;
    __syncthreads();
    if (c >= columns || line > 0) return;
    for (int i = 1; i < 8; i++) sum += shared[i][lane];
    parts[(size_t)blockIdx.y * columns + c] = sum;
}

// sums += every part [columns] of `parts`, which lie `stride` apart.
KERNEL(add_parts)(const float *parts, int count, int stride, int columns, float *sums) {
    int c = blockIdx.x * 256 + threadIdx.x;
    if (c >= columns) return;
    double total = 0.0;
    for (int part = 0; part < count; part++) total += (double)parts[(size_t)part * stride + c];
    sums[c] += (float)total;
}
