// The gated MLP whose neurons stand in ranking order: y += (silu(x Wg^T) * (x Wu^T)) Wd^T over a prefix of the
// neurons, chosen per row. Rows come widest first, so a block of neurons multiplies the first few tiles only.
//
// gate and up are packed together, [neurons / 16][hidden / 2][gate 16 | up 16], and Wd as any linear map from
// neurons to hidden: a prefix of the neurons is a contiguous piece of every panel.

#pragma once

#include "linear.h"

namespace secateur {

// 16 neurons for the rows of a tile: `neurons` gets 8 pairs a row, [8][R], zero from a row's width on. `delta`, where
// there is one, multiplies `inner`, [delta_pairs][R].
template <int R>
struct GateUp {
  static void run(const Pair* panel, const Pair* rows, int pairs, const int32_t* widths, int first_neuron,
                  Pair* neurons, Prefetch prefetch, bool alone, const Pair* delta, const Pair* inner,
                  int delta_pairs) {
    __m512 s[R][2];
    set_zero(s);
    if (alone)
      multiply_add<R, 2>(panel, panel + kLanes, kPanel, rows, pairs, s, prefetch);
    else
      multiply_add<R, 1>(panel, panel + kLanes, kPanel, rows, pairs, s, prefetch);
    if (delta)
      multiply_add<R, 1>(delta, delta + kLanes, kPanel, inner, delta_pairs, s, prefetch_for(delta, 0, 0, 1));
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) {
      const __mmask16 kept = first_lanes(widths[i] - first_neuron);
      store_packed(_mm512_maskz_mov_ps(kept, gated(s[i][0], s[i][1])), neurons, R, i, 0);
    }
  }
};

// Where each thread's stretch of the blocks of neurons begins, [threads + 1]: as much work as any other's.
inline std::vector<int> cut_blocks(int threads, const RowTiles& tiles) {
  // A block's cost is that of the tiles it reaches, and never less than fetching its weights takes.
  constexpr int kFetchCost = 13;
  const int blocks = tiles.front().blocks;
  std::vector<long> cost(blocks + 1, 0);  // of the blocks before this one
  int reached = 0;
  size_t active = tiles.size();
  for (const RowTile& tile : tiles) reached += tile_cost(tile.rows);
  for (int block = 0; block < blocks; ++block) {
    while (active > 1 && tiles[active - 1].blocks <= block) reached -= tile_cost(tiles[--active].rows);
    cost[block + 1] = cost[block] + std::max(reached, kFetchCost);
  }
  std::vector<int> begins(threads + 1);
  for (int thread = 0; thread <= threads; ++thread)
    begins[thread] = static_cast<int>(
        std::lower_bound(cost.begin(), cost.end(), cost[blocks] * thread / threads) - cost.begin());
  return begins;
}

// First half. `x`: packed rows of hidden / 2 pairs; `neurons`: packed rows of as many pairs as neurons are held / 2;
// `deltas`: with `inner` computed.
inline void gate_up(const Team& team, const Pair* weights, const PackedRows& x, const RowTiles& tiles,
                    const int32_t* widths, const PackedRows& neurons, const MapDeltas& deltas) {
  const std::vector<int> begins = cut_blocks(team.count, tiles);
  const size_t panel_pairs = static_cast<size_t>(x.pairs) * kPanel;
  team.share([&](int thread) { return begins[thread]; }, [&](int block) {
    const int active = static_cast<int>(
        std::partition_point(tiles.begin(), tiles.end(), [&](const RowTile& t) { return t.blocks > block; }) -
        tiles.begin());
    const Pair* panel = weights + block * panel_pairs;
    for (int t = 0; t < active; ++t) {
      const RowTile& tile = tiles[t];
      const Prefetch prefetch = prefetch_for(panel, panel_pairs * sizeof(Pair), t, active);
      const LowRank* delta = deltas.of(tile);
      for_rows<GateUp>(tile.rows)(panel, x.tile(tile), x.pairs, widths + tile.first, block * kLanes,
                                  neurons.tile(tile) + static_cast<size_t>(block) * 8 * tile.rows, prefetch,
                                  active == 1, delta ? delta->b + block * delta->pairs * kPanel : nullptr,
                                  delta ? deltas.inner.tile(tile) : nullptr,
                                  delta ? static_cast<int>(delta->pairs) : 0);
    }
  });
}

}  // namespace secateur
