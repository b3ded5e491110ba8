// How a tensor is stored: STORAGE 0 is f32, 1 is f16, 2 is bf16. This file is prepended to the sources of passes over elements,
// which are compiled once per storage type.

#if STORAGE == 0
typedef float scalar;
#elif STORAGE == 1
typedef half_t scalar;
#else
typedef bf16_t scalar;
#endif

// Elements per 16 bytes.
const int WIDE = 16 / sizeof(scalar);

// V consecutive elements that are loaded and stored together. Their address is a multiple of their size.
template <int V> struct alignas(V * sizeof(scalar)) Pack {
    static constexpr int COUNT = V;
    scalar elements[V];

    DEVICE_MEMBER static Pack at(const scalar *from) { return *(const Pack *)from; }
    DEVICE_MEMBER void store(scalar *to) const { *(Pack *)to = *this; }
    DEVICE_MEMBER float operator[](int e) const { return to_float(elements[e]); }
    DEVICE_MEMBER void set(int e, float value) { from_float(elements[e], value); }
};

// Whether the addresses of all tensors are multiples of 16, as packs of 16 bytes need. A null pointer counts as a multiple.
template <class... T> DEVICE bool begin_wide(const T *...tensors) { return (((size_t)tensors % 16 == 0) && ...); }

// Calls `body` for every `step`-th pack of `length` elements, from pack `first` on. A pack has 16 bytes if `wide` is set, else
// one element. `body` gets an empty pack, for its type, and the index of the pack's first element.
template <class Body> DEVICE void each_pack(int first, int step, int length, bool wide, const Body &body) {
    if (wide) {
        for (int i = first; i < length / WIDE; i += step) body(Pack<WIDE>(), i * WIDE);
    } else {
        for (int i = first; i < length; i += step) body(Pack<1>(), i);
    }
}

// The same for all packs, distributed over all threads of all blocks.
template <class Body> DEVICE void in_packs(int length, bool wide, const Body &body) {
    each_pack(blockIdx.x * 256 + threadIdx.x, gridDim.x * 256, length, wide, body);
}
