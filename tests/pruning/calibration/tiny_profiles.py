"""Profiles of two layers of three neurons, small enough to work out by hand."""

import torch
from torch import Tensor

from pruning.calibration.profile import Provenance, SelectivityProfile, SequenceMoments, TokenMoments

SHAPE = (2, 3)


def matrix(*values: float) -> Tensor:
    """Six numbers as float64 [2 layers, 3 neurons]."""
    return torch.tensor(values, dtype=torch.float64).view(SHAPE)


def tiny_provenance(**overrides: object) -> Provenance:
    settings: dict[str, object] = {
        "model_name": "tiny",
        "model": "aaaaaaaaaaaaaaaaaaaa",
        "tokenizer": "bbbbbbbbbbbbbbbbbbbb",
        "data": "cccccccccccccccccccc",
        "task": "sums",
        "seed": 0,
        "dtype": "float32",
        "max_new_tokens": 8,
        "unfinished_answers": 0,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.9"},
        **overrides,
    }
    return Provenance(**settings)  # type: ignore[arg-type]


def tiny_profile(**overrides: object) -> SelectivityProfile:
    """Every number different from every other, unless overridden."""
    settings: dict[str, object] = {
        "provenance": tiny_provenance(),
        "target_prompt": TokenMoments(10, _filled(1), _filled(2), _filled(3)),
        "target_answer": TokenMoments(5, _filled(4), _filled(5), _filled(6)),
        "distractor_prompt": TokenMoments(20, _filled(7), _filled(8), _filled(9)),
        "target_per_prompt": SequenceMoments(2, _filled(10), _filled(110)),
        "target_per_answer": SequenceMoments(2, _filled(11), _filled(120)),
        "distractor_per_prompt": SequenceMoments(4, _filled(12), _filled(130)),
        "taylor_abs_sum": _filled(13),
        "taylor_sq_sum": _filled(14),
        "gate_norm": _filled(15),
        "up_norm": _filled(16),
        "down_norm": _filled(17),
        **overrides,
    }
    return SelectivityProfile(**settings)  # type: ignore[arg-type]


def _filled(start: float) -> Tensor:
    return start + matrix(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
