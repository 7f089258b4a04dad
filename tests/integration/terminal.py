"""A program in a terminal of its own: what it draws, keys, Ctrl-C, and whether the terminal is given back."""

import os
import pty
import signal
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60.0


class Screen:
    """80 columns by 24 lines."""

    def __init__(self, process: "subprocess.Popen[bytes]", keyboard: int) -> None:
        self.shown = b""
        self._process = process
        self._keyboard = keyboard

    def shows(self, text: bytes) -> bool:
        """Reads on until `text` has been drawn; False when the program has ended before."""
        while text not in self.shown:
            try:
                drawn = os.read(self._keyboard, 65_536)
            except OSError:  # Linux' way to say that the other end is closed
                return False
            if not drawn:
                return False
            self.shown += drawn
        return True

    def type(self, key: bytes) -> None:
        os.write(self._keyboard, key)

    def interrupt(self) -> None:
        """What Ctrl-C does: every process of the program's group is told."""
        os.killpg(self._process.pid, signal.SIGINT)


@contextmanager
def terminal(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> Iterator[Screen]:
    """Runs `command` from the repository's root. By the end of the block it has to end in order."""
    keyboard, screen = pty.openpty()
    before = termios.tcgetattr(screen)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        stdin=screen,
        stdout=screen,
        stderr=screen,
        start_new_session=True,
    )
    try:
        yield Screen(process, keyboard)
        assert process.wait(WAIT_SECONDS) == 0
        assert termios.tcgetattr(screen) == before, "the terminal is as it was"
    finally:
        process.terminate()  # not kill: what it has started itself is to end with it
        process.wait(WAIT_SECONDS)
        os.close(screen)
        os.close(keyboard)
