// Layer norm of rows [rows, dim]. A warp has a row; sums within it are in f32, in a fixed order. Compiled once per storage:
// HALF 0 is f32, 1 is f16; statistics and parameters are f32 either way. Behind `parts.cuh`.

#if HALF
typedef half_t scalar;
#else
typedef float scalar;
#endif

// y = the normalised rows of x. Mean and 1 / sqrt(var + eps) of each row are written, or read where they are `given`.
KERNEL(ln_forward)(const scalar *x, int rows, int dim, const float *weight, const float *bias, int given,
                   float *statistics, scalar *y) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (size_t)row * dim;
    y += (size_t)row * dim;
    statistics += (size_t)row * 2;
    float mean, inv_std;
    if (given) {
        mean = statistics[0];
        inv_std = statistics[1];
    } else {
        float sum = 0.0f, squares = 0.0f;
        for (int c = lane; c < dim; c += 32) sum += to_float(x[c]);
        mean = warp_sum(sum) / (float)dim;
        for (int c = lane; c < dim; c += 32) {
            float d = to_float(x[c]) - mean;
            squares += d * d;
        }
        inv_std = 1.0f / sqrtf(warp_sum(squares) / (float)dim + 1e-6f);
        if (lane == 0) {
            statistics[0] = mean;
            statistics[1] = inv_std;
        }
    }
    for (int c = lane; c < dim; c += 32) from_float(y[c], (to_float(x[c]) - mean) * inv_std * weight[c] + bias[c]);
}

// gx = inv_std (g - mean(g) - xhat mean(g xhat)) with g = gy weight, or added to gx.
KERNEL(ln_backward)(const scalar *x, const float *statistics, int rows, int dim, const float *weight, const scalar *gy,
                    int accumulate, scalar *gx) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (size_t)row * dim;
    gy += (size_t)row * dim;
    gx += (size_t)row * dim;
    float mean = statistics[(size_t)row * 2], inv_std = statistics[(size_t)row * 2 + 1], sum = 0.0f, along = 0.0f;
    for (int c = lane; c < dim; c += 32) {
        float g = to_float(gy[c]) * weight[c];
        sum += g;
        along += g * ((to_float(x[c]) - mean) * inv_std);
    }
    sum = warp_sum(sum) / (float)dim;
    along = warp_sum(along) / (float)dim;
    for (int c = lane; c < dim; c += 32) {
        float normalised = (to_float(x[c]) - mean) * inv_std;
        float result = inv_std * (to_float(gy[c]) * weight[c] - sum - normalised * along);
        from_float(gx[c], accumulate ? to_float(gx[c]) + result : result);
    }
}

// Per piece of the rows the sums that the gradients of weight and bias consist of, [pieces, 2, dim]. A block has 32 columns and
// 8 of its piece's rows at a time.
KERNEL(ln_backward_params)(const scalar *x, const float *statistics, const scalar *gy, int dim, int part, int piece,
                           float *sums) {
    SHARED float shared[2][8][32];
    int lane = threadIdx.x % 32, line = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    Piece rows = piece_of(blockIdx.y, part, piece);
    bool there = c < dim;
    float weight = 0.0f, bias = 0.0f;
    for (int row = rows.begin + line; there && row < rows.end; row += 8) {
        size_t i = (size_t)row * dim + c;
        float g = to_float(gy[i]);
        weight += g * ((to_float(x[i]) - statistics[(size_t)row * 2]) * statistics[(size_t)row * 2 + 1]);
        bias += g;
    }
    shared[0][line][lane] = weight;
    shared[1][line][lane] = bias;
    __syncthreads();
    if (!there || line > 1) return;
    float sum = 0.0f;
    for (int i = 0; i < 8; i++) sum += shared[line][i][lane];
    sums[((size_t)blockIdx.y * 2 + line) * dim + c] = sum;
}
