"""Which answers tell how good a training is."""

import pytest
import torch

from pruning.calibration.answers import held_out
from pruning.calibration.batches import with_answers
from pruning.compensation.compensation import _dealt as dealt_by_compensation
from pruning.errors import DeltaError
from pruning.recovery.dense import TaughtSequence
from pruning.recovery.loss import TopTokens
from pruning.recovery.recovery import _dealt, _ended

END, ANSWERS = 7, 60


def test_a_training_is_judged_by_answers_that_a_fit_has_not_seen_either() -> None:
    """Though answers that did not end are dropped, which moves the others up."""
    prompts = [(1, 1000 + number) for number in range(ANSWERS)]
    answers = [(2, 3 if number % 4 == 1 or number == 20 else END) for number in range(ANSWERS)]
    nothing = TopTokens(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))
    ended = _ended(with_answers(prompts, answers), [END])
    taught = [TaughtSequence(sequence, nothing) for sequence in ended.values()]
    training, judging = _dealt(taught, tuple(ended))
    found = {sequence.sequence.prompt for sequence in judging}
    assert found == {prompts[number] for number in (0, 10, 30, 40, 50)}
    batches = dealt_by_compensation(prompts, answers, torch.device("cpu"))
    seen = {
        tuple(row[:2].tolist())
        for batch in batches
        if batch.role != "reported"
        for row in batch.tokens.input_ids
    }
    assert len(seen) == ANSWERS - sum(map(held_out, range(ANSWERS)))
    assert not found & seen
    assert len(training) + len(judging) == len(ended) < ANSWERS
    places = [place for place in ended if not held_out(place)]
    with pytest.raises(DeltaError, match=r"none of the .* answers that ended is one of those held out"):
        _dealt(training, places)
