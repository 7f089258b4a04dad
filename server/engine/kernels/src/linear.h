// Packed rows times packed panels: y = x W^T (+ bias), float32 sums.
//
// A packed matrix of N outputs over K inputs is [ceil(N / 32)][words][32], of pairs or quads of inputs: a panel of 32
// outputs is read straight through, once, whatever the number of rows. Missing outputs and inputs are zeros.

#pragma once

#include "quantize.h"

namespace secateur {

enum class Output : int { kBfloat16, kFloat32, kAddFloat32 };

// Where a product goes: row r at data + r * columns, in elements. `bias` may be null.
struct Destination {
  void* data;
  int columns;
  Output kind;
  const float* bias;

  // Takes outputs `column` to `column + 15` of a row, those that exist.
  void operator()(int row, int column, __m512 values) const {
    const __mmask16 lanes = first_lanes(columns - column);
    if (lanes == 0) return;
    if (bias) values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(lanes, bias + column));
    const size_t at = static_cast<size_t>(row) * columns + column;
    if (kind == Output::kBfloat16) {
      _mm256_mask_storeu_epi16(static_cast<Bfloat16*>(data) + at, lanes, round_to_bfloat16(values));
      return;
    }
    float* sums = static_cast<float*>(data) + at;
    if (kind == Output::kAddFloat32) values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(lanes, sums));
    _mm512_mask_storeu_ps(sums, lanes, values);
  }
};

// Below so many rows a tile alone with its weights fetches them into the first cache, which then is a little faster. With
// more, or two tiles, multiplying takes about as long as memory: then the first cache has too few requests under way to
// keep both busy, and the second one has enough. Three tiles leave it the time.
constexpr int kFewRows = 6;

// Adds a piece of the summed dimension to `sums` [R][32].
template <int R, class Format>
struct AddPiece {
  static void run(const Word* panel, const Word* rows, int words, float* sums, bool first, Prefetch prefetch,
                  bool alone) {
    typename Format::Sums s[R][2];
    if (first) {
      set_zero<R, Format>(s);
    } else {
      SECATEUR_UNROLL
      for (int i = 0; i < R; ++i) {
        s[i][0] = Format::load(sums + i * kPanel);
        s[i][1] = Format::load(sums + i * kPanel + kLanes);
      }
    }
    constexpr _mm_hint kFirst = _MM_HINT_T0, kSecond = _MM_HINT_T1;
    const auto multiply = [&](auto fetch) {
      multiply_add<R, Format>(panel, panel + kLanes, kPanel, rows, words, s, fetch);
    };
    if (alone)
      multiply(FetchLines<2, R < kFewRows ? kFirst : kSecond>{prefetch});
    else if (prefetch.far)
      multiply(FetchLines<1, kSecond>{prefetch});
    else
      multiply(FetchLines<1, kFirst>{prefetch});
    SECATEUR_UNROLL
    for (int i = 0; i < R; ++i) {
      Format::store(sums + i * kPanel, s[i][0]);
      Format::store(sums + i * kPanel + kLanes, s[i][1]);
    }
  }
};

template <int R>
using AddPairs = AddPiece<R, Pairs>;
template <int R>
using AddQuads = AddPiece<R, Quads>;

// The same on whichever unit a tile is for. A whole tile fetches two lines a word where it is `alone` with its weights.
template <class Format = Pairs>
inline void add_piece(const RowTile& tile, const Word* panel, const Word* rows, int words, float* sums, bool first,
                      Prefetch prefetch, bool alone) {
  if (tile.matrix && alone)
    multiply_add_matrix<2, Format>(panel, rows, tile.rows, words, sums, first, prefetch);
  else if (tile.matrix)
    multiply_add_matrix<1, Format>(panel, rows, tile.rows, words, sums, first, prefetch);
  else if constexpr (std::is_same_v<Format, Pairs>)
    for_rows<AddPairs>(tile.rows)(panel, rows, words, sums, first, prefetch, alone);
  else
    for_rows<AddQuads>(tile.rows)(panel, rows, words, sums, first, prefetch, alone);
}

constexpr long kPrefetchBytes = 8192;  // ahead of the multiplication, where memory is what it waits for

// What to fetch where one tile uses the weights: those a little ahead.
SECATEUR_INLINE Prefetch prefetch_ahead(const Pair* weights) {
  const char* base = reinterpret_cast<const char*>(weights) + kPrefetchBytes;
  return {base, base + 64, 2 * 64, false};
}

// The same during tile `index` of `count`: with several, the `bytes` at `next` that come next, a share in each tile.
SECATEUR_INLINE Prefetch prefetch_for(const Pair* weights, const Pair* next, long bytes, int index, int count) {
  if (count == 1) return prefetch_ahead(weights);
  return {reinterpret_cast<const char*>(next) + bytes * index / count, nullptr, 2 * 64 / count, count == 2};
}

// What the deltas of a step add to one linear map of one layer. By default nothing.
struct MapDeltas {
  const Batch* batch = nullptr;
  int layer = 0;
  LowRank LayerDelta::*map = nullptr;
  PackedRows inner = {};  // A x of the tiles that have a delta, [tokens] of rank_pairs

  bool any() const { return batch && batch->groups; }

  // The matrices for a tile's rows, or null.
  const LowRank* of(const RowTile& tile) const {
    const LayerDelta* layers = any() ? batch->group_deltas[tile.group] : nullptr;
    if (!layers || !(layers[layer].*map).a) return nullptr;
    return &(layers[layer].*map);
  }
};

// First half of the deltas: inner = A x, for the tiles that have one. A thread has some of all their panels.
//
// prefix: a tile sums over its first 8 * blocks pairs, else over all.
// sums: this thread's, [rows][32].
inline void multiply_inner(const Team& team, const MapDeltas& deltas, const PackedRows& rows, const RowTiles& tiles,
                           bool prefix, float* sums) {
  long panels = 0;
  for (const RowTile& tile : tiles)
    if (const LowRank* delta = deltas.of(tile)) panels += delta->pairs / kLanes;
  long before = 0;  // panels of the tiles before this one
  for (const RowTile& tile : tiles) {
    const LowRank* delta = deltas.of(tile);
    if (!delta) continue;
    const int pairs = rows.depth(tile, prefix);
    const int own = static_cast<int>(delta->pairs / kLanes);
    const int begin = std::max<int>(0, team.begin(panels) - before), end = std::min<int>(own, team.end(panels) - before);
    for (int panel = begin; panel < end; ++panel) {
      const Pair* weights = delta->a + static_cast<size_t>(panel) * pairs * kPanel;
      add_piece(tile, weights, rows.tile(tile), pairs, sums, true, prefetch_ahead(weights), true);
      for (int row = 0; row < tile.rows; ++row)
        for (int half = 0; half < 2; ++half)
          deltas.inner.store(_mm512_load_ps(sums + row * kPanel + half * kLanes), tile, row,
                             panel * kLanes + half * kLanes / 2);
    }
    before += own;
  }
}

// How the team goes through panels: so many `together`, of each `words` words for all tiles before the next.
struct Pieces {
  int together;
  int words;

  static constexpr int kMostTogether = 8;

  // So that what all tiles use again stays in a cache: a piece of a panel in the first one where vectors are
  // multiplied. The matrix unit is fed from the second one, by rows as well; when those are too many, several panels
  // use a piece of them.
  static Pieces of(const RowTiles& tiles, int longest) {
    constexpr int kVectorWords = 256, kMatrixWords = 1024, kRowWords = 1 << 18;  // 32 KB, 128 KB, 1 MB
    if (tiles.size() == 1) return {1, longest};
    if (!tiles.front().matrix) return {1, equal(longest, kVectorWords)};
    const int rows = tiles.back().first + tiles.back().rows;
    if (static_cast<long>(rows) * longest <= kRowWords) return {1, equal(longest, kMatrixWords)};
    return {kMostTogether, equal(longest, std::max(kVectorWords, kRowWords / rows))};
  }

 private:
  // Of pieces of about equal size, none larger than `most`, each whole blocks.
  static int equal(int longest, int most) {
    const int pieces = std::max(1, (longest + most - 1) / most);
    return static_cast<int>(PackedRows::room((longest + pieces - 1) / pieces));
  }
};

// Adds the tiles' product with panels [first, end) to `sums` [panels][rows][32], which hold what the format sums in.
//
// depth(tile): how many words a tile sums over, never growing along the tiles.
template <class Format, class Depth>
inline void add_panels(const Word* panels, int first, int end, const PackedRows& rows, const RowTiles& tiles,
                       int active, Depth depth, const Pieces& pieces, float* sums) {
  const size_t panel_words = static_cast<size_t>(rows.words) * kPanel;
  const size_t panel_sums = static_cast<size_t>(tiles.back().first + tiles.back().rows) * kPanel;
  const int longest = depth(tiles.front());
  const int piece = active == 1 ? longest : pieces.words;
  int reached = active;  // tiles that sum over any of the piece
  for (int begin = 0; begin < longest; begin += piece) {
    const int size = std::min(piece, longest - begin);
    while (depth(tiles[reached - 1]) <= begin) --reached;
    for (int panel = first; panel < end; ++panel) {
      const Word* from = panels + panel * panel_words + static_cast<size_t>(begin) * kPanel;
      const Word* next = panels + end * panel_words;  // where the panels after these begin
      if (panel + 1 < end)
        next = from + panel_words;
      else if (begin + size < longest)
        next = panels + first * panel_words + static_cast<size_t>(begin + size) * kPanel;
      for (int t = 0; t < reached; ++t) {
        const RowTile& tile = tiles[t];
        add_piece<Format>(tile, from, rows.tile(tile, begin), std::min(size, depth(tile) - begin),
                          sums + (panel - first) * panel_sums + tile.first * kPanel, begin == 0,
                          prefetch_for(from, next, static_cast<long>(size) * kPanel * sizeof(Word), t, reached),
                          reached == 1);
      }
    }
  }
}

// The first `active` tiles times panels [first, end), deltas included: `sums` [panels][rows][32] in float32.
//
// x: in the matrix's format. depth: as above.
template <class Depth>
inline void multiply_some(const Matrix& matrix, int first, int end, const Factor& x, const RowTiles& tiles, int active,
                          Depth depth, const Pieces& pieces, const MapDeltas& deltas, float* sums) {
  const size_t panel_sums = static_cast<size_t>(tiles.back().first + tiles.back().rows) * kPanel;
  if (!matrix.scales) {
    add_panels<Pairs>(matrix.panels, first, end, x.rows, tiles, active, depth, pieces, sums);
  } else {
    add_panels<Quads>(matrix.panels, first, end, x.rows, tiles, active, depth, pieces, sums);
    const int count = tiles[active - 1].first + tiles[active - 1].rows;
    for (int panel = first; panel < end; ++panel)
      for (int row = 0; row < count; ++row)
        for (int half = 0; half < kPanel; half += kLanes) {
          float* sum = sums + (panel - first) * panel_sums + row * kPanel + half;
          _mm512_store_ps(sum, x.to_float(row, _mm512_load_si512(sum), matrix.scales + panel * kPanel + half));
        }
  }
  if (!deltas.any()) return;
  for (int t = 0; t < active; ++t) {
    const RowTile& tile = tiles[t];
    const LowRank* delta = deltas.of(tile);
    for (int panel = first; delta && panel < end; ++panel) {
      const Pair* from = delta->b + panel * delta->pairs * kPanel;
      add_piece(tile, from, deltas.inner.tile(tile), static_cast<int>(delta->pairs),
                sums + (panel - first) * panel_sums + tile.first * kPanel, false,
                prefetch_ahead(from), false);
    }
  }
}

// The team multiplies rows with all panels of `matrix`.
//
// x: in the matrix's format. prefix: a tile sums over its first 16 * blocks inputs, else over all.
// to: takes 16 outputs of a row at a time, and says how many `columns` there are (Destination).
// sums: this thread's, [Pieces::kMostTogether][rows][32].
// deltas: with `inner` computed.
template <class To>
inline void multiply_panels(const Team& team, const Matrix& matrix, const Factor& x, const RowTiles& tiles, bool prefix,
                            const To& to, float* sums, const MapDeltas& deltas = {}) {
  const auto depth = [&](const RowTile& tile) { return x.depth(tile, prefix); };
  const Pieces pieces = Pieces::of(tiles, depth(tiles.front()));
  const int panels = (to.columns + kPanel - 1) / kPanel;
  const int count = tiles.back().first + tiles.back().rows;
  // As many groups of panels as panels, or as few as there can be of one size for each thread.
  const int at_once = pieces.together * team.count;
  const int groups = pieces.together == 1 ? panels : (panels + at_once - 1) / at_once * team.count;
  const auto begin_of = [&](int group) { return static_cast<int>(static_cast<long>(panels) * group / groups); };
  team.share_evenly(groups, [&](int group) {
    const int first = begin_of(group), end = begin_of(group + 1);
    multiply_some(matrix, first, end, x, tiles, static_cast<int>(tiles.size()), depth, pieces, deltas, sums);
    for (int panel = first; panel < end; ++panel)
      for (int row = 0; row < count; ++row)
        for (int half = 0; half < 2; ++half)
          to(row, panel * kPanel + half * kLanes,
             _mm512_load_ps(sums + ((panel - first) * count + row) * kPanel + half * kLanes));
  });
}

}  // namespace secateur
