// Passes over rows of channels [rows, channels] that use or sum values per channel. Needs `storage.cuh` and `parts.cuh` in front
// of it.

// How a block's threads share its rows: `lanes` threads, a power of two, have a row together, with `width` channels each.
struct Shares {
    int width, lanes;
};

// Calls `body` with a pack of `shares.width` elements, the thread's first channel, its first row, and the distance to its next
// row. A thread keeps its channels for all rows, so that it reads values per channel only once.
template <class Body> DEVICE void share_rows(Shares shares, int begin, int channels, const Body &body) {
    int c = (blockIdx.x * shares.lanes + threadIdx.x % shares.lanes) * shares.width;
    int first = begin + threadIdx.x / shares.lanes, step = 256 / shares.lanes;
    if (c >= channels) return;
    if (shares.width == WIDE)
        body(Pack<WIDE>(), c, first, step);
    else
        body(Pack<1>(), c, first, step);
}

// Reads one number for each of V channels.
template <int V> DEVICE void read_channels(float (&to)[V], const float *from) {
    for (int e = 0; e < V; e++) to[e] = from[e];
}

// Sums N values per channel over the rows of a piece. `row` adds the values of a row to sums [N][V]; `result` gets a channel's N
// sums. Each thread adds its rows in order. Then the sums of the threads are added in order.
template <int N, class Row, class Result>
DEVICE void sum_piece(Shares shares, Piece rows, int channels, const Row &row, const Result &result) {
    SHARED float shared[N][256 * WIDE];
    share_rows(shares, rows.begin, channels, [&](auto pack, int c, int i, int step) {
        const int V = decltype(pack)::COUNT;
        float sums[N][V];
        for (int n = 0; n < N; n++)
            for (int e = 0; e < V; e++) sums[n][e] = 0.0f;
#pragma unroll 4
        for (; i < rows.end; i += step) row(pack, i, c, sums);
        for (int n = 0; n < N; n++)
            for (int e = 0; e < V; e++) shared[n][threadIdx.x * V + e] = sums[n][e];
    });
    __syncthreads();
    int block = shares.lanes * shares.width, begin = blockIdx.x * block;
    for (int at = threadIdx.x; at < block && begin + at < channels; at += 256) {
        float sums[N];
        for (int n = 0; n < N; n++) {
            sums[n] = 0.0f;
            for (int i = at; i < 256 * shares.width; i += block) sums[n] += shared[n][i];
        }
        result(begin + at, sums);
    }
}
