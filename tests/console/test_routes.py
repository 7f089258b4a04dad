"""The page is served with what a browser needs to trust and keep it; to API clients / is as it was."""

import re

import httpx
import pytest

from server.routes.console import DIRECTORY, read_console
from tests.console.conftest import serving
from tests.integration.live import Live, Tiny

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
MAX_BYTES = 300_000


@pytest.fixture
def client(live: Live) -> httpx.Client:
    with live.client() as client:
        yield client


def test_browsers_get_the_page_and_others_what_they_got(client: httpx.Client, math_mini: Tiny) -> None:
    page = client.get("/", headers=HTML)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["vary"] == "accept"
    for accept in ("*/*", "application/json"):
        refused, unknown = (client.get(path, headers={"accept": accept}) for path in ("/", "/nothing"))
        assert refused.status_code == 404
        assert refused.json() == unknown.json()
        assert refused.json()["error"]["code"] == "unknown_url"
    with serving(math_mini, console=False) as live, live.client() as other:
        assert other.get("/", headers=HTML).status_code == 404
        assert "/" not in other.get("/openapi.json").json()["paths"]


def test_every_file_is_kept_for_good_and_the_page_asked_for_again(client: httpx.Client) -> None:
    page = client.get("/", headers=HTML)
    assert page.headers["cache-control"] == "no-cache"
    unchanged = client.get("/", headers={**HTML, "if-none-match": page.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    addresses = re.findall(r'(?:href|src)="(/[^"]+)"', page.text)
    assert len(addresses) >= 5
    for address in addresses:
        answer = client.get(address)
        if "/vendor/" in address and answer.status_code == 404:
            continue  # it could not be fetched here
        assert answer.status_code == 200, address
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        kind = answer.headers["content-type"]
        assert kind.startswith(("text/javascript", "text/css", "image/svg+xml")), address
    for nowhere in (
        "/console/",
        "/console/0000/app.js",
        f"{addresses[0]}/../../fetch.py",
        "/console/fetch.py",
    ):
        assert client.get(nowhere).status_code == 404


def test_the_policy_lets_nothing_in_from_elsewhere(client: httpx.Client) -> None:
    headers = client.get("/", headers=HTML).headers
    policy = headers["content-security-policy"].split("; ")
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_browser_has_less_than_300_kb_to_load() -> None:
    _, files = read_console(DIRECTORY)
    assert sum(len(file.content) for file in files.values()) < MAX_BYTES
    assert {"index.html", "app.js", "style.css"} <= set(files)
    assert not [name for name in files if name.endswith((".py", ".json"))]


def test_another_content_is_another_address(tmp_path) -> None:
    (tmp_path / "index.html").write_text('<script src="{{root}}/app.js">')
    digests = set()
    for code in ("one()", "two()"):
        (tmp_path / "app.js").write_text(code)
        digest, files = read_console(tmp_path)
        assert files["index.html"].content == f'<script src="/console/{digest}/app.js">'.encode()
        digests.add(digest)
    assert len(digests) == 2
