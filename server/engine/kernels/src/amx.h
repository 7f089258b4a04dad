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

// Gives the unit's registers back where it goes out of scope: as long as a thread has something in them the system
// saves 8 KB with every change of threads, and lets the core sleep less deeply.
struct MatrixUnitUse {
  bool used;
  ~MatrixUnitUse() {
    if (used) _tile_release();
  }
};

// What the unit's eight registers hold from now on: 0 to 3 sums, of the upper 16 and the lower rows, each left and
// right; 4 and 5 those rows; 6 and 7 weights, left and right, of `pairs` pairs.
inline void shape_registers(int rows, int pairs) {
  struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, unused[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  const int upper = std::min(rows, 16), lower = std::max(rows - 16, 1);
  const int counts[] = {upper, upper, lower, lower, upper, lower, pairs, pairs};
  for (int i = 0; i < 8; ++i) shapes.bytes[i] = 64, shapes.rows[i] = static_cast<uint8_t>(counts[i]);
  shapes.bytes[4] = shapes.bytes[5] = static_cast<uint16_t>(pairs * sizeof(Pair));
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}

// The four registers of sums and memory: [rows][stride] float32 from `left` and from `right` on, 16 of each row.
// `both`: there are lower rows. The compiler is not told by the instructions what they read, hence the barriers.
SECATEUR_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

SECATEUR_INLINE void load_sums(const float* left, const float* right, long stride, bool both) {
  const long bytes = stride * sizeof(float);
  asm volatile("" : : : "memory");
  _tile_loadd(0, left, bytes);
  _tile_loadd(1, right, bytes);
  if (!both) return;
  _tile_loadd(2, left + 16 * stride, bytes);
  _tile_loadd(3, right + 16 * stride, bytes);
}

SECATEUR_INLINE void store_sums(float* left, float* right, long stride, bool both) {
  const long bytes = stride * sizeof(float);
  _tile_stored(0, left, bytes);
  _tile_stored(1, right, bytes);
  if (!both) return;
  _tile_stored(2, left + 16 * stride, bytes);
  _tile_stored(3, right + 16 * stride, bytes);
}

// sums += rows times weights: of rows [rows][pairs], and weights of which one pair stands `stride` bytes behind the
// other. Weights pass the first cache by: rows are used again sooner.
SECATEUR_INLINE void add_product(const Pair* rows, int pairs, bool both, const Pair* left, const Pair* right,
                                 long stride) {
  const long row_bytes = pairs * sizeof(Pair);
  asm volatile("" : : : "memory");
  _tile_stream_loadd(6, left, stride);
  _tile_loadd(4, rows, row_bytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_stream_loadd(7, right, stride);
  _tile_dpbf16ps(1, 4, 7);
  if (!both) return;
  _tile_loadd(5, rows + 16 * pairs, row_bytes);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// sums[r][n] += sum over p of panel[p][n] * rows[r][p], or = where `first`; like AddPiece.
//
// panel: [pairs][32]; pairs: a multiple of 8. sums: [count][32]. Lines: of `prefetch` that are fetched.
template <int Lines>
inline void multiply_add_matrix(const Pair* panel, const Pair* rows, int count, int pairs, float* sums, bool first,
                                Prefetch prefetch) {
  constexpr long kStride = kPanel * sizeof(Pair);
  const bool both = count > 16;
  shape_registers(count, kBlockPairs);
  if (first)
    clear_sums();
  else
    load_sums(sums, sums + kLanes, kPanel, both);
  int p = 0;
  for (; p + kBlockPairs <= pairs; p += kBlockPairs) {
#pragma GCC unroll 16
    for (int i = 0; i < kBlockPairs; ++i) {
      _mm_prefetch(prefetch.next + i * prefetch.advance, _MM_HINT_T1);
      if (Lines > 1) _mm_prefetch(prefetch.other + i * prefetch.advance, _MM_HINT_T1);
    }
    prefetch.next += kBlockPairs * prefetch.advance;
    prefetch.other += kBlockPairs * prefetch.advance;
    const Pair* weights = panel + static_cast<size_t>(p) * kPanel;
    add_product(rows + static_cast<size_t>(p) * count, kBlockPairs, both, weights, weights + kLanes, kStride);
  }
  if (p < pairs) {  // half a block: beside zeros, for what stands behind it is not ours
    alignas(64) Pair weights[kBlockPairs][kPanel] = {};
    alignas(64) Pair x[kMatrixRows][kBlockPairs] = {};
    std::memcpy(weights, panel + static_cast<size_t>(p) * kPanel, (pairs - p) * sizeof weights[0]);
    for (int r = 0; r < count; ++r)
      std::memcpy(x[r], rows + static_cast<size_t>(p) * count + r * kBlockPairs, (pairs - p) * sizeof(Pair));
    add_product(x[0], kBlockPairs, both, weights[0], weights[0] + kLanes, kStride);
  }
  store_sums(sums, sums + kLanes, kPanel, both);
}

}  // namespace secateur
