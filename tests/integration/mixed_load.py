"""200 requests of every kind, and what their clients count: tokens, endings, refusals."""

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.integration.sse import chunks

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SPARSITIES = (0.0, 0.1, 0.2)
LEFT = 0.15  # of those whose clients leave: nobody else asks for it

REFUSED: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": "a", "model": "made-up"}),
    (COMPLETIONS, {"prompt": "a", "sparsity": 0.123}),
    (COMPLETIONS, {"prompt": "a", "temperature": "hot"}),
    (COMPLETIONS, {"prompt": "a", "suffix": "b"}),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 10**6}),
    (CHAT, {"messages": [{"role": "user", "content": "a"}], "tools": [{}], "stream": True}),
    ("/v1/nothing", {}),
]


@dataclass
class Counted:
    """By variant's name; `ended` by (name, finish reason), `refused` by error code.

    `left` is answers that their clients left, `seen` the tokens of those that had arrived by then.
    """

    prompt_tokens: Counter[str] = field(default_factory=Counter)
    completion_tokens: Counter[str] = field(default_factory=Counter)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def send_mixed_load(client: httpx.Client, count: int = 200) -> Counted:
    """Twelve at a time. One in ten is refused, one in twenty left in the middle, the others answered."""
    counted = Counted()
    with ThreadPoolExecutor(12) as pool:
        jobs = []
        for number in range(count):
            if number % 10 == 3:
                jobs.append(pool.submit(_refused, client, counted, *REFUSED[number // 10 % len(REFUSED)]))
            elif number % 20 == 7:
                jobs.append(pool.submit(_left, client, counted))
            else:
                jobs.append(pool.submit(_answered, client, counted, random.Random(number)))
        for job in jobs:
            job.result()
    return counted


def _answered(client: httpx.Client, counted: Counted, chance: random.Random) -> None:
    body: dict[str, Any] = {
        "sparsity": chance.choice(SPARSITIES),
        "max_tokens": chance.randint(1, 24),
        "n": chance.choice((1, 1, 1, 2, 3)),
        "temperature": chance.choice((0, 1)),
        "seed": chance.randrange(1000),
        "stop_on_loop": True,
    }
    if chance.random() < 0.1:  # goes round in circles
        body |= {"logit_bias": {"97": 100}, "temperature": 0, "max_tokens": 300}
    elif chance.random() < 0.5:
        body["stop"] = chance.sample("abcdefghijklmnopqrstuvwxyz", 4)
    if chance.random() < 0.5:
        path = COMPLETIONS
        body["prompt"] = [
            "".join(chance.choices("abc ", k=chance.randint(1, 80))) for _ in range(chance.choice((1, 2)))
        ]
    else:
        path = CHAT
        body["messages"] = [{"role": "user", "content": "f" * chance.randint(1, 40)}]
    if chance.random() < 0.5:
        parts = chunks(client, path, {**body, "stream_options": {"include_usage": True}})
        choices = [choice for part in parts for choice in part["choices"]]
        usage = parts[-1]["usage"]
    else:
        parts = [client.post(path, json=body).json()]
        choices, usage = parts[0]["choices"], parts[0]["usage"]
    variant = parts[0]["model"]
    with counted.lock:
        counted.prompt_tokens[variant] += usage["prompt_tokens"]
        counted.completion_tokens[variant] += usage["completion_tokens"]
        for choice in choices:
            if choice["finish_reason"]:
                counted.ended[variant, choice["finish_reason"]] += 1


def _left(client: httpx.Client, counted: Counted) -> None:
    body = {"prompt": "abc", "max_tokens": 10_000, "ignore_eos": True, "logprobs": 0, "sparsity": LEFT}
    with client.stream("POST", COMPLETIONS, json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        seen = sum(next(lines).count('"text_offset"') for _ in range(9))
        variant = response.headers["x-secateur-variant"]
    with counted.lock:
        counted.prompt_tokens[variant] += len("abc")
        counted.left[variant] += 1
        counted.seen[variant] += seen


def _refused(client: httpx.Client, counted: Counted, path: str, body: dict[str, Any]) -> None:
    response = client.post(path, json=body)
    assert response.status_code >= 400
    with counted.lock:
        counted.refused[response.json()["error"]["code"]] += 1
