/* What generated code computes with; see pass.c. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

static inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static inline float bfloat16_load(uint16_t h) { return bits_float((uint32_t)h << 16); }

static inline uint16_t bfloat16_bits(float x) {
  uint32_t bits = float_bits(x);
  uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (uint16_t)(x != x ? (bits >> 16) | 0x40u : nearest);
}

static inline float bfloat16_round(float x) { return bfloat16_load(bfloat16_bits(x)); }

#ifdef USES_FLOAT16
static inline float float16_load(uint16_t h) {
  _Float16 x;
  memcpy(&x, &h, 2);
  return (float)x;
}

static inline uint16_t float16_bits(float x) {
  _Float16 h = (_Float16)x;
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}

static inline float float16_round(float x) { return (float)(_Float16)x; }
#endif

/* Floats of 8 bits: `bias` and `kept` of the exponent and the fraction; the largest
   code of a number, and that of what is not one. With subnormal numbers: these are whole
   multiples of the smallest one, and normal numbers here. */
static inline float float8_load(uint32_t code, int bias, int kept, uint32_t top) {
  uint32_t size = code & 0x7fu;
  float x = bits_float((size << (23 - kept)) + ((uint32_t)(127 - bias) << 23));
  float few = (float)(int32_t)size * bits_float((uint32_t)(128 - bias - kept) << 23);
  x = size >> kept ? x : few;
  x = size > top ? (size == 0x7cu && kept == 2 ? INFINITY : NAN) : x;
  return bits_float(float_bits(x) | (code & 0x80u) << 24);
}

static inline uint32_t float8_bits(float x, int bias, int kept, uint32_t top) {
  uint32_t bits = float_bits(x), size = bits & 0x7fffffffu, at = 23 - kept;
  uint32_t near = (size + (1u << (at - 1)) - 1u + ((size >> at) & 1u)) >> at;
  /* The lowest bits of the sum are the multiple of the smallest number. */
  float sum = bits_float(size) + bits_float((uint32_t)(151 - bias - kept) << 23);
  uint32_t few = float_bits(sum) & 0xffu;
  uint32_t code = size < (uint32_t)(128 - bias) << 23
                      ? few
                      : near - ((uint32_t)(127 - bias) << kept);
  code = code > top ? (kept == 2 ? 0x7cu : 0x7fu) : code;
  code = size > 0x7f800000u ? (kept == 2 ? 0x7eu : 0x7fu) : code;
  return code | (bits >> 24 & 0x80u);
}

static inline float float8_e4m3fn_load(uint32_t code) {
  return float8_load(code, 7, 3, 0x7eu);
}
static inline uint32_t float8_e4m3fn_bits(float x) { return float8_bits(x, 7, 3, 0x7eu); }
static inline float float8_e4m3fn_round(float x) {
  return float8_e4m3fn_load(float8_e4m3fn_bits(x));
}
static inline float float8_e5m2_load(uint32_t code) {
  return float8_load(code, 15, 2, 0x7bu);
}
static inline uint32_t float8_e5m2_bits(float x) { return float8_bits(x, 15, 2, 0x7bu); }
static inline float float8_e5m2_round(float x) {
  return float8_e5m2_load(float8_e5m2_bits(x));
}

static inline int32_t int4_of(uint32_t x) { return (int32_t)(x << 28) >> 28; }
static inline uint32_t uint4_of(uint32_t x) { return x & 15u; }

/* Elements of 4 bits, two to a byte and the first one below, from the `first` on. The
   other half of a byte at an end stays as it is. */
#define UNPACK(name, type)                                                             \
  static inline void unpack_##name(type* to, const uint8_t* from, int64_t first, int n) { \
    int odd = (int)(first & 1);                                                        \
    from += first >> 1;                                                                \
    if (odd && n) *to++ = name##_of(*from++ >> 4), n--;                                \
    for (int j = 0; j < n / 2; j++) {                                                  \
      uint32_t both = from[j];                                                         \
      to[2 * j] = name##_of(both);                                                     \
      to[2 * j + 1] = name##_of(both >> 4);                                            \
    }                                                                                  \
    if (n & 1) to[n - 1] = name##_of(from[n / 2]);                                     \
  }
UNPACK(int4, int32_t)
UNPACK(uint4, uint32_t)

static inline void pack_4(uint8_t* to, int64_t first, const void* given, int n) {
  const uint32_t* from = (const uint32_t*)given;
  int odd = (int)(first & 1);
  to += first >> 1;
  if (odd && n) {
    *to = (uint8_t)((*to & 15u) | *from++ << 4);
    to++, n--;
  }
  for (int j = 0; j < n / 2; j++)
    to[j] = (uint8_t)((from[2 * j] & 15u) | from[2 * j + 1] << 4);
  if (n & 1) to[n / 2] = (uint8_t)((to[n / 2] & 0xf0u) | (from[n - 1] & 15u));
}

/* sqrt(s x) of sqrt(x) and sqrt(s); infinite where s x is. */
static inline float shared_root(float root, float factor) {
  float x = root * factor;
  return x >= 0x1p64f ? INFINITY : x;
}

static inline int32_t to_short(float x, float low, float high) {
  float held = x < low ? low : (x > high ? high : x);
  return (int32_t)(x != x ? 0.0f : held);
}

static inline int64_t to_long(double x, double low, double high) {
  double held = x < low ? low : (x > high ? high : x);
  return (int64_t)(x != x ? 0.0 : held);
}
