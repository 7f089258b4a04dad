// Rows in 8 bits, for matrices in 8 bits: every row is rounded to integers of [-127, 127] with a scale of its own, just
// before it is multiplied.
//
// `vpdpbusd` wants one side unsigned, so matrices hold their integers plus 128. What that adds to every output of a row
// is 128 times the sum of the row's integers: its `offset`.

#pragma once

#include "model.h"
#include "tiles.h"

namespace secateur {

// What a matrix multiplies: rows of pairs, or, where it has scales, of quads with theirs.
struct Factor {
  PackedRows rows;
  float* scales;     // [rows] value = scale * integer; null for pairs
  int32_t* offsets;  // [rows]

  int depth(const RowTile& tile, bool prefix) const {
    return rows.depth(tile, prefix, scales ? kLanes / 4 : kLanes / 2);
  }

  // 16 sums of integers of row `row` as the numbers they stand for. `output_scales`: of those 16 outputs.
  SECATEUR_INLINE __m512 to_float(int row, __m512i sums, const float* output_scales) const {
    const __m512 values = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(offsets[row])));
    return _mm512_mul_ps(_mm512_mul_ps(values, _mm512_set1_ps(scales[row])), _mm512_loadu_ps(output_scales));
  }
};

namespace quantizing {

constexpr float kLargest = 127.f;
constexpr float kSmallestPeak = 1e-30f;  // rows below are zeros: 127 over less may be infinite

// Both numbers of 16 pairs, as float32.
SECATEUR_INLINE __m512 first_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
SECATEUR_INLINE __m512 second_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// The largest magnitudes so far, with those of 16 pairs, as bits: those of what is not a number are the largest.
SECATEUR_INLINE __m512i larger(__m512i peaks, __m512i pairs) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  peaks = _mm512_max_epu32(peaks, _mm512_and_si512(_mm512_castps_si512(first_of(pairs)), magnitude));
  return _mm512_max_epu32(peaks, _mm512_and_si512(_mm512_castps_si512(second_of(pairs)), magnitude));
}

// 16 pairs as 16-bit halves of quads in the lower bits of each lane; adds their integers to `sums`.
SECATEUR_INLINE __m512i half_quads(__m512i pairs, __m512 inverse_scale, __m512i* sums) {
  const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(first_of(pairs), inverse_scale));
  const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(second_of(pairs), inverse_scale));
  *sums = _mm512_add_epi32(*sums, _mm512_add_epi32(first, second));
  const __m512i byte = _mm512_set1_epi32(0xff);
  return _mm512_or_si512(_mm512_and_si512(first, byte), _mm512_slli_epi32(_mm512_and_si512(second, byte), 8));
}

// One row whose pairs stand together, 16 and 16: row `row` of a tile for the matrix unit, or the only one of a tile.
inline void one_row(const Pair* pairs, int count, int rows, int row, Quad* quads, float* scale, int32_t* offset) {
  const auto load = [&](int p) {
    return _mm512_maskz_loadu_epi32(first_lanes(count - p), pairs + static_cast<size_t>(p) * rows + row * kBlockWords);
  };
  __m512i peaks = _mm512_setzero_si512(), sums = _mm512_setzero_si512();
  for (int p = 0; p < count; p += kLanes) peaks = larger(peaks, load(p));
  const float peak = _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epu32(peaks))));
  const __m512 inverse = _mm512_set1_ps(peak < kSmallestPeak ? 0 : kLargest / peak);
  for (int p = 0; p < count; p += kLanes) {
    const int q = p / 2;
    Quad* to = quads + static_cast<size_t>(q / kBlockWords) * rows * kBlockWords + row * kBlockWords + q % kBlockWords;
    _mm256_mask_storeu_epi16(to, first_lanes(count - p), _mm512_cvtepi32_epi16(half_quads(load(p), inverse, &sums)));
  }
  *scale = peak / kLargest;
  *offset = 128 * _mm512_reduce_add_epi32(sums);
}

// A tile of `rows` whose pairs stand side by side, a lane for each.
inline void rows_in_lanes(const Pair* pairs, int count, int rows, Quad* quads, float* scales, int32_t* offsets) {
  const __mmask16 lanes = first_lanes(rows);
  const auto load = [&](int p) { return _mm512_maskz_loadu_epi32(lanes, pairs + static_cast<size_t>(p) * rows); };
  __m512i peaks = _mm512_setzero_si512(), sums = _mm512_setzero_si512();
  for (int p = 0; p < count; ++p) peaks = larger(peaks, load(p));
  const __m512 peak = _mm512_castsi512_ps(peaks), largest = _mm512_set1_ps(kLargest);
  const __mmask16 any = _mm512_cmp_ps_mask(peak, _mm512_set1_ps(kSmallestPeak), _CMP_NLT_UQ);
  const __m512 inverse = _mm512_maskz_div_ps(any, largest, peak);
  for (int p = 0; p < count; p += 2) {
    const __m512i upper = _mm512_slli_epi32(half_quads(load(p + 1), inverse, &sums), 16);
    const __m512i quad = _mm512_or_si512(half_quads(load(p), inverse, &sums), upper);
    _mm512_mask_storeu_epi32(quads + static_cast<size_t>(p / 2) * rows, lanes, quad);
  }
  _mm512_mask_storeu_ps(scales, lanes, _mm512_div_ps(peak, largest));
  _mm512_mask_storeu_epi32(offsets, lanes, _mm512_slli_epi32(sums, 7));
}

}  // namespace quantizing

// `rows` as `matrix` multiplies them, ready when this returns: where it has scales, quantized to `memory`, which has
// room for them. `prefix`: a tile's first 16 * blocks inputs, else all.
inline Factor factor_for(const Team& team, const Matrix& matrix, const PackedRows& rows, const RowTiles& tiles,
                         bool prefix, const Factor& memory) {
  if (!matrix.scales) return {rows, nullptr, nullptr};
  const Factor factor{{memory.rows.data, rows.words / 2}, memory.scales, memory.offsets};
  const int tokens = tiles.back().first + tiles.back().rows;
  const int begin = team.begin(tokens), end = team.end(tokens);
  for (const RowTile& tile : tiles) {
    const Pair* pairs = rows.tile(tile);
    const int count = rows.depth(tile, prefix);
    Quad* quads = factor.rows.data + tile.first * PackedRows::room(factor.rows.words);
    float* scales = factor.scales + tile.first;
    int32_t* offsets = factor.offsets + tile.first;
    if (!tile.matrix && tile.rows > 1) {  // all by one thread: half of the lanes would take as long
      const int middle = tile.first + tile.rows / 2;
      if (begin <= middle && middle < end)
        quantizing::rows_in_lanes(pairs, count, tile.rows, quads, scales, offsets);
      continue;
    }
    for (int row = std::max(begin - tile.first, 0); row < std::min(end - tile.first, tile.rows); ++row)
      quantizing::one_row(pairs, count, tile.rows, row, quads, scales + row, offsets + row);
  }
  team.barrier();
  return factor;
}

}  // namespace secateur
