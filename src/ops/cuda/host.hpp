// Takes the place of `device.cuh` where kernels are compiled for the CPU, so that tests run the very same sources.
//
// A block's 256 threads are fibers of one thread of the CPU. A fiber runs until it waits for the others of its block
// (__syncthreads) or of its warp (mma, warp_sum), and gives way to the next. The order in which fibers run is a parameter: a
// kernel that lacks a barrier gives different results in different orders. Blocks run one after the other. What this cannot
// show: speed, alignment faults, memory ordering within a warp, the limits of shared memory and registers, and the GPU's own
// rounding of mma.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define KERNEL(name) extern "C" void name
#define KERNEL_OF_TWO KERNEL
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define SHARED alignas(16) static
#define __syncthreads() wait_for_block()

struct Dim {
    unsigned int x, y, z;
};
static Dim blockIdx, gridDim;
static const Dim blockDim = {256, 1, 1};
#define threadIdx (Dim{running, 0, 0})

static const unsigned int THREADS = 256;
static const size_t STACK = 64 * 1024;
enum State { READY, WAITS_FOR_WARP, WAITS_FOR_BLOCK, DONE };
static State states[THREADS];
static unsigned int running;
static void *stacks[THREADS];
static void *contexts[THREADS];
static void *scheduler;
static unsigned int sequence[THREADS]; // the threads in the order in which they run
static unsigned int turn;              // the running thread's place in it
static const char *failure;

#if defined(__x86_64__)
// Saves what a call preserves, changes the stack, restores.
extern "C" void switch_stack(void **from, void *to);
asm(R"(
    .text
    .globl switch_stack
switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
static void *fresh_context(void *stack, void (*entry)()) {
    void **top = (void **)((char *)stack + STACK);
    *--top = nullptr; // keeps the stack aligned at entry
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    return top;
}
#else
#error "the emulation of kernels knows x86-64 alone"
#endif

// How often each thread has waited for its warp. Exchanges within a warp use two buffers in turn, by whether this number is even.
// A thread writes to the same buffer again only after it has waited once more, and by then all have read it.
static unsigned int waits[THREADS];

// Makes the next thread that is ready in this round the running one and returns its context, or null at the end of the round.
static void *next_ready() {
    for (turn++; turn < THREADS; turn++) {
        running = sequence[turn];
        if (states[running] == READY) return contexts[running];
    }
    return nullptr;
}
static void yield(State state) {
    states[running] = state;
    void **from = &contexts[running];
    void *next = next_ready();
    switch_stack(from, next ? next : scheduler);
}
static void wait_for_block() { yield(WAITS_FOR_BLOCK); }
static unsigned int buffer_in_turn() { return waits[running] % 2; }
static void wait_for_warp() {
    waits[running]++;
    yield(WAITS_FOR_WARP);
}

// Waits for the warp. Its last thread to arrive does `work` for all of them first.
static unsigned int arrived[THREADS / 32];
template <class Work> static void wait_for_warp_and(const Work &work) {
    unsigned int &count = arrived[running / 32];
    if (++count == 32) {
        count = 0;
        work();
    }
    wait_for_warp();
}

static void (*body)(void **);
static void **arguments;
static void fiber() {
    body(arguments);
    yield(DONE);
    abort();
}

// Copies of each thread that have not been waited for, and the number of groups that it has ended.
struct Copy {
    void *to;
    const void *from;
    unsigned int group;
};
static std::vector<Copy> copies[THREADS];
static unsigned int groups[THREADS];

static unsigned int nth_thread(unsigned int i, int order) {
    switch (order) {
    case 0: return i;
    case 1: return THREADS - 1 - i;
    default: return (i * 77 + 13) % THREADS; // 77 is odd: a permutation
    }
}

static void run_block() {
    for (unsigned int t = 0; t < THREADS; t++) {
        if (!stacks[t]) stacks[t] = aligned_alloc(64, STACK);
        contexts[t] = fresh_context(stacks[t], fiber);
        states[t] = READY;
        copies[t].clear();
        groups[t] = 0;
        waits[t] = 0;
    }
    memset(arrived, 0, sizeof arrived);
    for (;;) {
        turn = -1; // before the first
        if (void *first = next_ready()) {
            switch_stack(&scheduler, first);
            // Warps whose threads have all come go on.
            for (unsigned int warp = 0; warp < THREADS; warp += 32) {
                bool all = true;
                for (unsigned int t = warp; t < warp + 32; t++) all &= states[t] == WAITS_FOR_WARP;
                for (unsigned int t = warp; all && t < warp + 32; t++) states[t] = READY;
            }
            continue;
        }
        unsigned int waiting = 0, done = 0;
        for (unsigned int t = 0; t < THREADS; t++) {
            waiting += states[t] == WAITS_FOR_BLOCK;
            done += states[t] == DONE;
        }
        if (done == THREADS) return;
        if (waiting != THREADS) {
            failure = "threads of a block wait at different barriers, or some have left";
            return;
        }
        for (unsigned int t = 0; t < THREADS; t++) states[t] = READY;
    }
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(A *)arguments[I]...);
}
template <auto kernel> struct Caller;
template <class... A, void (*kernel)(A...)> struct Caller<kernel> {
    static void run(void **arguments) { call(kernel, arguments, std::index_sequence_for<A...>{}); }
};

struct Named {
    const char *name;
    void (*run)(void **);
};
extern const Named KERNELS[];

// Runs a kernel; tells what went wrong, or null.
extern "C" const char *emulate(const char *name, const unsigned int *grid, void **args, int thread_order) {
    const Named *found = KERNELS;
    while (found->name && strcmp(found->name, name)) found++;
    if (!found->name) return "no such kernel";
    body = found->run;
    arguments = args;
    for (unsigned int i = 0; i < THREADS; i++) sequence[i] = nth_thread(i, thread_order);
    failure = nullptr;
    gridDim = {grid[0], grid[1], grid[2]};
    for (unsigned int z = 0; z < grid[2]; z++)
        for (unsigned int y = 0; y < grid[1]; y++)
            for (unsigned int x = 0; x < grid[0] && !failure; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
    return failure;
}

struct half_t {
    unsigned short bits;
};
struct bf16_t {
    unsigned short bits;
};
struct alignas(16) Bits16 {
    unsigned int words[4];
};

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(half_t value) {
    _Float16 half;
    memcpy(&half, &value, 2);
    return (float)half;
}
DEVICE void from_float(float &to, float value) { to = value; }
DEVICE void from_float(half_t &to, float value) {
    _Float16 half = (_Float16)value;
    memcpy(&to, &half, 2);
}
DEVICE unsigned int float_bits(float value) {
    unsigned int bits;
    memcpy(&bits, &value, 4);
    return bits;
}
DEVICE float bits_float(unsigned int bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
DEVICE float to_float(bf16_t value) { return bits_float((unsigned int)value.bits << 16); }
// To nearest, ties to even; a NaN stays one.
DEVICE void from_float(bf16_t &to, float value) {
    unsigned int bits = float_bits(value);
    to.bits = std::isnan(value) ? 0x7fff : (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
DEVICE float infinity() { return INFINITY; }
DEVICE float product(float a, float b) { return a * b; }
DEVICE double product(double a, double b) { return a * b; }

// Gives `value` to the other threads of the warp. Returns the values of all threads, of which those of the warp are up to date.
template <class T> static T *exchange(T value) {
    static T given[2][THREADS];
    T *all = given[buffer_in_turn()];
    all[running] = value;
    wait_for_warp();
    return all;
}

static float warp_sum(float value) {
    for (unsigned int step = 16; step > 0; step /= 2) value += exchange(value)[running ^ step];
    return value;
}

template <class T> static T warp_value(T value, int lane) { return exchange(value)[running / 32 * 32 + lane % 32]; }
static unsigned int warp_votes(bool yes) {
    const bool *given = exchange(yes) + running / 32 * 32;
    unsigned int votes = 0;
    for (unsigned int lane = 0; lane < 32; lane++) votes |= (unsigned int)given[lane] << lane;
    return votes;
}
DEVICE int count_ones(unsigned int bits) { return __builtin_popcount(bits); }
DEVICE int lowest_one(unsigned int bits) { return __builtin_ctz(bits); }

// To nearest, ties away from zero, as the GPU's conversion does.
DEVICE unsigned int to_tf32(float value) {
    if (!std::isfinite(value)) return float_bits(value);
    return (float_bits(value) + 0x1000u) & ~0x1fffu;
}

// d [8, 8] += a [8, k] b [k, 8]; `DEPTH` is k. Each value is summed in the order of k.
typedef float Eight __attribute__((vector_size(32)));
template <int DEPTH> static void add_products(float (*d)[8], const float (*a)[16], const float (*b)[8]) {
    Eight sums[8], line;
    memcpy(sums, d, sizeof sums);
    for (int k = 0; k < DEPTH; k++) {
        memcpy(&line, b[k], sizeof line);
        for (int row = 0; row < 8; row++) sums[row] += a[row][k] * line;
    }
    memcpy(d, sums, sizeof sums);
}

// A warp's product, laid out as PTX says: d [16, 8] += a [16, k] b [k, 8].
struct WarpProduct {
    float a[16][16], b[16][8], d[16][8];
};
static WarpProduct warp_products[2][THREADS / 32];
static WarpProduct &warp_product() { return warp_products[buffer_in_turn()][running / 32]; }

// Adds the product of the factors that all threads of the warp have given to d, of which each has four values.
template <int DEPTH> static void add_product(float (&d)[4], WarpProduct &given) {
    unsigned int line = running % 32 / 4, column = running % 4 * 2;
    for (int i = 0; i < 4; i++) given.d[line + i / 2 * 8][column + i % 2] = d[i];
    wait_for_warp_and([&] {
        for (int row = 0; row < 16; row += 8) add_products<DEPTH>(given.d + row, given.a + row, given.b);
    });
    for (int i = 0; i < 4; i++) d[i] = given.d[line + i / 2 * 8][column + i % 2];
}

static void mma_m16n8k8_tf32(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    WarpProduct &given = warp_product();
    unsigned int line = running % 32 / 4, k = running % 4;
    for (int i = 0; i < 4; i++) given.a[line + i % 2 * 8][k + i / 2 * 4] = bits_float(a[i] & ~0x1fffu);
    for (int i = 0; i < 2; i++) given.b[k + i * 4][line] = bits_float(b[i] & ~0x1fffu);
    add_product<8>(d, given);
}

template <class T> static float part_of(unsigned int word, unsigned int which) {
    T part = {(unsigned short)(word >> (16 * which))};
    return to_float(part);
}

template <class T> static void mma_m16n8k16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    WarpProduct &given = warp_product();
    unsigned int line = running % 32 / 4, k = running % 4 * 2;
    for (int which = 0; which < 2; which++) {
        for (int i = 0; i < 4; i++) given.a[line + i % 2 * 8][k + i / 2 * 8 + which] = part_of<T>(a[i], which);
        for (int i = 0; i < 2; i++) given.b[k + i * 8 + which][line] = part_of<T>(b[i], which);
    }
    add_product<16>(d, given);
}
#define mma_m16n8k16_f16 mma_m16n8k16<half_t>
#define mma_m16n8k16_bf16 mma_m16n8k16<bf16_t>

// Each thread gives the address of a row of a matrix. All are read before one of the threads goes on and may write there.
template <int WORDS, class Read> static void load_for_warp(unsigned int (&to)[WORDS], const void *line, const Read &read) {
    static struct {
        const char *lines[32];
        unsigned int words[32][WORDS];
    } given_lines[2][THREADS / 32];
    auto &given = given_lines[buffer_in_turn()][running / 32];
    unsigned int own = running % 32;
    given.lines[own] = (const char *)line;
    wait_for_warp_and([&] {
        for (unsigned int lane = 0; lane < 32; lane++)
            for (int i = 0; i < WORDS; i++) given.words[lane][i] = read(given.lines + i * 8, lane);
    });
    memcpy(to, given.words[own], sizeof to);
}
template <int WORDS> static void load_matrices(unsigned int (&to)[WORDS], const void *line) {
    load_for_warp(to, line, [](const char *const *lines, unsigned int lane) {
        unsigned int word;
        memcpy(&word, lines[lane / 4] + lane % 4 * 4, 4);
        return word;
    });
}
template <int WORDS> static void load_turned_matrices(unsigned int (&to)[WORDS], const void *line) {
    load_for_warp(to, line, [](const char *const *lines, unsigned int lane) {
        unsigned short halves[2];
        for (int half = 0; half < 2; half++) memcpy(&halves[half], lines[lane % 4 * 2 + half] + lane / 4 * 2, 2);
        return halves[0] | (unsigned int)halves[1] << 16;
    });
}

// A copy is made as late as may be: when it is waited for.
DEVICE void copy_later(void *to, const void *from) { copies[running].push_back({to, from, groups[running]}); }
DEVICE void end_of_copies() { groups[running]++; }
template <unsigned int LAST> static void wait_for_copies() {
    std::vector<Copy> &own = copies[running];
    size_t later = 0;
    for (const Copy &copy : own) {
        if (copy.group + LAST >= groups[running])
            own[later++] = copy;
        else if (copy.from)
            memcpy(copy.to, copy.from, 16);
        else
            memset(copy.to, 0, 16);
    }
    own.resize(later);
}

// As large as a block's memory may be.
alignas(1024) static unsigned char dynamic_memory[224 * 1024];
#define DYNAMIC(type, name)                                                                                            \
    static_assert(sizeof(type) <= sizeof dynamic_memory, "a block has no more");                                       \
    type &name = *(type *)dynamic_memory
#define TAKES(kernel, type)

#define GROUPS 1
struct Described {
    const void *at;
    size_t panel, stride;
    // The element of a row or column and a depth, of two bytes.
    template <bool TURNED> const void *element(size_t row, size_t k) const {
        size_t place = (size_t)at;
        place += TURNED ? row / 64 * panel + k / 8 * stride + k % 8 * 128 + row % 64 * 2 : row / 8 * stride + row % 8 * 128 + k * 2;
        return (const void *)(place ^ (place >> 7 & 7) << 4);
    }
};
DEVICE Described describe(const void *at, int panel, int stride) { return {at, (size_t)panel, (size_t)stride}; }
DEVICE void copies_are_for_groups() {}
DEVICE void begin_products() {}
DEVICE void end_of_products() {}
template <int LAST> static void wait_for_products() {}

// Each warp of a group has 16 rows of the sums. Its last thread to arrive adds the products of all its threads, so that each
// factor is converted once.
template <class T, bool A_TURNED, bool B_TURNED, int N> static void group_product(float (&d)[N][4], Described a, Described b) {
    static float (*given_sums[2][THREADS / 32][32])[4];
    auto &threads = given_sums[buffer_in_turn()][running / 32];
    threads[running % 32] = d;
    wait_for_warp_and([&] {
        size_t first = running % 128 / 32 * 16;
        float left[16][16], right[16][8];
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 16; k++) left[row][k] = to_float(*(const T *)a.element<A_TURNED>(first + row, k));
        for (int n = 0; n < N; n++) {
            for (int c = 0; c < 8; c++)
                for (int k = 0; k < 16; k++) right[k][c] = to_float(*(const T *)b.element<B_TURNED>(n * 8 + c, k));
            for (int half = 0; half < 2; half++) {
                float sums[8][8];
                for (int row = 0; row < 8; row++)
                    for (int c = 0; c < 8; c++) sums[row][c] = threads[row * 4 + c / 2][n][half * 2 + c % 2];
                add_products<16>(sums, left + half * 8, right);
                for (int row = 0; row < 8; row++)
                    for (int c = 0; c < 8; c++) threads[row * 4 + c / 2][n][half * 2 + c % 2] = sums[row][c];
            }
        }
    });
}
template <bool A_TURNED, bool B_TURNED, int N> static void group_product_f16(float (&d)[N][4], Described a, Described b) {
    group_product<half_t, A_TURNED, B_TURNED>(d, a, b);
}
template <bool A_TURNED, bool B_TURNED, int N> static void group_product_bf16(float (&d)[N][4], Described a, Described b) {
    group_product<bf16_t, A_TURNED, B_TURNED>(d, a, b);
}
