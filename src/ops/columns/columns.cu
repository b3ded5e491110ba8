// Sums over the rows of matrices [rows, columns], by pieces of the rows that are added in order within a part of the batch and
// as a tree over its parts: results repeat bit by bit. Compiled once per storage: HALF 0 is f32, 1 is f16; sums are f32 either way.
//
// Behind `parts.cuh`.

#if HALF
typedef half_t scalar;
#else
typedef float scalar;
#endif

// Per piece the sums of its rows, [pieces, columns]. A block has 32 columns and 8 rows at a time.
KERNEL(column_sums)(const scalar *x, int columns, int part, int piece, float *sums) {
    SHARED float shared[8][32];
    int lane = threadIdx.x % 32, line = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    Piece rows = piece_of(blockIdx.y, part, piece);
    float sum = 0.0f;
    for (int row = rows.begin + line; c < columns && row < rows.end; row += 8)
        sum += to_float(x[(size_t)row * columns + c]);
    shared[line][lane] = sum;
    __syncthreads();
    if (c >= columns || line > 0) return;
    for (int i = 1; i < 8; i++) sum += shared[i][lane];
    sums[(size_t)blockIdx.y * columns + c] = sum;
}

// sums += the tree over `parts` parts of the batch, each of which has `pieces` pieces of `values`, which lie `stride` apart.
// A block has 32 columns.
KERNEL(add_parts)(const float *values, int parts, int pieces, int stride, int columns, float *sums) {
    SHARED float shared[8][32];
    int c = blockIdx.x * 32 + threadIdx.x % 32;
    float sum = tree_of_block<float>(parts, c < columns, [&](int part) {
        double total = 0.0;
        for (int i = part * pieces; i < (part + 1) * pieces; i++) total += (double)values[(size_t)i * stride + c];
        return (float)total;
    }, shared);
    if (c < columns && threadIdx.x < 32) sums[c] += sum;
}
