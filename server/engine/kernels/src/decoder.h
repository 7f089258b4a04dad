// One step through the layers, as a team of threads runs it: each function is called by all of them.

#pragma once

#include "attention.h"
#include "linear.h"
#include "nested_mlp.h"
#include "rows.h"

namespace secateur {

// The memory a step works in, shared by the threads but for `sums`.
struct Scratch {
  PackedRows normed;      // [tokens] of hidden / 2 pairs
  PackedRows attended;    // [tokens] of heads * head_dim / 2
  PackedRows neurons;     // [tokens] of as many neurons as any layer holds / 2
  PackedRows inner;       // [tokens] of the largest rank of a delta / 2
  Factor quantized;       // [tokens] of any of the above, where a matrix is in 8 bits
  Bfloat16* qkv;          // [tokens][(heads + 2 kv_heads) head_dim]
  Partial* partials;      // [threads][2]
  float* sums;            // [threads][Pieces::kMostTogether][tokens][32]
  size_t thread_sums;     // of a thread

  Scratch(Workspace& memory, const Model& model, int tokens, int neurons_held, int rank_pairs, int threads) {
    const auto rows = [&](int columns) {
      return PackedRows{memory.take<Pair>(tokens * PackedRows::room(columns / 2)), columns / 2};
    };
    normed = rows(model.hidden);
    attended = rows(model.heads * model.head_dim);
    neurons = rows(neurons_held);
    inner = rows(2 * rank_pairs);
    quantized.rows = rows(std::max({model.hidden, model.heads * model.head_dim, neurons_held}) / 2);
    quantized.scales = memory.take<float>(tokens);
    quantized.offsets = memory.take<int32_t>(tokens);
    qkv = memory.take<Bfloat16>(static_cast<size_t>(tokens) * model.qkv_columns());
    thread_sums = static_cast<size_t>(tokens) * Pieces::kMostTogether * kPanel;
    sums = memory.take<float>(threads * thread_sums);
    partials = memory.take<Partial>(2 * static_cast<size_t>(threads));
    float* outputs = memory.take<float>(2 * static_cast<size_t>(threads) * kMatrixRows * model.head_dim);
    if (!outputs) return;  // only counted
    for (int i = 0; i < 2 * threads; ++i) partials[i].state.output = outputs + i * kMatrixRows * model.head_dim;
  }

  float* sums_of(const Team& team) const { return sums + team.id * thread_sums; }
};

// What the batch's deltas add to a linear map of layer `index`; computes `inner`, which is ready when this returns.
inline MapDeltas deltas_of(const Team& team, const Batch& batch, int index, LowRank LayerDelta::*map,
                           const PackedRows& rows, const RowTiles& tiles, bool prefix, const Scratch& scratch,
                           float* sums) {
  const MapDeltas deltas{&batch, index, map, scratch.inner};
  if (deltas.any()) {
    multiply_inner(team, deltas, rows, tiles, prefix, sums);
    team.barrier();
  }
  return deltas;
}

// First half of a layer's attention: queries of the residual stream to `scratch.qkv`, keys and values to the cache.
// `tiles`: of the tokens, regardless of widths.
inline void queries_and_cache(const Team& team, const Model& model, const Layer& layer, const Batch& batch, int index,
                              const RowTiles& tiles, const Scratch& scratch) {
  float* sums = scratch.sums_of(team);
  rms_norm(team, batch.residual, layer.input_norm, model.hidden, model.eps, tiles, scratch.normed);
  team.barrier();
  const Factor x = factor_for(team, layer.qkv, scratch.normed, tiles, false, scratch.quantized);
  const MapDeltas to_qkv = deltas_of(team, batch, index, &LayerDelta::qkv, scratch.normed, tiles, false, scratch, sums);
  multiply_panels(team, layer.qkv, x, tiles, false,
                  Destination{scratch.qkv, model.qkv_columns(), Output::kBfloat16, layer.qkv_bias}, sums, to_qkv);
  team.barrier();
  rotate_and_cache(team, model, layer, batch, scratch.qkv);
  team.barrier();
}

// Second half: residual += attention of the queries.
inline void attend_and_project(const Team& team, const Model& model, const Layer& layer, const Batch& batch, int index,
                               const RowTiles& tiles, const Scratch& scratch) {
  float* sums = scratch.sums_of(team);
  attend(team, model, layer, batch, scratch.qkv, tiles, scratch.attended, scratch.partials);
  team.barrier();
  if (team.count > 1) {
    if (team.id == 0)
      merge_attention(model, layer, batch, tiles, scratch.attended, scratch.partials, team.count);
    team.barrier();
  }
  const Factor x = factor_for(team, layer.output, scratch.attended, tiles, false, scratch.quantized);
  const MapDeltas to_output =
      deltas_of(team, batch, index, &LayerDelta::output, scratch.attended, tiles, false, scratch, sums);
  multiply_panels(team, layer.output, x, tiles, false,
                  Destination{batch.residual, model.hidden, Output::kAddFloat32, layer.output_bias}, sums, to_output);
  team.barrier();
}

// residual += mlp(norm(residual)) of layer `index`. widths: [tokens], of this layer.
inline void mlp_block(const Team& team, const Model& model, const Layer& layer, const Batch& batch, int index,
                      const int32_t* widths, const Scratch& scratch) {
  const RowTiles tiles = make_tiles(model.matrix, batch.tokens, widths, batch.groups, batch.group_ends);
  float* sums = scratch.sums_of(team);
  rms_norm(team, batch.residual, layer.mlp_norm, model.hidden, model.eps, tiles, scratch.normed);
  team.barrier();
  const PackedRows neurons{scratch.neurons.data, layer.neurons / 2};
  const Factor x = factor_for(team, layer.gate_up, scratch.normed, tiles, false, scratch.quantized);
  const MapDeltas to_neurons =
      deltas_of(team, batch, index, &LayerDelta::gate_up, scratch.normed, tiles, false, scratch, sums);
  gate_up(team, layer.gate_up, x, tiles, widths, neurons, sums, to_neurons);
  team.barrier();
  const Factor h = factor_for(team, layer.down, neurons, tiles, true, scratch.quantized);
  const MapDeltas to_down = deltas_of(team, batch, index, &LayerDelta::down, neurons, tiles, true, scratch, sums);
  multiply_panels(team, layer.down, h, tiles, true,
                  Destination{batch.residual, model.hidden, Output::kAddFloat32, nullptr}, sums, to_down);
  team.barrier();
}

}  // namespace secateur
