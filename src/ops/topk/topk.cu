// The k largest dot products of each query with the rows of a bank. A block has 64 queries and a slice of the bank; it
// multiplies 64 rows at a time and keeps what exceeds a query's k-th best so far. No matrix of all scores exists.
//
// Scores are f32 sums in one order, whatever the slices, and of equal ones the lower row comes first: results repeat.

const int TILE = 64, DEPTH = 16, PITCH = TILE + 4;

DEVICE void stage(const float *from, int rows, int dim, int first, int d, float *shared) {
    for (int i = threadIdx.x; i < TILE * DEPTH; i += 256) {
        int row = i / DEPTH, k = i % DEPTH;
        bool there = first + row < rows && d + k < dim;
        shared[k * PITCH + row] = there ? from[(size_t)(first + row) * dim + d + k] : 0.0f;
    }
}

// Puts a score into its place among `count` descending ones, of which at most k stay.
DEVICE int insert(float *scores, int *rows, int count, int k, float score, int row) {
    int at = count < k ? count : k - 1;
    while (at > 0 && scores[at - 1] < score) {
        scores[at] = scores[at - 1];
        rows[at] = rows[at - 1];
        at--;
    }
    scores[at] = score;
    rows[at] = row;
    return count < k ? count + 1 : k;
}

// Best scores and rows per slice, [slices, queries, k], and how many there are, [slices, queries]. A row is left out for
// the query whose sample it came from, where samples are given.
KERNEL(top_k)(const float *queries, const float *bank, int n, int m, int dim, int k, int slice_rows,
              const long long *query_samples, const long long *bank_samples, float *scores, int *rows, int *counts) {
    SHARED float q[DEPTH * PITCH];
    SHARED float r[DEPTH * PITCH];
    SHARED float products[TILE][TILE + 1];
    int first_query = blockIdx.x * TILE;
    int begin = blockIdx.y * slice_rows, end = begin + slice_rows < m ? begin + slice_rows : m;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int query = first_query + threadIdx.x;
    bool keeps = threadIdx.x < TILE && query < n;
    size_t list = (size_t)blockIdx.y * n + (keeps ? query : 0);
    int count = 0;
    float floor = 0.0f;
    for (int first = begin; first < end; first += TILE) {
        float sums[4][4];
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
        for (int d = 0; d < dim; d += DEPTH) {
            stage(queries, n, dim, first_query, d, q);
            stage(bank, end, dim, first, d, r);
            __syncthreads();
#pragma unroll
            for (int e = 0; e < DEPTH; e++) {
                float left[4], right[4];
#pragma unroll
                for (int i = 0; i < 4; i++) left[i] = q[e * PITCH + ty * 4 + i];
#pragma unroll
                for (int j = 0; j < 4; j++) right[j] = r[e * PITCH + tx * 4 + j];
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[i][j] += left[i] * right[j];
            }
            __syncthreads();
        }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) products[ty * 4 + i][tx * 4 + j] = sums[i][j];
        __syncthreads();
        int rows_here = end - first < TILE ? end - first : TILE;
        for (int j = 0; keeps && j < rows_here; j++) {
            float score = products[threadIdx.x][j];
            if (score != score) score = -infinity(); // NaN comes last
            if (count == k && !(score > floor)) continue;
            if (query_samples && query_samples[query] == bank_samples[first + j]) continue;
            count = insert(scores + list * k, rows + list * k, count, k, score, first + j);
            floor = scores[list * k + count - 1];
        }
        __syncthreads();
    }
    if (keeps) counts[list] = count;
}

// The best of all slices, which are in the order of their rows.
KERNEL(top_k_merge)(int n, int k, int slices, const float *scores, const int *rows, const int *counts,
                    float *best_scores, int *best_rows, int *best_counts) {
    int query = blockIdx.x * 256 + threadIdx.x;
    if (query >= n) return;
    int heads[64];
    for (int s = 0; s < slices; s++) heads[s] = 0;
    int found = 0;
    while (found < k) {
        int winner = -1;
        float best = 0.0f;
        for (int s = 0; s < slices; s++) {
            size_t list = (size_t)s * n + query;
            if (heads[s] == counts[list]) continue;
            float score = scores[list * k + heads[s]];
            if (winner < 0 || score > best) {
                winner = s;
                best = score;
            }
        }
        if (winner < 0) break;
        best_scores[(size_t)query * k + found] = best;
        best_rows[(size_t)query * k + found] = rows[((size_t)winner * n + query) * k + heads[winner]];
        heads[winner]++;
        found++;
    }
    best_counts[query] = found;
}

// The rows that were found, a block each: vector, length, and what else is known, [kinds, found] of [kinds, length].
KERNEL(gather)(const int *found, const float *bank, const float *norms, const long long *marks, int length, int dim,
               int kinds, float *vectors, float *found_norms, long long *found_marks) {
    int row = found[blockIdx.x];
    for (int i = threadIdx.x; i < dim; i += 256)
        vectors[(size_t)blockIdx.x * dim + i] = bank[(size_t)row * dim + i];
    if (threadIdx.x == 0) found_norms[blockIdx.x] = norms[row];
    for (int i = threadIdx.x; i < kinds; i += 256)
        found_marks[(size_t)i * gridDim.x + blockIdx.x] = marks[(size_t)i * length + row];
}
