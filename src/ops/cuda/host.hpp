// Takes the place of `device.cuh` where kernels are compiled for the CPU, so that tests run the very same sources.
//
// A block's 256 threads are fibers of one thread of the CPU. A fiber runs until it waits for the others of its block
// (__syncthreads) or of its warp (mma, warp_sum). The order in which fibers run is a parameter: a kernel that lacks a barrier
// gives different results in different orders. Blocks run one after the other. What this cannot show: speed, alignment
// faults, memory ordering within a warp, the limits of shared memory and registers, and the GPU's own rounding of mma.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#define KERNEL(name) extern "C" void name
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
static int order;
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

static void yield(State state) {
    states[running] = state;
    switch_stack(&contexts[running], scheduler);
}
static void wait_for_block() { yield(WAITS_FOR_BLOCK); }
static void wait_for_warp() { yield(WAITS_FOR_WARP); }

static void (*body)(void **);
static void **arguments;
static void fiber() {
    body(arguments);
    yield(DONE);
    abort();
}

static unsigned int nth_thread(unsigned int i) {
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
    }
    for (;;) {
        bool any = false;
        for (unsigned int i = 0; i < THREADS; i++) {
            running = nth_thread(i);
            if (states[running] == READY) {
                any = true;
                switch_stack(&scheduler, contexts[running]);
            }
        }
        if (any) {
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
    order = thread_order;
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
DEVICE float infinity() { return INFINITY; }
DEVICE float product(float a, float b) { return a * b; }
DEVICE double product(double a, double b) { return a * b; }

// What the threads of each warp brought to a sum.
static float given[THREADS];

static float warp_sum(float value) {
    for (unsigned int step = 16; step > 0; step /= 2) {
        given[running] = value;
        wait_for_warp();
        value += given[running ^ step];
        wait_for_warp();
    }
    return value;
}

// To nearest, ties away from zero, as the GPU's conversion does.
DEVICE unsigned int to_tf32(float value) {
    if (!std::isfinite(value)) return float_bits(value);
    return (float_bits(value) + 0x1000u) & ~0x1fffu;
}

// What the threads of each warp brought to a product, laid out as PTX says: a [16, k], and b [k, 8] by columns.
static float given_a[THREADS / 32][16][16], given_b[THREADS / 32][8][16];

// d [16, 8] += a b, of which the thread has four values; `DEPTH` is k.
template <int DEPTH> static void add_product(float (&d)[4]) {
    wait_for_warp();
    unsigned int warp = running / 32, lane = running % 32;
    for (int i = 0; i < 4; i++) {
        const float *a = given_a[warp][lane / 4 + i / 2 * 8], *b = given_b[warp][lane % 4 * 2 + i % 2];
        for (int k = 0; k < DEPTH; k++) d[i] += a[k] * b[k];
    }
    wait_for_warp();
}

static void mma_m16n8k8_tf32(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    unsigned int warp = running / 32, line = running % 32 / 4, k = running % 4;
    for (int i = 0; i < 4; i++) given_a[warp][line + i % 2 * 8][k + i / 2 * 4] = bits_float(a[i] & ~0x1fffu);
    for (int i = 0; i < 2; i++) given_b[warp][line][k + i * 4] = bits_float(b[i] & ~0x1fffu);
    add_product<8>(d);
}

DEVICE float half_of(unsigned int word, unsigned int which) {
    half_t half = {(unsigned short)(word >> (16 * which))};
    return to_float(half);
}

static void mma_m16n8k16_f16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    unsigned int warp = running / 32, line = running % 32 / 4, k = running % 4 * 2;
    for (int which = 0; which < 2; which++) {
        for (int i = 0; i < 4; i++) given_a[warp][line + i % 2 * 8][k + i / 2 * 8 + which] = half_of(a[i], which);
        for (int i = 0; i < 2; i++) given_b[warp][line][k + i * 8 + which] = half_of(b[i], which);
    }
    add_product<16>(d);
}
