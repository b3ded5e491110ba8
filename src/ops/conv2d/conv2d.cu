// Convolution of channels-last images as an implicit matrix product, in three passes:
//
//   forward   y  [pixels out, output]        = patches of x          times weights
//   data      gx [pixels in, input]          = patches of gy         times weights
//   weight    gw [output, kernel^2 * input]  = gy transposed         times patches of x, in pieces of the pixels
//
// No patch matrix exists: each block gathers the patches of its tile into shared memory, some steps ahead of the products. A
// linear layer is the case of a 1x1 kernel on images of one pixel. Sums run in an order that the shapes alone determine: results
// repeat bit by bit, and a pixel's result does not depend on the number of images.
//
// With a stride s, the data pass processes pixels by class: a class is the pixels whose coordinates have the same remainders
// modulo s. All pixels of a class meet the same taps of the kernel, and no others.
//
// Compiled once per arithmetic, after `matmul.cuh`, `pipeline.cuh` and `parts.cuh`.

const int FORWARD = 0, DATA = 1, WEIGHT = 2;

struct Geometry {
    int n, h, w, input;
    int oh, ow, output;
    int kernel, stride, padding;
};

// Rows m, columns n and depth k of the product.
template <int PASS> struct Product {
    Geometry g;
    const scalar *a, *b;
    int rows, columns, depth;
    // Data pass: the class of pixels, as the remainders of y and x; its height and width; its first tap and number of taps along
    // y and x.
    int y, x, height, width, tap_y, tap_x, taps_y, taps_x;

    DEVICE_MEMBER void set(const Geometry &geometry, const scalar *left, const scalar *right) {
        g = geometry;
        a = left;
        b = right;
        y = x = tap_y = tap_x = 0;
        taps_y = taps_x = g.kernel;
        if (PASS == FORWARD) height = g.oh, width = g.ow, columns = g.output, depth = g.kernel * g.kernel * g.input;
        if (PASS == DATA) {
            int s = g.stride;
            y = blockIdx.z / s, x = blockIdx.z % s;
            height = (g.h - y + s - 1) / s, width = (g.w - x + s - 1) / s;
            tap_y = (y + g.padding) % s, tap_x = (x + g.padding) % s;
            taps_y = (g.kernel - tap_y + s - 1) / s, taps_x = (g.kernel - tap_x + s - 1) / s;
            columns = g.input, depth = taps_y * taps_x * g.output;
        }
        rows = g.n * height * width;
        if (PASS == WEIGHT) rows = g.output, columns = g.kernel * g.kernel * g.input, depth = g.n * g.oh * g.ow;
    }

    // Where row m of the result begins.
    DEVICE_MEMBER size_t place(int m) const {
        if (PASS != DATA || g.stride == 1) return (size_t)m * columns;
        int line = m / width, image = line / height;
        int at_y = (line - image * height) * g.stride + y, at_x = (m - line * width) * g.stride + x;
        return ((size_t)(image * g.h + at_y) * g.w + at_x) * columns;
    }
};

// A position along the depth, as a tap of the kernel and a channel.
struct Tap {
    int y, x, channel;

    DEVICE_MEMBER void wrap(int channels, int taps_x) {
        while (channel >= channels) {
            channel -= channels;
            if (++x == taps_x) x = 0, y++;
        }
    }
};

// Left operand of the forward and data passes: patches of images.
template <int PASS, int SIZE> struct Patches : Deep<SIZE> {
    typedef Deep<SIZE> Places;
    // For the row of each piece: its image, and y and x of the first tap.
    const scalar *images[Places::PIECES];
    int y[Places::PIECES], x[Places::PIECES];
    int h, w, channels, taps_y, taps_x;
    Tap tap;

    DEVICE_MEMBER void begin(const Product<PASS> &product, int first) {
        const Geometry &g = product.g;
        h = PASS == FORWARD ? g.h : g.oh, w = PASS == FORWARD ? g.w : g.ow;
        channels = PASS == FORWARD ? g.input : g.output;
        taps_y = product.taps_y, taps_x = product.taps_x;
#pragma unroll
        for (int i = 0; i < Places::PIECES; i++) {
            int m = first + Places::line(i), line = m / product.width, image = line / product.height;
            int at_x = m - line * product.width, at_y = line - image * product.height;
            images[i] = product.a + (size_t)image * h * w * channels;
            if (PASS == FORWARD) y[i] = at_y * g.stride - g.padding, x[i] = at_x * g.stride - g.padding;
            if (PASS == DATA) {
                y[i] = (at_y * g.stride + product.y + g.padding - product.tap_y) / g.stride;
                x[i] = (at_x * g.stride + product.x + g.padding - product.tap_x) / g.stride;
            }
            if (m >= product.rows) y[i] = -(1 << 24); // outside the image with every tap
        }
        tap = Tap{0, 0, Places::along()};
        tap.wrap(channels, taps_x);
    }

    DEVICE_MEMBER const scalar *at(int i, const Tap &tap) const {
        int sign = PASS == FORWARD ? 1 : -1, at_y = y[i] + sign * tap.y, at_x = x[i] + sign * tap.x;
        if ((unsigned int)at_y >= (unsigned int)h || (unsigned int)at_x >= (unsigned int)w || tap.y >= taps_y) return nullptr;
        return images[i] + (size_t)((at_y * w + at_x) * channels + tap.channel);
    }
    DEVICE_MEMBER const scalar *at(int i) const { return at(i, tap); }
    DEVICE_MEMBER const scalar *at(int i, int e) const {
        Tap one = Tap{tap.y, tap.x, tap.channel + e};
        one.wrap(channels, taps_x);
        return at(i, one);
    }

    DEVICE_MEMBER void next() {
        tap.channel += BK;
        tap.wrap(channels, taps_x);
    }
};

// Right operand of the data pass: weights [output, kernel, kernel, input], a line per tap and channel of the output.
template <int SIZE> struct TurnedWeights : Flat<SIZE> {
    typedef Flat<SIZE> Places;
    Tap taps[Places::PIECES];
    const Product<DATA> *product;
    int n;

    DEVICE_MEMBER void begin(const Product<DATA> &of, int first) {
        product = &of;
        n = first + Places::along();
#pragma unroll
        for (int i = 0; i < Places::PIECES; i++) {
            taps[i] = Tap{0, 0, Places::line(i)};
            taps[i].wrap(of.g.output, of.taps_x);
        }
    }

    DEVICE_MEMBER const scalar *at(int i) const { return at(i, 0); }
    DEVICE_MEMBER const scalar *at(int i, int e) const {
        const Tap &tap = taps[i];
        if (n + e >= product->columns || tap.y >= product->taps_y) return nullptr;
        const Geometry &g = product->g;
        int y = product->tap_y + tap.y * g.stride, x = product->tap_x + tap.x * g.stride;
        return product->b + ((size_t)tap.channel * g.kernel * g.kernel + y * g.kernel + x) * g.input + n + e;
    }

    DEVICE_MEMBER void next() {
#pragma unroll
        for (int i = 0; i < Places::PIECES; i++) {
            taps[i].channel += BK;
            taps[i].wrap(product->g.output, product->taps_x);
        }
    }
};

// Left operand of the weight pass: gradients [pixels, output], a line per pixel.
template <int SIZE> struct Gradients : Flat<SIZE> {
    typedef Flat<SIZE> Places;
    const scalar *from;
    int m, rows, k, end;

    DEVICE_MEMBER void begin(const Product<WEIGHT> &product, int first, int begin, int until) {
        m = first + Places::along(), rows = product.rows, k = begin, end = until;
        from = product.a + (size_t)begin * rows;
    }

    DEVICE_MEMBER const scalar *at(int i) const { return at(i, 0); }
    DEVICE_MEMBER const scalar *at(int i, int e) const {
        if (m + e >= rows || k + Places::line(i) >= end) return nullptr;
        return from + (size_t)(Places::line(i) * rows + m + e);
    }

    DEVICE_MEMBER void next() {
        from += (size_t)BK * rows;
        k += BK;
    }
};

// Right operand of the weight pass: patches of the images, a line per pixel and a column per tap and channel.
template <int SIZE> struct TurnedPatches : Flat<SIZE> {
    typedef Flat<SIZE> Places;
    const Product<WEIGHT> *product;
    int n, k, end;
    // The tap and the channel that column n stands for.
    Tap tap;
    // For the pixel of each piece: its image, y and x.
    int image[Places::PIECES], y[Places::PIECES], x[Places::PIECES];

    DEVICE_MEMBER void begin(const Product<WEIGHT> &of, int first, int begin, int until) {
        product = &of;
        n = first + Places::along(), k = begin, end = until;
        tap = tap_of(n);
#pragma unroll
        for (int i = 0; i < Places::PIECES; i++) {
            int pixel = begin + Places::line(i), line = pixel / of.g.ow;
            image[i] = line / of.g.oh, y[i] = line - image[i] * of.g.oh, x[i] = pixel - line * of.g.ow;
        }
    }

    DEVICE_MEMBER Tap tap_of(int column) const {
        const Geometry &g = product->g;
        int tap = column / g.input, tap_y = tap / g.kernel;
        return Tap{tap_y, tap - tap_y * g.kernel, column - tap * g.input};
    }

    DEVICE_MEMBER const scalar *at(int i, const Tap &tap, int column) const {
        const Geometry &g = product->g;
        int at_y = y[i] * g.stride - g.padding + tap.y, at_x = x[i] * g.stride - g.padding + tap.x;
        if ((unsigned int)at_y >= (unsigned int)g.h || (unsigned int)at_x >= (unsigned int)g.w) return nullptr;
        if (column >= product->columns || k + Places::line(i) >= end) return nullptr;
        return product->b + ((size_t)(image[i] * g.h + at_y) * g.w + at_x) * g.input + tap.channel;
    }
    DEVICE_MEMBER const scalar *at(int i) const { return at(i, tap, n); }
    DEVICE_MEMBER const scalar *at(int i, int e) const { return at(i, tap_of(n + e), n + e); }

    DEVICE_MEMBER void next() {
        const Geometry &g = product->g;
        int lines = BK / g.ow, rest = BK % g.ow;
        k += BK;
#pragma unroll
        for (int i = 0; i < Places::PIECES; i++) {
            x[i] += rest, y[i] += lines;
            if (x[i] >= g.ow) x[i] -= g.ow, y[i]++;
            if (y[i] >= g.oh) image[i] += y[i] / g.oh, y[i] %= g.oh;
        }
    }
};

// Starts a right operand: the forward pass's weights as lines [output, depth], or the data pass's turned weights.
template <int SIZE> DEVICE void begin(Lines<SIZE> &weights, const Product<FORWARD> &product, int first) {
    weights.begin(product.b, product.columns, product.depth, first);
}
template <int SIZE> DEVICE void begin(TurnedWeights<SIZE> &weights, const Product<DATA> &product, int first) {
    weights.begin(product, first);
}

// Computes mean and summed squared deviation of each column over the rows of a whole block, [blocks, 2, columns], from the
// values as they are stored. Batch norm needs them, and here the result is still in shared memory. `first` is the result's
// column that `memory.out` starts with.
template <int BM, class Memory> DEVICE void column_moments(Memory &memory, int columns, int first, float *moments) {
    const int OUT = Memory::OUT, LINES = 256 / OUT, EACH = BM / LINES;
    int c = threadIdx.x % OUT, line = threadIdx.x / OUT;
    auto stored = [&](int row) {
        scalar value;
        from_float(value, memory.out[row][c]);
        return to_float(value);
    };
    // Deviations are taken from the first row, as in batch norm's own pass.
    float origin = stored(0), sum = 0.0f, squares = 0.0f;
    for (int row = line * EACH; row < (line + 1) * EACH; row++) {
        float d = stored(row) - origin;
        sum += d;
        squares += d * d;
    }
    memory.sums[0][line][c] = sum;
    memory.sums[1][line][c] = squares;
    __syncthreads();
    if (line > 0 || first + c >= columns) return;
    for (int i = 1; i < LINES; i++) sum += memory.sums[0][i][c], squares += memory.sums[1][i][c];
    float *to = moments + (size_t)blockIdx.x * 2 * columns + first + c;
    to[0] = origin + sum / (float)BM;
    to[columns] = squares - sum * (sum / (float)BM);
}

// Forward and data passes: the product, plus a bias [columns] and a tensor `added` of the result's shape, unless these are null.
// `added` may be the result's own memory. The sums go through shared memory, so that each thread writes 16 bytes at a time.
template <int PASS, int BM, int BN, int V, class B, class Sums, class Memory>
DEVICE void whole(const Geometry &geometry, const scalar *left, const scalar *right, const float *bias, const scalar *added,
                  scalar *out, float *moments, Sums &sums, Memory &memory) {
    Product<PASS> product;
    product.set(geometry, left, right);
    int m = blockIdx.x * BM, n = blockIdx.y * BN;
    if (m >= product.rows) return; // the grid fits the largest class, and this one is smaller
    Patches<PASS, BM> a;
    B b;
    a.begin(product, m);
    begin(b, product, n);
    multiply<V>(a, b, (product.depth + BK - 1) / BK, memory, sums);
    const int OUT = Memory::OUT;
    bool in_pieces = product.columns % WIDE == 0 && ((size_t)out | (size_t)added) % 16 == 0;
    for (int first = 0; first < BN && n + first < product.columns; first += OUT) {
        __syncthreads();
        each_run(sums, [&](int row, int column, auto run) {
            if (column >= first && column < first + OUT) *(decltype(run) *)&memory.out[row][column - first] = run;
        });
        __syncthreads();
        for (int piece = threadIdx.x; piece < BM * OUT / WIDE; piece += 256) {
            int row = piece / (OUT / WIDE), column = piece % (OUT / WIDE) * WIDE, from = n + first + column;
            if (m + row >= product.rows || from >= product.columns) continue;
            size_t at = product.place(m + row) + from;
            const float *values = &memory.out[row][column];
            union {
                Bits16 bits;
                scalar elements[WIDE];
            } result, sum;
            if (in_pieces && added) sum.bits = *(const Bits16 *)(added + at);
#pragma unroll
            for (int e = 0; e < WIDE; e++) {
                if (from + e >= product.columns) break;
                float value = values[e];
                if (bias) value += bias[from + e];
                if (added) value += to_float(in_pieces ? sum.elements[e] : added[at + e]);
                if (in_pieces)
                    from_float(result.elements[e], value);
                else
                    from_float(out[at + e], value);
            }
            if (in_pieces) *(Bits16 *)(out + at) = result.bits;
        }
        if (moments) column_moments<BM>(memory, product.columns, n + first, moments);
    }
}

// Weight pass: writes the sums over piece `first` + z of the pixels to `pieces`, [pieces, output, kernel^2 * input] in f32. Each
// part of the batch has `part` pixels, in pieces of `piece`.
template <int BM, int BN, int V, class Sums, class Memory>
DEVICE void weights(const Geometry &geometry, const scalar *gy, const scalar *x, int first, int part, int piece,
                    float *pieces, Sums &sums, Memory &memory) {
    Product<WEIGHT> product;
    product.set(geometry, gy, x);
    Piece pixels = piece_of(first + blockIdx.z, part, piece);
    int m = blockIdx.x * BM, n = blockIdx.y * BN;
    Gradients<BM> a;
    TurnedPatches<BN> b;
    a.begin(product, m, pixels.begin, pixels.end);
    b.begin(product, n, pixels.begin, pixels.end);
    multiply<V>(a, b, (pixels.end - pixels.begin + BK - 1) / BK, memory, sums);
    float *out = pieces + (size_t)blockIdx.z * product.rows * product.columns;
    each_run(sums, [&](int row, int column, auto run) {
        int line = m + row, at = n + column;
        if (line >= product.rows || at >= product.columns) return;
        float *to = out + (size_t)line * product.columns + at;
        // With an odd number of columns, pairs are not aligned.
        if (product.columns % run.COUNT == 0)
            *(decltype(run) *)to = run;
        else
            for (int e = 0; e < run.COUNT && at + e < product.columns; e++) to[e] = run.values[e];
    });
}

// In f32 a thread's sums and factors take more registers than it has when two blocks share a multiprocessor.
#if MATH == 0
#define PASS KERNEL
#else
#define PASS KERNEL_OF_TWO
#endif

#define PASSES(suffix, BM, BN, V, KIND, SUMS, MEMORY)                                                                  \
    TAKES(conv_forward_##suffix, MEMORY)                                                                               \
    TAKES(conv_data_##suffix, MEMORY)                                                                                  \
    TAKES(conv_weight_##suffix, MEMORY)                                                                                \
    KIND(conv_forward_##suffix)(Geometry g, const scalar *x, const scalar *weight, const float *bias,                  \
                                const scalar *added, scalar *y, float *moments) {                                      \
        DYNAMIC(MEMORY, memory);                                                                                       \
        SUMS sums;                                                                                                     \
        whole<FORWARD, BM, BN, V, Lines<BN>>(g, x, weight, bias, added, y, moments, sums, memory);                     \
    }                                                                                                                  \
    KIND(conv_data_##suffix)(Geometry g, const scalar *gy, const scalar *weight, const float *bias,                    \
                             const scalar *added, scalar *gx) {                                                        \
        DYNAMIC(MEMORY, memory);                                                                                       \
        SUMS sums;                                                                                                     \
        whole<DATA, BM, BN, V, TurnedWeights<BN>>(g, gy, weight, bias, added, gx, nullptr, sums, memory);              \
    }                                                                                                                  \
    KIND(conv_weight_##suffix)(Geometry g, const scalar *gy, const scalar *x, int first, int part, int piece,          \
                               float *pieces) {                                                                        \
        DYNAMIC(MEMORY, memory);                                                                                       \
        SUMS sums;                                                                                                     \
        weights<BM, BN, V>(g, gy, x, first, part, piece, pieces, sums, memory);                                        \
    }

// Tiles that the warps of a block multiply on their own: wide and narrow ones, and small ones for channel counts that 16-byte
// loads do not divide.
typedef Accumulator<128, 128> Sums128;
typedef Accumulator<128, 64> Sums64;
typedef Accumulator<64, 64> SumsAny;
typedef Memory<128, 128> Memory128;
typedef Memory<128, 64> Memory64;
typedef Memory<64, 64> MemoryAny;
PASSES(128, 128, 128, WIDE, PASS, Sums128, Memory128)
PASSES(64, 128, 64, WIDE, PASS, Sums64, Memory64)
PASSES(any, 64, 64, 1, PASS, SumsAny, MemoryAny)

// The same tiles, multiplied by groups of warps on GPUs that can.
#if MATH >= 2 && GROUPS
typedef Memory<128, 128, STAGES_OF_GROUPS> GroupMemory128;
typedef Memory<128, 64, STAGES_OF_GROUPS> GroupMemory64;
PASSES(groups_128, 128, 128, WIDE, PASS, Groups<128>, GroupMemory128)
PASSES(groups_64, 128, 64, WIDE, PASS, Groups<64>, GroupMemory64)
#endif

// Copies rows of `channels` channels to rows of `wide` channels, filled up with zeros. `length` is the number of elements
// written.
KERNEL(conv_pad)(int length, int channels, int wide, const scalar *from, scalar *to) {
    for (int i = blockIdx.x * 256 + threadIdx.x; i < length; i += gridDim.x * 256) {
        int row = i / wide, c = i - row * wide;
        scalar value;
        from_float(value, 0.0f);
        if (c < channels) value = from[(size_t)row * channels + c];
        to[i] = value;
    }
}

// gw [length], rows of `channels` channels, += the first `channels` of each row of `wide` channels.
KERNEL(conv_unpad)(int length, int channels, int wide, const float *from, float *gw) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < length) gw[i] += from[i / channels * wide + i % channels];
}

// gw = the tree's sum over `parts` parts of the batch, each of which is the sum of its `pieces` pieces of `values`, in order.
// With `accumulate` it is added to gw.
KERNEL(conv_weight_sum)(int parts, int pieces, int length, const float *values, int accumulate, float *gw) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= length) return;
    float total = tree_of_any<float>(parts, [&](int part) {
        const float *from = values + (size_t)part * pieces * length + i;
        float sum = *from;
        for (int piece = 1; piece < pieces; piece++) sum += from[(size_t)piece * length];
        return sum;
    });
    gw[i] = accumulate ? gw[i] + total : total;
}
