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
