// The gated MLP whose neurons stand in ranking order: y += (silu(x Wg^T) * (x Wu^T)) Wd^T over a prefix of the
// neurons, chosen per row. Rows come widest first, so a block of neurons multiplies the first few tiles only.
//
// gate and up are packed together, [neurons / 16][words of hidden][gate 16 | up 16], and Wd as any linear map from
// neurons to hidden: a prefix of the neurons is a contiguous piece of every panel.

#pragma once

#include "linear.h"

namespace secateur {

// Where each thread's stretch of the blocks of neurons begins, [threads + 1]: as much work as any other's.
inline std::vector<int> cut_blocks(int threads, const RowTiles& tiles) {
  // A block's cost is that of the tiles it reaches, and never less than fetching its weights takes.
  constexpr float kFetchCost = 13;
  const int blocks = tiles.front().blocks;
  std::vector<float> cost(blocks + 1, 0.f);  // of the blocks before this one
  float reached = 0;
  size_t active = tiles.size();
  for (const RowTile& tile : tiles) reached += tile_cost(tile.rows, tile.matrix);
  for (int block = 0; block < blocks; ++block) {
    while (active > 1 && tiles[active - 1].blocks <= block) {
      --active;
      reached -= tile_cost(tiles[active].rows, tiles[active].matrix);
    }
    cost[block + 1] = cost[block] + std::max(reached, kFetchCost);
  }
  std::vector<int> begins(threads + 1, blocks);  // the last by itself: its quotient may be rounded up
  for (int thread = 0; thread < threads; ++thread)
    begins[thread] = static_cast<int>(
        std::lower_bound(cost.begin(), cost.end(), cost[blocks] * thread / threads) - cost.begin());
  return begins;
}

// First half. `x`: of hidden inputs, in the format of `matrix`; `neurons`: packed rows of as many pairs as neurons are
// held / 2, zero from a row's width to its tile's; `sums`: this thread's, [rows][32]; `deltas`: with `inner` computed.
inline void gate_up(const Team& team, const Matrix& matrix, const Factor& x, const RowTiles& tiles,
                    const int32_t* widths, const PackedRows& neurons, float* sums, const MapDeltas& deltas) {
  const std::vector<int> begins = cut_blocks(team.count, tiles);
  const auto depth = [&](const RowTile&) { return x.rows.words; };
  const Pieces pieces{1, Pieces::of(tiles, x.rows.words).words};
  team.share([&](int thread) { return begins[thread]; }, [&](int block) {
    const int active = static_cast<int>(
        std::partition_point(tiles.begin(), tiles.end(), [&](const RowTile& t) { return t.blocks > block; }) -
        tiles.begin());
    multiply_some(matrix, block, block + 1, x, tiles, active, depth, pieces, deltas, sums);
    for (int t = 0; t < active; ++t) {
      for (int row = 0; row < tiles[t].rows; ++row) {
        const int token = tiles[t].first + row;
        const float* sum = sums + token * kPanel;
        const __mmask16 kept = first_lanes(widths[token] - block * kLanes);
        const __m512 values = _mm512_maskz_mov_ps(kept, gated(_mm512_load_ps(sum), _mm512_load_ps(sum + kLanes)));
        neurons.store(values, tiles[t], row, block * 8);
      }
    }
  });
}

}  // namespace secateur
