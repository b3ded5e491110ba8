// Makes views of decoded images, byte for byte those of the CPU: 8-bit steps that round where Pillow rounds. The host puts
// `storage.cuh` before this file, and compiles both once per storage type of the result.
//
// Products are rounded before they are added to anything (no fused multiply-add), as on the CPU.

typedef unsigned char byte;

// The steps of one view of one image. `Views::push` in cuda.rs fills it.
struct View {
    int stride;                   // bytes from row to row of the uploaded piece of the image
    int left, top, width, height; // the part that the view shows, within the piece
    int down, along;              // where the weights of columns and of rows start
    int down_window, along_window;
    int columns_first;            // whether to resize columns before rows
    int kinds[4];     // changes of colour, in order; 0 for no change
    float factors[4]; // factors of the changes; for a hue, its shift
    int grayscale;
    int blur; // pixels on either side that count in full; -1 for no blur
    unsigned int weight, far_weight;
    int threshold; // 256 for no solarisation
    int mirrored;
};
const int BRIGHTNESS = 1, CONTRAST = 2, SATURATION = 3, HUE = 4;
const int BITS = 22; // bits of a weight's fraction

// Weighted sum of bytes `step` apart, by entry i of a table of weights (`Filters` in filters.rs).
DEVICE byte weigh(const int *table, int window, int i, const byte *from, int step) {
    const int *entry = table + i * (2 + window);
    int count = entry[1], sum = 1 << (BITS - 1);
    from += (size_t)entry[0] * step;
    for (int k = 0; k < count; k++) sum += entry[2 + k] * (int)from[(size_t)k * step];
    sum >>= BITS;
    return (byte)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

// Resizes the part of each view along the first of its two axes. `places` holds, per image, the start of its piece in `pixels`
// and the start of its result in `resized`.
KERNEL(resize_first)(const View *views, const long long *places, const int *weights, const byte *pixels, int side,
                     byte *resized) {
    View view = views[blockIdx.x];
    const byte *from = pixels + places[2 * blockIdx.x] + (size_t)view.top * view.stride + 3 * view.left;
    byte *to = resized + places[2 * blockIdx.x + 1];
    int row = 3 * (view.columns_first ? view.width : side), height = view.columns_first ? side : view.height;
    for (int i = blockIdx.y * 256 + threadIdx.x; i < height * row; i += gridDim.y * 256) {
        int x = i % row, y = i / row;
        if (view.columns_first)
            to[i] = weigh(weights + view.down, view.down_window, y, from + x, view.stride);
        else
            to[i] = weigh(weights + view.along, view.along_window, x / 3, from + (size_t)y * view.stride + x % 3, 3);
    }
}

DEVICE byte luma(byte r, byte g, byte b) {
    return (byte)(((unsigned int)r * 19595 + (unsigned int)g * 38470 + (unsigned int)b * 7471 + 0x8000) >> 16);
}

DEVICE byte blend(byte a, byte b, float factor) {
    int value = (int)((float)a + product(factor, (float)b - (float)a));
    return (byte)(value < 0 ? 0 : value > 255 ? 255 : value);
}

DEVICE void shift_hue(byte *pixel, byte shift) {
    byte r = pixel[0], g = pixel[1], b = pixel[2];
    byte most = r > g ? r : g, least = r < g ? r : g;
    most = most > b ? most : b;
    least = least < b ? least : b;
    float range = (float)(most - least), divisor = range > 1.0f ? range : 1.0f;
    float part = range / (float)(most > 1 ? most : 1);
    float rc = (float)(most - r) / divisor, gc = (float)(most - g) / divisor, bc = (float)(most - b) / divisor;
    float sector = g == most ? (float)(2.0 + (double)rc - (double)bc) : (float)(4.0 + (double)gc - (double)rc);
    if (r == most) sector = bc - gc;
    double turned = (double)sector / 6.0 + 1.0;
    float hue = (float)(turned >= 1.0 ? turned - 1.0 : turned);
    byte h = (byte)((byte)(int)((double)hue * 255.0) + shift), s = (byte)(int)((double)part * 255.0);

    int whole = h * 6 / 255;
    float fraction = (float)((double)h * 6.0 / 255.0 - (double)whole), saturation = (float)((double)s / 255.0);
    double value = (double)most;
    byte p = (byte)(int)(product(value, 1.0 - (double)saturation) + 0.5);
    byte q = (byte)(int)(product(value, 1.0 - (double)(saturation * fraction)) + 0.5);
    byte t = (byte)(int)(product(value, 1.0 - product((double)saturation, 1.0 - (double)fraction)) + 0.5);
    byte v = most;
    switch (whole % 6) { // the last hue, 255, equals the first
    case 0: r = v, g = t, b = p; break;
    case 1: r = q, g = v, b = p; break;
    case 2: r = p, g = v, b = t; break;
    case 3: r = p, g = q, b = v; break;
    case 4: r = t, g = p, b = v; break;
    default: r = v, g = p, b = q;
    }
    pixel[0] = r, pixel[1] = g, pixel[2] = b;
}

// The mean luma of a block's image, rounded.
DEVICE byte mean_luma(const byte *image, int count, unsigned int *shared) {
    unsigned int sum = 0;
    for (int i = threadIdx.x; i < count; i += 256) sum += luma(image[3 * i], image[3 * i + 1], image[3 * i + 2]);
    shared[threadIdx.x] = sum;
    __syncthreads();
    unsigned long long total = 0;
    for (int i = 0; i < 256; i++) total += shared[i];
    __syncthreads();
    return (byte)(int)((double)total / (double)count + 0.5);
}

// One box blur along lines of `side` pixels. Neighbours on a line are `step` bytes apart. Pixels beyond an end repeat the
// outermost.
DEVICE void box_blur(const View &view, const byte *from, byte *to, int side, bool down) {
    int step = down ? 3 * side : 3;
    for (int i = threadIdx.x; i < 3 * side * side; i += 256) {
        int at = down ? i / (3 * side) : i / 3 % side;
        const byte *line = from + (i - at * step);
        unsigned int sum = 0;
        for (int k = at - view.blur; k <= at + view.blur; k++) sum += line[(k < 0 ? 0 : k < side ? k : side - 1) * step];
        int before = at - view.blur - 1, next = at + view.blur + 1;
        unsigned int far = line[(before < 0 ? 0 : before) * step];
        far += line[(next < side ? next : side - 1) * step];
        to[i] = (byte)((sum * view.weight + far * view.far_weight + (1u << 23)) >> 24);
    }
    __syncthreads();
}

// All steps after `resize_first`; one block per image. `bytes` and `other` [n, side, side, 3] are working memory. `normalised`
// [3, 256] holds the output value of each byte of each channel.
KERNEL(augment)(const View *views, const long long *places, const int *weights, const byte *resized, int side,
                const float *normalised, byte *bytes, byte *other, scalar *out) {
    SHARED unsigned int shared[256];
    View view = views[blockIdx.x];
    int count = side * side;
    const byte *from = resized + places[2 * blockIdx.x + 1];
    bytes += (size_t)blockIdx.x * 3 * count;
    other += (size_t)blockIdx.x * 3 * count;
    out += (size_t)blockIdx.x * 3 * count;
    for (int i = threadIdx.x; i < 3 * count; i += 256) {
        int row = 3 * side, x = i % row, y = i / row;
        const byte *line = from + (size_t)y * 3 * view.width + x % 3;
        if (view.columns_first)
            bytes[i] = weigh(weights + view.along, view.along_window, x / 3, line, 3);
        else
            bytes[i] = weigh(weights + view.down, view.down_window, y, from + x, row);
    }
    __syncthreads();

    for (int change = 0; change < 4; change++) {
        int kind = view.kinds[change];
        float factor = view.factors[change];
        byte mean = kind == CONTRAST ? mean_luma(bytes, count, shared) : 0;
        // A thread handles the same pixels in every step, so only the mean has to wait for other threads.
        for (int i = threadIdx.x; i < count && kind; i += 256) {
            byte *pixel = bytes + 3 * i;
            if (kind == HUE) {
                shift_hue(pixel, (byte)(int)factor);
                continue;
            }
            byte towards = kind == SATURATION ? luma(pixel[0], pixel[1], pixel[2]) : mean;
            for (int c = 0; c < 3; c++) pixel[c] = blend(towards, pixel[c], factor);
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < count && view.grayscale; i += 256) {
        byte *pixel = bytes + 3 * i;
        pixel[0] = pixel[1] = pixel[2] = luma(pixel[0], pixel[1], pixel[2]);
    }
    __syncthreads();
    if (view.blur >= 0) // three times along rows, three times along columns; the result ends up in `bytes`
        for (int pass = 0; pass < 6; pass++) box_blur(view, pass % 2 ? other : bytes, pass % 2 ? bytes : other, side, pass >= 3);
    for (int i = threadIdx.x; i < 3 * count; i += 256) {
        int x = i / 3 % side, value = bytes[view.mirrored ? i + 3 * (side - 1 - 2 * x) : i];
        if (value >= view.threshold) value = 255 - value;
        from_float(out[i], normalised[256 * (i % 3) + value]);
    }
}
