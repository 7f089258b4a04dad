// Intel's matrix unit (AMX): up to 32 rows times a panel, in tiles of registers of 16 rows of 64 bytes.
//
// One instruction adds to 16 x 16 sums the products of 16 rows of 16 words with 16 words of 16 outputs: what a panel
// holds anyway, 16 words at a time. Rows stand as [words / 16][rows][16 words].

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace secateur {

constexpr int kBlockWords = 16;   // of the summed dimension that one instruction takes
constexpr int kMatrixRows = 32;   // rows computed together: 2 x 2 tiles of sums, 2 of rows, 2 of weights

// Asks the kernel for the unit's registers, for the whole process. Whether there is a unit to use.
inline bool request_matrix_unit() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  __builtin_cpu_init();
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") &&
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
// right; 4 and 5 those rows; 6 and 7 weights, left and right, of `words` words.
inline void shape_registers(int rows, int words) {
  struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, unused[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } shapes;
  const int upper = std::min(rows, 16), lower = std::max(rows - 16, 1);
  const int counts[] = {upper, upper, lower, lower, upper, lower, words, words};
  for (int i = 0; i < 8; ++i) shapes.bytes[i] = 64, shapes.rows[i] = static_cast<uint8_t>(counts[i]);
  shapes.bytes[4] = shapes.bytes[5] = static_cast<uint16_t>(words * sizeof(Word));
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

// Register `sums` += rows in register `rows` times weights in register `weights`; the assembler wants literal numbers.
#define SECATEUR_MULTIPLY_REGISTERS(Format, sums, rows, weights) \
  if constexpr (std::is_same_v<Format, Pairs>)                   \
    _tile_dpbf16ps(sums, rows, weights);                         \
  else                                                           \
    _tile_dpbsud(sums, rows, weights) /* signed rows, unsigned weights */

// sums += rows times weights: of rows [rows][words], and weights of which one word stands `stride` bytes behind the
// other. Weights pass the first cache by: rows are used again sooner.
template <class Format = Pairs>
SECATEUR_INLINE void add_product(const Word* rows, int words, bool both, const Word* left, const Word* right,
                                 long stride) {
  const long row_bytes = words * sizeof(Word);
  asm volatile("" : : : "memory");
  _tile_stream_loadd(6, left, stride);
  _tile_loadd(4, rows, row_bytes);
  SECATEUR_MULTIPLY_REGISTERS(Format, 0, 4, 6);
  _tile_stream_loadd(7, right, stride);
  SECATEUR_MULTIPLY_REGISTERS(Format, 1, 4, 7);
  if (!both) return;
  _tile_loadd(5, rows + 16 * words, row_bytes);
  SECATEUR_MULTIPLY_REGISTERS(Format, 2, 5, 6);
  SECATEUR_MULTIPLY_REGISTERS(Format, 3, 5, 7);
}

// sums[r][n] += sum over w of panel[w][n] * rows[r][w], or = where `first`; like AddPiece.
//
// panel: [words][32]. sums: [count][32]. Lines: of `prefetch` that are fetched.
template <int Lines, class Format>
inline void multiply_add_matrix(const Word* panel, const Word* rows, int count, int words, float* sums, bool first,
                                Prefetch prefetch) {
  constexpr long kStride = kPanel * sizeof(Word);
  const bool both = count > 16;
  shape_registers(count, kBlockWords);
  if (first)
    clear_sums();
  else
    load_sums(sums, sums + kLanes, kPanel, both);
  int w = 0;
  for (; w + kBlockWords <= words; w += kBlockWords) {
#pragma GCC unroll 16
    for (int i = 0; i < kBlockWords; ++i) {
      _mm_prefetch(prefetch.next + i * prefetch.advance, _MM_HINT_T1);
      if (Lines > 1) _mm_prefetch(prefetch.other + i * prefetch.advance, _MM_HINT_T1);
    }
    prefetch.next += kBlockWords * prefetch.advance;
    prefetch.other += kBlockWords * prefetch.advance;
    const Word* weights = panel + static_cast<size_t>(w) * kPanel;
    add_product<Format>(rows + static_cast<size_t>(w) * count, kBlockWords, both, weights, weights + kLanes, kStride);
  }
  if (w < words) {  // half a block: beside zeros, for what stands behind it is not ours
    alignas(64) Word weights[kBlockWords][kPanel] = {};
    alignas(64) Word x[kMatrixRows][kBlockWords] = {};
    std::memcpy(weights, panel + static_cast<size_t>(w) * kPanel, (words - w) * sizeof weights[0]);
    for (int r = 0; r < count; ++r)
      std::memcpy(x[r], rows + static_cast<size_t>(w) * count + r * kBlockWords, (words - w) * sizeof(Word));
    add_product<Format>(x[0], kBlockWords, both, weights[0], weights[0] + kLanes, kStride);
  }
  store_sums(sums, sums + kLanes, kPanel, both);
}

}  // namespace secateur
