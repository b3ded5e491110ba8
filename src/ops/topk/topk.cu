// Finds the k largest dot products of each query with the rows of a bank. A block has 128 queries and a slice of the bank. It
// multiplies 64 rows at a time, and its warps keep the scores that exceed a query's k-th best score so far. No matrix of all
// scores exists.
//
// Scores are f32 sums whose order does not depend on the slices, and among equal scores the lower row comes first. So results are
// reproducible.
//
// Needs `matmul.cuh` (in f32) and `pipeline.cuh` in front of it.

const int QUERIES = 128, ROWS = 64;
// Maximum number of slices.
const int SLICES = 128;

// The best scores of a query and their rows in descending order, distributed over a warp: entry e * 32 + lane is element e of the
// thread in that lane. The capacity is 32 E entries.
template <int E> struct Best {
    float scores[E];
    int rows[E];
    int count;

    DEVICE_MEMBER static int entry(int e) { return e * 32 + threadIdx.x % 32; }

    DEVICE_MEMBER void load(const float *from_scores, const int *from_rows, int count_) {
        count = count_;
#pragma unroll
        for (int e = 0; e < E; e++) {
            bool there = entry(e) < count;
            scores[e] = there ? from_scores[entry(e)] : 0.0f;
            rows[e] = there ? from_rows[entry(e)] : 0;
        }
    }

    DEVICE_MEMBER void store(float *to_scores, int *to_rows) const {
#pragma unroll
        for (int e = 0; e < E; e++)
            if (entry(e) < count) to_scores[entry(e)] = scores[e], to_rows[entry(e)] = rows[e];
    }

    // Inserts a score after all scores that are at least as high. At most k entries stay.
    DEVICE_MEMBER void insert(float score, int row, int k) {
        int lane = threadIdx.x % 32, place = 0;
#pragma unroll
        for (int e = 0; e < E; e++) place += count_ones(warp_votes(entry(e) < count && scores[e] >= score));
#pragma unroll
        for (int e = E - 1; e >= 0; e--) {
            float before = warp_value(scores[e], lane + 31);
            int row_before = warp_value(rows[e], lane + 31);
            if (e > 0) {
                // Lane 0's predecessor is the entry of lane 31 in the line above.
                float last = warp_value(scores[e > 0 ? e - 1 : 0], 31);
                int last_row = warp_value(rows[e > 0 ? e - 1 : 0], 31);
                if (lane == 0) before = last, row_before = last_row;
            }
            if (entry(e) > place) scores[e] = before, rows[e] = row_before;
            if (entry(e) == place) scores[e] = score, rows[e] = row;
        }
        if (count < k) count++;
    }

    // The lowest score.
    DEVICE_MEMBER float lowest() const {
        float value = 0.0f;
#pragma unroll
        for (int e = 0; e < E; e++) {
            float found = warp_value(scores[e], (count - 1) % 32);
            if ((count - 1) / 32 == e) value = found;
        }
        return value;
    }
};

// Writes the best scores and rows per slice, [slices, queries, k], and their number, [slices, queries]. If samples are given,
// rows of a query's own sample are left out.
template <int E, int V>
DEVICE void top_k(Memory<QUERIES, ROWS> &memory, const float *queries, const float *bank, int n, int m, int dim, int k,
                  int slice_rows, const long long *query_samples, const long long *bank_samples, float *scores, int *rows,
                  int *counts) {
    int lane = threadIdx.x % 32, first_query = blockIdx.x * QUERIES;
    int begin = blockIdx.y * slice_rows, end = begin + slice_rows < m ? begin + slice_rows : m;
    size_t lists = (size_t)blockIdx.y * n;
    // A warp has every eighth query from its first one on. No other warp reads or writes the lists of these queries.
    int own = first_query + threadIdx.x / 32, last = first_query + QUERIES < n ? first_query + QUERIES : n;
    for (int query = own; query < last; query += 8)
        if (lane == 0) counts[lists + query] = 0;
    for (int first = begin; first < end; first += ROWS) {
        Lines<QUERIES> a;
        Lines<ROWS> b;
        a.begin(queries, n, dim, first_query);
        b.begin(bank, end, dim, first);
        Accumulator<QUERIES, ROWS> sums;
        multiply<V>(a, b, (dim + BK - 1) / BK, memory, sums);
        __syncthreads();
        each_run(sums, [&](int row, int column, auto run) { memory.out[row][column] = run.values[0]; });
        __syncthreads();
        for (int query = own; query < last; query += 8) {
            int count = warp_value(lane == 0 ? counts[lists + query] : 0, 0);
            float *best_scores = scores + (lists + query) * k;
            int *best_rows = rows + (lists + query) * k;
            // The score that the next row has to exceed, once there are k rows.
            float floor = warp_value(lane == (k - 1) % 32 && count == k ? best_scores[k - 1] : 0.0f, (k - 1) % 32);
            Best<E> best;
            bool changed = false;
            for (int c = lane; c < ROWS; c += 32) {
                int row = first + c;
                float score = memory.out[query - first_query][c];
                if (score != score) score = -infinity(); // NaN comes last
                bool left_out = row >= end || (query_samples && query_samples[query] == bank_samples[row]);
                unsigned int votes = warp_votes(!left_out && (count < k || score > floor));
                if (votes && !changed) {
                    best.load(best_scores, best_rows, count);
                    changed = true;
                }
                for (; votes; votes &= votes - 1) {
                    int from = lowest_one(votes);
                    float value = warp_value(score, from);
                    if (count == k && !(value > floor)) continue;
                    best.insert(value, row - lane + from, k);
                    count = best.count;
                    floor = best.lowest();
                }
            }
            if (!changed) continue;
            best.store(best_scores, best_rows);
            if (lane == 0) counts[lists + query] = count;
        }
        __syncthreads(); // shared memory is free for the next rows
    }
}

// One kernel per number of entries that a thread has of a list of k. It uses 16-byte loads if they divide the width.
#define TOP_K(E)                                                                                                               \
    KERNEL_OF_TWO(top_k_##E)(const float *queries, const float *bank, int n, int m, int dim, int k, int slice_rows,            \
                             const long long *query_samples, const long long *bank_samples, float *scores, int *rows,          \
                             int *counts) {                                                                                    \
        SHARED Memory<QUERIES, ROWS> memory;                                                                                   \
        if (dim % WIDE == 0)                                                                                                   \
            top_k<E, WIDE>(memory, queries, bank, n, m, dim, k, slice_rows, query_samples, bank_samples, scores, rows, counts);\
        else                                                                                                                   \
            top_k<E, 1>(memory, queries, bank, n, m, dim, k, slice_rows, query_samples, bank_samples, scores, rows, counts);   \
    }
TOP_K(1)
TOP_K(4)
TOP_K(32)

// Merges the lists of all slices. Slices are in the order of their rows, so among equal scores those of the first slice come
// first. A warp has a query, and a thread has every 32nd slice: it keeps its position in the list of each slice and finds the
// best of the next entries.
KERNEL(top_k_merge)(int n, int k, int slices, const float *scores, const int *rows, const int *counts,
                    float *best_scores, int *best_rows, int *best_counts) {
    int query = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (query >= n) return;
    int heads[SLICES / 32];
    for (int i = 0; i < SLICES / 32; i++) heads[i] = 0;
    int found = 0;
    for (; found < k; found++) {
        // The best among the thread's own slices, then among the warp's. -1 means that there is none.
        float best = 0.0f;
        int winner = -1;
        for (int i = 0; i < SLICES / 32; i++) {
            int slice = i * 32 + lane;
            size_t list = (size_t)slice * n + query;
            if (slice >= slices || heads[i] == counts[list]) continue;
            float score = scores[list * k + heads[i]];
            if (winner < 0 || score > best) best = score, winner = slice;
        }
        for (int step = 16; step > 0; step /= 2) {
            float other = warp_value(best, lane ^ step);
            int other_winner = warp_value(winner, lane ^ step);
            bool better = other > best || (other == best && other_winner < winner);
            if (other_winner >= 0 && (winner < 0 || better)) best = other, winner = other_winner;
        }
        if (winner < 0) break;
        if (lane == winner % 32) {
            int i = winner / 32;
            best_scores[(size_t)query * k + found] = best;
            best_rows[(size_t)query * k + found] = rows[((size_t)winner * n + query) * k + heads[i]];
            heads[i]++;
        }
    }
    if (lane == 0) best_counts[query] = found;
}

// Copies the rows that were found, one block per row: the vector, its length before it was normalised, and its marks, from
// [kinds, length] to [kinds, found].
KERNEL(gather)(const int *found, const float *bank, const float *norms, const long long *marks, int length, int dim,
               int kinds, float *vectors, float *found_norms, long long *found_marks) {
    int row = found[blockIdx.x];
    for (int i = threadIdx.x; i < dim; i += 256)
        vectors[(size_t)blockIdx.x * dim + i] = bank[(size_t)row * dim + i];
    if (threadIdx.x == 0) found_norms[blockIdx.x] = norms[row];
    for (int i = threadIdx.x; i < kinds; i += 256)
        found_marks[(size_t)i * gridDim.x + blockIdx.x] = marks[(size_t)i * length + row];
}
