// Products of matrices whose tiles lie in shared memory. Prepended to the sources that multiply, once per arithmetic: MATH 0
// is f32, 1 is tf32 (f32 in memory, tensor cores), 2 is f16 in memory and f32 sums.

#if MATH == 2
typedef half_t scalar;
#else
typedef float scalar;
#endif

// Elements of a 16-byte load.
const int WIDE = 16 / sizeof(scalar);

// Where the elements of an operand lie in shared memory. DEEP: neighbours follow the depth k, [size][PITCH]; else they follow
// the row or column, [depth][PITCH].
template <int PITCH, bool DEEP> struct Layout {
    DEVICE_MEMBER static const scalar &at(const scalar *shared, int i, int k) {
        return shared[DEEP ? i * PITCH + k : k * PITCH + i];
    }

    // Two halves of neighbouring depth in one word.
    DEVICE_MEMBER static unsigned int pair(const half_t *shared, int i, int k) {
        if (DEEP) return *(const unsigned int *)&shared[i * PITCH + k];
        return (unsigned int)shared[k * PITCH + i].bits | (unsigned int)shared[(k + 1) * PITCH + i].bits << 16;
    }
};

// A block's share of the product, BM x BN, held in registers. In f32 a thread has every 16th row and column of the tile;
// with tensor cores a warp has a rectangle of 16 x 8 pieces.
template <int BM, int BN> struct Accumulator {
    static constexpr int WARPS_N = BN >= 128 || BM <= 32 ? 4 : 2, WARPS_M = 8 / WARPS_N;
    static constexpr int TM = MATH == 0 ? BM / 16 : BM / WARPS_M / 16, TN = MATH == 0 ? BN / 16 : BN / WARPS_N / 8;
    static constexpr int EACH = MATH == 0 ? 1 : 4;
    // Rows of each of a thread's pieces, which element e is in number e / 2 of; threads that share a row.
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

    // Number of the thread among those that share its rows.
    DEVICE_MEMBER static int slot() {
        return MATH == 0 ? threadIdx.x % 16 : threadIdx.x / 32 % WARPS_N * 4 + threadIdx.x % 4;
    }

    // Adds the product of the tiles in shared memory, whose layouts are A and B and which are DEPTH deep.
    template <class A, class B, int DEPTH> DEVICE_MEMBER void add(const scalar *a, const scalar *b) {
#if MATH == 0
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float left[TM], right[TN];
#pragma unroll
            for (int i = 0; i < TM; i++) left[i] = A::at(a, row(i, 0), k);
#pragma unroll
            for (int j = 0; j < TN; j++) right[j] = B::at(b, column(j, 0), k);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) sums[i][j][0] += left[i] * right[j];
        }
#else
        const int STEP = MATH == 1 ? 8 : 16;
        int group = threadIdx.x % 32 / 4, place = threadIdx.x % 4;
        int m = threadIdx.x / 32 / WARPS_N * (BM / WARPS_M) + group;
        int n = threadIdx.x / 32 % WARPS_N * (BN / WARPS_N) + group;
#pragma unroll
        for (int k = 0; k < DEPTH; k += STEP) {
            unsigned int left[TM][4], right[TN][2];
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int r = 0; r < 4; r++) {
#if MATH == 1
                    left[i][r] = to_tf32(A::at(a, m + i * 16 + r % 2 * 8, k + place + r / 2 * 4));
#else
                    left[i][r] = A::pair(a, m + i * 16 + r % 2 * 8, k + place * 2 + r / 2 * 8);
#endif
                }
#pragma unroll
            for (int j = 0; j < TN; j++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
#if MATH == 1
                    right[j][r] = to_tf32(B::at(b, n + j * 8, k + place + r * 4));
#else
                    right[j][r] = B::pair(b, n + j * 8, k + place * 2 + r * 8);
#endif
                }
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) {
#if MATH == 1
                    mma_m16n8k8_tf32(sums[i][j], left[i], right[j]);
#else
                    mma_m16n8k16_f16(sums[i][j], left[i], right[j]);
#endif
                }
        }
#endif
    }
};
