"""A short recovery of math-mini, killed on the way, goes on to the same curve, and what it makes serves."""

import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from pruning.recovery.progress import METADATA_KEY
from server.__main__ import main
from server.cli import parse_arguments
from server.commands.recovering import PROGRESS_FILE
from server.loading.profiles import open_model
from server.loading.rankings import ranked
from server.settings import RecoverSettings
from tests.integration.live import Tiny, running

ROOT = Path(__file__).parents[2]
KILLED_AFTER = 4
WAIT_SECONDS = 200.0  # a process that imports torch takes its time on a machine that is busy otherwise
SPARSITY = 0.6
ENDED = re.compile(r"\n#### \d+$")
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = ["--cache-dir", str(tmp_path_factory.mktemp("recovery"))]
    assert main(["profile", *cache, "--num-prompts", "8"]) == 0
    training = ["--num-prompts", "64", "--epochs", "1", "--batch-tokens", "512", "--row-tokens", "512"]
    training += ["--evaluations", "3", "--learning-rate", "3e-3"]
    # An order that costs much, so that so short a training has something to win back.
    training += ["--score", "taylor2", "--allocation", "uniform"]
    return [*cache, *training, "--sparsity", str(SPARSITY)]


@pytest.fixture(scope="module")
def delta(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "mended.safetensors"
    assert main(["recover", *arguments, "--out", str(out)]) == 0
    return out


def report(out: Path) -> dict:
    return json.loads(out.with_suffix(".report.json").read_text())


def test_it_comes_nearer_to_the_dense_model(delta: Path) -> None:
    [found] = report(delta)["deltas"]
    assert found["held_out_kl_nats"]["after"] < 0.5 * found["held_out_kl_nats"]["before"]


def test_a_killed_training_goes_on_to_the_same_curve(
    arguments: list[str], delta: Path, tmp_path: Path
) -> None:
    asked = ["recover", *arguments, "--out", str(tmp_path / delta.name), "--save-seconds", "0"]
    threads = ["--threads", str(torch.get_num_threads())]
    progress = tmp_path / f"{delta.name}.work" / PROGRESS_FILE
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *asked, *threads], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while steps_taken(progress) < KILLED_AFTER:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / delta.name).exists()
    kept = steps_taken(progress)
    assert main(asked) == 0
    whole, resumed = report(delta), report(tmp_path / delta.name)
    assert kept < len(whole["steps_taken"])
    assert curve(resumed) == [pytest.approx(point, rel=1e-4) for point in curve(whole)]
    clocks = [step["seconds"] for step in resumed["steps_taken"]]
    assert clocks == sorted(clocks)
    assert {file.name for file in tmp_path.iterdir()} == {delta.name, f"{delta.stem}.report.json"}


def steps_taken(progress: Path) -> int:
    """Of the training that keeps its progress there, by what it kept last."""
    try:
        with safe_open(progress, framework="pt") as file:
            return len(json.loads(file.metadata()[METADATA_KEY])["progress"]["steps"])
    except (OSError, SafetensorError):
        return 0


def curve(told: dict) -> list[list[float]]:
    """All but the clock."""
    steps = [[s["learning_rate"], s["cross_entropy"], s["divergence"]] for s in told["steps_taken"]]
    return steps + [[h["step"], *h["cross_entropy"], *h["divergence"]] for h in told["held_out"]]


def test_it_serves_beside_others_in_one_batch(arguments: list[str], delta: Path, tmp_path: Path) -> None:
    settings = parse_arguments(["recover", *arguments, "--out", "unused"])
    assert isinstance(settings, RecoverSettings)
    checkpoint = open_model(settings)
    ranking = ranked(settings, checkpoint).ranking
    served = {"sparsities": (0.0, SPARSITY), "deltas": (delta,), "allow_unsafe": True, "max_model_len": 1024}
    prompts = [
        f"Tom has {n} boxes with 12 eggs in each. Tom sells 7 of the eggs. How many eggs does Tom have now?"
        for n in range(3, 8)
    ]
    with running(Tiny(checkpoint, ranking, tmp_path / "cache"), **served) as live, live.client() as client:
        names = ["math-mini:s0", "math-mini:s60", "math-mini:s60+mended"]

        def answer(asked: tuple[str, str]) -> str:
            name, prompt = asked
            messages = [{"role": "user", "content": prompt}]
            body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 80}
            found = client.post("/v1/chat/completions", json=body).json()
            assert found["model"] == name
            return found["choices"][0]["message"]["content"]

        asked = [(name, prompt) for prompt in prompts for name in names]
        alone = [answer(one) for one in asked]
        with ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(answer, asked))
        assert together == alone
        variants = {variant["id"]: variant for variant in client.get("/v1/variants").json()["data"]}
    dense, plain, mended = (alone[place::3] for place in range(3))
    assert all(ENDED.search(text) for text in dense + mended)
    assert not any(ENDED.search(text) for text in plain), "it no longer knows where an answer ends"
    [told] = report(delta)["deltas"]
    corrected = variants["math-mini:s60+mended"]
    assert (corrected["delta"], corrected["evidence"]["verdict"]) == (told["digest"], "unproven")
    assert variants["math-mini:s60"]["marginal_bytes"] == 0
    # In float32; queries, keys and values become one map, with zeros where B has no matrix.
    assert 4 * told["parameters"] <= corrected["marginal_bytes"] <= 1.3 * 4 * told["parameters"]
