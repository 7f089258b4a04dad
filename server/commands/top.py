"""`secateur top`: asks a server how it does, again and again, and shows it in the terminal.

Knows the server by its URL alone: imports neither torch nor the engine. Drawing is in top_view.py.
"""

import contextlib
import logging
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
from pydantic import ValidationError
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from pruning.errors import SecateurError
from server.commands.top_view import SPARKLINE_ENTRIES, duration, frame
from server.monitoring.live_schema import LiveState
from server.settings import TopSettings

TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 2.0


class TopError(SecateurError):
    """The server cannot be watched."""


def top(settings: TopSettings) -> None:
    """Shows the server until the user ends it; with `once`, one picture.

    Raises:
        TopError: with `once`, the server cannot be asked; without, there is no terminal.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look would spoil the picture
    console = Console(highlight=False)
    with _client(settings) as http:
        watcher = Watcher(http, settings.url)
        if settings.once:
            console.print(frame(watcher.ask(), settings.url))
        elif not (console.is_terminal and sys.stdin.isatty()):
            raise TopError("this is no terminal to draw in: run it in one, or print one picture with --once")
        else:
            _watch(watcher, console)


@dataclass
class Watcher:
    """One server, and what it said last."""

    http: httpx.Client
    url: str
    last: LiveState | None = None
    failing_since: float | None = field(default=None, init=False)

    @property
    def pause_seconds(self) -> float:
        return RETRY_SECONDS if self.last is None else self.last.interval_seconds

    def ask(self) -> LiveState:
        """What the server says now, with as much history as is drawn.

        Raises:
            TopError: it does not answer, wants another key, or says something else.
        """
        window = None if self.last is None else self.last.now - SPARKLINE_ENTRIES * self.last.interval_seconds
        try:
            answer = self.http.get("/v1/live", params={} if window is None else {"since": window})
        except httpx.HTTPError as error:
            raise TopError(f"no answer from {self.url} ({str(error) or type(error).__name__})") from error
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise TopError(f"{self.url} wants a key: give it with --api-key or SECATEUR_API_KEY")
        if answer.status_code != httpx.codes.OK:
            raise TopError(f"{self.url}/v1/live answers {answer.status_code}: is it a Secateur server?")
        try:
            self.last = LiveState.model_validate_json(answer.content)
        except ValidationError as error:
            told = error.errors()[0]
            raise TopError(
                f"{self.url}/v1/live says what this version does not understand "
                f"({'.'.join(map(str, told['loc']))}: {told['msg']}): use the server's own version"
            ) from error
        return self.last

    def look(self, now: float) -> RenderableType:
        """A picture, whatever the server does: while it is away the last one there was, and since when.

        Args:
            now: monotonic, in seconds.
        """
        try:
            self.ask()
        except TopError as error:
            self.failing_since = now if self.failing_since is None else self.failing_since
            trouble = f"{error}; for {duration(now - self.failing_since)}, trying again"
        else:
            self.failing_since, trouble = None, ""
        if self.last is None:
            return Text(trouble, style="bold red")
        return frame(self.last, self.url, trouble or None)


def _client(settings: TopSettings) -> httpx.Client:
    key = None if settings.api_key is None else settings.api_key.get_secret_value()
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=settings.url, headers=headers, timeout=TIMEOUT_SECONDS)


def _watch(watcher: Watcher, console: Console) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys_at_once(),
        Live(console=console, screen=True, auto_refresh=False) as screen,
    ):
        while True:
            screen.update(watcher.look(time.monotonic()), refresh=True)
            if _pressed_q(watcher.pause_seconds):
                return


@contextlib.contextmanager
def _keys_at_once() -> Iterator[None]:
    """Delivers keys without Enter and does not show them; Ctrl-C stays what it is."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed_q(seconds: float) -> bool:
    """Waits so long for a key; any other one shows the next picture at once. No more input is an end, too."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    if not readable:
        return False
    typed = os.read(sys.stdin.fileno(), 1024)
    return not typed or b"q" in typed.lower()
