// Causal attention of a ragged batch, straight from the blocks of the cache: no gathering, no padding.
//
// The query heads that share a key-value head, of one or several tokens, are the rows of a tile; keys come in
// chunks, with the softmax kept as a running maximum and sum (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao
// et al. 2022, arXiv 2205.14135). The work is laid end to end, tile after tile and chunk after chunk, and each
// thread takes an equal stretch of it, so one long context is shared by all threads as well as many short ones.
// A tile that is cut between threads is put together afterwards (`merge_attention`).

#pragma once

#include <cmath>
#include <cstring>

#include "attention_chunk.h"

namespace secateur {

// Rows [first_row, first_row + rows) of a request: row = token * group + head of the group, group = the query
// heads of a key-value head. They see keys of chunks [first_chunk, end_chunk), all before end_key.
struct AttentionTile {
  int request, kv_head, first_row, rows, first_chunk, end_chunk, end_key;
};

// Chunks [begin, end) of a tile, whose number it has: what a thread computes of it.
struct AttentionWork {
  long number;
  AttentionTile tile;
  int begin, end;

  bool whole() const { return begin == tile.first_chunk && end == tile.end_chunk; }
};

// The piece of a cut tile that a thread computed. A thread has at most two: its first tile and its last one.
struct Partial {
  RunningSoftmax state;
  long tile;  // its number, -1 if there is no such piece
};

// Calls `visit(number, tile)` for all tiles, in the same order on every thread.
template <class Visit>
inline void for_each_tile(const Model& model, const Layer& layer, const Batch& batch, Visit visit) {
  const int group = model.heads / model.kv_heads, most = attends_on_matrix(model) ? kMatrixRows : kMaxRows;
  long number = 0;
  for (int request = 0; request < batch.requests; ++request) {
    const int start = batch.starts[request];
    const long rows = static_cast<long>(batch.starts[request + 1] - start) * group;
    const long tiles = (rows + most - 1) / most;
    for (int kv_head = 0; kv_head < model.kv_heads; ++kv_head) {
      for (long t = 0; t < tiles; ++t) {
        const int begin = static_cast<int>(rows * t / tiles), end = static_cast<int>(rows * (t + 1) / tiles);
        const int last = batch.positions[start + (end - 1) / group];
        const int unseen = layer.window ? batch.positions[start + begin / group] + 1 - layer.window : 0;
        visit(number++, AttentionTile{request, kv_head, begin, end - begin, std::max(unseen, 0) / kChunk,
                                      last / kChunk + 1, last + 1});
      }
    }
  }
}

inline void reset(RunningSoftmax& state, int rows, int head_dim) {
  std::fill(state.maximum, state.maximum + rows, -__builtin_inff());
  std::fill(state.total, state.total + rows, 0.f);
  std::memset(state.output, 0, static_cast<size_t>(rows) * head_dim * sizeof(float));
}

// Divides by the sum and writes the rows of a tile where the output projection reads them.
inline void finish(const Model& model, const Batch& batch, const AttentionTile& tile, const RunningSoftmax& state,
                   const RowTiles& row_tiles, const PackedRows& to) {
  const int group = model.heads / model.kv_heads;
  const RowTile* at = row_tiles.data();
  for (int i = 0; i < tile.rows; ++i) {
    const int row = tile.first_row + i;
    const int token = batch.starts[tile.request] + row / group;
    const int head = tile.kv_head * group + row % group;
    while (token >= at->first + at->rows) ++at;
    const __m512 share = _mm512_set1_ps(1.f / state.total[i]);
    for (int d = 0; d < model.head_dim; d += kLanes) {
      const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(state.output + i * model.head_dim + d), share);
      to.store(values, *at, token - at->first, (head * model.head_dim + d) / 2);
    }
  }
}

// Two chunks of keys in turn: the one that is computed, and the one that comes next and is fetched meanwhile.
struct KeyChunks {
  Chunk chunks[2];
  int turn = 0;
  bool ready = false;  // whether the one to compute was found, and its keys fetched

  Chunk& now() { return chunks[turn]; }
  Chunk& next() { return chunks[1 - turn]; }
};

// Computes its chunks of a tile into `state`. `after`: what the thread computes next, or null.
inline void attend_chunks(const Model& model, const Layer& layer, const Batch& batch, const Bfloat16* qkv,
                          const AttentionWork& work, const AttentionWork* after, KeyChunks& keys,
                          RunningSoftmax& state) {
  const AttentionTile& tile = work.tile;
  const int group = model.heads / model.kv_heads, rows = tile.rows, first = batch.starts[tile.request];
  const float scale_log2 = 1.44269504f / std::sqrt(static_cast<float>(model.head_dim));
  const bool matrix = attends_on_matrix(model);
  alignas(64) Pair queries[kMatrixRows * kMaxHeadDim / 2];
  int positions[kMatrixRows];
  for (int i = 0; i < rows; ++i) {
    const int token = first + (tile.first_row + i) / group;
    const int head = tile.kv_head * group + (tile.first_row + i) % group;
    const Bfloat16* query = qkv + static_cast<size_t>(token) * model.qkv_columns() + head * model.head_dim;
    const int together = matrix ? kBlockWords : 1;
    for (int p = 0; p < model.head_dim / 2; p += together)
      std::memcpy(queries + p * rows + i * together, query + 2 * p, together * sizeof(Pair));
    positions[i] = batch.positions[token];
  }
  reset(state, rows, model.head_dim);
  const auto find = [&](const AttentionTile& of, int number, Chunk& chunk) {
    find_segments(model, layer, batch.block_tables + batch.table_starts[of.request], of.kv_head, number * kChunk,
                  std::min((number + 1) * kChunk, of.end_key), chunk);
  };
  if (!keys.ready) {
    find(tile, work.begin, keys.now());
    for (int s = 0; s < keys.now().count; ++s)
      for (int line = 0; line < model.head_dim / 2; ++line)  // 16 keys of head_dim bfloat16
        _mm_prefetch(keys.now().segments[s].keys + line * model.block_size, _MM_HINT_T0);
  }
  for (int chunk = work.begin; chunk < work.end; ++chunk) {
    const int first_key = chunk * kChunk;
    const bool last = chunk + 1 == work.end;
    keys.ready = !last || after;
    if (keys.ready) find(last ? after->tile : tile, last ? after->begin : chunk + 1, keys.next());
    const Chunk& next = keys.ready ? keys.next() : keys.now();
    int first_seen[kMatrixRows], last_seen[kMatrixRows];
    for (int i = 0; i < rows; ++i) {
      last_seen[i] = positions[i] - first_key;
      first_seen[i] = layer.window ? last_seen[i] + 1 - layer.window : 0;
    }
    if (matrix)
      attend_chunk_matrix(model, keys.now(), next, queries, rows, first_seen, last_seen, scale_log2, state);
    else
      for_rows<AttendChunk>(rows)(model, keys.now(), Ahead(model, keys.now(), next), queries, first_seen, last_seen,
                                  scale_log2, state);
    keys.turn = 1 - keys.turn;
  }
}

// This thread's stretch of the work. Whole tiles go to `to`, pieces to `partials` [threads][2].
inline void attend(const Team& team, const Model& model, const Layer& layer, const Batch& batch, const Bfloat16* qkv,
                   const RowTiles& row_tiles, const PackedRows& to, Partial* partials) {
  long all = 0;
  for_each_tile(model, layer, batch,
                [&](long, const AttentionTile& tile) { all += tile.end_chunk - tile.first_chunk; });
  const long begin = all * team.id / team.count, end = all * (team.id + 1) / team.count;
  std::vector<AttentionWork> stretch;
  long at = 0;
  for_each_tile(model, layer, batch, [&](long number, const AttentionTile& tile) {
    const long chunks = tile.end_chunk - tile.first_chunk;
    const int from = static_cast<int>(std::max(begin - at, 0L)), until = static_cast<int>(std::min(end - at, chunks));
    if (from < until) stretch.push_back({number, tile, tile.first_chunk + from, tile.first_chunk + until});
    at += chunks;
  });
  Partial* own = partials + 2 * team.id;
  own[0].tile = own[1].tile = -1;
  alignas(64) float output[kMatrixRows * kMaxHeadDim];
  RunningSoftmax state{{}, {}, output};
  KeyChunks keys;
  for (size_t i = 0; i < stretch.size(); ++i) {
    const AttentionWork& work = stretch[i];
    const AttentionWork* after = i + 1 < stretch.size() ? &stretch[i + 1] : nullptr;
    if (work.whole()) {
      attend_chunks(model, layer, batch, qkv, work, after, keys, state);
      finish(model, batch, work.tile, state, row_tiles, to);
    } else {
      Partial& partial = own[work.begin == work.tile.first_chunk];  // 0 where another thread began it
      partial.tile = work.number;
      attend_chunks(model, layer, batch, qkv, work, after, keys, partial.state);
    }
  }
}

// Puts together the tiles that were cut between threads. Called once all threads have attended, by one of them.
inline void merge_attention(const Model& model, const Layer& layer, const Batch& batch, const RowTiles& row_tiles,
                            const PackedRows& to, Partial* partials, int threads) {
  Partial* end = partials + 2 * threads;
  for_each_tile(model, layer, batch, [&](long number, const AttentionTile& tile) {
    Partial* whole = std::find_if(partials, end, [&](const Partial& p) { return p.tile == number; });
    if (whole == end) return;
    for (Partial* piece = whole + 1; piece < end; ++piece) {
      if (piece->tile != number) continue;
      for (int i = 0; i < tile.rows; ++i) {
        RunningSoftmax &a = whole->state, &b = piece->state;
        const float maximum = std::max(a.maximum[i], b.maximum[i]);
        if (std::isinf(maximum)) continue;  // neither piece holds a key that this row sees
        const float keep = std::exp2(a.maximum[i] - maximum), add = std::exp2(b.maximum[i] - maximum);
        a.maximum[i] = maximum;
        a.total[i] = a.total[i] * keep + b.total[i] * add;
        for (int d = i * model.head_dim; d < (i + 1) * model.head_dim; ++d)
          a.output[d] = a.output[d] * keep + b.output[d] * add;
      }
    }
    finish(model, batch, tile, whole->state, row_tiles, to);
  });
}

}  // namespace secateur
