// What a chunk of keys adds to the softmax of a tile of queries, on either unit.

#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "model.h"
#include "tiles.h"

namespace secateur {

constexpr int kChunk = 256;  // keys at a time; even

// A tile's softmax so far: sums of exp2(score - maximum) and of that times the values.
struct RunningSoftmax {
  float maximum[kMatrixRows];
  float total[kMatrixRows];
  float* output;  // [rows][head_dim]
};

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
  alignas(64) Pair last_values[kLanes / 2 * kMaxHeadDim];
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

// Copies the last segment's values beside zeros where they do not fill 16 keys: behind them stands what nobody wrote,
// or another request did, and 0 * NaN is NaN.
inline void pad_values(const Model& model, Chunk& chunk) {
  Segment& last = chunk.segments[chunk.count - 1];
  if (last.count == kLanes) return;
  const int whole = last.count / 2 * model.head_dim;
  std::memcpy(chunk.last_values, last.values, whole * sizeof(Pair));
  std::memset(chunk.last_values + whole, 0, (kLanes / 2 * model.head_dim - whole) * sizeof(Pair));
  for (int d = whole; last.count % 2 && d < whole + model.head_dim; ++d)
    chunk.last_values[d] = last.values[d] & 0xffff;  // the first of the two
  last.values = chunk.last_values;
}

// One row's scores -> weights, which `store(key, 16 weights)` takes; what was summed before is scaled to the new
// maximum.
template <class Store>
SECATEUR_INLINE void weigh(const float* scores, int keys, int first_seen, int last_seen, float scale_log2, int head_dim,
                           int row, RunningSoftmax& state, Store store) {
  const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto seen = [&](int key) {
    const __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32(key));
    return _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(first_seen)) &
           _mm512_cmple_epi32_mask(index, _mm512_set1_epi32(last_seen));
  };
  // Most rows see all keys before some place: no mask is needed there.
  const int whole = first_seen > 0 ? 0 : std::max(0, std::min(keys, last_seen + 1) / kLanes * kLanes);
  __m512 largest = nothing;
  for (int key = 0; key < whole; key += kLanes) largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + key));
  for (int key = whole; key < keys; key += kLanes)
    largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(nothing, seen(key), scores + key));
  const float maximum = std::max(state.maximum[row], _mm512_reduce_max_ps(largest) * scale_log2);
  const __m512 scale = _mm512_set1_ps(scale_log2), reference = _mm512_set1_ps(maximum);
  __m512 total = _mm512_setzero_ps();
  const auto weight = [&](int key) {
    return exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key), scale, reference));
  };
  const auto take = [&](int key, __m512 weights) {
    total = _mm512_add_ps(total, weights);
    store(key, weights);
  };
  for (int key = 0; key < whole; key += kLanes) take(key, weight(key));
  for (int key = whole; key < keys; key += kLanes) take(key, _mm512_maskz_mov_ps(seen(key), weight(key)));
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

// Fetches what is read next, line by line in the order in which it is read: a chunk's values, then the keys of the one
// after it. Blocks lie anywhere, so the processor does not see by itself where it goes on. Into the second cache: the
// first has room for a chunk's values or keys at most, and few requests to memory under way.
class Ahead {
 public:
  Ahead(const Model& model, const Chunk& chunk, const Chunk& next)
      : next_(next), key_step_(model.block_size), lines_(model.head_dim / 2), segment_(chunk.segments),
        end_(chunk.segments + chunk.count), at_(segment_->values) {}

  SECATEUR_INLINE void fetch(int lines) {
    for (int i = 0; i < lines; ++i) {
      _mm_prefetch(at_, _MM_HINT_T1);
      at_ += step_;
      if (++line_ == lines_) turn();
    }
  }

 private:
  void turn() {
    line_ = 0;
    if (++segment_ == end_ && keys_) {  // all is on its way: the last line once more, and again
      step_ = 0;
      lines_ = std::numeric_limits<int>::max();
      return;
    }
    if (segment_ == end_) {
      keys_ = true;
      segment_ = next_.segments;
      end_ = next_.segments + next_.count;
      step_ = key_step_;
    }
    at_ = keys_ ? segment_->keys : segment_->values;
  }

  const Chunk& next_;
  const int key_step_;
  int lines_;  // of a segment: 16 keys or values of head_dim bfloat16
  int line_ = 0;
  bool keys_ = false;
  const Segment* segment_;
  const Segment* end_;
  const Pair* at_;
  long step_ = kLanes;
};

// Adds one chunk of keys to a tile's running softmax. Lines are fetched in all three parts of it, about as many as memory
// gives meanwhile.
template <int R>
struct AttendChunk {
  // queries: [head_dim / 2][R]. first_seen, last_seen: [R] the keys that a row sees, counted within the chunk.
  // scale_log2: what turns a product of query and key into a power of two.
  static void run(const Model& model, Chunk& chunk, Ahead ahead, const Pair* queries,
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
      multiply_add<R>(left.keys, right.keys, model.block_size, queries, model.head_dim / 2, sums,
                      [&] { ahead.fetch(1); });
      // A segment of fewer than 16 keys leaves garbage behind its scores: the next one overwrites it, or the mask
      // below hides it.
      SECATEUR_UNROLL
      for (int i = 0; i < R; ++i) {
        _mm512_storeu_ps(scores[i] + left.first_key, sums[i][0]);
        _mm512_storeu_ps(scores[i] + right.first_key, s + 1 < num_segments ? sums[i][1] : sums[i][0]);
      }
    }
    for (int i = 0; i < R; ++i)
      weigh(scores[i], keys, first_seen[i], last_seen[i], scale_log2, model.head_dim, i, state,
            [&](int key, __m512 values) {
              ahead.fetch(3);
              store_packed(values, weights, R, i, key / 2);
            });

    pad_values(model, chunk);
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
        multiply_add<R>(segment.values + d, segment.values + d + second, model.head_dim,
                        weights + segment.first_key / 2 * R, (segment.count + 1) / 2, sums,
                        [&] { ahead.fetch(2); });
      }
      SECATEUR_UNROLL
      for (int i = 0; i < R; ++i) {
        if (second) _mm512_storeu_ps(output + i * model.head_dim + second, sums[i][1]);
        _mm512_storeu_ps(output + i * model.head_dim, sums[i][0]);
      }
    }
  }
};

// Whether the matrix unit can attend: its instructions take 16 keys of one block, and 32 values of a head.
inline bool attends_on_matrix(const Model& model) {
  return model.matrix && model.block_size % kLanes == 0 && model.head_dim % kPanel == 0;
}

// The same on the matrix unit, for up to kMatrixRows rows. queries: [head_dim / 32][rows][16]. next: the chunk after this
// one, or this one again if it is the last.
inline void attend_chunk_matrix(const Model& model, Chunk& chunk, const Chunk& next, const Pair* queries,
                                int rows, const int* first_seen, const int* last_seen, float scale_log2,
                                RunningSoftmax& state) {
  constexpr int kScores = kChunk + kLanes, kPairs = kLanes / 2;  // of a row; of 16 keys
  const Segment* segments = chunk.segments;
  const Segment& last = segments[chunk.count - 1];
  const bool both = rows > 16;
  alignas(64) float scores[kMatrixRows * kScores];
  alignas(64) Pair weights[kMatrixRows * kChunk / 2];  // [keys / 16][rows][8]

  const long key_stride = model.block_size * sizeof(Pair);
  shape_registers(rows, kBlockWords);
  for (int s = 0; s < chunk.count; s += 2) {
    const Segment& left = segments[s];
    const Segment& right = segments[s + 1 < chunk.count ? s + 1 : s];
    clear_sums();
    for (int p = 0; p < model.head_dim / 2; p += kBlockWords) {
      add_product(queries + p * rows, kBlockWords, both, left.keys + p * model.block_size,
                  right.keys + p * model.block_size, key_stride);
      for (int line = 2 * p / kBlockWords * kLanes; line < 2 * (p / kBlockWords + 1) * kLanes; ++line) {
        _mm_prefetch(left.values + line * kLanes, _MM_HINT_T1);
        _mm_prefetch(right.values + line * kLanes, _MM_HINT_T1);
      }
    }
    // A segment of fewer than 16 keys, the last one, leaves garbage behind its scores, which the mask below hides.
    store_sums(scores + left.first_key, scores + right.first_key, kScores, both);
  }
  for (int i = 0; i < rows; ++i)
    weigh(scores + i * kScores, last.first_key + last.count, first_seen[i], last_seen[i], scale_log2, model.head_dim, i,
          state, [&](int key, __m512 values) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(weights + (key / kLanes * rows + i) * kPairs),
                               round_to_bfloat16(values));
          });

  pad_values(model, chunk);
  const long value_stride = model.head_dim * sizeof(Pair);
  shape_registers(rows, kPairs);
  for (int d = 0; d < model.head_dim; d += kPanel) {
    float* output = state.output + d;
    load_sums(output, output + kLanes, model.head_dim, both);
    for (int s = 0; s < chunk.count; ++s) {
      const Pair* values = segments[s].values + d;
      add_product(weights + s * rows * kPairs, kPairs, both, values, values + kLanes, value_stride);
      const Pair* ahead = next.segments[std::min(s, next.count - 1)].keys + d / kPanel * kLanes * model.block_size;
      for (int line = 0; line < kLanes; ++line) _mm_prefetch(ahead + line * model.block_size, _MM_HINT_T1);
    }
    store_sums(output, output + kLanes, model.head_dim, both);
  }
}

}  // namespace secateur
