// Convolution of channels-last images as an implicit matrix product, in three passes:
//
//   forward   y  [pixels out, output]        = patches of x          times weights
//   data      gx [pixels in, input]          = patches of gy         times weights
//   weight    gw [output, kernel^2 * input]  = gy transposed         times patches of x, in pieces of the pixels
//
// No patch matrix exists: each block gathers the patches of its tile into shared memory. A linear layer is the case of a
// 1x1 kernel on images of one pixel. Sums run in an order that the shapes alone determine, so results repeat bit by bit.
//
// Compiled once per arithmetic, behind `product.cuh` and `parts.cuh`.

const int FORWARD = 0, DATA = 1, WEIGHT = 2;
// Depth of a step.
const int BK = MATH == 2 ? 32 : 16;

struct Geometry {
    int n, h, w, input;
    int oh, ow, output;
    int kernel, stride, padding;
};

// Of a row or column of the product: image, and y and x of the first tap or of the tap; `rest` is an index within.
struct Fixed {
    int image, y, x, rest;
    bool there;
};

// Rows m, columns n and depth k of the product.
template <int PASS> struct Product {
    Geometry g;
    const scalar *a, *b;
    int rows, columns, depth;

    DEVICE_MEMBER void set(const Geometry &geometry, const scalar *left, const scalar *right) {
        g = geometry;
        a = left;
        b = right;
        int taps = g.kernel * g.kernel;
        if (PASS == FORWARD) rows = g.n * g.oh * g.ow, columns = g.output, depth = taps * g.input;
        if (PASS == DATA) rows = g.n * g.h * g.w, columns = g.input, depth = taps * g.output;
        if (PASS == WEIGHT) rows = g.output, columns = taps * g.input, depth = g.n * g.oh * g.ow;
    }

    // What can be said of a row m of the left operand once and for all depths.
    DEVICE_MEMBER Fixed fix_left(int m) const {
        if (m >= rows) return Fixed{0, 0, 0, 0, false};
        if (PASS == WEIGHT) return Fixed{0, 0, 0, m, true};
        int width = PASS == FORWARD ? g.ow : g.w, height = PASS == FORWARD ? g.oh : g.h;
        int line = m / width, image = line / height, x = m - line * width, y = line - image * height;
        if (PASS == FORWARD) return Fixed{image, y * g.stride - g.padding, x * g.stride - g.padding, 0, true};
        return Fixed{image, y + g.padding, x + g.padding, 0, true};
    }

    // Likewise of a column n of the right operand.
    DEVICE_MEMBER Fixed fix_right(int n) const {
        if (n >= columns) return Fixed{0, 0, 0, 0, false};
        if (PASS != WEIGHT) return Fixed{0, 0, 0, n, true};
        int tap = n / g.input, ky = tap / g.kernel;
        return Fixed{0, ky - g.padding, tap - ky * g.kernel - g.padding, n - tap * g.input, true};
    }

    // Where a(m, k) lies; null where it is zero.
    DEVICE_MEMBER const scalar *left(const Fixed &m, int k) const {
        if (!m.there || k >= depth) return nullptr;
        if (PASS == WEIGHT) return a + (size_t)k * g.output + m.rest;
        int channels = PASS == FORWARD ? g.input : g.output;
        int tap = g.kernel == 1 ? 0 : k / channels, channel = k - tap * channels;
        int ky = g.kernel == 1 ? 0 : tap / g.kernel, kx = tap - ky * g.kernel;
        if (PASS == FORWARD) return pixel_in(a, m.image, m.y + ky, m.x + kx, channel);
        int x = m.x - kx, y = m.y - ky;
        if (x < 0 || y < 0) return nullptr;
        if (g.stride > 1) {
            if (x % g.stride || y % g.stride) return nullptr;
            x /= g.stride;
            y /= g.stride;
        }
        if (x >= g.ow || y >= g.oh) return nullptr;
        return a + ((size_t)(m.image * g.oh + y) * g.ow + x) * g.output + channel;
    }

    // Where b(k, n) lies; null where it is zero.
    DEVICE_MEMBER const scalar *right(const Fixed &n, int k) const {
        if (!n.there || k >= depth) return nullptr;
        if (PASS == FORWARD) return b + (size_t)n.rest * depth + k;
        if (PASS == DATA) {
            int tap = g.kernel == 1 ? 0 : k / g.output, channel = k - tap * g.output;
            return b + (size_t)(channel * g.kernel * g.kernel + tap) * g.input + n.rest;
        }
        int line = k / g.ow, image = line / g.oh, x = k - line * g.ow, y = line - image * g.oh;
        return pixel_in(b, image, y * g.stride + n.y, x * g.stride + n.x, n.rest);
    }

    // A channel of a pixel of the images; null outside.
    DEVICE_MEMBER const scalar *pixel_in(const scalar *images, int image, int y, int x, int channel) const {
        if (x < 0 || y < 0 || x >= g.w || y >= g.h) return nullptr;
        return images + ((size_t)(image * g.h + y) * g.w + x) * g.input + channel;
    }
};

// A tile of one operand on its way from memory to shared memory. DEEP: neighbours in memory follow the depth k, and shared
// memory is [SIZE][BK + pad]; else they follow m or n, and it is [BK][SIZE + pad]. The pads keep the reads of a warp's
// fragments in different banks.
template <int SIZE, bool DEEP, int V> struct Operand {
    static constexpr int PITCH = DEEP ? BK + WIDE : SIZE + 8;
    typedef Layout<PITCH, DEEP> Shared;
    static constexpr int LENGTH = DEEP ? SIZE * PITCH : BK * PITCH;
    static constexpr int LINE = (DEEP ? BK : SIZE) / V;
    static constexpr int COUNT = SIZE * BK / V / 256;
    union {
        Bits16 wide[COUNT];
        scalar narrow[COUNT];
    };

    DEVICE_MEMBER static int line(int i) { return (threadIdx.x + i * 256) / LINE; }
    DEVICE_MEMBER static int along(int i) { return (threadIdx.x + i * 256) % LINE * V; }

    // A thread's rows or columns stay the same from step to step.
    Fixed fixed[COUNT];

    template <class P> DEVICE_MEMBER void fix(const P &product, bool is_left, int first) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int at = first + (DEEP ? line(i) : along(i));
            fixed[i] = is_left ? product.fix_left(at) : product.fix_right(at);
        }
    }

    template <class P> DEVICE_MEMBER void load(const P &product, bool is_left, int k, int end) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int depth = k + (DEEP ? along(i) : line(i));
            const scalar *from = nullptr;
            if (depth < end) from = is_left ? product.left(fixed[i], depth) : product.right(fixed[i], depth);
            if (V > 1) {
                Bits16 zero = {{0, 0, 0, 0}};
                wide[i] = from ? *(const Bits16 *)from : zero;
            } else {
                scalar zero;
                from_float(zero, 0.0f);
                narrow[i] = from ? *from : zero;
            }
        }
    }

    DEVICE_MEMBER void store(scalar *shared) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            scalar *to = shared + line(i) * PITCH + along(i);
            if (V > 1)
                *(Bits16 *)to = wide[i];
            else
                *to = narrow[i];
        }
    }
};

// One tile of the product over the depths from `begin` to `end`. While a step is multiplied, the next one is on its way.
template <int PASS, int BM, int BN, int V>
DEVICE void multiply(const Product<PASS> &product, int begin, int end, Accumulator<BM, BN> &sums) {
    typedef Operand<BM, PASS != WEIGHT, V> A;
    typedef Operand<BN, PASS == FORWARD, V> B;
    SHARED scalar left[2][A::LENGTH];
    SHARED scalar right[2][B::LENGTH];
    int m = blockIdx.x * BM, n = blockIdx.y * BN, stage = 0;
    A a;
    B b;
    a.fix(product, true, m);
    b.fix(product, false, n);
    a.load(product, true, begin, end);
    b.load(product, false, begin, end);
    a.store(left[0]);
    b.store(right[0]);
    __syncthreads();
    for (int k = begin; k < end; k += BK) {
        bool more = k + BK < end;
        if (more) {
            a.load(product, true, k + BK, end);
            b.load(product, false, k + BK, end);
        }
        sums.template add<typename A::Shared, typename B::Shared, BK>(left[stage], right[stage]);
        stage ^= 1;
        if (more) {
            a.store(left[stage]);
            b.store(right[stage]);
        }
        __syncthreads();
    }
}

// Forward and data passes: the product, plus a bias [columns] and something of the product's shape, where there are any.
// What is added may lie where the result goes.
template <int PASS, int BM, int BN, int V>
DEVICE void whole(const Geometry &geometry, const scalar *a, const scalar *b, const float *bias, const scalar *added,
                  scalar *out) {
    Product<PASS> product;
    product.set(geometry, a, b);
    Accumulator<BM, BN> sums;
    sums.clear();
    multiply<PASS, BM, BN, V>(product, 0, product.depth, sums);
#pragma unroll
    for (int i = 0; i < Accumulator<BM, BN>::TM; i++)
#pragma unroll
        for (int j = 0; j < Accumulator<BM, BN>::TN; j++)
#pragma unroll
            for (int e = 0; e < Accumulator<BM, BN>::EACH; e++) {
                int m = blockIdx.x * BM + sums.row(i, e), n = blockIdx.y * BN + sums.column(j, e);
                if (m >= product.rows || n >= product.columns) continue;
                size_t at = (size_t)m * product.columns + n;
                float value = sums.sums[i][j][e];
                if (bias) value += bias[n];
                if (added) value += to_float(added[at]);
                from_float(out[at], value);
            }
}

// Weight pass: piece first + z of the pixels, [pieces, output, kernel^2 * input] in f32. Each part of the batch has `part` pixels,
// in pieces of `piece`.
template <int BM, int BN, int V>
DEVICE void weights(const Geometry &geometry, const scalar *gy, const scalar *x, int first, int part, int piece,
                    float *pieces) {
    Product<WEIGHT> product;
    product.set(geometry, gy, x);
    Accumulator<BM, BN> sums;
    sums.clear();
    Piece pixels = piece_of(first + blockIdx.z, part, piece);
    multiply<WEIGHT, BM, BN, V>(product, pixels.begin, pixels.end, sums);
    float *out = pieces + (size_t)blockIdx.z * product.rows * product.columns;
#pragma unroll
    for (int i = 0; i < Accumulator<BM, BN>::TM; i++)
#pragma unroll
        for (int j = 0; j < Accumulator<BM, BN>::TN; j++)
#pragma unroll
            for (int e = 0; e < Accumulator<BM, BN>::EACH; e++) {
                int m = blockIdx.x * BM + sums.row(i, e), n = blockIdx.y * BN + sums.column(j, e);
                if (m < product.rows && n < product.columns) out[(size_t)m * product.columns + n] = sums.sums[i][j][e];
            }
}

#define PASSES(suffix, BM, BN, V)                                                                                      \
    KERNEL(conv_forward_##suffix)(Geometry g, const scalar *x, const scalar *weight, const float *bias,                \
                                  const scalar *added, scalar *y) {                                                    \
        whole<FORWARD, BM, BN, V>(g, x, weight, bias, added, y);                                                       \
    }                                                                                                                  \
    KERNEL(conv_data_##suffix)(Geometry g, const scalar *gy, const scalar *weight, const float *bias,                  \
                               const scalar *added, scalar *gx) {                                                      \
        whole<DATA, BM, BN, V>(g, gy, weight, bias, added, gx);                                                        \
    }                                                                                                                  \
    KERNEL(conv_weight_##suffix)(Geometry g, const scalar *gy, const scalar *x, int first, int part, int piece,        \
                                 float *pieces) {                                                                      \
        weights<BM, BN, V>(g, gy, x, first, part, piece, pieces);                                                      \
    }

// Wide and narrow tiles, and narrow ones for channel counts that 16-byte loads do not divide.
PASSES(128, 128, 128, WIDE)
PASSES(64, 128, 64, WIDE)
PASSES(any, 64, 64, 1)

// gw = the tree over `parts` parts of the batch, each the sum of its `pieces` pieces of `values`, in order; or added to gw.
KERNEL(conv_weight_sum)(int parts, int pieces, int length, const float *values, int accumulate, float *gw) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= length) return;
    float total = tree<float>(0, parts, [&](int part) {
        float sum = 0.0f;
        for (int piece = part * pieces; piece < (part + 1) * pieces; piece++) sum += values[(size_t)piece * length + i];
        return sum;
    });
    gw[i] = accumulate ? gw[i] + total : total;
}
