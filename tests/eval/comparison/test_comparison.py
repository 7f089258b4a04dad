"""Figures by hand and by brute force; what is recommended, and what is said of the others."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from eval.comparison.comparison import Candidate, Comparison, Measured, compare, figures
from eval.comparison.report import render
from eval.comparison.store import ComparisonError, ComparisonStore, as_json
from eval.provenance import Provenance
from pruning.ranking.divergence import AnswerDivergence

ONCE = np.ones((1, 3))
WHERE = Provenance("a CPU", 2, 2**34, "Linux", "abc", {"torch": "2"}, "2026-01-01T00:00:00+00:00")
ANSWERS = [
    AnswerDivergence((0.0, 0.4, 0.1, 0.1), 3, 0.5),
    AnswerDivergence((0.2, 0.2), 2, None),
    AnswerDivergence((1.0, 0.0, 0.0, 0.0), 2, 0.25),
]


def candidate(score: str) -> Candidate:
    return Candidate(score, "global", 0, 0, score)


def measured(score: str, sparsity: float, factor: float, answers: int = 12) -> Measured:
    """Answers that differ, by the same pattern for everybody, times `factor`."""
    generator = random.Random(5)
    found = [
        AnswerDivergence(tuple(factor * generator.random() for _ in range(generator.randint(2, 9))), 1, None)
        for _ in range(answers)
    ]
    return Measured(candidate(score), sparsity, sparsity, (1,), found)


def compared(*all_measured: Measured) -> Comparison:
    dense = [AnswerDivergence((0.0,) * len(a.kl), len(a.kl), 0.9) for a in all_measured[0].answers]
    return compare(
        all_measured, dense, model={"name": "tiny"}, task={"name": "sums"}, provenance=WHERE, seed=0
    )


def test_figures_by_hand() -> None:
    found = figures(ANSWERS, np.vstack([ONCE, ONCE]))

    assert found.kl.value == pytest.approx(2.0 / 10)
    assert found.worst_kl.value == pytest.approx((1.0 + 0.4) / 2)  # a fifth of ten tokens
    assert found.agreement.value == pytest.approx(7 / 10)
    assert found.end_probability is not None
    assert found.end_probability.value == pytest.approx(0.375)  # of the two answers that ended


def test_weights_count_answers_more_than_once_and_tokens_in_part() -> None:
    weights = np.array([[2.0, 0.0, 1.0]] * 2)  # 12 tokens; the worst fifth are 2.4
    found = figures(ANSWERS, weights)

    assert found.kl.value == pytest.approx((2 * 0.6 + 1.0) / 12)
    assert found.worst_kl.value == pytest.approx((1.0 + 1.4 * 0.4) / 2.4)
    assert found.agreement.value == pytest.approx((2 * 3 + 2) / 12)
    assert found.end_probability is not None
    assert found.end_probability.value == pytest.approx((2 * 0.5 + 0.25) / 3)


def test_where_no_answer_ended_nothing_is_said_of_ends() -> None:
    assert figures(ANSWERS[1:2], np.ones((2, 1))).end_probability is None


def test_intervals_are_those_of_resampled_answers() -> None:
    [cell] = compared(measured("a", 0.1, 1.0)).cells
    answers = measured("a", 0.1, 1.0).answers
    generator = random.Random(1)
    means = []
    for _ in range(4000):
        drawn = generator.choices(answers, k=len(answers))
        tokens = [value for answer in drawn for value in answer.kl]
        means.append(sum(tokens) / len(tokens))
    means.sort()

    assert cell.figures.kl.low == pytest.approx(means[100], rel=0.05)
    assert cell.figures.kl.high == pytest.approx(means[3900], rel=0.05)
    assert cell.figures.kl.low < cell.figures.kl.value < cell.figures.kl.high


def test_the_least_divergence_in_geometric_mean_is_recommended() -> None:
    result = compared(
        measured("steady", 0.1, 0.2),
        measured("steady", 0.3, 1.0),  # 0.2 * 1.0 < 0.1 * 3.0, though 0.1 < 0.2
        measured("erratic", 0.1, 0.1),
        measured("erratic", 0.3, 3.0),
    )

    assert result.recommended == candidate("steady")
    best, other = result.standings
    assert (best.times_best.value, best.times_best.low, best.times_best.high) == (1, 1, 1)
    assert other.times_best.value == pytest.approx(math.sqrt(0.3 / 0.2))
    assert other.is_shown_to_be_worse  # on the same answers the ratio is the same in every resample


def test_a_rival_within_the_noise_is_named() -> None:
    noisy = measured("noisy", 0.1, 1.0)
    worse = measured("swapped", 0.1, 1.05).answers
    swapped = Measured(candidate("swapped"), 0.1, 0.1, (1,), list(reversed(worse)))
    result = compared(noisy, swapped)

    assert result.standings[1].times_best.value == pytest.approx(1.05)
    assert not result.standings[1].is_shown_to_be_worse
    assert f"Not shown to be worse on these answers: {result.standings[1].candidate.name}" in render(result)


def test_no_divergence_at_all_is_no_error() -> None:
    result = compared(measured("perfect", 0.1, 0.0), measured("good", 0.1, 0.1))

    assert result.recommended == candidate("perfect")
    assert math.isfinite(result.standings[1].times_best.high)


def test_the_same_answers_and_seed_give_the_same_result() -> None:
    assert as_json(compared(measured("a", 0.1, 1.0))) == as_json(compared(measured("a", 0.1, 1.0)))


def test_the_report_has_every_candidate_at_every_sparsity_best_first() -> None:
    result = compared(
        measured("a", 0.1, 0.2), measured("a", 0.3, 1.0), measured("b", 0.1, 0.1), measured("b", 0.3, 3.0)
    )
    text = render(result)

    low, high = text.index("## 10%"), text.index("## 30%")
    assert low < text.index("| b, global |", low) < text.index("| a, global |", low) < high
    assert text.index("| a, global |", high) < text.index("| b, global |", high)
    assert "Recommended: **a, global**" in text
    assert "12 held-out answers" in text
    assert "gives its own ends 0.900" in text
    cell = result.cells[0].figures.kl
    assert f"{cell.value:.3g} ({cell.low:.3g} to {cell.high:.3g})" in text


def test_options_are_part_of_a_candidates_name() -> None:
    assert Candidate("flap", "uniform", 0, 0, "r").name == "flap, uniform"
    assert Candidate("taylor2", "global", 0.01, 2, "r").name == (
        "taylor2, global, strongest 1% last, outer layers last: 2"
    )


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    kept = ComparisonStore(tmp_path)
    assert kept.divergences("c" * 20, lambda: ANSWERS) == ANSWERS

    def measured_again() -> list[AnswerDivergence]:
        raise AssertionError("it is on the disk")

    again = ComparisonStore(tmp_path)
    assert again.divergences("c" * 20, measured_again) == ANSWERS
    assert again.divergences("d" * 20, lambda: ANSWERS[:1]) == ANSWERS[:1]  # another key


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    ComparisonStore(tmp_path).divergences("c" * 20, lambda: ANSWERS)
    [file] = (tmp_path / "cells").iterdir()
    file.write_text(file.read_text()[:-5])
    with pytest.raises(ComparisonError, match="damaged; delete it"):
        ComparisonStore(tmp_path).divergences("c" * 20, lambda: ANSWERS)
    with pytest.raises(ComparisonError, match="name another --out"):
        ComparisonStore(file / "below").write("x", "y")


def test_the_result_is_json_with_its_format() -> None:
    content = json.loads(as_json(compared(measured("a", 0.1, 1.0))))

    assert content["format"] == 1
    assert content["cells"][0]["candidate"]["score"] == "a"
    assert content["provenance"]["commit"] == "abc"
