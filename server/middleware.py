"""What every request passes before it is routed: an id and a log line, error envelopes, keys, a body limit.

Pure ASGI, so that `receive` and `send` reach the routes untouched and a disconnect is seen at once.
Knows paths and headers; nothing of models.
"""

import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import AuthenticationError, BodyTooLargeError, PermissionDeniedError, RequestError

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
VARIANT_HEADER = "x-secateur-variant"
VARIANT_REASON_HEADER = "x-secateur-reason"
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UNLOGGED_PATHS = frozenset({"/metrics", "/health", "/ready", "/v1/live"})  # asked every few seconds


class RequestIdMiddleware:
    """Gives each request an id, the client's own if it is sane, echoes it, and logs one line at the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = offered if _SANE_ID.fullmatch(offered) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.monotonic()
        status, variant = 500, "-"

        async def send_with_id(message: Message) -> None:
            nonlocal status, variant
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                status, variant = message["status"], headers.get(VARIANT_HEADER, "-")
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if scope["path"] not in _UNLOGGED_PATHS:
                took = time.monotonic() - start
                # As it was sent: decoded, it may hold line breaks.
                path = scope.get("raw_path", b"").decode("ascii", "backslashreplace") or scope["path"]
                line = (scope["method"], path, status, variant, took, request_id)
                logger.info("%s %s %d variant=%s seconds=%.3f id=%s", *line)


class ErrorMiddleware:
    """Answers the RequestErrors that the middleware below raises; the routes' own are answered inside."""

    def __init__(self, app: ASGIApp, respond: Callable[[RequestError], Response]) -> None:
        self._app = app
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except RequestError as error:
            await self._respond(error)(scope, receive, send)


class ApiKeyMiddleware:
    """Asks for one of `keys` on /v1 and /tokenize. Without keys those are open to all."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and _is_under(scope["path"], "/v1", "/tokenize"):
            _check_bearer(scope, self._keys)
        await self._app(scope, receive, send)


class AdminMiddleware:
    """Asks for `key` on /admin. Without one loopback peers alone enter, who ask for an address or localhost.

    The page of another site may make its own name mean 127.0.0.1 (DNS rebinding). The browser on this machine
    then takes the server for that site's, and sends what the page wants; the name in Host gives it away. And
    it may send a POST that browsers do not ask about first; there Origin does.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_under(scope["path"], "/admin"):
            if self._key is not None:
                _check_bearer(scope, (self._key,))
            else:
                _check_is_here(scope)
        await self._app(scope, receive, send)


class BodyLimitMiddleware:
    """Refuses bodies over `max_bytes`: by Content-Length at once, else as soon as that much has been read."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        self._check(int(declared) if declared.isdecimal() else 0)
        num_read = 0

        async def limited_receive() -> Message:
            nonlocal num_read
            message = await receive()
            if message["type"] == "http.request":
                num_read += len(message.get("body", b""))
                self._check(num_read)
            return message

        await self._app(scope, limited_receive, send)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise BodyTooLargeError(
                f"the body has at least {num_bytes:,} bytes; this server reads {self._max_bytes:,} "
                "(max_body_bytes): send less, or raise the limit"
            )


def _is_under(path: str, *roots: str) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


def _check_bearer(scope: Scope, keys: Sequence[str]) -> None:
    scheme, _, credentials = Headers(scope=scope).get("authorization", "").partition(" ")
    offered = credentials.strip().encode() if scheme.lower() == "bearer" else b""
    # Every key is compared, in constant time: how long it takes tells nothing of how near a guess came.
    matches = [hmac.compare_digest(offered, key.encode()) for key in keys]
    if not offered or not any(matches):
        told = "this is not a key that the server knows" if offered else "this path wants a key"
        raise AuthenticationError(f"{told}: send `Authorization: Bearer KEY`")


def _check_is_here(scope: Scope) -> None:
    """Whoever has no key has to be on this machine, and no other site's page."""
    way_out = "set admin_key (SECATEUR_ADMIN_KEY) and send it as a bearer token"
    if not _is_loopback(scope):
        raise PermissionDeniedError(
            f"no admin key is configured, so /admin answers to loopback peers alone: {way_out}"
        )
    headers = Headers(scope=scope)
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not _is_no_name(host):
        raise PermissionDeniedError(
            f"no admin key is configured, so /admin does not answer by the name {host!r}, which any site "
            f"could have: ask for localhost or 127.0.0.1, or {way_out}"
        )
    if origin is not None and origin.partition("://")[2] != host:
        raise PermissionDeniedError(
            f"no admin key is configured, so /admin does not answer to pages of {origin!r}: {way_out}"
        )


def _is_loopback(scope: Scope) -> bool:
    client = scope.get("client")
    if client is None:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_no_name(host: str) -> bool:
    """Whether a Host header needs no DNS: an address or localhost, with a port or without."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name != "localhost":
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
