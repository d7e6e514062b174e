/* Eight lanes at a time what libjpeg does without its assembler one value at a time: the inverse DCT of a block, the colours of
 * a row, and doubling. The same integer arithmetic (jidctint.c, jdcolor.c, jdsample.c) and so the same pixels, except that far too large values are clamped
 * as libjpeg's assembler clamps them, where its C wraps. Plain C with vectors of GCC and Clang; on x86-64 also for AVX2, chosen
 * when the program starts. */

#include <stdint.h>

#include "jdsample.h"

typedef int32_t Lanes __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(8)));

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* One dimension of the inverse DCT: v[0..8] to v[0..8], descaled by `bits`. Constants have 13 fractional bits. */
#define IDCT(v, bits)                                                                            \
  do {                                                                                           \
    const Lanes half = ZERO + (1 << ((bits) - 1));                                               \
    Lanes z1 = (v[2] + v[6]) * 4433;                                                             \
    const Lanes even2 = z1 - v[6] * 15137, even3 = z1 + v[2] * 6270;                             \
    const Lanes even0 = (v[0] + v[4]) * 8192, even1 = (v[0] - v[4]) * 8192;                      \
    const Lanes e0 = even0 + even3 + half, e3 = even0 - even3 + half;                            \
    const Lanes e1 = even1 + even2 + half, e2 = even1 - even2 + half;                            \
    Lanes z3 = v[7] + v[3], z4 = v[5] + v[1];                                                    \
    const Lanes z5 = (z3 + z4) * 9633, z2 = (v[5] + v[3]) * -20995;                              \
    z1 = (v[7] + v[1]) * -7373;                                                                  \
    z3 = z3 * -16069 + z5;                                                                       \
    z4 = z4 * -3196 + z5;                                                                        \
    const Lanes o0 = v[7] * 2446 + z1 + z3, o1 = v[5] * 16819 + z2 + z4;                         \
    const Lanes o2 = v[3] * 25172 + z2 + z3, o3 = v[1] * 12299 + z1 + z4;                        \
    v[0] = (e0 + o3) >> (bits), v[7] = (e0 - o3) >> (bits);                                      \
    v[1] = (e1 + o2) >> (bits), v[6] = (e1 - o2) >> (bits);                                      \
    v[2] = (e2 + o1) >> (bits), v[5] = (e2 - o1) >> (bits);                                      \
    v[3] = (e3 + o0) >> (bits), v[4] = (e3 - o0) >> (bits);                                      \
  } while (0)

/* To 0..255; passed by address, since how vectors are passed depends on the processor. */
static inline void limit(Lanes *v) {
  *v &= *v > 0;
  const Lanes above = *v > 255;
  *v = (*v & ~above) | (above & 255);
}

static inline void load(Lanes *to, const JSAMPLE *from) {
  Bytes bytes;
  memcpy(&bytes, from, sizeof bytes);
  *to = __builtin_convertvector(bytes, Lanes);
}

static inline unsigned char clamped(int32_t v) { return v < 0 ? 0 : v > 255 ? 255 : (unsigned char)v; }

FOR_EACH_PROCESSOR
static void inverse_dct(j_decompress_ptr jpeg, jpeg_component_info *component, JCOEFPTR block, JSAMPARRAY rows, JDIMENSION column) {
  (void)jpeg;
  const ISLOW_MULT_TYPE *scale = (const ISLOW_MULT_TYPE *)component->dct_table;
  const Lanes ZERO = {0};
  int32_t all[64];
  Lanes v[8];
  int any = 0;
  for (int i = 1; i < 64; i++) any |= block[i];
  if (any == 0) {
    const int flat = clamped(((block[0] * (int32_t)scale[0] * 4 + 16) >> 5) + 128);
    for (int k = 0; k < 8; k++) memset(rows[k] + column, flat, 8);
    return;
  }
  for (int i = 0; i < 64; i++) all[i] = block[i] * (int32_t)scale[i];
  memcpy(v, all, sizeof all); /* v[row], a lane for each column */
  IDCT(v, 11);
  for (int i = 0; i < 8; i++)
    for (int k = 0; k < 8; k++) all[8 * k + i] = v[i][k];
  memcpy(v, all, sizeof all); /* v[column], a lane for each row */
  IDCT(v, 18);
  uint8_t columns[64];
  for (int i = 0; i < 8; i++) {
    Lanes to = v[i] + 128;
    limit(&to);
    const Bytes bytes = __builtin_convertvector(to, Bytes);
    memcpy(columns + 8 * i, &bytes, 8);
  }
  for (int k = 0; k < 8; k++) {
    JSAMPROW row = rows[k] + column;
    for (int i = 0; i < 8; i++) row[i] = columns[8 * i + k];
  }
}

FOR_EACH_PROCESSOR
static void ycc_to_rgb(j_decompress_ptr jpeg, JSAMPIMAGE planes, JDIMENSION at, JSAMPARRAY rows, int count) {
  const JDIMENSION width = jpeg->output_width;
  for (int i = 0; i < count; i++, at++) {
    const JSAMPLE *luma = planes[0][at], *blue = planes[1][at], *red = planes[2][at];
    JSAMPLE *row = rows[i];
    JDIMENSION x = 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    /* Each pixel is stored as four bytes, of which the next one overwrites the last. */
    for (; x + 9 <= width; x += 8) {
      Lanes y, b, r;
      load(&y, luma + x), load(&b, blue + x), load(&r, red + x);
      b -= 128, r -= 128;
      Lanes red_of = y + ((r * 91881 + 32768) >> 16), blue_of = y + ((b * 116130 + 32768) >> 16);
      Lanes green_of = y + ((b * -22554 - r * 46802 + 32768) >> 16);
      limit(&red_of), limit(&green_of), limit(&blue_of);
      const Lanes pixels = red_of | green_of << 8 | blue_of << 16;
      for (int k = 0; k < 8; k++) {
        const int32_t pixel = pixels[k];
        memcpy(row + 3 * (x + k), &pixel, 4);
      }
    }
#endif
    for (; x < width; x++) {
      const int32_t y = luma[x], b = blue[x] - 128, r = red[x] - 128;
      row[3 * x] = clamped(y + ((91881 * r + 32768) >> 16));
      row[3 * x + 1] = clamped(y + ((-22554 * b - 46802 * r + 32768) >> 16));
      row[3 * x + 2] = clamped(y + ((116130 * b + 32768) >> 16));
    }
  }
}

/* Twice as wide and twice as high (jdsample.c, h2v2_fancy_upsample): 9/16 of the nearest sample, 3/16 of the two beside it, 1/16 of the
 * fourth; at the first and last column 3/4 and 1/4. */
FOR_EACH_PROCESSOR
static void double_both(j_decompress_ptr jpeg, jpeg_component_info *component, JSAMPARRAY from, JSAMPARRAY *to) {
  enum { PART = 256 };
  const int width = (int)component->downsampled_width;
  int16_t sums[PART + 2];
  for (int k = 0; k < jpeg->max_v_samp_factor; k++) {
    const JSAMPLE *near = from[k / 2], *far = from[k % 2 == 0 ? k / 2 - 1 : k / 2 + 1];
    JSAMPLE *out = (*to)[k];
    for (int start = 0; start < width; start += PART) {
      const int n = width - start < PART ? width - start : PART;
      for (int x = 0; x < n; x++) sums[x + 1] = (int16_t)(near[start + x] * 3 + far[start + x]);
      /* At an edge the sample itself stands for its neighbour: 4 this + 8 is what libjpeg computes there. */
      sums[0] = start > 0 ? (int16_t)(near[start - 1] * 3 + far[start - 1]) : sums[1];
      sums[n + 1] = start + n < width ? (int16_t)(near[start + n] * 3 + far[start + n]) : sums[n];
      for (int x = 0; x < n; x++) {
        out[2 * (start + x)] = (JSAMPLE)((sums[x + 1] * 3 + sums[x] + 8) >> 4);
        out[2 * (start + x) + 1] = (JSAMPLE)((sums[x + 1] * 3 + sums[x + 2] + 7) >> 4);
      }
    }
  }
}

/* Puts these in the place of libjpeg's, where it would use its own in C. */
static void use_lanes(j_decompress_ptr jpeg) {
  my_upsample_ptr upsampler = (my_upsample_ptr)jpeg->upsample;
  for (int i = 0; i < jpeg->num_components; i++) {
    const jpeg_component_info *c = &jpeg->comp_info[i];
    if (!c->component_needed || c->DCT_scaled_size != DCTSIZE) continue;
    jpeg->idct->inverse_DCT[i] = inverse_dct;
    if (c->h_samp_factor * 2 == jpeg->max_h_samp_factor && c->v_samp_factor * 2 == jpeg->max_v_samp_factor && c->downsampled_width > 2)
      upsampler->methods[i] = double_both;
  }
  if (jpeg->jpeg_color_space == JCS_YCbCr && jpeg->out_color_space == JCS_RGB) jpeg->cconvert->color_convert = ycc_to_rgb;
}
