// cross_entropy.cu: softmax cross-entropy of each row, and its gradient in place of the logits.
// math      logp = (x - top) - log sum_V e^(x - top),   top = max_V x
//           class t, smoothing s:  loss = -(1-s) logp[t] - s mean_V logp;   target = (1-s) onehot(t) + s/V
//           soft targets:  loss = -sum_V target logp
//           x becomes  upstream * by * (e^logp sum(target) - target),   0 behind column V
// shapes    x [R,V] T, rows of `pitch` elements   classes [R] i32, negative: ignored   soft [R,V] f32, instead of classes   loss [R] f32
//           right [R] i32: 1 where the first largest logit is the class; or null   upstream [1] f32; or null for 1
// launch    grid R, block 32 .. 1024 (512 for a vocabulary), whole warps, dynamic shared 0
// requires  V >= 1, pitch from V to V + 31, no divisibility or alignment: every row finds its own.  gradient 0: x stays as it is
// numerics  in f32, sums in a fixed order. mean_V logp is summed about the row's first logit: nothing is added to a large top,
//           so logits near 1e4 lose nothing. NaN and +inf propagate. Ignored rows: loss 0, gradient 0, right 0
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
// What a pass over a row finds: the largest element and its first place, sum e^(x - largest), sum (x - pivot).
struct Found {
    float top, sum, all;
    int place;
};

// A row for a block: f(first, count, values) for this thread's pieces of at most 8, in ascending order; whole ones of 16 bits
// are fetched in pairs before the first is used. f may write them.
template <class T, class F> DEV void each8_of(const T *row, int n, F f) {
    constexpr int AHEAD = 4 / int(sizeof(T));
    const int lead = min(n, int((16 - (uintptr_t(row) & 15)) & 15) / int(sizeof(T))), whole = (n - lead) / 8;
    const int t = int(threadIdx.x), threads = int(blockDim.x), end = lead + whole * 8;
    float v[8];
    if (t == 0 && lead > 0) {
        dev::load_some(row, lead, v);
        f(0, lead, v);
    }
    for (int i = t; i < whole; i += threads * AHEAD) {
        dev::Raw<T, 8> raw[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (i + k * threads < whole) raw[k] = dev::fetch<T, 8>(row + lead + (i + k * threads) * 8);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            if (i + k * threads >= whole) break;
            dev::widen(raw[k], v);
            f(lead + (i + k * threads) * 8, 8, v);
        }
    }
    if (t == threads - 1 && end < n) {
        dev::load_some(row + end, n - end, v);
        f(end, n - end, v);
    }
}

template <class T> DEV Found search(const T *row, int V, float pivot) {
    Found f{-dev::infinity(), 0.f, 0.f, V};
    each8_of(row, V, [&](int first, int count, const float (&v)[8]) {
        float top = f.top;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i >= count) continue;
            if (v[i] > top) top = v[i], f.place = first + i;
            f.all += v[i] - pivot;
        }
        const float base = top == -dev::infinity() ? 0.f : top;
        f.sum *= expf(f.top - base);
        f.top = top;
#pragma unroll
        for (int i = 0; i < 8; i++) f.sum += i < count ? expf(v[i] - base) : 0.f;
    });
    return f;
}

// Of the whole block; every thread gets it.
DEV Found together(Found f, float *shared_s) {
    const float top = dev::block_max(f.top, shared_s), base = top == -dev::infinity() ? 0.f : top;
    const float place = dev::block_max(f.top == top ? -float(f.place) : -dev::infinity(), shared_s);
    const float sum = dev::block_sum(f.sum * expf(f.top - base), shared_s);
    return Found{top, sum, dev::block_sum(f.all, shared_s), int(-place)};
}

template <class T>
DEV void cross_entropy(T *x, const int *classes, const float *soft, float *loss, int *right, int V, int pitch, float smoothing,
                       float by, const float *upstream, bool gradient) {
    DEV_SHARED(float, shared_s, [32]);
    const size_t r = blockIdx.x;
    T *row = x + r * size_t(pitch);
    const int target = classes ? classes[r] : 0;
    if (classes && target < 0) {  // the whole block
        if (threadIdx.x == 0) {
            loss[r] = 0.f;
            if (right) right[r] = 0;
        }
        const float zero[8] = {};
        if (gradient) dev::each8(row, pitch, [&](int first, int count) { dev::store8(row + first, count, zero); });
        return;
    }
    const float own = classes ? dev::load(row + target) : 0.f;  // before it is overwritten: barriers lie between
    const float first_logit = dev::load(row), pivot = first_logit == -dev::infinity() ? 0.f : first_logit;
    const Found f = together(search(row, V, pivot), shared_s);
    const float top = f.top, log_sum = logf(f.sum), scale = by * (upstream ? *upstream : 1.f);
    float total = 1.f, row_loss = (1.f - smoothing) * (log_sum - (own - top));
    if (smoothing > 0.f) row_loss += smoothing * (log_sum - (f.all / float(V) + (pivot - top)));
    const float *soft_row = soft + (soft ? r * size_t(V) : 0);
    if (soft) {
        float sum = 0.f, part = 0.f;
        for (int i = int(threadIdx.x); i < V; i += int(blockDim.x)) {
            sum += soft_row[i];
            part += soft_row[i] * (log_sum - (dev::load(row + i) - top));
        }
        total = dev::block_sum(sum, shared_s);
        row_loss = dev::block_sum(part, shared_s);
    }
    if (threadIdx.x == 0) {
        loss[r] = row_loss;
        if (right) right[r] = classes && f.place == target;
    }
    if (!gradient) return;
    if (int(threadIdx.x) < pitch - V) dev::store(row + V + threadIdx.x, 0.f);
    const float even = soft ? 0.f : smoothing / float(V);
    each8_of(row, V, [&](int first, int count, float (&v)[8]) {
        float t[8] = {};
        if (soft) dev::load8(soft_row + first, count, t);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float goal = soft ? t[i] : even + (first + i == target ? 1.f - smoothing : 0.f);
            v[i] = scale * (expf((v[i] - top) - log_sum) * total - goal);
        }
        dev::store8(row + first, count, v);
    });
}
}  // namespace

#define CROSS_ENTROPY(NAME, T)                                                                                             \
    DEV_KERNEL(cross_entropy_##NAME, 1024, 0, T *x, const int *classes, const float *soft, float *loss, int *right, int V, \
               int pitch, float smoothing, float by, const float *upstream, int gradient) {                                \
        cross_entropy(x, classes, soft, loss, right, V, pitch, smoothing, by, upstream, gradient != 0);                    \
    }
CROSS_ENTROPY(f32, float)
CROSS_ENTROPY(f16, dev::f16)
CROSS_ENTROPY(bf16, dev::bf16)
