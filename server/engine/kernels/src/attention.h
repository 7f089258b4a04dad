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

#include "model.h"
#include "tiles.h"

namespace secateur {

constexpr int kChunk = 256;  // keys at a time; even

// Rows [first_row, first_row + rows) of a request: row = token * group + head of the group, group = the query
// heads of a key-value head. They see keys of chunks [first_chunk, end_chunk).
struct AttentionTile {
  int request, kv_head, first_row, rows, first_chunk, end_chunk;
};

// A tile's softmax so far: sums of exp2(score - maximum) and of that times the values.
struct RunningSoftmax {
  float maximum[kMaxRows + 3];
  float total[kMaxRows + 3];
  float* output;  // [rows][head_dim]
};

// The piece of a cut tile that a thread computed. A thread has at most two: its first tile and its last one.
struct Partial {
  RunningSoftmax state;
  long tile;  // its number, -1 if there is no such piece
};

// Calls `visit(number, tile)` for all tiles, in the same order on every thread.
template <class Visit>
inline void for_each_tile(const Model& model, const Layer& layer, const Batch& batch, Visit visit) {
  const int group = model.heads / model.kv_heads;
  long number = 0;
  for (int request = 0; request < batch.requests; ++request) {
    const int start = batch.starts[request];
    const long rows = static_cast<long>(batch.starts[request + 1] - start) * group;
    const long tiles = (rows + kMaxRows - 1) / kMaxRows;
    for (int kv_head = 0; kv_head < model.kv_heads; ++kv_head) {
      for (long t = 0; t < tiles; ++t) {
        const int begin = static_cast<int>(rows * t / tiles), end = static_cast<int>(rows * (t + 1) / tiles);
        const int last = batch.positions[start + (end - 1) / group];
        const int unseen = layer.window ? batch.positions[start + begin / group] + 1 - layer.window : 0;
        visit(number++, AttentionTile{request, kv_head, begin, end - begin, std::max(unseen, 0) / kChunk,
                                      last / kChunk + 1});
      }
    }
  }
}

// Up to 16 keys that stand together in a block.
struct Segment {
  const Pair* keys;
  const Pair* values;
  int first_key;  // in the chunk
  int count;
};

// The segments of one chunk, in order.
struct Chunk {
  Segment segments[kChunk / 2];
  int count;
};

// Keys [begin, end) of a request; `begin` is even.
inline void find_segments(const Model& model, const Layer& layer, const int32_t* table, int kv_head, int begin,
                          int end, Chunk& chunk) {
  chunk.count = 0;
  for (int key = begin; key < end;) {
    const int block = key / model.block_size, offset = key % model.block_size;
    const int keys = std::min({kLanes, model.block_size - offset, end - key});
    const size_t at = model.kv_offset(table[block], kv_head);
    chunk.segments[chunk.count++] = {layer.keys + at + offset,
                         layer.values + at + static_cast<size_t>(offset / 2) * model.head_dim, key - begin, keys};
    key += keys;
  }
}

// Adds one chunk of keys to a tile's running softmax. Blocks lie anywhere, so what comes next is fetched by hand:
// the chunk's values while its keys are multiplied, the next chunk's keys while its values are.
template <int R>
struct AttendChunk {
  // next: the chunk after this one, or this one again if it is the last.
  // queries: [head_dim / 2][R]. first_seen, last_seen: [R] the keys that a row sees, counted within the chunk.
  // scale_log2: what turns a product of query and key into a power of two.
  static void run(const Model& model, const Chunk& chunk, const Chunk& next, const Pair* queries,
                  const int* first_seen, const int* last_seen, float scale_log2, RunningSoftmax& state) {
    const Segment* segments = chunk.segments;
    const int num_segments = chunk.count;
    alignas(64) float scores[R][kChunk + kLanes];
    alignas(64) Pair weights[(kChunk / 2 + kLanes) * R];  // [keys / 2][R]
    const Segment& last = segments[num_segments - 1];
    const int keys = last.first_key + last.count;

    for (int s = 0; s < num_segments; s += 2) {
      const Segment& left = segments[s];
      const Segment& right = segments[s + 1 < num_segments ? s + 1 : s];
      __m512 sums[R][2];
      set_zero(sums);
      const Prefetch values{reinterpret_cast<const char*>(left.values),
                            reinterpret_cast<const char*>(right.values), 64};
      multiply_add<R, 2>(left.keys, right.keys, model.block_size, queries, model.head_dim / 2, sums, values);
      // A segment of fewer than 16 keys leaves garbage behind its scores: the next one overwrites it, or the mask
      // below hides it.
      SECATEUR_UNROLL
      for (int i = 0; i < R; ++i) {
        _mm512_storeu_ps(scores[i] + left.first_key, sums[i][0]);
        _mm512_storeu_ps(scores[i] + right.first_key, s + 1 < num_segments ? sums[i][1] : sums[i][0]);
      }
    }
    for (int i = 0; i < R; ++i)
      weigh(scores[i], keys, first_seen[i], last_seen[i], scale_log2, model.head_dim, i, state, weights);

    for (int d = 0; d < model.head_dim; d += kPanel) {
      const int second = d + kLanes < model.head_dim ? kLanes : 0;
      float* output = state.output + d;
      __m512 sums[R][2];
      SECATEUR_UNROLL
      for (int i = 0; i < R; ++i) {
        sums[i][0] = _mm512_loadu_ps(output + i * model.head_dim);
        sums[i][1] = _mm512_loadu_ps(output + i * model.head_dim + second);
      }
      for (int s = 0; s < num_segments; ++s) {
        const Segment& segment = segments[s];
        const char* keys_ahead = reinterpret_cast<const char*>(next.segments[std::min(s, next.count - 1)].keys) +
                                 d / kPanel * kLanes * 64;
        const Prefetch ahead{keys_ahead, keys_ahead + kLanes / 2 * 64, 64};
        multiply_add<R, 2>(segment.values + d, segment.values + d + second, model.head_dim,
                           weights + segment.first_key / 2 * R, (segment.count + 1) / 2, sums, ahead);
      }
      SECATEUR_UNROLL
      for (int i = 0; i < R; ++i) {
        if (second) _mm512_storeu_ps(output + i * model.head_dim + second, sums[i][1]);
        _mm512_storeu_ps(output + i * model.head_dim, sums[i][0]);
      }
    }
  }

 private:
  // Scores of row `row` -> weights; what was summed before is scaled to the new maximum.
  SECATEUR_INLINE static void weigh(const float* scores, int keys, int first_seen, int last_seen, float scale_log2,
                                    int head_dim, int row, RunningSoftmax& state, Pair* weights) {
    const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto seen = [&](int key) {
      const __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32(key));
      return _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(first_seen)) &
             _mm512_cmple_epi32_mask(index, _mm512_set1_epi32(last_seen));
    };
    __m512 largest = nothing;
    for (int key = 0; key < keys; key += kLanes)
      largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(nothing, seen(key), scores + key));
    const float maximum = std::max(state.maximum[row], _mm512_reduce_max_ps(largest) * scale_log2);
    const __m512 scale = _mm512_set1_ps(scale_log2), reference = _mm512_set1_ps(maximum);
    __m512 total = _mm512_setzero_ps();
    for (int key = 0; key < keys; key += kLanes) {
      const __m512 score = _mm512_fmsub_ps(_mm512_loadu_ps(scores + key), scale, reference);
      const __m512 weight = _mm512_maskz_mov_ps(seen(key), exp2_ps(score));
      total = _mm512_add_ps(total, weight);
      store_packed(weight, weights, R, row, key / 2);
    }
    if (maximum > state.maximum[row]) {
      const __m512 factor = exp2_ps(_mm512_set1_ps(state.maximum[row] - maximum));
      for (int d = 0; d < head_dim; d += kLanes) {
        float* output = state.output + row * head_dim + d;
        _mm512_storeu_ps(output, _mm512_mul_ps(_mm512_loadu_ps(output), factor));
      }
      state.total[row] *= _mm512_cvtss_f32(factor);
      state.maximum[row] = maximum;
    }
    state.total[row] += _mm512_reduce_add_ps(total);
  }
};

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

// Computes chunks [begin, end) of a tile into `state`.
inline void attend_chunks(const Model& model, const Layer& layer, const Batch& batch, const Bfloat16* qkv,
                          const AttentionTile& tile, int begin, int end, RunningSoftmax& state) {
  const int group = model.heads / model.kv_heads, rows = tile.rows, first = batch.starts[tile.request];
  const float scale_log2 = 1.44269504f / std::sqrt(static_cast<float>(model.head_dim));
  alignas(64) Pair queries[kMaxRows * kMaxHeadDim / 2];
  int positions[kMaxRows];
  for (int i = 0; i < rows; ++i) {
    const int token = first + (tile.first_row + i) / group;
    const int head = tile.kv_head * group + (tile.first_row + i) % group;
    const Bfloat16* query = qkv + static_cast<size_t>(token) * model.qkv_columns() + head * model.head_dim;
    for (int p = 0; p < model.head_dim / 2; ++p) std::memcpy(queries + p * rows + i, query + 2 * p, sizeof(Pair));
    positions[i] = batch.positions[token];
  }
  reset(state, rows, model.head_dim);
  const int32_t* table = batch.block_tables + batch.table_starts[tile.request];
  Chunk chunks[2];  // this one and the next, in turn
  const auto find = [&](int number) {
    const int end_key = std::min((number + 1) * kChunk, positions[rows - 1] + 1);
    find_segments(model, layer, table, tile.kv_head, number * kChunk, end_key, chunks[number % 2]);
  };
  find(begin);
  for (int s = 0; s < chunks[begin % 2].count; ++s)
    for (int line = 0; line < model.head_dim / 2; ++line)  // 16 keys of head_dim bfloat16
      _mm_prefetch(chunks[begin % 2].segments[s].keys + line * kLanes, _MM_HINT_T0);
  for (int chunk = begin; chunk < end; ++chunk) {
    const int first_key = chunk * kChunk;
    if (chunk + 1 < end) find(chunk + 1);
    const Chunk& now = chunks[chunk % 2];
    const Chunk& next = chunk + 1 < end ? chunks[(chunk + 1) % 2] : now;
    int first_seen[kMaxRows], last_seen[kMaxRows];
    for (int i = 0; i < rows; ++i) {
      last_seen[i] = positions[i] - first_key;
      first_seen[i] = layer.window ? last_seen[i] + 1 - layer.window : 0;
    }
    for_rows<AttendChunk>(rows)(model, now, next, queries, first_seen, last_seen, scale_log2, state);
  }
}

// This thread's stretch of the work. Whole tiles go to `to`, pieces to `partials` [threads][2].
inline void attend(const Team& team, const Model& model, const Layer& layer, const Batch& batch, const Bfloat16* qkv,
                   const RowTiles& row_tiles, const PackedRows& to, Partial* partials) {
  long work = 0;
  for_each_tile(model, layer, batch,
                [&](long, const AttentionTile& tile) { work += tile.end_chunk - tile.first_chunk; });
  const long begin = work * team.id / team.count, end = work * (team.id + 1) / team.count;
  Partial* own = partials + 2 * team.id;
  own[0].tile = own[1].tile = -1;
  alignas(64) float output[kMaxRows * kMaxHeadDim];
  RunningSoftmax state{{}, {}, output};
  long at = 0;
  for_each_tile(model, layer, batch, [&](long number, const AttentionTile& tile) {
    const long from = std::max(begin, at), until = std::min(end, at + tile.end_chunk - tile.first_chunk);
    const int skipped = static_cast<int>(from - at);
    at += tile.end_chunk - tile.first_chunk;
    if (from >= until) return;
    const int first_chunk = tile.first_chunk + skipped;
    const int end_chunk = first_chunk + static_cast<int>(until - from);
    if (first_chunk == tile.first_chunk && end_chunk == tile.end_chunk) {
      attend_chunks(model, layer, batch, qkv, tile, first_chunk, end_chunk, state);
      finish(model, batch, tile, state, row_tiles, to);
    } else {
      Partial& partial = own[first_chunk == tile.first_chunk];  // 0 where another thread began it
      partial.tile = number;
      attend_chunks(model, layer, batch, qkv, tile, first_chunk, end_chunk, partial.state);
    }
  });
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
