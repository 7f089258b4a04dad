"""The terminal's picture: what it says, and that 80 columns are enough."""

import io
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from server.commands.top_view import duration, frame, sparkline
from server.monitoring.live_schema import ServerState
from tests.server.glance import NOW, evidence, glance, variant

URL = "http://127.0.0.1:8000"


def drawn(state: Any, trouble: str | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(frame(state, URL, trouble))
    return console.file.getvalue().splitlines()


def row(lines: list[str], first: str) -> list[str]:
    """The words of the line that begins with `first`."""
    (found,) = [line.split() for line in lines if line.split()[:1] == [first]]
    return found


def test_the_header_says_what_runs_and_what_it_holds() -> None:
    first, second, *_ = drawn(glance())
    assert first.split() == ["m", "ready", "up", "2h", URL, "secateur", "9.9.9"]
    assert second == "process 1.0 GB  weights 8.7 MB  KV 1.1 GB  device 7.0 GB of 25.0 GB"


@pytest.mark.parametrize("state", get_args(ServerState))
def test_the_header_knows_every_state(state: str) -> None:
    assert drawn(glance(state=state))[0].split()[1] == state


def test_loads_are_the_last_interval_its_history_and_the_limit() -> None:
    lines = drawn(glance())
    assert row(lines, "tokens/s") == ["tokens/s", "100", "▅█", "at", "most", "100"]
    assert row(lines, "TTFT") == ["TTFT", "p95", "120", "ms", "█▅", "at", "most", "200", "ms"]
    assert row(lines, "waiting") == ["waiting", "5", "█▆", "of", "256"]
    assert row(lines, "running") == ["running", "3", "▆█", "of", "64,", "KV", "25%"]


def test_a_variant_is_a_row() -> None:
    lines = drawn(glance(variant("m:s0"), variant("m:s20", tokens=[None, 40.6], marginal_bytes=5_000)))
    assert row(lines, "s0")[-1] == "0"
    assert row(lines, "s20") == [
        *("s20", "20.3%", "safe", "96.2", "95-97", "1000", "42s", "41", "3"),
        *("988.1", "MB", "5.0", "kB"),
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"state": "degraded", "evidence": evidence(verdict="degraded")}, "degraded"),
        ({"state": "retiring"}, "retiring"),
        ({"evidence": evidence(verdict="unproven")}, "unproven"),
        ({"evidence": None}, "ready"),
    ],
)
def test_the_verdict_or_a_state_that_matters_more(changes: dict[str, Any], told: str) -> None:
    assert row(drawn(glance(variant("m:s10", **changes))), "s10")[2] == told


def test_what_is_not_known_is_a_dash() -> None:
    unprobed = evidence(items=0, age_seconds=None, accuracy=None, accuracy_low=0.0, accuracy_high=1.0)
    lines = drawn(glance(variant("m:s0", evidence=unprobed), variant("m:s10", evidence=None)))
    assert row(lines, "s0")[3:6] == ["-", "0", "-"]
    assert row(lines, "s10")[3:6] == ["-", "-", "-"]


def test_a_server_that_has_just_begun_has_no_intervals() -> None:
    state = glance()
    empty = state.series.model_copy(update={name: [] for name in type(state.series).model_fields})
    bare = glance(variant("m:s0", tokens=None, series=no_intervals()), series=empty.model_dump())
    lines = drawn(bare)
    assert row(lines, "tokens/s") == ["tokens/s", "-", "at", "most", "-"]
    assert row(lines, "running") == ["running", "-", "of", "64,", "KV", "-"]


def test_the_newest_verdicts_are_shown_newest_last() -> None:
    changes = [
        {"time": NOW + i, "variant": "m:s20", "verdict": verdict, "previous": previous}
        for i, (previous, verdict) in enumerate(
            [("unproven", "safe"), *[("safe", "degraded"), ("degraded", "safe")] * 2]
        )
    ]
    lines = drawn(glance(verdicts=changes))
    told = [line.split()[-3:] for line in lines if "→" in line]
    assert told == [["safe", "→", "degraded"], ["degraded", "→", "safe"]] * 2


def test_trouble_is_said_above_the_last_picture() -> None:
    lines = drawn(glance(), "no answer from the server")
    assert "no answer from the server" in lines
    assert row(lines, "s0")


@pytest.mark.parametrize("count", [1, 12])
def test_it_fits_80_columns_and_a_small_terminal(count: int) -> None:
    names = [f"m:s{5 * i}" for i in range(count - 1)] + ["m:s87.5+code"]
    busy = [
        variant(
            name,
            tokens=[0.0, 12_345.6],
            running=512,
            marginal_bytes=123_400_000,
            evidence=evidence(verdict="degraded", items=8_000, accuracy=1.0, accuracy_high=1.0),
        )
        for name in names
    ]
    series = {
        "generation_tokens_per_second": [0.0, 123_456.7] * 30,
        "time_to_first_token_p95_seconds": [0.1, 57.25] * 30,
    }
    lines = drawn(glance(*busy, series=series))
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert not any("…" in line for line in lines)
    assert [line.split()[0].removeprefix("m:") for line in lines[-count:]] == [
        name.removeprefix("m:") for name in names
    ]
    assert "57,250 ms" in " ".join(lines)


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=60))
def test_a_sparkline_has_a_character_for_each_value(values: list[float | None]) -> None:
    line = sparkline(values)
    assert [char == " " for char in line] == [value is None for value in values]
    known = [value for value in values if value is not None]
    bars = [char for char in line if char != " "]
    assert sorted(bars) == [bar for _, bar in sorted(zip(known, bars, strict=True))], "higher is not lower"
    if any(known):
        assert line[values.index(max(known))] == "█"
    else:
        assert set(bars) <= {"▁"}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0s"), (59.9, "59s"), (60, "1m"), (3_599, "59m"), (7_200, "2h"), (200_000, "2d")],
)
def test_durations_are_in_their_largest_unit(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def no_intervals() -> dict[str, list[float | None]]:
    names = ("generation_tokens_per_second", "accuracy", "accuracy_lower", "accuracy_upper")
    return {name: [] for name in names}
