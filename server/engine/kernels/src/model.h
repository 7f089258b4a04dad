// What Python hands over: the model's geometry, a layer's weights, a step's batch. library.py mirrors these
// structures field by field.

#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace secateur {

constexpr int kMaxHeadDim = 256;

struct Model {
  int32_t hidden, heads, kv_heads, head_dim, block_size;
  int32_t matrix;    // whether the matrix unit multiplies
  float eps;         // of the norms
  const float* cos;  // [positions][head_dim]
  const float* sin;

  int qkv_columns() const { return (heads + 2 * kv_heads) * head_dim; }

  // Where a block's keys or values of one head begin, in pairs. Each takes block_size * head_dim / 2 of them:
  //   keys    [head_dim / 2][block_size]: pairs along the head, so that 16 keys stand where panels have outputs;
  //   values  [block_size / 2][head_dim]: pairs along the tokens, summed over when weighted.
  size_t kv_offset(int block, int kv_head) const {
    return (static_cast<size_t>(block) * kv_heads + kv_head) * block_size * head_dim / 2;
  }
};

// A packed matrix (linear.h, nested_mlp.h): bfloat16, or integers plus 128 (quantize.h) that are worth the output's
// scale each.
struct Matrix {
  const Word* panels;
  const float* scales;  // as many as whole panels have outputs; null for bfloat16
};

// Norms and biases are float32; null where the family has none.
struct Layer {
  const float* input_norm;
  Matrix qkv;
  const float* qkv_bias;
  const float* q_norm;
  const float* k_norm;
  Matrix output;
  const float* output_bias;
  const float* mlp_norm;
  Matrix gate_up;
  Matrix down;
  Pair* keys;
  Pair* values;
  int32_t neurons;  // held, a multiple of 16
  int32_t window;   // tokens that a token sees, itself included; 0 for all
};

// What a delta adds to a linear map: y += B (A x). Both are packed as the map's own matrix is, the rank padded with
// zeros to whole panels. `a` is null where the delta has nothing for the map.
struct LowRank {
  const Pair* a;  // [2 pairs / 32][inputs / 2][32]
  const Pair* b;  // [outputs / 32][pairs][32]; of gate and up [neurons / 16][pairs][gate 16 | up 16]
  int64_t pairs;  // of the rank, a multiple of 16
};

// A delta's part of one layer.
struct LayerDelta {
  LowRank qkv, output, gate_up, down;
};

// One step's tokens, widest variant first; the tokens of a request are neighbours, in order.
struct Batch {
  int32_t tokens, requests;
  int32_t groups;      // of neighbouring tokens that have the same delta, or none; 0 where no token has one
  int32_t rank_pairs;  // the most of any delta
  float* residual;              // [tokens][hidden], the stream that every layer adds to
  const int32_t* positions;     // [tokens]
  const int32_t* slots;         // [tokens] block * block_size + offset: where a token's KV is kept
  const int32_t* starts;        // [requests + 1] the first token of each request
  const int32_t* block_tables;  // of all requests, one after the other
  const int32_t* table_starts;  // [requests] where each one's begins
  const int32_t* widths;        // [layers][tokens] neurons that serve a token, never growing along the tokens
  const int32_t* group_ends;    // [groups] where each ends
  const LayerDelta* const* group_deltas;  // [groups] the layers of each one's delta, null where it has none
};

}  // namespace secateur
