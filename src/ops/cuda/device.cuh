// The primitives that our kernels are written in, for a GPU. This file is prepended to every kernel source. `host.hpp` replaces
// it when the same sources are compiled for the emulation on the CPU. It includes no headers, so that NVRTC compiles it anywhere.

// Every kernel runs with 256 threads per block.
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(256) name
// A kernel of which two blocks must fit on a multiprocessor: one multiplies while the other waits for memory.
#define KERNEL_OF_TWO(name) extern "C" __global__ void __launch_bounds__(256, 2) name
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define SHARED __shared__ __align__(16)

// IEEE half precision, for storage only: arithmetic is in f32.
struct half_t {
    unsigned short bits;
};

// bfloat16: the upper half of a float.
struct bf16_t {
    unsigned short bits;
};

struct __align__(16) Bits16 {
    unsigned int words[4];
};

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(half_t value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}
DEVICE float to_float(bf16_t value) { return __uint_as_float((unsigned int)value.bits << 16); }
DEVICE void from_float(float &to, float value) { to = value; }
DEVICE void from_float(half_t &to, float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value)); }

DEVICE void from_float(bf16_t &to, float value) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(value)); }

DEVICE unsigned int float_bits(float value) { return __float_as_uint(value); }
DEVICE float bits_float(unsigned int bits) { return __uint_as_float(bits); }
DEVICE float infinity() { return __int_as_float(0x7f800000); }

// A product that is rounded before anything is added to it (not fused).
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
DEVICE double product(double a, double b) { return __dmul_rn(a, b); }

// The sum of a value over a warp's 32 threads, the same bits in each. All 32 threads must call it.
DEVICE float warp_sum(float value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// The value of the thread in the given lane of the warp. All 32 threads must call it.
template <class T> DEVICE T warp_value(T value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
// One bit for each thread of the warp: whether its `yes` is true. All 32 threads must call it.
DEVICE unsigned int warp_votes(bool yes) { return __ballot_sync(0xffffffffu, yes); }
// Number of one bits, and position of the lowest one bit.
DEVICE int count_ones(unsigned int bits) { return __popc(bits); }
DEVICE int lowest_one(unsigned int bits) { return __ffs(bits) - 1; }

// Rounds to the 10 bits of mantissa that tensor cores read of a tf32 operand.
DEVICE unsigned int to_tf32(float value) {
    unsigned int result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return result;
}

// d [16, 8] += a [16, 8] b [8, 8], distributed over the 32 threads of a warp as PTX specifies.
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d [16, 8] += a [16, 16] b [16, 8]; a and b in f16 or bf16, two to a word.
DEVICE void mma_m16n8k16_f16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_m16n8k16_bf16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE unsigned int shared_address(const void *at) { return (unsigned int)__cvta_generic_to_shared(at); }

// Loads matrices of 8 lines of 16 bytes from shared memory, one word of each matrix per thread: thread t gets word t % 4 of line
// t / 4. Thread t passes the address of line t % 8 of matrix t / 8.
DEVICE void load_matrices(unsigned int (&to)[4], const void *line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(line))
                 : "memory");
}
DEVICE void load_matrices(unsigned int (&to)[2], const void *line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(line))
                 : "memory");
}
// The same for matrices of halves, transposed: thread t gets half t / 4 of lines t % 4 * 2 and t % 4 * 2 + 1.
DEVICE void load_turned_matrices(unsigned int (&to)[4], const void *line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(line))
                 : "memory");
}
DEVICE void load_turned_matrices(unsigned int (&to)[2], const void *line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(line))
                 : "memory");
}

// Starts an asynchronous copy of 16 bytes to shared memory. Writes zeros if `from` is null.
DEVICE void copy_later(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from ? from : to), "r"(from ? 16 : 0)
                 : "memory");
}
// Ends a group of asynchronous copies.
DEVICE void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for the thread's asynchronous copies, except those of the last GROUPS groups.
template <int GROUPS> DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory"); }

// Dynamic shared memory, whose size is an argument of the launch. The variable `NAME_memory` holds the number of bytes that
// kernel NAME needs.
#define DYNAMIC(type, name)                                                                                            \
    extern __shared__ __align__(1024) unsigned char dynamic_memory[];                                                  \
    type &name = *(type *)dynamic_memory
#define TAKES(kernel, type) extern "C" { __device__ int kernel##_memory = sizeof(type); }

// Products by tensor cores that a group of four warps computes together from shared memory (wgmma). Only compute capability 9.0
// has them.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GROUPS 1
#else
#define GROUPS 0
#endif
#if GROUPS

// Descriptor of an operand of a group's product in shared memory. The operand consists of lines of 128 bytes, 8 lines to a block.
// Within a line, pieces of 16 bytes are permuted by the number of the line (128-byte swizzle). In a plain operand a line is a row
// or column, and consecutive blocks are `stride` bytes apart. In a turned (transposed) operand a line holds 64 rows or columns at
// one depth: consecutive blocks along the depth are `stride` bytes apart, and the next 64 rows or columns are `panel` bytes away.
typedef unsigned long long Described;
DEVICE Described describe(const void *at, int panel, int stride) {
    const unsigned long long TURNED_BY_LINES = 1ull << 62;
    return (shared_address(at) & 0x3ffff) >> 4 | (unsigned long long)(panel >> 4) << 16 | (unsigned long long)(stride >> 4) << 32 |
           TURNED_BY_LINES;
}

// Makes the data that this thread's copies wrote to shared memory visible to group products. Every thread must call it for its
// own copies.
DEVICE void copies_are_for_groups() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void end_of_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for the group's products, except the last LAST committed sets of products.
template <int LAST> DEVICE void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LAST) : "memory"); }

// Starts d [64, 8 N] += a [64, 16] b [16, 8 N], asynchronously. d is distributed over the 128 threads of a group as PTX
// specifies.
#define OF_FOUR(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define OF_SIXTEEN(i) OF_FOUR(i), OF_FOUR(i + 1), OF_FOUR(i + 2), OF_FOUR(i + 3)
#define GROUP_PRODUCT(name, type)                                                                                      \
    template <bool A_TURNED, bool B_TURNED> DEVICE void name(float (&d)[8][4], Described a, Described b) {             \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {"                                  \
                     "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                          \
                     "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, %34, %35;"  \
                     : OF_SIXTEEN(0), OF_SIXTEEN(4)                                                                    \
                     : "l"(a), "l"(b), "n"(A_TURNED), "n"(B_TURNED));                                                  \
    }                                                                                                                  \
    template <bool A_TURNED, bool B_TURNED> DEVICE void name(float (&d)[16][4], Described a, Described b) {            \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"                                 \
                     "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                          \
                     "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                \
                     "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                \
                     "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, 1, 1, 1, %66, %67;"  \
                     : OF_SIXTEEN(0), OF_SIXTEEN(4), OF_SIXTEEN(8), OF_SIXTEEN(12)                                     \
                     : "l"(a), "l"(b), "n"(A_TURNED), "n"(B_TURNED));                                                  \
    }
GROUP_PRODUCT(group_product_f16, "f16")
GROUP_PRODUCT(group_product_bf16, "bf16")

#endif
