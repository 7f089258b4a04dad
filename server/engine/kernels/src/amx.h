// Intel's matrix unit (AMX): up to 32 rows times a panel, in tiles of registers of 16 rows of 64 bytes.
//
// `tdpbf16ps` adds to 16 x 16 float32 sums the products of 16 rows of 16 pairs with 16 pairs of 16 outputs: what a
// panel holds anyway, 16 pairs at a time. Rows stand as [pairs / 16][rows][16 pairs].

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace secateur {

constexpr int kBlockPairs = 16;   // of the summed dimension that one instruction takes
constexpr int kMatrixRows = 32;   // rows computed together: 2 x 2 tiles of sums, 2 of rows, 2 of weights

// Asks the kernel for the unit's registers, for the whole process. Whether there is a unit to use.
inline bool request_matrix_unit() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  __builtin_cpu_init();
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// What the unit's eight registers hold from now on: 0 to 3 sums of both halves of the rows and of the panel, 4 and 5
// rows, 6 and 7 weights. Where it holds so already this costs next to nothing.
inline void shape_registers(int rows) {
  struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, unused[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  const int upper = std::min(rows, 16), lower = std::max(rows - 16, 1);
  const int counts[] = {upper, upper, lower, lower, upper, lower, kBlockPairs, kBlockPairs};
  for (int i = 0; i < 8; ++i) shapes.bytes[i] = 64, shapes.rows[i] = static_cast<uint8_t>(counts[i]);
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}

// sums[r][n] += sum over p of panel[p][n] * rows[r][p], or = where `first`; like AddPiece.
//
// panel: [pairs][32]; pairs: a multiple of 8. sums: [count][32]. Lines: of `prefetch` that are fetched.
template <int Lines>
inline void multiply_add_matrix(const Pair* panel, const Pair* rows, int count, int pairs, float* sums, bool first,
                                Prefetch prefetch) {
  constexpr int kStride = kPanel * sizeof(Pair), kRowBytes = kBlockPairs * sizeof(Pair);
  const bool both = count > 16;
  float* const lower = sums + 16 * kPanel;
  shape_registers(count);
  asm volatile("" : : : "memory");  // the instructions below do not tell the compiler what they read
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kStride);
    _tile_loadd(1, sums + kLanes, kStride);
    if (both) {
      _tile_loadd(2, lower, kStride);
      _tile_loadd(3, lower + kLanes, kStride);
    }
  }
  const auto add = [&](const Pair* weights, const Pair* x) {
    _tile_loadd(6, weights, kStride);
    _tile_loadd(4, x, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weights + kLanes, kStride);
    _tile_dpbf16ps(1, 4, 7);
    if (both) {
      _tile_loadd(5, x + 16 * kBlockPairs, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  int p = 0;
  for (; p + kBlockPairs <= pairs; p += kBlockPairs) {
#pragma GCC unroll 16
    for (int i = 0; i < kBlockPairs; ++i) {
      _mm_prefetch(prefetch.next + i * prefetch.advance, _MM_HINT_T0);
      if (Lines > 1) _mm_prefetch(prefetch.other + i * prefetch.advance, _MM_HINT_T0);
    }
    prefetch.next += kBlockPairs * prefetch.advance;
    prefetch.other += kBlockPairs * prefetch.advance;
    add(panel + static_cast<size_t>(p) * kPanel, rows + static_cast<size_t>(p) * count);
  }
  if (p < pairs) {  // half a block: beside zeros, for what stands behind it is not ours
    alignas(64) Pair weights[kBlockPairs][kPanel] = {};
    alignas(64) Pair x[kMatrixRows][kBlockPairs] = {};
    std::memcpy(weights, panel + static_cast<size_t>(p) * kPanel, (pairs - p) * sizeof weights[0]);
    for (int r = 0; r < count; ++r)
      std::memcpy(x[r], rows + static_cast<size_t>(p) * count + r * kBlockPairs, (pairs - p) * sizeof(Pair));
    asm volatile("" : : : "memory");
    add(weights[0], x[0]);
  }
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + kLanes, kStride);
  if (both) {
    _tile_stored(2, lower, kStride);
    _tile_stored(3, lower + kLanes, kStride);
  }
}

}  // namespace secateur
