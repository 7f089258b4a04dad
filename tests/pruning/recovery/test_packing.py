"""Rows hold every sequence once and keep them apart; steps are about as large as they should be."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.recovery.packing import fill_rows, pack, plan_steps
from tests.pruning.recovery.support import adapted, open_tiny, random_sequences, stir
from tests.tiny import FAMILIES

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_sequence_sees_nothing_of_its_neighbours(family: str, tmp_path: Path) -> None:
    """Not even where attention has a window, which a neighbour's tokens could fill."""
    window = {"sliding_window": 20} if family == "mistral" else {}
    net = adapted(open_tiny(tmp_path, family, **window))
    stir(net)
    sequences = random_sequences(6)
    with torch.no_grad():
        together = net.hidden(pack(sequences, net.device), 0)
        alone = torch.cat([net.hidden(pack([sequence], net.device), 0) for sequence in sequences])
    assert len(together) == sum(len(sequence.answer) for sequence in sequences)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_a_row_predicts_the_answers_tokens() -> None:
    sequences = random_sequences(5)
    row = pack(sequences, torch.device("cpu"))
    assert row.labels.tolist() == [token for sequence in sequences for token in sequence.answer]
    followed = iter(row.predicting.tolist())
    start = 0
    for sequence in sequences:
        whole = (*sequence.prompt, *sequence.answer)
        for token in range(len(sequence.answer)):
            place = next(followed)
            fed = row.input_ids[0, start : place + 1].tolist()
            assert fed == list(whole[: len(sequence.prompt) + token])
        start += len(sequence.fed)


@given(LENGTHS, st.integers(1, 80))
def test_rows_hold_every_sequence_once_and_no_more_than_fits(lengths: list[int], row_tokens: int) -> None:
    rows = fill_rows(lengths, range(len(lengths)), row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= row_tokens or len(row) == 1 for row in rows)


@given(LENGTHS, st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_reads_every_sequence_once(lengths: list[int], epochs: int, seed: int) -> None:
    options = {"row_tokens": 64, "step_tokens": 128, "seed": seed}
    steps = plan_steps(lengths, epochs=epochs, **options)
    counted = Counter(index for step in steps for row in step for index in row)
    assert counted == dict.fromkeys(range(len(lengths)), epochs)
    assert all(step for step in steps)
    assert plan_steps(lengths, epochs=epochs + 1, **options)[: len(steps)] == steps


def test_orders_differ_between_epochs_and_seeds() -> None:
    lengths = [10] * 50
    first, second = (plan_steps(lengths, row_tokens=50, step_tokens=500, epochs=2, seed=s) for s in (0, 1))
    assert len(first) == 2
    assert first[0] != first[1]
    assert first[0] not in second


def test_steps_are_about_as_large_as_they_should_be() -> None:
    lengths = [10] * 100
    for row_tokens, step_tokens in ((50, 200), (200, 50), (50, 50)):
        steps = plan_steps(lengths, row_tokens=row_tokens, step_tokens=step_tokens, epochs=1, seed=0)
        assert {sum(lengths[index] for row in step for index in row) for step in steps} == {step_tokens}
