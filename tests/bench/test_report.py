"""The page shows what the committed files say, and verdicts follow from the numbers."""

import json

import pytest

from bench.measure import summary
from bench.report import PAGE, RESULTS, fill
from bench.results import OURS, Results, by_machine
from bench.tables import SUMMARIES, TABLES
from bench.targets import FIGURES, pruning_gains, verdicts

W1_GAIN, W2_GAIN = (f"{cell}'s gain by pruning, of what was removed; the least" for cell in ("W1", "W2"))


def run_file(directory, name, figures, **more):
    """A result file: contender -> cell -> the rounds of its one figure."""
    contenders = {
        contender: {
            "resident_bytes": 1,
            "figures": {
                cell: summary([{FIGURES[cell]: value} for value in values]) for cell, values in cells.items()
            },
        }
        for contender, cells in figures.items()
    }
    document = {"contenders": contenders, **more}
    (directory / f"{name}.json").write_text(json.dumps(document))


def test_the_page_is_what_the_results_say():
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page, by_machine(RESULTS)) == page, "run `make bench-report`"


def test_the_page_has_every_table():
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in TABLES if f"<!-- {name} " not in page] == []
    assert [name for name in SUMMARIES if f"<!-- {name} -->" not in page] == []


def test_an_unknown_table_is_an_error():
    for mark in ("nonsense", "nonsense amx-bf16", "workloads", "workloads abacus"):
        with pytest.raises(KeyError):
            fill(f"<!-- {mark} -->\n<!-- end -->", by_machine(RESULTS))


def test_without_results_the_page_says_so(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "other").mkdir()
    machines = {name: Results(tmp_path / "other") for name in by_machine(RESULTS)}
    assert "*Not measured yet.*" in fill(page, machines)


def test_ratios_are_taken_within_a_round_and_against_the_best_peer(tmp_path):
    run_file(
        tmp_path,
        "peers-w123",
        {
            OURS: {"W1": [20, 200, 60], "W2": [13, 13, 13], "W3": [10, 10, 10]},
            "slow": {"W1": [5, 50, 15], "W2": [1, 1, 1], "W3": [5, 5, 5]},
            "fast": {"W1": [10, 100, 30], "W2": [10, 10, 10], "W3": [10, 10, 10]},
        },
    )
    first, second, third = verdicts(Results(tmp_path))
    assert (first.measured, first.reached) == (2.0, True)
    assert (second.measured, second.reached) == (1.3, True)
    assert (third.measured, third.reached) == (1.0, False)
    table = SUMMARIES["targets"]({"here": Results(tmp_path)})
    assert "| 1.00 ×, not reached: 91% of it |" in table  # noqa: RUF001
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_file(elsewhere, "peers-lookup", {OURS: {"W1": [16]}, "other": {"W1": [10]}})
    both = SUMMARIES["targets"]({"here": Results(tmp_path), "there": Results(elsewhere)})
    assert "| W1 over the best peer | ≥ 1.60 × | 2.00 ×, reached | – |" in both  # noqa: RUF001
    assert "| W1 over the best peer, all with prompt lookup | ≥ 1.60 × | – | 1.60 ×, reached |" in both  # noqa: RUF001


def test_memory_is_held_to_a_third_of_four_servers(tmp_path):
    figures = {name: {"W4": [30, 30]} for name in (OURS, "secateur, dense", "4 x vllm")}
    run_file(tmp_path, "peers-w4-vllm", figures)
    file = tmp_path / "peers-w4-vllm.json"
    document = json.loads(file.read_text())
    for resident, reached in ((3, True), (2, False)):
        document["contenders"]["4 x vllm"]["resident_bytes"] = resident
        file.write_text(json.dumps(document))
        *_, memory = verdicts(Results(tmp_path))
        assert memory.reached == reached


def alone(w1, w2):
    """What `make bench` writes, of a network that is half MLP in bytes."""
    geometry = {
        "hidden_size": 8,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 8,
        "intermediate_size": 1000,
        "vocab_size": 3000,
    }
    tokens = {"prompt_tokens": 32, "output_tokens": 32}
    cells = {
        "W1": [{FIGURES["W1"]: 1.0, **tokens, "inter_token_p50_seconds": 1, "inter_token_p99_seconds": 1}],
        "W1 at 0.5": [{FIGURES["W1"]: w1, **tokens}],
        "W2": [{FIGURES["W2"]: 1.0, **tokens, "gateway_ratio": 0.06}],
        "W2 at 0.5": [{FIGURES["W2"]: w2, **tokens}],
    }
    return {
        "geometry": geometry,
        "variants": {"0.5": 0.5},
        "memory": {"weight_bytes": 100, "kv_bytes": 100, "peak_bytes_when_ready": 140, "peak_bytes": 150},
        "ready_seconds": {"ready_seconds": {"median": 4.0}},
        "adding": {"seconds": {"max": 0.04}, "weight_bytes": 0},
        "limits": [{"bytes_per_second": 1e9, "flops_per_second": 1e9}],
        "contenders": {OURS: {"figures": {name: summary(rounds) for name, rounds in cells.items()}}},
    }


def test_pruning_is_held_to_what_was_removed(tmp_path):
    file = tmp_path / "alone.json"
    file.write_text(json.dumps(alone(w1=1.3, w2=1.3)))
    told = {verdict.name: verdict for verdict in verdicts(Results(tmp_path))}
    # Half of the MLP is nearly a quarter of the bytes, so that 0.3175 more is allowed.
    gain = told[W1_GAIN]
    assert gain.measured == pytest.approx(100 * 0.3 / 0.3175, abs=0.1)
    assert (gain.reached, gain.note) == (True, "at 0.5")
    assert told[W2_GAIN].measured == pytest.approx(90.6, abs=0.5)
    saved = {gain.cell: gain.saved for gain in pruning_gains(Results(tmp_path).run("alone"))}
    seconds = 24_000 / 1e9  # bytes of half of the neurons, over what memory gives
    assert saved["W1"] == pytest.approx((1 - 1 / 1.3) / seconds)
    assert saved["W2"] == pytest.approx(32 * (1 - 1 / 1.3) / (32 * seconds))  # 32 prompts of a token
    file.write_text(json.dumps(alone(w1=1.2, w2=1.3)))
    told = {verdict.name: verdict for verdict in verdicts(Results(tmp_path))}
    assert not told[W1_GAIN].reached
    assert told["ready after"].reached
    assert not told["peak memory over weights and KV"].reached  # 1.2
    assert told["adding a variant, slowest of 20"].reached
    assert not told["gateway's share of W2"].reached
