"""Which steps count for comparing variants' speed: one of them decoded, and nothing else happened."""

from collections.abc import Callable

import pytest

from server.engine.engine import Engine
from server.engine.request import BACKGROUND, Request
from server.engine.stats import StepStats
from server.engine.variant import Variant
from tests.server.engine.support import GREEDY, Loaded, prompt

WIDTHS = {"wide": (192, 192, 192), "narrow": (96, 96, 96)}


@pytest.fixture
def loaded(load: Callable[..., Loaded]) -> Loaded:
    return load("qwen2")


def add(engine: Engine, name: str, variant: str = "wide", length: int = 5, priority: int = 0) -> None:
    widths = WIDTHS[variant]
    served = Variant(variant, 0.0, 0.0, widths, 0, 0)
    engine.add(Request(name, prompt(len(name), length), served, GREEDY, priority=priority))


def step(engine: Engine) -> StepStats:
    return engine.step()[1]


def test_decoding_counts_by_its_rows_and_prompts_do_not(loaded: Loaded) -> None:
    engine = loaded.engine(prompt_lookup_tokens=0)
    add(engine, "a")
    add(engine, "b")
    assert step(engine).num_solo_rows == 0
    assert step(engine).num_solo_rows == 2
    add(engine, "c")
    assert step(engine).num_solo_rows == 0
    assert step(engine).num_solo_rows == 3


def test_the_last_token_of_a_prompt_in_chunks_is_not_decoding(loaded: Loaded) -> None:
    engine = loaded.engine(prompt_lookup_tokens=0)
    add(engine, "a", length=engine.config.max_num_batched_tokens + 1)
    step(engine)
    last = step(engine)
    assert (last.batch_tokens, last.num_solo_rows) == ({"wide": 1}, 0)
    assert step(engine).num_solo_rows == 1


@pytest.mark.parametrize("other", [{"variant": "narrow"}, {"priority": BACKGROUND}])
def test_company_of_another_kind_ends_it_for_as_long_as_it_lasts(loaded: Loaded, other: dict) -> None:
    engine = loaded.engine(prompt_lookup_tokens=0)
    add(engine, "other", **other)
    step(engine)
    add(engine, "a")
    together = []
    while engine.num_unfinished > 1:
        together.append(step(engine).num_solo_rows)
    assert together == [0] * (GREEDY.max_tokens - 1)
    assert step(engine).num_solo_rows == 1


def test_background_alone_is_nobodys_speed(loaded: Loaded) -> None:
    engine = loaded.engine(prompt_lookup_tokens=0)
    add(engine, "a", priority=BACKGROUND)
    assert [step(engine).num_solo_rows for _ in range(3)] == [0, 0, 0]


def test_guesses_are_rows_too(loaded: Loaded) -> None:
    engine = loaded.engine(prompt_lookup_tokens=6)
    request = Request("a", [1, 2, 3] * 5, Variant("wide", 0.0, 0.0, WIDTHS["wide"], 0, 0), GREEDY)
    engine.add(request)
    steps = []
    while engine.num_unfinished:
        steps.append(step(engine))
    assert sum(each.guessed_tokens for each in steps[1:]) > 0
    assert [each.num_solo_rows for each in steps[1:]] == [1 + each.guessed_tokens for each in steps[1:]]
