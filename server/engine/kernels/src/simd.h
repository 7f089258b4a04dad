// Registers of 16 words, and the one loop that all matrix products here come down to.
//
// A word is what 32 bits hold of the summed dimension, the first number in the lowest bits: a pair of bfloat16, or a
// quad of 8-bit integers. One instruction multiplies 16 words with 16 words, number by number, and adds the products
// of each word to one of 16 sums.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace secateur {

using Word = uint32_t;
using Pair = Word;
using Quad = Word;
using Bfloat16 = uint16_t;

constexpr int kLanes = 16;
constexpr int kPanel = 2 * kLanes;  // outputs that one pass over the summed dimension computes
// Rows computed together: 2 x 13 sums, 2 registers of weights and 1 broadcast fill 29 of the 32 registers.
constexpr int kMaxRows = 13;

#define SECATEUR_INLINE inline __attribute__((always_inline))
#define SECATEUR_UNROLL _Pragma("GCC unroll 16")

SECATEUR_INLINE float to_float(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

// 16 bfloat16 in memory -> 16 float32.
SECATEUR_INLINE __m512 load_bfloat16(const Bfloat16* values) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// 16 float32 -> 16 bfloat16, rounded to nearest even; as memory sees them, 8 pairs.
SECATEUR_INLINE __m256i round_to_bfloat16(__m512 values) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values));
}

SECATEUR_INLINE __mmask16 first_lanes(int count) {
  return count >= kLanes ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// 2^x to about 1e-6 relative; exactly 0 below the float32 range. Lets NaN through.
SECATEUR_INLINE __m512 exp2_ps(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-300.f), x);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);  // in [-0.5, 0.5]: six terms of the Taylor series
  __m512 sum = _mm512_set1_ps(1.5403530e-4f);
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.3333558e-3f));
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(9.6181291e-3f));
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(5.5504109e-2f));
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(2.4022651e-1f));
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(6.9314718e-1f));
  sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(sum, n);
}

// silu(gate) * up.
SECATEUR_INLINE __m512 gated(__m512 gate, __m512 up) {
  const __m512 e = exp2_ps(_mm512_mul_ps(gate, _mm512_set1_ps(-1.44269504f)));
  return _mm512_div_ps(_mm512_mul_ps(gate, up), _mm512_add_ps(_mm512_set1_ps(1.f), e));
}

// What to fetch while multiplying: the cache lines at `next` and `other`, which both move on by `advance` bytes a
// step. far: as far as the second cache.
struct Prefetch {
  const char* next;
  const char* other;
  long advance;
  bool far;
};

// Fetches one or two of the lines, and moves on.
template <int Lines, _mm_hint Cache>
struct FetchLines {
  Prefetch lines;

  SECATEUR_INLINE void operator()() {
    _mm_prefetch(lines.next, Cache);
    if (Lines > 1) _mm_prefetch(lines.other, Cache);
    lines.next += lines.advance;
    lines.other += lines.advance;
  }
};

// Words that are pairs of bfloat16; sums are float32.
struct Pairs {
  using Sums = __m512;
  static SECATEUR_INLINE Sums zero() { return _mm512_setzero_ps(); }
  static SECATEUR_INLINE Sums load(const float* sums) { return _mm512_load_ps(sums); }
  static SECATEUR_INLINE void store(float* to, Sums sums) { _mm512_store_ps(to, sums); }
  static SECATEUR_INLINE Sums multiply_add(Sums sums, __m512i weights, __m512i rows) {
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(rows));
  }
};

// Words that are quads of integers, unsigned ones in weights and signed ones in rows; sums are int32, kept in memory
// where float32 would be.
struct Quads {
  using Sums = __m512i;
  static SECATEUR_INLINE Sums zero() { return _mm512_setzero_si512(); }
  static SECATEUR_INLINE Sums load(const float* sums) { return _mm512_load_si512(sums); }
  static SECATEUR_INLINE void store(float* to, Sums sums) { _mm512_store_si512(to, sums); }
  static SECATEUR_INLINE Sums multiply_add(Sums sums, __m512i weights, __m512i rows) {
    return _mm512_dpbusd_epi32(sums, weights, rows);
  }
};

// sums[r] += sum over w of (left[w], right[w]) * rows[w][r]
//
// left, right: 16 outputs each, [words][16], the next word `step` words further on.
// rows: [words][R], one word a row.
// fetch: called once a word, to fetch what comes later.
template <int R, class Format = Pairs, class Fetch>
SECATEUR_INLINE void multiply_add(const Word* left, const Word* right, long step, const Word* rows, int words,
                                  typename Format::Sums (&sums)[R][2], Fetch fetch) {
#pragma GCC unroll 4
  for (int w = 0; w < words; ++w) {
    fetch();
    const __m512i l = _mm512_loadu_si512(left);
    const __m512i r = _mm512_loadu_si512(right);
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(rows[i]));
      sums[i][0] = Format::multiply_add(sums[i][0], l, x);
      sums[i][1] = Format::multiply_add(sums[i][1], r, x);
    }
    left += step;
    right += step;
    rows += R;
  }
}

template <int R, class Format = Pairs>
SECATEUR_INLINE void set_zero(typename Format::Sums (&sums)[R][2]) {
  SECATEUR_UNROLL
  for (int i = 0; i < R; ++i) sums[i][0] = sums[i][1] = Format::zero();
}

// Lets `Function<R>::run` be called with an R that is known only at run time, 1 <= R <= kMaxRows.
template <template <int> class Function>
constexpr auto for_rows(int rows) {
  constexpr decltype(&Function<1>::run) table[] = {
      Function<1>::run, Function<2>::run,  Function<3>::run,  Function<4>::run, Function<5>::run,
      Function<6>::run, Function<7>::run,  Function<8>::run,  Function<9>::run, Function<10>::run,
      Function<11>::run, Function<12>::run, Function<13>::run};
  static_assert(sizeof(table) / sizeof(table[0]) == kMaxRows, "a function for every number of rows");
  return table[rows - 1];
}

}  // namespace secateur
