"""GET / for browsers: the console, from memory. To everybody else / is no route, as ever.

The page names its files under /console/DIGEST/, where the digest is that of all of them: what has once been
loaded stays in the browser's cache, and a new version has another address. No key is asked for here, since
none of it is secret; what the page itself asks the API for, it asks with the user's.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server import console

DIRECTORY = Path(console.__file__).parent
PAGE = "index.html"
ROOT_PLACEHOLDER = b"{{root}}"
MEDIA_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
IMMUTABLE = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class ConsoleFile:
    """What is sent for one address. `etag` is quoted, as the header wants it."""

    content: bytes
    media_type: str
    etag: str


def console_router(directory: Path = DIRECTORY) -> APIRouter:
    """The routes, over the files of `directory` as they are now."""
    router = APIRouter(include_in_schema=False)
    digest, files = read_console(directory)

    @router.get("/")
    async def page(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return _answer(request, files[PAGE], cache_control="no-cache", vary="accept")

    @router.get(f"/console/{digest}/{{path:path}}")
    async def file(request: Request, path: str) -> Response:
        if path not in files:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return _answer(request, files[path], cache_control=IMMUTABLE)

    return router


def read_console(directory: Path) -> tuple[str, dict[str, ConsoleFile]]:
    """The digest of all files that browsers may have, and the files by their paths.

    Borrowed files may be missing (server/console/fetch.py): the page then does without.
    """
    contents = {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.suffix in MEDIA_TYPES
    }
    whole = hashlib.sha256()
    for name, content in contents.items():
        whole.update(f"{name} {len(content)}\n".encode() + content)
    digest = whole.hexdigest()[:16]
    contents[PAGE] = contents[PAGE].replace(ROOT_PLACEHOLDER, f"/console/{digest}".encode())
    return digest, {name: _file(name, content) for name, content in contents.items()}


def _file(name: str, content: bytes) -> ConsoleFile:
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return ConsoleFile(content, MEDIA_TYPES[Path(name).suffix], etag)


def _answer(request: Request, file: ConsoleFile, **headers: str) -> Response:
    told = {
        **SECURITY_HEADERS,
        **{name.replace("_", "-"): value for name, value in headers.items()},
        "etag": file.etag,
    }
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=told)
    return Response(file.content, headers={**told, "content-type": file.media_type})
