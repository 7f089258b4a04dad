// The functions that Python calls: plain C, no Python or torch headers. library.py declares them once more.
//
// Every function opens one parallel region; between its steps the threads wait for each other on a barrier.


#include "head.h"

using namespace secateur;

#define SECATEUR_EXPORT extern "C" __attribute__((visibility("default")))

// Whether this CPU has the instructions that everything else here is compiled to.
SECATEUR_EXPORT int secateur_supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

// Whether there is a matrix unit to multiply with (Model::matrix); asks the system for it.
SECATEUR_EXPORT int secateur_matrix_unit() { return request_matrix_unit(); }

// Bytes of the structures that Python hands over, one after the other: those of another build have other fields.
SECATEUR_EXPORT int64_t secateur_struct_bytes(int index) {
  constexpr int64_t bytes[] = {sizeof(Model), sizeof(Layer), sizeof(LayerDelta), sizeof(Batch)};
  return bytes[index];
}

// Packs a matrix of numbers of 1 or 2 bytes into panels, or, with `lanes` 16, into one half of each panel (`first_lane`
// 0 or 16).
//
// source: output n, input k at number n * output_stride + k * input_stride.
// panels: [ceil(outputs / lanes)][words][32], zeros already.
SECATEUR_EXPORT void secateur_pack(const void* source, int bytes, int64_t outputs, int64_t inputs,
                                   int64_t output_stride, int64_t input_stride, int lanes, int first_lane,
                                   int64_t words, Word* panels, int threads) {
  const auto pack = [&](auto number) {
    using Number = decltype(number);
    constexpr int kInWord = sizeof(Word) / sizeof(Number);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < (outputs + lanes - 1) / lanes; ++panel) {
      const Number* from = static_cast<const Number*>(source) + panel * lanes * output_stride;
      Number* to = reinterpret_cast<Number*>(panels + panel * words * kPanel + first_lane);
      const int64_t filled = std::min<int64_t>(lanes, outputs - panel * lanes);
      // Word by word, so that what is written, and read of a matrix that lies input by input, follows on.
      const auto copy = [&](int64_t word, int64_t numbers) {
        for (int64_t lane = 0; lane < filled; ++lane)
          for (int64_t k = 0; k < numbers; ++k)
            to[(word * kPanel + lane) * kInWord + k] =
                from[lane * output_stride + (word * kInWord + k) * input_stride];
      };
      for (int64_t word = 0; word < inputs / kInWord; ++word) copy(word, kInWord);
      copy(inputs / kInWord, inputs % kInWord);
    }
  };
  if (bytes == 1)
    pack(uint8_t{});
  else
    pack(Bfloat16{});
}

// Rows of a packed matrix, one for each of `outputs`, of so many words: to [count][inputs] float32.
SECATEUR_EXPORT void secateur_unpack_rows(const Matrix* matrix, int64_t words, const int64_t* outputs, int64_t count,
                                          int64_t inputs, float* to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    const Word* row = matrix->panels + outputs[i] / kPanel * words * kPanel + outputs[i] % kPanel;
    float* values = to + i * inputs;
    if (matrix->scales) {
      const uint8_t* from = reinterpret_cast<const uint8_t*>(row);
      for (int64_t k = 0; k < inputs; ++k)
        values[k] = (from[k / 4 * kPanel * 4 + k % 4] - 128) * matrix->scales[outputs[i]];
    } else {
      const Bfloat16* from = reinterpret_cast<const Bfloat16*>(row);
      for (int64_t k = 0; k < inputs; ++k) values[k] = to_float(from[k / 2 * kPanel * 2 + k % 2]);
    }
  }
}

// Bytes that the functions below work in. `neurons`: the most that any layer holds; `rank_pairs`: as in Batch.
SECATEUR_EXPORT int64_t secateur_workspace_bytes(const Model* model, int tokens, int neurons, int rank_pairs,
                                                 int threads) {
  Workspace memory(nullptr);
  Scratch(memory, *model, tokens, neurons, rank_pairs, threads);
  return static_cast<int64_t>(memory.used());
}

// One layer's attention: residual += attention(norm(residual)).
SECATEUR_EXPORT void secateur_attention_block(const Model* model, const Layer* layer, const Batch* batch,
                                              void* workspace, int threads) {
  Workspace memory(workspace);
  const Scratch scratch(memory, *model, batch->tokens, layer->neurons, batch->rank_pairs, threads);
  const RowTiles tiles = make_tiles(model->matrix, batch->tokens, nullptr, batch->groups, batch->group_ends);
  Meeting meeting(threads);
#pragma omp parallel num_threads(threads)
  {
    const MatrixUnitUse use{model->matrix != 0};
    const Team team = Team::current(meeting);
    queries_and_cache(team, *model, *layer, *batch, 0, tiles, scratch);
    attend_and_project(team, *model, *layer, *batch, 0, tiles, scratch);
  }
}

// One layer's MLP: residual += mlp(norm(residual)), at the first layer's widths in `batch`.
SECATEUR_EXPORT void secateur_mlp_block(const Model* model, const Layer* layer, const Batch* batch, void* workspace,
                                        int threads) {
  Workspace memory(workspace);
  const Scratch scratch(memory, *model, batch->tokens, layer->neurons, batch->rank_pairs, threads);
  Meeting meeting(threads);
#pragma omp parallel num_threads(threads)
  {
    const MatrixUnitUse use{model->matrix != 0};
    mlp_block(Team::current(meeting), *model, *layer, *batch, 0, batch->widths, scratch);
  }
}

// All layers in one call, so that a step asks for Python's lock once.
//
// outputs: the only tokens that the last layer computes more than keys and values of, or null for all of them: tokens
// `rows` of `batch`, with the same residual, which they are moved to the front of, and the last layer's widths.
SECATEUR_EXPORT void secateur_forward(const Model* model, const Layer* layers, int num_layers, const Batch* batch,
                                      const Batch* outputs, const int32_t* rows, void* workspace, int threads) {
  int neurons = 0;
  for (int i = 0; i < num_layers; ++i) neurons = std::max(neurons, layers[i].neurons);
  Workspace memory(workspace);
  const Scratch scratch(memory, *model, batch->tokens, neurons, batch->rank_pairs, threads);
  RowTiles tiles = make_tiles(model->matrix, batch->tokens, nullptr, batch->groups, batch->group_ends);
  RowTiles output_tiles;
  if (outputs) output_tiles = make_tiles(model->matrix, outputs->tokens, nullptr, outputs->groups, outputs->group_ends);
  Meeting meeting(threads);
#pragma omp parallel num_threads(threads)
  {
    const MatrixUnitUse use{model->matrix != 0};
    const Team team = Team::current(meeting);
    const auto rest = [&](int i, const Batch& tokens, const RowTiles& their_tiles, const int32_t* widths) {
      attend_and_project(team, *model, layers[i], tokens, i, their_tiles, scratch);
      mlp_block(team, *model, layers[i], tokens, i, widths, scratch);
    };
    for (int i = 0; i < num_layers; ++i) {
      queries_and_cache(team, *model, layers[i], *batch, i, tiles, scratch);
      if (i < num_layers - 1 || !outputs)
        rest(i, *batch, tiles, batch->widths + static_cast<size_t>(i) * batch->tokens);
    }
    if (outputs && outputs->tokens) {
      keep_rows(team, rows, outputs->tokens, batch->residual, model->hidden * sizeof(float));
      keep_rows(team, rows, outputs->tokens, scratch.qkv, model->qkv_columns() * sizeof(Bfloat16));
      team.barrier();
      rest(num_layers - 1, *outputs, output_tiles, outputs->widths);
    }
  }
}

// Norm and head of `count` rows of `hidden`: logits [count][outputs] float32.
SECATEUR_EXPORT void secateur_head(const Model* model, const float* hidden, int count, const float* norm,
                                   const Matrix* head, int outputs, float* logits, void* workspace, int threads) {
  multiply_head(*model, hidden, count, norm, *head, workspace, threads,
                [&](const Team&) { return Destination{logits, outputs, Output::kFloat32, nullptr}; });
}

// The same, but only where the largest logit of each row is, the first of equals: token_ids [count].
SECATEUR_EXPORT void secateur_likeliest(const Model* model, const float* hidden, int count, const float* norm,
                                        const Matrix* head, int outputs, int32_t* token_ids, void* workspace,
                                        int threads) {
  const size_t stride = count;
  std::vector<Largest> largest(threads * stride);  // [threads][count]
  multiply_head(*model, hidden, count, norm, *head, workspace, threads,
                [&](const Team& team) { return LargestOutputs{&largest[team.id * stride], outputs}; });
  for (int row = 0; row < count; ++row) {
    for (int thread = 1; thread < threads; ++thread) largest[row].take(largest[thread * stride + row]);
    token_ids[row] = largest[row].where();
  }
}
