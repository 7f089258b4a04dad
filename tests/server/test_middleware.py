"""Keys, loopback and body limits, one ASGI call at a time: what a real connection cannot pretend to be."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from server.commands.serve import uvicorn_config
from server.errors import AuthenticationError, BodyTooLargeError, PermissionDeniedError
from server.middleware import (
    AdminMiddleware,
    ApiKeyMiddleware,
    BodyLimitMiddleware,
    RequestIdMiddleware,
)


async def reading_app(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    scope["reached"] = True


def call(app: Any, *, bodies: Sequence[bytes] = (b"",), **changes: Any) -> bool:
    """Whether a request got through; raises what the middleware raised."""
    scope: Scope = {"type": "http", "path": "/", "headers": [], "client": ("127.0.0.1", 1), **changes}
    messages = [
        {"type": "http.request", "body": body, "more_body": i < len(bodies)}
        for i, body in enumerate(bodies, start=1)
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("nothing is sent")

    asyncio.run(app(scope, receive, send))
    return bool(scope.get("reached"))


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1", "/tokenize"])
def test_keys_guard_the_api(path: str) -> None:
    app = ApiKeyMiddleware(reading_app, ["one", "two"])
    for key in ("one", "two"):
        assert call(app, path=path, headers=bearer(key))
    for headers in ([], bearer("three"), bearer(""), [(b"authorization", b"one")], bearer("\u00fc")):
        with pytest.raises(AuthenticationError):
            call(app, path=path, headers=headers)


def test_an_empty_key_opens_nothing() -> None:
    for headers in ([], bearer(""), bearer(" ")):
        with pytest.raises(AuthenticationError):
            call(ApiKeyMiddleware(reading_app, [""]), path="/v1/models", headers=headers)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1models", "/tokenizer"])
def test_other_paths_need_no_key(path: str) -> None:
    assert call(ApiKeyMiddleware(reading_app, ["one"]), path=path)


def test_without_keys_the_api_is_open() -> None:
    assert call(ApiKeyMiddleware(reading_app, []), path="/v1/models")


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_without_an_admin_key_loopback_peers_enter(peer: str) -> None:
    assert call(AdminMiddleware(reading_app, None), path="/admin/variants", client=(peer, 1))


@pytest.mark.parametrize(
    "client", [("10.0.0.1", 1), ("::ffff:10.0.0.1", 1), ("fe80::1", 1), ("pipe", 1), None]
)
def test_without_an_admin_key_others_are_told_how_to_enter(client: Any) -> None:
    with pytest.raises(PermissionDeniedError, match="SECATEUR_ADMIN_KEY"):
        call(AdminMiddleware(reading_app, None), path="/admin/variants", client=client)


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7:8000", "[fe80::1]"]
)
def test_without_an_admin_key_an_address_or_localhost_may_be_asked_for(host: str) -> None:
    headers = [(b"host", host.encode())]
    assert call(AdminMiddleware(reading_app, None), path="/admin/variants", headers=headers)


@pytest.mark.parametrize(
    "host", ["site.example", "site.example:8000", "localhost.site.example", "127.0.0.1.site.example", "[", ""]
)
def test_without_an_admin_key_no_site_enters_by_a_name_that_means_this_machine(host: str) -> None:
    """DNS rebinding: the browser takes this server for the site's own, and is a loopback peer."""
    headers = [(b"host", host.encode())]
    with pytest.raises(PermissionDeniedError, match="SECATEUR_ADMIN_KEY"):
        call(AdminMiddleware(reading_app, None), path="/admin/variants", headers=headers)
    assert call(AdminMiddleware(reading_app, None), path="/v1/models", headers=headers)
    with_key = [*headers, *bearer("root")]
    assert call(AdminMiddleware(reading_app, "root"), path="/admin/variants", headers=with_key)


@pytest.mark.parametrize("origin", ["http://site.example", "http://127.0.0.1:9000", "null", "http://["])
def test_without_an_admin_key_no_other_page_enters(origin: str) -> None:
    """A browser asks nobody before it sends a POST without a body, wherever the page is from."""
    own = [(b"host", b"127.0.0.1:8000"), (b"origin", b"http://127.0.0.1:8000")]
    assert call(AdminMiddleware(reading_app, None), path="/admin/probes/run", headers=own)
    other = [own[0], (b"origin", origin.encode())]
    with pytest.raises(PermissionDeniedError, match=r"pages of .*SECATEUR_ADMIN_KEY"):
        call(AdminMiddleware(reading_app, None), path="/admin/probes/run", headers=other)


def test_with_an_admin_key_it_alone_counts() -> None:
    app = AdminMiddleware(reading_app, "root")
    assert call(app, path="/admin/variants", client=("10.0.0.1", 1), headers=bearer("root"))
    with pytest.raises(AuthenticationError):
        call(app, path="/admin/variants", headers=bearer("guess"))
    assert call(app, path="/v1/models")


@pytest.mark.parametrize("peer", ["10.0.0.1", "127.0.0.1", "::ffff:127.0.0.1"])
def test_nobody_enters_by_saying_that_they_are_here(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a stranger, nor one behind a proxy on this machine, which says where requests come from."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    config = uvicorn_config(AdminMiddleware(reading_app, None))
    config.load()
    said = "127.0.0.1" if peer == "10.0.0.1" else "127.0.0.1, 10.0.0.9"
    with pytest.raises(PermissionDeniedError):
        call(
            config.loaded_app,
            path="/admin/variants",
            client=(peer, 1),
            scheme="http",
            headers=[(b"x-forwarded-for", said.encode())],
        )


def test_the_log_has_the_path_as_it_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    """Decoded it may hold lines of the client's own."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        scope["reached"] = True

    caplog.set_level(logging.INFO)
    assert call(
        RequestIdMiddleware(answering), method="GET", path="/v1/x\nforged", raw_path=b"/v1/x%0aforged"
    )
    assert "GET /v1/x%0aforged " in caplog.text
    assert "\nforged" not in caplog.text


def test_a_body_is_read_up_to_the_limit_and_no_further() -> None:
    app = BodyLimitMiddleware(reading_app, max_bytes=10)
    assert call(app, bodies=[b"12345", b"67890"])
    with pytest.raises(BodyTooLargeError, match="11 bytes"):
        call(app, bodies=[b"12345", b"678901", b"never read"])


def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    app = BodyLimitMiddleware(reading_app, max_bytes=10)
    with pytest.raises(BodyTooLargeError, match="1,000 bytes"):
        call(app, bodies=[], headers=[(b"content-length", b"1000")])
