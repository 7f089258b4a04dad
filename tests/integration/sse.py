"""Reads a stream the strict way: exactly `data: ...` and one empty line, again and again."""

import json
from typing import Any

import httpx


def events(client: httpx.Client, path: str, body: dict[str, Any]) -> list[str]:
    """The data of every event of a streamed answer. Fails on anything else in the stream."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        content = response.read().decode()
        assert response.status_code == 200, content
        assert response.headers["content-type"].startswith("text/event-stream")
    assert content.endswith("\n\n")
    parts = content.removesuffix("\n\n").split("\n\n")
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [part.removeprefix("data: ") for part in parts]


def chunks(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON of every event but the last, which is [DONE]."""
    *data, last = events(client, path, body)
    assert last == "[DONE]"
    return [json.loads(line) for line in data]
