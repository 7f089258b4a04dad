// Causal attention of a ragged batch, straight from the blocks of the cache: no gathering, no padding.
//
// The query heads that share a key-value head, of one or several tokens, are the rows of a tile; keys come in
// chunks, with the softmax kept as a running maximum and sum (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao
// et al. 2022, arXiv 2205.14135). The work is laid end to end, tile after tile and chunk after chunk, and an equal
// stretch of it is each thread's. Where few tiles make up much of it, as with one long context, they are cut between
// threads and put together afterwards (`merge_attention`).

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

// Chunks [begin, end) of a tile.
struct AttentionWork {
  AttentionTile tile;
  int begin, end;

  bool whole() const { return begin == tile.first_chunk && end == tile.end_chunk; }
};

// All work of a layer, in order, and where each thread's stretch of it begins, [threads + 1].
struct AttentionPlan {
  std::vector<AttentionWork> work;
  std::vector<int> begins;
  bool cut;  // whether any tile lies in several stretches
};

// Calls `visit(tile)` for all tiles, in the same order on every thread.
template <class Visit>
inline void for_each_tile(const Model& model, const Layer& layer, const Batch& batch, Visit visit) {
  const int group = model.heads / model.kv_heads, most = attends_on_matrix(model) ? kMatrixRows : kMaxRows;
  for (int request = 0; request < batch.requests; ++request) {
    const int start = batch.starts[request];
    const long rows = static_cast<long>(batch.starts[request + 1] - start) * group;
    const long tiles = (rows + most - 1) / most;
    for (int kv_head = 0; kv_head < model.kv_heads; ++kv_head) {
      for (long t = 0; t < tiles; ++t) {
        const int begin = static_cast<int>(rows * t / tiles), end = static_cast<int>(rows * (t + 1) / tiles);
        const int last = batch.positions[start + (end - 1) / group];
        const int unseen = layer.window ? batch.positions[start + begin / group] + 1 - layer.window : 0;
        visit(AttentionTile{request, kv_head, begin, end - begin, std::max(unseen, 0) / kChunk,
                            last / kChunk + 1, last + 1});
      }
    }
  }
}

inline AttentionPlan plan_attention(const Model& model, const Layer& layer, const Batch& batch, int threads) {
  constexpr int kFew = 16;  // tiles in a stretch: with more, one that is not cut makes it hardly longer
  long all = 0, longest = 0;
  for_each_tile(model, layer, batch, [&](const AttentionTile& tile) {
    all += tile.end_chunk - tile.first_chunk;
    longest = std::max<long>(longest, tile.end_chunk - tile.first_chunk);
  });
  const bool cut = longest * kFew * threads > all;
  AttentionPlan plan{{}, {0}, false};
  long done = 0;
  for_each_tile(model, layer, batch, [&](const AttentionTile& tile) {
    for (int begin = tile.first_chunk; begin < tile.end_chunk;) {
      const long left = all * static_cast<long>(plan.begins.size()) / threads - done;  // of this stretch
      if (left <= 0) {
        plan.begins.push_back(static_cast<int>(plan.work.size()));
        continue;
      }
      const int end = cut ? static_cast<int>(std::min<long>(tile.end_chunk, begin + left)) : tile.end_chunk;
      plan.work.push_back({tile, begin, end});
      plan.cut |= !plan.work.back().whole();
      done += end - begin;
      begin = end;
    }
  });
  plan.begins.resize(threads + 1, static_cast<int>(plan.work.size()));
  return plan;
}

// Which of the [threads][2] states a piece of a cut tile has: a stretch holds two at most, its first work and its last.
inline int partial_of(int thread, const AttentionWork& work) {
  return 2 * thread + (work.begin == work.tile.first_chunk);
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
  const AttentionWork* fetched = nullptr;  // the work whose first chunk was found and fetched, or null

  Chunk& now() { return chunks[turn]; }
  Chunk& next() { return chunks[1 - turn]; }
};

// Computes its chunks of a tile into `state`. `after`: what the thread is likely to compute next, or null.
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
    const int together = matrix ? kBlockPairs : 1;
    for (int p = 0; p < model.head_dim / 2; p += together)
      std::memcpy(queries + p * rows + i * together, query + 2 * p, together * sizeof(Pair));
    positions[i] = batch.positions[token];
  }
  reset(state, rows, model.head_dim);
  const auto find = [&](const AttentionTile& of, int number, Chunk& chunk) {
    find_segments(model, layer, batch.block_tables + batch.table_starts[of.request], of.kv_head, number * kChunk,
                  std::min((number + 1) * kChunk, of.end_key), chunk);
  };
  if (keys.fetched != &work) {
    find(tile, work.begin, keys.now());
    for (int s = 0; s < keys.now().count; ++s)
      for (int line = 0; line < model.head_dim / 2; ++line)  // 16 keys of head_dim bfloat16
        _mm_prefetch(keys.now().segments[s].keys + line * kLanes, _MM_HINT_T0);
  }
  for (int chunk = work.begin; chunk < work.end; ++chunk) {
    const int first_key = chunk * kChunk;
    const bool last = chunk + 1 == work.end;
    const bool more = !last || after;
    if (more) find(last ? after->tile : tile, last ? after->begin : chunk + 1, keys.next());
    const Chunk& next = more ? keys.next() : keys.now();
    int first_seen[kMatrixRows], last_seen[kMatrixRows];
    for (int i = 0; i < rows; ++i) {
      last_seen[i] = positions[i] - first_key;
      first_seen[i] = layer.window ? last_seen[i] + 1 - layer.window : 0;
    }
    if (matrix)
      attend_chunk_matrix(model, keys.now(), next, queries, rows, first_seen, last_seen, scale_log2, state);
    else
      for_rows<AttendChunk>(rows)(model, keys.now(), next, queries, first_seen, last_seen, scale_log2, state);
    keys.turn = 1 - keys.turn;
  }
  keys.fetched = after;
}

// The team computes all work. Whole tiles go to `to`, pieces to `partials` [threads][2].
inline void attend(const Team& team, const Model& model, const Layer& layer, const Batch& batch,
                   const AttentionPlan& plan, const Bfloat16* qkv, const RowTiles& row_tiles, const PackedRows& to,
                   RunningSoftmax* partials) {
  alignas(64) float output[kMatrixRows * kMaxHeadDim];
  RunningSoftmax own{{}, {}, output};
  KeyChunks keys;
  const int own_end = plan.begins[team.id + 1];
  team.share([&](int owner) { return plan.begins[owner]; }, [&](int owner, int index) {
    const AttentionWork& work = plan.work[index];
    const bool followed = owner == team.id && index + 1 < own_end;
    RunningSoftmax& state = work.whole() ? own : partials[partial_of(owner, work)];
    attend_chunks(model, layer, batch, qkv, work, followed ? &work + 1 : nullptr, keys, state);
    if (work.whole()) finish(model, batch, work.tile, state, row_tiles, to);
  });
}

// Adds to the softmax `to` what another one has of the same rows, over other keys.
inline void merge(RunningSoftmax& to, const RunningSoftmax& other, int rows, int head_dim) {
  for (int i = 0; i < rows; ++i) {
    const float maximum = std::max(to.maximum[i], other.maximum[i]);
    if (std::isinf(maximum)) continue;  // neither holds a key that this row sees
    const float keep = std::exp2(to.maximum[i] - maximum), add = std::exp2(other.maximum[i] - maximum);
    to.maximum[i] = maximum;
    to.total[i] = to.total[i] * keep + other.total[i] * add;
    for (int d = i * head_dim; d < (i + 1) * head_dim; ++d)
      to.output[d] = to.output[d] * keep + other.output[d] * add;
  }
}

// Puts together the tiles that were cut between threads. Called once all threads have attended, by one of them.
inline void merge_attention(const Model& model, const Batch& batch, const AttentionPlan& plan,
                            const RowTiles& row_tiles, const PackedRows& to, RunningSoftmax* partials) {
  RunningSoftmax* first = nullptr;
  for (int thread = 0; thread + 1 < static_cast<int>(plan.begins.size()); ++thread) {
    for (int index = plan.begins[thread]; index < plan.begins[thread + 1]; ++index) {
      const AttentionWork& work = plan.work[index];
      if (work.whole()) continue;
      RunningSoftmax& piece = partials[partial_of(thread, work)];
      if (work.begin == work.tile.first_chunk)
        first = &piece;
      else
        merge(*first, piece, work.tile.rows, model.head_dim);
      if (work.end == work.tile.end_chunk) finish(model, batch, work.tile, *first, row_tiles, to);
    }
  }
}

}  // namespace secateur
