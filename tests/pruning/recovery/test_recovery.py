"""Which answers tell how good a training is."""

import pytest
import torch

from pruning.calibration.batches import with_answers
from pruning.compensation.compensation import _dealt as dealt_by_compensation
from pruning.compensation.compensation import _roles
from pruning.errors import DeltaError
from pruning.held_out import held_out
from pruning.recovery.dense import TaughtSequence
from pruning.recovery.loss import TopTokens
from pruning.recovery.recovery import _dealt, _ended

END, ANSWERS = 7, 60


def test_a_training_is_judged_by_answers_that_a_fit_has_not_seen_either() -> None:
    """Though answers that did not end are dropped, and it was given other prompts in another order."""
    prompts = [(1, 1000 + number) for number in range(ANSWERS)]
    answers = [(2, 3 if number % 4 == 1 else END) for number in range(ANSWERS)]
    batches = dealt_by_compensation(_roles(with_answers(prompts, answers)), torch.device("cpu"))
    fitted = {
        tuple(row[:2].tolist())
        for batch in batches
        if batch.role != "reported"
        for row in batch.tokens.input_ids
    }
    assert 0.8 * ANSWERS < len(fitted) < ANSWERS

    more = [*reversed(prompts), *((2, number) for number in range(ANSWERS))]
    ended = _ended(with_answers(more, [*reversed(answers), *answers]), [END])
    nothing = TopTokens(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))
    training, judging = _dealt([TaughtSequence(sequence, nothing) for sequence in ended])
    found = {sequence.sequence.prompt for sequence in judging}
    assert found & set(prompts)
    assert not found & fitted
    assert len(training) + len(judging) == len(ended) < len(more)
    with pytest.raises(DeltaError, match=r"none of the .* answers that ended is one of those held out"):
        _dealt(training)


def test_too_few_prompts_for_a_fit_are_refused() -> None:
    prompts = [(1, 1000 + number) for number in range(40)]
    sequences = [sequence for sequence in with_answers(prompts, prompts) if not held_out(sequence.prompt)]
    with pytest.raises(DeltaError, match=r"prompts are too few.*reported is none: .*--num-prompts"):
        _roles(sequences)


def test_one_prompt_in_ten_is_held_out() -> None:
    assert sum(held_out((1, number)) for number in range(10_000)) == pytest.approx(1_000, abs=100)
