// sample_negatives.cu: one negative for each row of a similarity matrix, drawn by its weights.
// math      without ids: w[j] = softmax(sim[i])[j] + 1e-4, w[i] = 0.   With ids: sim is -10000 where ids are equal, w = softmax
//           picked: the first j with w[0] + .. + w[j] > u sum(w),  u uniform: 24 bits of element i of (seed, step, site)
// shapes    sim [n,n] f32   ids [n] i64 or null   picked [n] i32: -1 where the weights have no finite, positive sum
// launch    grid n, block 32, dynamic shared 0
// requires  n >= 1
// numerics  in f64, as in src/ops/sample_negatives.rs, so that CPU and GPU draw the same from the same similarities
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
constexpr double FLOOR = 1e-4, SAME = -10000.0;

DEV double warp_sum(double v) {
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
DEV double warp_max(double v) {
    for (int o = 16; o > 0; o >>= 1) {
        const double other = __shfl_xor_sync(0xffffffffu, v, o);
        v = v > other || v != v ? v : other;
    }
    return v;
}
DEV int warp_min(int v) {
    for (int o = 16; o > 0; o >>= 1) v = min(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}
// The sum over this lane and those below it.
DEV double running_sum(double v, int lane) {
    for (int o = 1; o < 32; o <<= 1) {
        const double below = __shfl_sync(0xffffffffu, v, (lane - o) & 31);
        v += lane >= o ? below : 0.0;
    }
    return v;
}
}  // namespace

DEV_KERNEL(sample_negatives_f32, 32, 0, const float *sim, const int64_t *ids, int *picked, int n, uint64_t seed, uint32_t site,
           uint32_t step) {
    const int i = int(blockIdx.x), lane = int(threadIdx.x);
    const float *row = sim + size_t(i) * size_t(n);
    auto score = [&](int j) { return ids && ids[j] == ids[i] ? SAME : double(row[j]); };
    double top = -double(dev::infinity()), sum = 0.0, total = 0.0;
    for (int j = lane; j < n; j += 32) {
        const double s = score(j);
        top = s > top || s != s ? s : top;
    }
    top = warp_max(top);
    for (int j = lane; j < n; j += 32) sum += exp(score(j) - top);
    const double norm = top + log(warp_sum(sum));
    auto weight = [&](int j) { return ids ? exp(score(j) - norm) : j == i ? 0.0 : exp(score(j) - norm) + FLOOR; };
    for (int j = lane; j < n; j += 32) total += weight(j);
    total = warp_sum(total);
    const uint4 words = dev::philox(make_uint2(uint32_t(seed), uint32_t(seed >> 32)), make_uint4(uint32_t(i) / 4, 0, site, step));
    const uint32_t word = (i & 3) == 0 ? words.x : (i & 3) == 1 ? words.y : (i & 3) == 2 ? words.z : words.w;
    const double goal = double(word >> 8) / double(1 << 24) * total;
    double before = 0.0;
    int first = n, last = 0;  // the first place past the goal; the last one with a weight, should rounding leave none
    for (int j0 = 0; j0 < n; j0 += 32) {
        const int j = j0 + lane;
        const double w = j < n ? weight(j) : 0.0, upto = before + running_sum(w, lane);
        if (w > 0.0) last = j;
        if (j < n && upto > goal) first = min(first, j);
        before = __shfl_sync(0xffffffffu, upto, 31);
    }
    first = warp_min(first);
    last = -warp_min(-last);
    const bool possible = total > 0.0 && total < double(dev::infinity());
    if (lane == 0) picked[i] = !possible ? -1 : first < n ? first : last;
}
