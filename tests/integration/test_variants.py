"""Variants are chosen, added and retired while the process serves."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from pruning.ranking.widths import widths_at
from tests.deltas import random_delta
from tests.integration.live import MAX_MODEL_LEN, Live, Tiny, running

COMPLETIONS = "/v1/completions"
ENDLESS = {"prompt": "a", "max_tokens": MAX_MODEL_LEN - 8, "ignore_eos": True, "stream": True}


def names(client: httpx.Client) -> list[str]:
    return [variant["id"] for variant in client.get("/v1/variants").json()["data"]]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, "tiny:s0"),
        ({"model": "tiny"}, "tiny:s0"),
        ({"model": "tiny:s10"}, "tiny:s10"),
        ({"sparsity": 0.1}, "tiny:s10"),
        ({"model": "tiny", "sparsity": 0.2}, "tiny:s20"),
        ({"model": "tiny:s20", "sparsity": 0.2}, "tiny:s20"),
        ({"sparsity": 0.35, "allow_unsafe": True}, "tiny:s35"),
    ],
)
def test_a_request_picks_its_size(client: httpx.Client, choice: dict[str, object], expected: str) -> None:
    answer = client.post(COMPLETIONS, json={"prompt": "a", **choice})
    assert answer.json()["model"] == answer.json()["secateur"]["variant"] == expected
    assert answer.headers["x-secateur-variant"] == expected


def test_sizes_answer_differently_and_each_always_the_same(client: httpx.Client) -> None:
    body = {"prompt": "abc", "max_tokens": 32, "temperature": 0, "ignore_eos": True}
    texts = {
        sparsity: [
            client.post(COMPLETIONS, json={**body, "sparsity": sparsity}).json()["choices"][0]["text"]
            for _ in range(2)
        ]
        for sparsity in (0, 0.1, 0.2)
    }
    assert all(first == again for first, again in texts.values())
    assert len({first for first, _ in texts.values()}) == 3


def test_a_variant_added_at_run_time_serves_at_once_without_a_byte(tiny: Tiny) -> None:
    with running(tiny, allow_unsafe=True) as live, live.client() as client:
        weight_bytes = live.engine.weight_bytes
        added = client.post("/admin/variants", json={"sparsity": 0.3})
        assert (added.status_code, added.json()["id"], added.json()["state"]) == (201, "tiny:s30", "ready")
        assert added.json()["marginal_bytes"] == 0
        assert live.engine.weight_bytes == weight_bytes
        assert 'generation_tokens_total{variant="tiny:s30"} 0.0' in client.get("/metrics").text
        answer = client.post(COMPLETIONS, json={"prompt": "a", "sparsity": 0.3}).json()
        assert answer["secateur"]["exact_sparsity"] == added.json()["exact_sparsity"]
        assert names(client) == ["tiny:s0", "tiny:s10", "tiny:s20", "tiny:s30", "tiny:s35"]


def test_a_variant_retires_when_its_last_request_has_ended(
    tiny: Tiny, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with running(tiny) as live, live.client() as client:
        with client.stream("POST", COMPLETIONS, json={**ENDLESS, "sparsity": 0.1}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            retired = client.delete("/admin/variants/tiny:s10")
            assert retired.status_code == 202
            assert (retired.json()["state"], retired.json()["requests_in_flight"]) == ("retiring", 1)
            late = client.post(COMPLETIONS, json={"prompt": "a", "sparsity": 0.1})
            assert (late.status_code, late.json()["error"]["code"]) == (409, "variant_conflict")
            assert "tiny:s10" in names(client)  # still running
            page = client.get("/metrics").text
            assert 'secateur_variant_state{state="retiring",variant="tiny:s10"} 1.0' in page
            assert len([next(lines) for _ in range(20)]) == 20  # and goes on
        eventually(lambda: "tiny:s10" not in names(client))
        gone = client.post(COMPLETIONS, json={"prompt": "a", "sparsity": 0.1})
        assert gone.json()["error"]["code"] == "sparsity_not_served"
        assert 'state="retiring",variant="tiny:s10"' not in client.get("/metrics").text
        assert client.delete("/admin/variants/tiny:s0").status_code == 409
        assert names(client) == ["tiny:s0", "tiny:s20", "tiny:s35"]


def test_neurons_beyond_the_widest_variant_are_not_loaded(tiny: Tiny, live: Live) -> None:
    with running(tiny, sparsities=(0.2, 0.35), default_sparsity=0.2) as narrow, narrow.client() as client:
        assert narrow.engine.weight_bytes < live.engine.weight_bytes
        refused = client.post("/admin/variants", json={"sparsity": 0.1})
        assert refused.status_code == 409
        assert "restart with a smallest sparsity of 0.1 or less" in refused.json()["error"]["message"]
        body = {"prompt": "abc", "max_tokens": 32, "temperature": 0, "sparsity": 0.2}
        with live.client() as other:
            assert (
                client.post(COMPLETIONS, json=body).json()["choices"]
                == other.post(COMPLETIONS, json=body).json()["choices"]
            )


@pytest.fixture
def delta_file(tiny: Tiny, tmp_path: Path) -> Path:
    """Large enough to change every answer, for sparsity 0.2."""
    widths = widths_at(tiny.ranking, 0.2, "uniform")
    delta = random_delta(tiny.checkpoint, tiny.ranking, widths, sparsity=0.2, size=2.0)
    delta.save(tmp_path / "strong.safetensors")
    return tmp_path / "strong.safetensors"


def test_a_corrected_variant_is_served_beside_the_plain_one(tiny: Tiny, delta_file: Path) -> None:
    body = {"prompt": "abc", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    with running(tiny, deltas=(delta_file,)) as live, live.client() as client:
        assert names(client) == ["tiny:s0", "tiny:s10", "tiny:s20", "tiny:s20+strong", "tiny:s35"]
        answers = {
            name: client.post(COMPLETIONS, json={**body, "model": name}).json()
            for name in ("tiny:s20", "tiny:s20+strong")
        }
        texts = {name: answer["choices"][0]["text"] for name, answer in answers.items()}
        assert texts["tiny:s20"] != texts["tiny:s20+strong"]
        by_sparsity = client.post(COMPLETIONS, json={**body, "sparsity": 0.2}).json()
        assert by_sparsity["model"] == "tiny:s20+strong"
        assert by_sparsity["choices"][0]["text"] == texts["tiny:s20+strong"]
        plain, corrected = client.get("/v1/variants").json()["data"][2:4]
        assert (plain["delta"], plain["marginal_bytes"]) == (None, 0)
        assert len(corrected["delta"]) == 64
        assert (
            0
            < corrected["marginal_bytes"]
            <= 1.5 * (corrected["standalone_bytes"] - plain["standalone_bytes"])
        )
        gauge = f'marginal_bytes{{variant="tiny:s20+strong"}} {float(corrected["marginal_bytes"])}'
        assert gauge in client.get("/metrics").text


def test_deltas_come_and_go_at_run_time(tiny: Tiny, delta_file: Path) -> None:
    with running(tiny) as live, live.client() as client:
        asked = {"sparsity": 0.2, "delta": str(delta_file)}
        added = client.post("/admin/variants", json=asked)
        assert (added.status_code, added.json()["id"]) == (201, "tiny:s20+strong")
        assert client.post("/admin/variants", json=asked).status_code == 409
        assert (
            client.post(COMPLETIONS, json={"prompt": "a", "sparsity": 0.2})
            .json()["model"]
            .endswith("+strong")
        )
        assert client.delete("/admin/variants/tiny:s20+strong").status_code == 202
        assert client.post(COMPLETIONS, json={"prompt": "a", "sparsity": 0.2}).json()["model"] == "tiny:s20"
        for wrong, status, message in (
            ({"sparsity": 0.1, "delta": str(delta_file)}, 409, "the widths are"),
            ({"sparsity": 0.1, "delta": str(delta_file) + "x"}, 400, "there is no delta"),
            ({"sparsity": 0.1, "delta": "a+b"}, 400, "rename the file"),
        ):
            refused = client.post("/admin/variants", json=wrong)
            assert refused.status_code == status
            error = refused.json()["error"]
            assert message in error["message"]
            assert error["param"] == "delta"
        assert len(names(client)) == 4


def test_a_delta_may_be_wider_than_the_plain_variants(tiny: Tiny, delta_file: Path) -> None:
    only = {"sparsities": (0.35,), "deltas": (delta_file,), "allow_unsafe": True}
    with running(tiny, **only) as live, live.client() as client:
        assert names(client) == ["tiny:s20+strong", "tiny:s35"]
        answer = client.post(COMPLETIONS, json={"prompt": "a", "sparsity": 0.2})
        assert answer.json()["model"] == "tiny:s20+strong"


def test_a_corrected_variant_is_judged_by_itself(
    tiny: Tiny, delta_file: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with running(tiny, deltas=(delta_file,)) as live, live.client() as client:
        asked = {"variants": ["tiny:s20+strong"], "items": 1}
        assert client.post("/admin/probes/run", json=asked).status_code == 202
        eventually(lambda: client.get("/admin/probes/run").json()["state"] == "done")
        known = {v["id"]: v["evidence"] for v in client.get("/v1/variants").json()["data"]}
        items = {name: evidence and evidence["items"] for name, evidence in known.items()}
        assert items["tiny:s20+strong"] == 1
        assert not items["tiny:s20"], "the same widths, and another network"
