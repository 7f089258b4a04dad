// The end of the network: norm and head, to logits, or only to where the largest logit of each row is.

#pragma once

#include <climits>
#include <vector>

#include "decoder.h"

namespace secateur {

// The largest of many outputs and where it is, the first of equals: argmax, of every 16th output in each lane.
struct Largest {
  __m512 values = _mm512_set1_ps(-__builtin_inff());
  __m512i columns = _mm512_set1_epi32(INT_MAX);

  void take(__mmask16 lanes, __m512 others, __m512i their_columns) {
    // What is not a number counts as infinite, so that there is always a column.
    const __mmask16 unordered = _mm512_cmp_ps_mask(others, others, _CMP_UNORD_Q);
    others = _mm512_mask_mov_ps(others, unordered, _mm512_set1_ps(__builtin_inff()));
    const __mmask16 larger = _mm512_mask_cmp_ps_mask(lanes, others, values, _CMP_GT_OQ);
    const __mmask16 equal = _mm512_mask_cmp_ps_mask(lanes, others, values, _CMP_EQ_OQ);
    const __mmask16 better = larger | _mm512_mask_cmplt_epi32_mask(equal, their_columns, columns);
    values = _mm512_mask_mov_ps(values, better, others);
    columns = _mm512_mask_mov_epi32(columns, better, their_columns);
  }

  void take(const Largest& other) { take(0xffff, other.values, other.columns); }

  int where() const {
    Largest best;
    for (int lane = 0; lane < kLanes; ++lane) {
      const __m512i everywhere = _mm512_set1_epi32(lane);
      best.take(0xffff, _mm512_permutexvar_ps(everywhere, values), _mm512_permutexvar_epi32(everywhere, columns));
    }
    return _mm512_cvtsi512_si32(best.columns);
  }
};

// Where a product goes of which only the largest output of each row is wanted: `rows`, of one thread.
struct LargestOutputs {
  Largest* rows;
  int columns;

  void operator()(int row, int column, __m512 values) const {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    rows[row].take(first_lanes(columns - column), values, _mm512_add_epi32(lane, _mm512_set1_epi32(column)));
  }
};

// hidden: [count][hidden] float32. destination(team): where a thread's outputs go.
template <class Destinations>
inline void multiply_head(const Model& model, const float* hidden, int count, const float* norm, const Matrix& head,
                          void* workspace, int threads, Destinations destination) {
  Workspace memory(workspace);
  const Scratch scratch(memory, model, count, 0, 0, threads);
  const RowTiles tiles = make_tiles(model.matrix, count, nullptr);
  Meeting meeting(threads);
#pragma omp parallel num_threads(threads)
  {
    const MatrixUnitUse use{model.matrix != 0};
    const Team team = Team::current(meeting);
    rms_norm(team, hidden, norm, model.hidden, model.eps, tiles, scratch.normed);
    team.barrier();
    const Factor x = factor_for(team, head, scratch.normed, tiles, false, scratch.quantized);
    multiply_panels(team, head, x, tiles, false, destination(team), scratch.sums_of(team));
  }
}

}  // namespace secateur
