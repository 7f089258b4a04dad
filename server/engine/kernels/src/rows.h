// What is done to each token by itself: root mean square norms, rotary embedding, writing keys and values, moving.

#pragma once

#include <cmath>
#include <cstring>

#include "model.h"
#include "tiles.h"

namespace secateur {

// 1 / sqrt(mean(x^2) + eps) of `count` values.
inline float inverse_rms(const float* x, int count, float eps) {
  __m512 squares = _mm512_setzero_ps();
  for (int i = 0; i < count; i += kLanes) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(count - i), x + i);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  return 1.f / std::sqrt(_mm512_reduce_add_ps(squares) / count + eps);
}

// Up to so many tiles the threads share columns: rows of a tile that vectors multiply stand side by side, and threads that
// write into the same cache lines wait for each other. With more tiles few rows share one between threads, and each is
// read by one of them.
constexpr size_t kFewTiles = 2;

// Zhang and Sennrich 2019 (arXiv 1910.07467), from float32 rows [tokens][hidden] to packed bfloat16 rows.
inline void rms_norm(const Team& team, const float* x, const float* weight, int hidden, float eps,
                     const RowTiles& tiles, const PackedRows& to) {
  const int tokens = tiles.back().first + tiles.back().rows, blocks = hidden / kLanes;
  const bool by_columns = !tiles.front().matrix && tiles.size() <= kFewTiles;
  const int begin = by_columns ? 0 : team.begin(tokens), end = by_columns ? tokens : team.end(tokens);
  const int first = by_columns ? team.begin(blocks) : 0, last = by_columns ? team.end(blocks) : blocks;
  for (const RowTile& tile : tiles) {
    for (int row = std::max(begin, tile.first); row < std::min(end, tile.first + tile.rows); ++row) {
      const float* values = x + static_cast<size_t>(row) * hidden;
      const __m512 scale = _mm512_set1_ps(inverse_rms(values, hidden, eps));
      for (int i = first * kLanes; i < last * kLanes; i += kLanes) {
        const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(values + i), scale);
        to.store(_mm512_mul_ps(v, _mm512_loadu_ps(weight + i)), tile, row - tile.first, i / 2);
      }
    }
  }
}

// Moves the rows `kept` [count], which are in order, to the front of `rows`, of so many bytes each. Each thread moves
// some columns.
inline void keep_rows(const Team& team, const int32_t* kept, int count, void* rows, size_t row_bytes) {
  const int begin = team.begin(row_bytes), end = team.end(row_bytes);
  char* columns = static_cast<char*>(rows) + begin;
  for (int row = 0; row < count; ++row)
    if (kept[row] != row) std::memcpy(columns + row * row_bytes, columns + kept[row] * row_bytes, end - begin);
}

// One head of a query or key, in place: its norm where there is one, then rotary position embedding (arXiv
// 2104.09864, halves layout). `head`: [head_dim] bfloat16; cos, sin: [head_dim] of the token's position.
inline void norm_and_rotate(Bfloat16* head, const float* norm, const float* cos, const float* sin,
                            const Model& model) {
  float x[kMaxHeadDim];
  const int half = model.head_dim / 2;
  for (int i = 0; i < model.head_dim; i += kLanes) _mm512_storeu_ps(x + i, load_bfloat16(head + i));
  if (norm) {
    const float scale = inverse_rms(x, model.head_dim, model.eps);
    for (int i = 0; i < model.head_dim; ++i) x[i] *= scale * norm[i];
  }
  float rotated[kMaxHeadDim];
  for (int i = 0; i < half; ++i) {
    rotated[i] = x[i] * cos[i] - x[half + i] * sin[i];
    rotated[half + i] = x[half + i] * cos[half + i] + x[i] * sin[half + i];
  }
  for (int i = 0; i < model.head_dim; i += kLanes)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(head + i), round_to_bfloat16(_mm512_loadu_ps(rotated + i)));
}

// Writes the key and the value of one token and head into the cache (the layout stands in model.h).
inline void write_kv(const Model& model, const Layer& layer, int slot, int kv_head, const Bfloat16* key,
                     const Bfloat16* value) {
  const int block = slot / model.block_size, offset = slot % model.block_size;
  const size_t at = model.kv_offset(block, kv_head);
  Bfloat16* keys = reinterpret_cast<Bfloat16*>(layer.keys + at);
  Bfloat16* values = reinterpret_cast<Bfloat16*>(layer.values + at);
  for (int d = 0; d < model.head_dim; ++d) {
    keys[(d / 2 * model.block_size + offset) * 2 + d % 2] = key[d];
    values[(offset / 2 * model.head_dim + d) * 2 + offset % 2] = value[d];
  }
}

// Queries of `qkv` [tokens][(heads + 2 kv_heads) head_dim] are made ready in place, keys and values go to the cache.
inline void rotate_and_cache(const Team& team, const Model& model, const Layer& layer, const Batch& batch,
                             Bfloat16* qkv) {
  const int units = model.heads + model.kv_heads;  // of a token: each query head, each pair of key and value
  const int begin = team.begin(static_cast<long>(batch.tokens) * units);
  const int end = team.end(static_cast<long>(batch.tokens) * units);
  for (int unit = begin; unit < end; ++unit) {
    const int token = unit / units, head = unit % units;
    Bfloat16* x = qkv + static_cast<size_t>(token) * model.qkv_columns() + head * model.head_dim;
    const size_t position = static_cast<size_t>(batch.positions[token]) * model.head_dim;
    const bool is_query = head < model.heads;
    norm_and_rotate(x, is_query ? layer.q_norm : layer.k_norm, model.cos + position, model.sin + position, model);
    if (!is_query)
      write_kv(model, layer, batch.slots[token], head - model.heads, x, x + model.kv_heads * model.head_dim);
  }
}

}  // namespace secateur
