"""`secateur top` on a real server, in a real terminal, and while there is no server."""

import contextlib
import subprocess
import sys
from collections.abc import Callable

import httpx
import pytest

from server.__main__ import EXIT_FAILED, main
from server.commands.top import TopError, Watcher
from server.commands.top_view import SPARKLINE_ENTRIES
from tests.integration.live import Live, Tiny, running
from tests.integration.terminal import ROOT, Screen, terminal
from tests.server.glance import glance

NOWHERE = "http://127.0.0.1:1"  # nothing listens there
LEAVE_SCREEN = b"\x1b[?1049l"


def test_one_picture_of_a_live_server(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--url", live.url]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tiny  ready  up ")
    *_, table = shown.partition("marginal\n")
    assert [line.split()[:3] for line in table.splitlines()] == [
        ["s0", "0.0%", "safe"],
        ["s10", "8.3%", "unproven"],
        ["s20", "20.8%", "unproven"],
        ["s35", "33.3%", "unproven"],
    ]
    assert "\x1b" not in shown, "a pipe wants no colours"


def test_it_takes_a_key_and_says_when_it_needs_one(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tiny, api_keys="sesame") as live:
        assert main(["top", "--once", "--url", live.url]) == EXIT_FAILED
        assert f"secateur: {live.url} wants a key: give it with --api-key" in capsys.readouterr().err
        assert main(["top", "--once", "--url", live.url, "--api-key", "sesame"]) == 0
        monkeypatch.setenv("SECATEUR_API_KEY", "sesame")
        assert main(["top", "--once", "--url", live.url]) == 0


def test_a_dead_url_is_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--url", NOWHERE]) == EXIT_FAILED
    error = capsys.readouterr().err
    assert error.startswith(f"secateur: no answer from {NOWHERE} (")
    assert error.count("\n") == 1


def test_without_a_terminal_it_asks_for_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--url", NOWHERE]) == EXIT_FAILED
    assert "--once" in capsys.readouterr().err


def test_it_starts_without_torch() -> None:
    script = (
        "import sys\nfrom server.__main__ import main\n"
        f"assert main(['top', '--once', '--url', '{NOWHERE}']) == {EXIT_FAILED}\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=ROOT)


def watching(url: str) -> contextlib.AbstractContextManager[Screen]:
    return terminal([sys.executable, "-m", "server", "top", "--url", url])


def test_q_ends_it_and_gives_the_terminal_back(live: Live) -> None:
    with watching(live.url) as screen:
        assert screen.shows(b"tok/s")
        screen.type(b"x")
        screen.type(b"q")
        assert screen.shows(LEAVE_SCREEN)
    assert b"HTTP" not in screen.shown, "no log in the picture"


def test_it_waits_for_a_server_and_ctrl_c_ends_it() -> None:
    with watching(NOWHERE) as screen:
        assert screen.shows(b"no answer from")
        assert screen.shows(b"trying again")
        screen.interrupt()
        assert screen.shows(LEAVE_SCREEN)


class Server:
    """Answers as told."""

    def __init__(self) -> None:
        self.reply: Callable[[], httpx.Response] = lambda: httpx.Response(
            200, content=glance().model_dump_json()
        )
        self.since: list[str | None] = []

    def watcher(self) -> Watcher:
        transport = httpx.MockTransport(self._answer)
        return Watcher(httpx.Client(base_url="http://server", transport=transport), "http://server")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.since.append(request.url.params.get("since"))
        return self.reply()


def drawn(picture: object) -> str:
    from rich.console import Console

    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


def test_it_keeps_the_last_picture_while_the_server_is_away() -> None:
    def refuse() -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    server = Server()
    watcher = server.watcher()
    answer = server.reply
    assert "trying again" not in drawn(watcher.look(now=100.0))
    server.reply = refuse
    assert "no answer from http://server (Connection refused); for 0s, trying again" in drawn(
        watcher.look(110.0)
    )
    away = drawn(watcher.look(175.0))
    assert "for 1m, trying again" in away
    assert "tokens/s" in away
    server.reply = answer
    assert "trying again" not in drawn(watcher.look(180.0))
    server.reply = refuse
    assert "for 0s" in drawn(watcher.look(190.0))


def test_it_asks_for_what_it_draws_and_no_more() -> None:
    server = Server()
    watcher = server.watcher()
    watcher.ask()
    watcher.ask()
    assert server.since == [None, str(glance().now - 2.0 * SPARKLINE_ENTRIES)]


@pytest.mark.parametrize(
    ("status", "content", "told"),
    [
        (401, "", "wants a key"),
        (404, "", "answers 404: is it a Secateur server"),
        (503, "", "answers 503"),
        (200, "<html>", "does not understand"),
        (200, '{"model": "m"}', "version: Field required"),
    ],
)
def test_what_no_server_of_this_kind_says_is_named(status: int, content: str, told: str) -> None:
    server = Server()
    server.reply = lambda: httpx.Response(status, text=content)
    with pytest.raises(TopError, match=told):
        server.watcher().ask()
