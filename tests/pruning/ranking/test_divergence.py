from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.calibration.batches import TokenSequence
from pruning.ranking import divergence
from pruning.ranking.divergence import AnswerDivergence, DenseReference
from pruning.ranking.masking import keeping, kept_neurons
from pruning.slicing import slice_model
from tests.tiny import tiny_checkpoint, tiny_ranking

EOS = 200
SEQUENCES = [
    TokenSequence((5, 80, 81, 40), (7, 9, 12, EOS)),
    TokenSequence((30, 31), (60, 61, 62, 63, 64, 65, 66)),  # cut off, and the longest
    TokenSequence((100, 3, 77, 12, 15, 19, 21), (EOS,)),
]
RANKING = tiny_ranking(seed=3)
WIDTHS = (128, 96, 160)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)


def directly(path: Path, sequence: TokenSequence) -> AnswerDivergence:
    """By the definition, from two models' whole logits, one sequence at a time."""
    first = len(sequence.prompt) - 1
    logits = [
        model(torch.tensor([sequence.prompt + sequence.answer])).logits[0, first:-1].detach().double()
        for model in (load(path), slice_model(load(path), RANKING, WIDTHS))
    ]
    dense, pruned = (values.softmax(dim=-1) for values in logits)
    ended = sequence.answer[-1] == EOS
    return AnswerDivergence(
        tuple((dense * (dense / pruned).log()).sum(dim=-1).tolist()),
        int((dense.argmax(dim=-1) == pruned.argmax(dim=-1)).sum()),
        float(pruned[-1, EOS]) if ended else None,
    )


@pytest.mark.parametrize("rows", [1, 64])
def test_divergences_are_those_of_two_models(path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(divergence, "LOGIT_ROWS", 4)  # answers of 4, 7 and 1 tokens: whole and part chunks
    monkeypatch.setattr(divergence, "BATCH_ROWS", rows)
    model = load(path)
    reference = DenseReference(model, SEQUENCES, [EOS], progress=False)
    with keeping(model, kept_neurons(RANKING, WIDTHS)):
        found = reference.divergence(progress=False)

    assert len(found) == len(SEQUENCES)
    for answer, sequence in zip(found, SEQUENCES, strict=True):
        expected = directly(path, sequence)
        assert max(expected.kl) > 0.01
        assert answer.kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-5)
        assert answer.agreements == expected.agreements
        assert (answer.end_probability is None) == (expected.end_probability is None)
        assert (answer.end_probability or 0) == pytest.approx(expected.end_probability or 0, rel=1e-3)
    assert sum(answer.agreements for answer in found) < sum(len(s.answer) for s in SEQUENCES)


def test_the_dense_model_does_not_diverge_from_itself(path: Path) -> None:
    reference = DenseReference(load(path), SEQUENCES, [EOS], progress=False)

    for answer, sequence in zip(reference.divergence(progress=False), SEQUENCES, strict=True):
        assert answer.kl == pytest.approx([0] * len(sequence.answer), abs=1e-6)
        assert answer.agreements == len(sequence.answer)
