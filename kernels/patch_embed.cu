// patch_embed.cu: pictures to the rows that the patch product reads, and its result to tokens.
// math      patches: row (b, gy, gx), column (c, py, px) = (v / 255 - mean[c]) / std[c] of pixel (gy P + py, gx P + px)
//           tokens: y[b,0] = cls + pos[0];   y[b,1+g] = product[b,g] + bias + pos[1+g]
// shapes    u8 pictures [B,S,S,3], or f32 planes [B,3,S,S] already normalised   patches [B*G,3*P*P] T, G = (S/P)^2
//           product [B*G,W] T   bias, cls [W] f32   pos [G+1,W] f32   y [B*(G+1),W] R
// launch    patches: grid B*G, block 128.   tokens: grid B*(G+1), block 128.   dynamic shared 0
// requires  S >= P >= 1; no divisibility (pixels beyond the last whole patch are not read) or alignment
// numerics  in f32, the normalisation in torchvision's order: equal to the bit in f32
// aliasing  nothing overlaps
#include "dev.cuh"

namespace {
struct Normalise {
    float mean[3], std[3];
};
template <class T, class Pixel> DEV void patches(T *out, int S, int P, Pixel pixel) {
    const int side = S / P, g = int(blockIdx.x % unsigned(side * side)), K = 3 * P * P;
    const size_t b = blockIdx.x / unsigned(side * side), row = size_t(blockIdx.x) * size_t(K);
    for (int k = int(threadIdx.x); k < K; k += int(blockDim.x)) {
        const int c = k / (P * P), py = k / P % P, px = k % P;
        dev::store(out + row + size_t(k), pixel(b, c, g / side * P + py, g % side * P + px));
    }
}
template <class T> DEV void of_bytes(const uint8_t *x, T *out, int S, int P, const Normalise &n) {
    patches(out, S, P, [&](size_t b, int c, int y, int x0) {
        const float v = float(x[((b * size_t(S) + size_t(y)) * size_t(S) + size_t(x0)) * 3 + size_t(c)]);
        const float mean = c == 0 ? n.mean[0] : c == 1 ? n.mean[1] : n.mean[2], std = c == 0 ? n.std[0] : c == 1 ? n.std[1] : n.std[2];
        return (v / 255.f - mean) / std;
    });
}
template <class T> DEV void of_planes(const float *x, T *out, int S, int P) {
    patches(out, S, P, [&](size_t b, int c, int y, int x0) {
        return x[((b * 3 + size_t(c)) * size_t(S) + size_t(y)) * size_t(S) + size_t(x0)];
    });
}
template <class T, class R> DEV void tokens(const T *product, const float *bias, const float *cls, const float *pos, R *y, int G, int W) {
    const unsigned place = blockIdx.x % unsigned(G + 1);
    const size_t b = blockIdx.x / unsigned(G + 1), patch = b * size_t(G) + place - 1;
    for (int c = int(threadIdx.x) * 8; c < W; c += int(blockDim.x) * 8) {
        float v[8] = {}, w[8], p[8];
        if (place > 0) dev::load8(product + patch * size_t(W) + c, W - c, v);
        dev::load8((place > 0 ? bias : cls) + c, W - c, w);
        dev::load8(pos + size_t(place) * size_t(W) + c, W - c, p);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = v[i] + w[i] + p[i];
        dev::store8(y + size_t(blockIdx.x) * size_t(W) + c, W - c, v);
    }
}
}  // namespace

DEV_KERNEL(patch_embed_bytes_f32, 128, 0, const uint8_t *x, float *out, int S, int P, float mean0, float mean1, float mean2,
           float std0, float std1, float std2) {
    of_bytes(x, out, S, P, Normalise{{mean0, mean1, mean2}, {std0, std1, std2}});
}
#define PATCH_EMBED(NAME, T) \
    DEV_KERNEL(patch_embed_planes_##NAME, 128, 0, const float *x, T *out, int S, int P) { of_planes(x, out, S, P); }
#define TOKENS(NAME, T, R)                                                                                                 \
    DEV_KERNEL(patch_embed_tokens_##NAME, 128, 0, const T *product, const float *bias, const float *cls, const float *pos, \
               R *y, int G, int W) {                                                                                       \
        tokens(product, bias, cls, pos, y, G, W);                                                                          \
    }
PATCH_EMBED(f32, float)
PATCH_EMBED(f16, dev::f16)
PATCH_EMBED(bf16, dev::bf16)
TOKENS(f32, float, float)
TOKENS(f16, dev::f16, dev::f16)
TOKENS(bf16, dev::bf16, dev::bf16)
TOKENS(f16_f32, dev::f16, float)  // 16-bit product, f32 residual stream
TOKENS(bf16_f32, dev::bf16, float)
