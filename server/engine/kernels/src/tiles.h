// How rows are cut into tiles that share a pass over the weights, and the memory that a step works in.

#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "amx.h"
#include "team.h"

namespace secateur {

// Rows [first, first + rows), all of one group, and how many 16-wide blocks of neurons the widest of them takes part
// in.
struct RowTile {
  int first;
  int rows;
  int blocks;
  int group;
  bool matrix;  // the matrix unit multiplies it
};

using RowTiles = std::vector<RowTile>;

// What a pass over one pair of a panel costs a tile. Below 5 rows the latency of a sum binds, not their number;
// the 1 is the loads of the weights. The matrix unit takes 16 pairs at a time, and loads them as long as it multiplies.
inline float tile_cost(int rows, bool matrix) { return matrix ? 1 + rows / 16.f : std::max(rows, 5) + 1.f; }

// Cuts rows, widest first, into tiles so that the sum of (widest row of a tile) x tile_cost is least.
//
// widths: [count], never growing; null where all rows are equal.
// group_ends: [groups] where each group of rows ends; no tile reaches over such a place. Without groups all rows are
// one.
inline RowTiles make_tiles(bool matrix, int count, const int32_t* widths, int groups = 0,
                           const int32_t* group_ends = nullptr) {
  const int most = matrix ? kMatrixRows : kMaxRows;
  const auto width = [widths](int row) { return widths ? widths[row] : 1; };
  std::vector<float> least(count + 1, 0.f);  // cost of the rows before this one
  std::vector<int> first(count + 1, 0);      // where the tile that ends here begins
  std::vector<int> group_of(count + 1, 0);   // of the tile that ends here
  for (int end = 1, group = 0, start = 0; end <= count; ++end) {
    if (groups && end > group_ends[group]) start = group_ends[group++];
    group_of[end] = group;
    least[end] = __builtin_inff();
    for (int begin = std::max(start, end - most); begin < end; ++begin) {
      const float cost = least[begin] + static_cast<float>(width(begin)) * tile_cost(end - begin, matrix);
      if (cost < least[end]) least[end] = cost, first[end] = begin;
    }
  }
  RowTiles tiles;
  for (int end = count; end > 0; end = first[end])
    tiles.push_back({first[end], end - first[end], (width(first[end]) + kLanes - 1) / kLanes, group_of[end], matrix});
  std::reverse(tiles.begin(), tiles.end());
  return tiles;
}

// Writes 16 neighbouring values of one row, rounded, as pairs `first_pair` to `first_pair + 7` of [pairs][rows].
SECATEUR_INLINE void store_packed(__m512 values, Pair* tile, int rows, int row, int first_pair) {
  alignas(32) Pair pairs[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), round_to_bfloat16(values));
  Pair* to = tile + static_cast<size_t>(first_pair) * rows + row;
#pragma GCC unroll 8
  for (int p = 0; p < 8; ++p) to[p * rows] = pairs[p];
}

// Rows as they are multiplied: tile after tile, [words][rows of the tile] each, or for the matrix unit
// [words / 16][rows][16].
struct PackedRows {
  Word* data;
  int words;  // of each row

  static size_t room(int words) { return static_cast<size_t>(words + kBlockWords - 1) / kBlockWords * kBlockWords; }

  // The tile's words from `first_word` on, which begins a block.
  const Word* tile(const RowTile& tile, int first_word = 0) const {
    return data + tile.first * room(words) + static_cast<size_t>(first_word) * tile.rows;
  }

  // How many words a tile sums over: all, or where `prefix` those of the neurons it reaches, of which 16 take `block`.
  int depth(const RowTile& tile, bool prefix, int block = kLanes / 2) const {
    return prefix ? tile.blocks * block : words;
  }

  // Writes 16 neighbouring values of row `row` of a tile, rounded, as pairs `first_pair` to `first_pair + 7`.
  void store(__m512 values, const RowTile& tile, int row, int first_pair) const {
    Pair* to = data + tile.first * room(words);
    if (!tile.matrix) return store_packed(values, to, tile.rows, row, first_pair);
    to += static_cast<size_t>(first_pair / kBlockWords) * tile.rows * kBlockWords;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row * kBlockWords + first_pair % kBlockWords),
                        round_to_bfloat16(values));
  }
};

// Hands out aligned pieces of one allocation; without one, counts the bytes it would take.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(size_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 127) / 64 * 64;  // and at least one spare line: vector loads may overshoot
    return piece;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace secateur
