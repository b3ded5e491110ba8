// Products of two operands whose tiles are copied to shared memory some steps ahead. Needs `matmul.cuh` in front of it.

// Depth of a step: lines of 128 bytes for 16-bit elements, of 64 bytes for floats.
const int BK = WIDE == 8 ? 64 : 4 * WIDE;
// Number of steps whose tiles are in shared memory: one is multiplied while the others are copied. With groups, the step before
// may still be multiplied, too.
const int STAGES = WIDE == 8 ? 2 : 3, STAGES_OF_GROUPS = 3;

// A tile of one operand [SIZE rows or columns, BK] is copied to shared memory in pieces of 16 bytes, a few per thread. The
// operand knows their source: `at(i)` is the address of the thread's piece i, null if the piece is zero; `at(i, e)` is the
// address of its element e, if elements have to be found one by one; `next` advances to the next step.

// Pieces along the depth: [SIZE][BK].
template <int SIZE> struct Deep {
    typedef Swizzled<SIZE, BK, true> Shared;
    static constexpr int LINE = BK / WIDE, PIECES = SIZE * LINE / 256, STEP = 256 / LINE;
    DEVICE_MEMBER static int line(int i) { return threadIdx.x / LINE + i * STEP; }
    DEVICE_MEMBER static int along() { return threadIdx.x % LINE * WIDE; }
    DEVICE_MEMBER static int shared(int i) { return Shared::place(line(i), along()); }
};

// Pieces along the rows or columns: [BK][SIZE].
template <int SIZE> struct Flat {
    typedef Swizzled<SIZE, BK, false> Shared;
    static constexpr int LINE = SIZE / WIDE, PIECES = BK * LINE / 256, STEP = 256 / LINE;
    DEVICE_MEMBER static int line(int i) { return threadIdx.x / LINE + i * STEP; }
    DEVICE_MEMBER static int along() { return threadIdx.x % LINE * WIDE; }
    DEVICE_MEMBER static int shared(int i) { return Shared::place(line(i), along()); }
};

// An operand that is stored as lines [lines, depth].
template <int SIZE> struct Lines : Deep<SIZE> {
    typedef Deep<SIZE> Places;
    const scalar *lines[Places::PIECES];
    int k, depth;

    // Starts at depth 0 of the lines from `first` on.
    DEVICE_MEMBER void begin(const scalar *from, int count, int depth_, int first) {
        depth = depth_;
#pragma unroll
        for (int i = 0; i < Places::PIECES; i++) {
            int line = first + Places::line(i);
            lines[i] = line < count ? from + (size_t)line * depth : nullptr;
        }
        k = Places::along();
    }

    DEVICE_MEMBER const scalar *at(int i) const { return at(i, 0); }
    DEVICE_MEMBER const scalar *at(int i, int e) const {
        return lines[i] && k + e < depth ? lines[i] + k + e : nullptr;
    }

    DEVICE_MEMBER void next() { k += BK; }
};

// Copies the thread's pieces of a step to shared memory, V elements at a time: a whole piece, asynchronously, or one element.
template <int V, class Operand> DEVICE void load(const Operand &operand, scalar *shared) {
#pragma unroll
    for (int i = 0; i < Operand::PIECES; i++) {
        scalar *to = shared + Operand::shared(i);
        if (V == WIDE) {
            copy_later(to, operand.at(i));
        } else {
            for (int e = 0; e < WIDE; e++) {
                const scalar *from = operand.at(i, e);
                from_float(to[e], from ? to_float(*from) : 0.0f);
            }
        }
    }
}

// Shared memory of a block: the tiles of all stages. After the last step it holds columns of the result that are about to be
// written, and sums over some of the result's rows.
template <int BM, int BN, int COUNT = STAGES> struct Memory {
    static constexpr int OUT = 64, PITCH = OUT + 4;
    union {
        scalar steps[COUNT][(BM + BN) * BK];
        struct {
            float out[BM][PITCH];
            float sums[2][256 / OUT][OUT];
        };
    };
};

// Copies the thread's pieces of the next step of both operands to shared memory.
template <int BM, int V, class A, class B> DEVICE void load_step(A &a, B &b, scalar *tiles) {
    load<V>(a, tiles);
    load<V>(b, tiles + BM * BK);
    a.next();
    b.next();
}

// The product of two operands over `steps` steps. While one step is multiplied, the next ones are copied.
template <int V, int BM, int BN, class A, class B>
DEVICE void multiply(A &a, B &b, int steps, Memory<BM, BN> &memory, Accumulator<BM, BN> &sums) {
    sums.clear();
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load_step<BM, V>(a, b, memory.steps[step]);
        end_of_copies();
    }
    int stage = 0;
    for (int step = 0; step < steps; step++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads(); // all threads have their pieces of this step, and are done with the one whose memory is reused now
        if (step + STAGES - 1 < steps) load_step<BM, V>(a, b, memory.steps[stage == 0 ? STAGES - 1 : stage - 1]);
        end_of_copies();
        const scalar *now = memory.steps[stage];
        sums.template add<typename A::Shared, typename B::Shared, BK>(now, now + BM * BK);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    wait_for_copies<0>();
}

#if MATH >= 2 && GROUPS

// The part of the product that a block computes, 128 x BN. Its two groups of four warps have 64 rows each.
template <int BN> struct Groups {
    static constexpr int TM = 1, TN = BN / 8, EACH = 4;
    float sums[TM][TN][EACH];

    DEVICE_MEMBER static int row(int, int e) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + e / 2 * 8; }
    DEVICE_MEMBER static int column(int j, int e) { return j * 8 + threadIdx.x % 4 * 2 + e % 2; }
};

// Descriptor of the lines or columns of a tile from `first` on, from depth k on.
template <class Shared> DEVICE Described describe_tile(const scalar *tile, int first, int k) {
    const int LINE = 8 * WIDE; // halves per 128 bytes
    if (Shared::DEEP) return describe(tile + first * BK + k, 16, 8 * LINE * sizeof(scalar));
    return describe(tile + first * BK + k * LINE, BK * LINE * sizeof(scalar), 8 * LINE * sizeof(scalar));
}

// The same product by groups: their tensor cores read the tiles directly from shared memory. The products of a step continue
// while the next step starts.
template <int V, int BN, class A, class B>
DEVICE void multiply(A &a, B &b, int steps, Memory<128, BN, STAGES_OF_GROUPS> &memory, Groups<BN> &sums) {
    const int AHEAD = STAGES_OF_GROUPS - 2;
#pragma unroll
    for (int j = 0; j < Groups<BN>::TN; j++)
        for (int e = 0; e < 4; e++) sums.sums[0][j][e] = 0.0f;
    for (int step = 0; step < AHEAD; step++) {
        if (step < steps) load_step<128, V>(a, b, memory.steps[step]);
        end_of_copies();
    }
    int group = threadIdx.x / 128, stage = 0, next = AHEAD;
    for (int step = 0; step < steps; step++) {
        wait_for_copies<AHEAD - 1>();
        copies_are_for_groups();
        __syncthreads(); // all have their pieces of this step, and both groups are done with the last step but one
        if (step + AHEAD < steps) load_step<128, V>(a, b, memory.steps[next]);
        end_of_copies();
        const scalar *left = memory.steps[stage], *right = left + 128 * BK;
        begin_products();
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            Described rows = describe_tile<typename A::Shared>(left, group * 64, k);
            Described columns = describe_tile<typename B::Shared>(right, 0, k);
#if MATH == 2
            group_product_f16<!A::Shared::DEEP, !B::Shared::DEEP>(sums.sums[0], rows, columns);
#else
            group_product_bf16<!A::Shared::DEEP, !B::Shared::DEEP>(sums.sums[0], rows, columns);
#endif
        }
        end_of_products();
        wait_for_products<1>();
        stage = stage + 1 == STAGES_OF_GROUPS ? 0 : stage + 1;
        next = next + 1 == STAGES_OF_GROUPS ? 0 : next + 1;
    }
    wait_for_products<0>();
    wait_for_copies<0>();
}

#endif
