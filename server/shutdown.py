"""Ends the process in order: on a first signal what runs is finished, on a second the process is gone."""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from server.generation import Generations

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5  # for the last bytes to reach clients, once nothing runs any more
# Of a server whose engine is dead: clients are told, and whoever scrapes it every 10 s sees it.
MOURNING_SECONDS = 30


class GracefulServer(uvicorn.Server):
    """Goes on answering while it drains, so that /ready says no and new requests hear why.

    uvicorn by itself closes its socket at the first signal, and raises the signal again after the shutdown,
    so that the process would not exit with 0.

    When the engine has died it ends after a while by itself, for a supervisor to start it anew.

    Args:
        timeout_seconds: that running generations have left after the first signal.
        on_drain: shuts the door at the first signal.
        on_started: told when connections are taken.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        generations: Generations,
        timeout_seconds: float,
        on_drain: Callable[[], None],
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._generations = generations
        self._timeout_seconds = timeout_seconds
        self._on_drain = on_drain
        self._on_started = on_started
        self._deadline: float | None = None
        self._mourned_until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._deadline is not None:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            os._exit(128 + sig)  # a container's first process survives its own signals
        self._deadline = time.monotonic() + self._timeout_seconds
        self._on_drain()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by uvicorn; True ends the serving."""
        if self._deadline is not None and not self.should_exit:
            num_open = self._generations.num_open
            if num_open and time.monotonic() >= self._deadline:
                logger.warning(
                    "cutting off %d requests that still run after %g seconds (shutdown_timeout_seconds)",
                    num_open,
                    self._timeout_seconds,
                )
                self._generations.abort_all()
                self.should_exit = True
            elif not num_open:
                self.should_exit = True
        if (death := self._generations.engine.death) is not None and not self.should_exit:
            if self._mourned_until is None:
                self._mourned_until = time.monotonic() + MOURNING_SECONDS
            if time.monotonic() >= self._mourned_until:
                logger.critical("ending the process: its engine has died (%r)", death)
                self.should_exit = True
        return await super().on_tick(counter)
