"""Which answers are drawn for the dense variant to score."""

import random
from typing import Any

import pytest

from server.engine.variant import Variant
from server.judging.rescoring import RECORDED_LOGPROBS
from server.judging.shadow import ShadowScorer

DENSE, PRUNED = Variant("m:s0", 0.0, 0.0, (8,), 0, 0), Variant("m:s50", 0.5, 0.5, (4,), 0, 0)


class Registry:
    def in_service(self) -> list[Variant]:
        return [DENSE, PRUNED]


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.1, 70, 130), (1.0, 1_000, 1_000)])
def test_the_share_is_that_of_the_settings(share: float, least: int, most: int) -> None:
    engine: Any = None  # not asked before an answer has ended
    registry: Any = Registry()
    scorer = ShadowScorer(engine, registry, share, lambda *_: None, random.Random(0))
    drawn = [scorer.recorded_logprobs(PRUNED) for _ in range(1_000)]
    assert set(drawn) <= {None, RECORDED_LOGPROBS}
    assert least <= 1_000 - drawn.count(None) <= most
    assert {scorer.recorded_logprobs(DENSE) for _ in range(100)} == {None}
