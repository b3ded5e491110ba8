// Sums over the rows of matrices [rows, columns], by pieces of the rows that are added in order within a part of the batch and
// as a tree over its parts: results repeat bit by bit. Compiled once per storage; sums are f32 either way.
//
// Compiled after `storage.cuh`, `parts.cuh` and `rows.cuh`.

// Per piece the sums of its rows, [pieces, columns].
KERNEL(column_sums)(const scalar *x, int columns, Shares shares, int part, int piece, float *sums) {
    float *out = sums + (size_t)blockIdx.y * columns;
    sum_piece<1>(shares, piece_of(blockIdx.y, part, piece), columns,
        [&](auto pack, int row, int c, auto &sums) {
            typedef decltype(pack) Values;
            Values values = Values::at(x + (size_t)row * columns + c);
            for (int e = 0; e < Values::COUNT; e++) sums[0][e] += values[e];
        },
        [&](int c, const float (&sums)[1]) { out[c] = sums[0]; });
}

// sums += the tree over `parts` parts of the batch, each of which has `pieces` pieces of `values`, which are `stride` apart. A
// block has 32 columns.
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
