// What our kernels are written in, on a GPU. Prepended to every kernel source; `host.hpp` takes its place where the same
// sources are compiled for the CPU and emulated. Needs no include, so that NVRTC compiles it anywhere.

// Every kernel runs with 256 threads per block.
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(256) name
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define SHARED __shared__

// IEEE half precision, for storage alone: arithmetic is in f32.
struct half_t {
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
DEVICE void from_float(float &to, float value) { to = value; }
DEVICE void from_float(half_t &to, float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value)); }

DEVICE unsigned int float_bits(float value) { return __float_as_uint(value); }
DEVICE float infinity() { return __int_as_float(0x7f800000); }

// A product that no compiler fuses with the sum that it goes into.
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }

// Rounds to the 10 bits of mantissa that tensor cores read of a tf32 operand.
DEVICE unsigned int to_tf32(float value) {
    unsigned int result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return result;
}

// d [16, 8] += a [16, 8] b [8, 8], shared out among the 32 threads of a warp as PTX lays down.
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d [16, 8] += a [16, 16] b [16, 8]; a and b in half precision, two to a word.
DEVICE void mma_m16n8k16_f16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
