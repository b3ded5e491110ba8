// Products of matrices whose tiles are in shared memory. This file is prepended to the sources that multiply matrices, which are
// compiled once per arithmetic: MATH 0 is f32, 1 is tf32 (f32 in memory, tensor cores), 2 is f16 and 3 is bf16 in memory, both
// with f32 sums.

#if MATH == 2
typedef half_t scalar;
#elif MATH == 3
typedef bf16_t scalar;
#else
typedef float scalar;
#endif

// Elements per 16-byte load.
const int WIDE = 16 / sizeof(scalar);

// Layout of an operand in shared memory. If DEEP, the depth k is contiguous, [size][PITCH]; else the rows or columns are,
// [depth][PITCH]. Pitches are odd multiples of 16 bytes, so that eight lines are in different banks.
template <int PITCH, bool IS_DEEP> struct Layout {
    static constexpr bool DEEP = IS_DEEP;

    DEVICE_MEMBER static const scalar &at(const scalar *shared, int i, int k) {
        return shared[DEEP ? i * PITCH + k : k * PITCH + i];
    }
};

// A layout without padding: pieces of 16 bytes are permuted within their line (swizzled), so that the pieces that a warp reads at
// a time are in different banks. Tiles that are not DEEP (flat tiles) consist of adjacent panels of 128 bytes. Tensor cores that
// read shared memory directly support lines of 128 bytes that are permuted in this way.
template <int SIZE, int DEPTH, bool IS_DEEP> struct Swizzled {
    static constexpr bool DEEP = IS_DEEP;
    static constexpr int PANEL = 8 * WIDE;

    DEVICE_MEMBER static int place(int line, int along) {
        if (DEEP) {
            // Two consecutive lines of 64 bytes fill all banks once, so they have the same permutation.
            int turn = DEPTH == 4 * WIDE ? line / 2 % 4 : line % 8;
            return line * DEPTH + (along / WIDE ^ turn) * WIDE + along % WIDE;
        }
        // A warp reads 4 lines of floats or 8 lines of halves at a time.
        int turn = WIDE == 4 ? line % 4 * 2 : line % 8;
        return along / PANEL * (DEPTH * PANEL) + line * PANEL + (along % PANEL / WIDE ^ turn) * WIDE + along % WIDE;
    }
    DEVICE_MEMBER static const scalar &at(const scalar *shared, int i, int k) {
        return shared[DEEP ? place(i, k) : place(k, i)];
    }
};

// The part of the product that a block computes, BM x BN, in registers. In f32 a thread has every 16th row and column of the
// tile; with tensor cores a warp has a rectangle of 16 x 8 pieces.
template <int BM, int BN> struct Accumulator {
    static constexpr int WARPS_N = BN >= 128 || BM <= 32 ? 4 : 2, WARPS_M = 8 / WARPS_N;
    static constexpr int TM = MATH == 0 ? BM / 16 : BM / WARPS_M / 16, TN = MATH == 0 ? BN / 16 : BN / WARPS_N / 8;
    static constexpr int EACH = MATH == 0 ? 1 : 4;
    // HALVES: number of rows that a thread has of each piece; element e is in row e / 2 of them. SLOTS: number of threads that
    // share a row.
    static constexpr int HALVES = MATH == 0 ? 1 : 2, SLOTS = MATH == 0 ? 16 : 4 * WARPS_N;
    float sums[TM][TN][EACH];

    DEVICE_MEMBER void clear() {
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++)
#pragma unroll
                for (int e = 0; e < EACH; e++) sums[i][j][e] = 0.0f;
    }

    DEVICE_MEMBER static int row(int i, int e) {
        if (MATH == 0) return threadIdx.x / 16 + 16 * i;
        return threadIdx.x / 32 / WARPS_N * (BM / WARPS_M) + i * 16 + threadIdx.x % 32 / 4 + e / 2 * 8;
    }
    DEVICE_MEMBER static int column(int j, int e) {
        if (MATH == 0) return threadIdx.x % 16 + 16 * j;
        return threadIdx.x / 32 % WARPS_N * (BN / WARPS_N) + j * 8 + threadIdx.x % 4 * 2 + e % 2;
    }

    // Index of the thread among the threads that share its rows.
    DEVICE_MEMBER static int slot() {
        return MATH == 0 ? threadIdx.x % 16 : threadIdx.x / 32 % WARPS_N * 4 + threadIdx.x % 4;
    }

    // Adds the product of two tiles in shared memory, with layouts A and B and depth DEPTH.
    template <class A, class B, int DEPTH> DEVICE_MEMBER void add(const scalar *a, const scalar *b) {
#if MATH == 0
        // Processes four depths at a time. If they are contiguous, one load reads all four.
#pragma unroll
        for (int k = 0; k < DEPTH; k += WIDE) {
            float right[WIDE][TN];
#pragma unroll
            for (int j = 0; j < TN; j++) {
                float depths[WIDE];
                load_depths<B>(depths, b, column(j, 0), k);
#pragma unroll
                for (int e = 0; e < WIDE; e++) right[e][j] = depths[e];
            }
#pragma unroll
            for (int i = 0; i < TM; i++) {
                float left[WIDE];
                load_depths<A>(left, a, row(i, 0), k);
#pragma unroll
                for (int e = 0; e < WIDE; e++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sums[i][j][0] += left[e] * right[e][j];
            }
        }
#else
        const int STEP = MATH == 1 ? 8 : 16;
        int m = threadIdx.x / 32 / WARPS_N * (BM / WARPS_M), n = threadIdx.x / 32 % WARPS_N * (BN / WARPS_N);
#pragma unroll
        for (int k = 0; k < DEPTH; k += STEP) {
            unsigned int left[TM][4], right[TN][2];
#pragma unroll
            for (int i = 0; i < TM; i++) load_left<A>(left[i], a, m + i * 16, k);
#pragma unroll
            for (int j = 0; j + 1 < TN; j += 2) {
                unsigned int both[4];
                load_right<B>(both, b, n + j * 8, k);
                right[j][0] = both[0], right[j][1] = both[1], right[j + 1][0] = both[2], right[j + 1][1] = both[3];
            }
            if (TN % 2) load_right<B>(right[TN - 1], b, n + (TN - 1) * 8, k);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) {
#if MATH == 1
                    mma_m16n8k8_tf32(sums[i][j], left[i], right[j]);
#elif MATH == 2
                    mma_m16n8k16_f16(sums[i][j], left[i], right[j]);
#else
                    mma_m16n8k16_bf16(sums[i][j], left[i], right[j]);
#endif
                }
        }
#endif
    }

#if MATH == 0
    template <class L> DEVICE_MEMBER static void load_depths(float (&to)[WIDE], const scalar *shared, int i, int k) {
        if (L::DEEP) {
            Bits16 bits = *(const Bits16 *)&L::at(shared, i, k);
#pragma unroll
            for (int e = 0; e < WIDE; e++) to[e] = bits_float(bits.words[e]);
        } else {
#pragma unroll
            for (int e = 0; e < WIDE; e++) to[e] = L::at(shared, i, k + e);
        }
    }
#else
    // Loads the part of a [16, STEP], from row m and depth k on, that the thread passes to the tensor cores: matrices of 8 x 8
    // halves or 8 x 4 floats.
    template <class A> DEVICE_MEMBER static void load_left(unsigned int (&to)[4], const scalar *a, int m, int k) {
        int lane = threadIdx.x % 32;
        if (A::DEEP) {
            load_matrices(to, &A::at(a, m + lane % 16, k + lane / 16 * WIDE));
        } else {
#if MATH == 1
            for (int r = 0; r < 4; r++) to[r] = float_bits(A::at(a, m + lane / 4 + r % 2 * 8, k + lane % 4 + r / 2 * 4));
#else
            load_turned_matrices(to, &A::at(a, m + lane / 8 % 2 * 8, k + lane / 16 * 8 + lane % 8));
#endif
        }
        round(to);
    }

    // The same for b [STEP, 8] per two words, from column n and depth k on.
    template <class B, int WORDS> DEVICE_MEMBER static void load_right(unsigned int (&to)[WORDS], const scalar *b, int n, int k) {
        int lane = threadIdx.x % (8 * WORDS);
        if (B::DEEP) {
            load_matrices(to, &B::at(b, n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * WIDE));
        } else {
#if MATH == 1
            lane = threadIdx.x % 32;
            for (int r = 0; r < WORDS; r++) to[r] = float_bits(B::at(b, n + lane / 4 + r / 2 * 8, k + lane % 4 + r % 2 * 4));
#else
            load_turned_matrices(to, &B::at(b, n + lane / 16 * 8, k + lane / 8 % 2 * 8 + lane % 8));
#endif
        }
        round(to);
    }

    template <int WORDS> DEVICE_MEMBER static void round(unsigned int (&words)[WORDS]) {
#if MATH == 1
        for (int r = 0; r < WORDS; r++) words[r] = to_tf32(bits_float(words[r]));
#endif
    }
#endif
};

// Sums of a thread that are adjacent in a row.
template <int N> struct alignas(4 * N) Run {
    static constexpr int COUNT = N;
    float values[N];
};

// Calls `body` with the row, column and values of each run of the thread's sums.
template <class Sums, class Body> DEVICE void each_run(const Sums &sums, const Body &body) {
    const int N = Sums::EACH == 1 ? 1 : 2;
#pragma unroll
    for (int i = 0; i < Sums::TM; i++)
#pragma unroll
        for (int j = 0; j < Sums::TN; j++)
#pragma unroll
            for (int e = 0; e < Sums::EACH; e += N) {
                Run<N> run;
                for (int which = 0; which < N; which++) run.values[which] = sums.sums[i][j][e + which];
                body(Sums::row(i, e), Sums::column(j, e), run);
            }
}
