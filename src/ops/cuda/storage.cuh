// How a tensor is stored: STORAGE 0 is f32, 1 is f16, 2 is bf16. In front of the sources that go through elements, which are compiled
// once for each.

#if STORAGE == 0
typedef float scalar;
#elif STORAGE == 1
typedef half_t scalar;
#else
typedef bf16_t scalar;
#endif

// Elements of 16 bytes.
const int WIDE = 16 / sizeof(scalar);

// V elements that follow each other, moved at a time. They begin at a multiple of their size.
template <int V> struct alignas(V * sizeof(scalar)) Pack {
    static constexpr int COUNT = V;
    scalar elements[V];

    DEVICE_MEMBER static Pack at(const scalar *from) { return *(const Pack *)from; }
    DEVICE_MEMBER void store(scalar *to) const { *(Pack *)to = *this; }
    DEVICE_MEMBER float operator[](int e) const { return to_float(elements[e]); }
    DEVICE_MEMBER void set(int e, float value) { from_float(elements[e], value); }
};

// Whether tensors begin where packs of 16 bytes may. One that is not there does.
template <class... T> DEVICE bool begin_wide(const T *...tensors) { return (((size_t)tensors % 16 == 0) && ...); }

// Goes through the packs of `length` elements from number `first` on, `step` apart: of 16 bytes where they are `wide`, else of one
// element. `body` gets a pack of the size, for its type, and its place.
template <class Body> DEVICE void each_pack(int first, int step, int length, bool wide, const Body &body) {
    if (wide) {
        for (int i = first; i < length / WIDE; i += step) body(Pack<WIDE>(), i * WIDE);
    } else {
        for (int i = first; i < length; i += step) body(Pack<1>(), i);
    }
}

// The same shared out among all threads of all blocks.
template <class Body> DEVICE void in_packs(int length, bool wide, const Body &body) {
    each_pack(blockIdx.x * 256 + threadIdx.x, gridDim.x * 256, length, wide, body);
}
