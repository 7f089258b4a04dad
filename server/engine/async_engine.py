"""Runs the engine on a thread of its own and hands each request's tokens to its stream on the event loop.

The engine's thread computes; the event loop turns tokens into text (stream.py) while the next step is already
running. Whatever ends a request (its last token, a stop string, a client that left, the engine's death), it
ends exactly once, its blocks come back, and the observer hears of it, unless it was background work.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from server.engine.detokenizer import Detokenizer
from server.engine.engine import Engine, TokenOutput
from server.engine.errors import EngineDeadError, QueueFullError
from server.engine.request import BACKGROUND, Request, SamplingParams, ScoringParams
from server.engine.stats import EngineObserver
from server.engine.stream import RequestStream
from server.engine.variant import Variant

logger = logging.getLogger(__name__)

STUCK_SECONDS = 300.0  # no step takes so long; as in the alert
STOP_SECONDS = 10.0  # for the last step; one that hangs (a driver that answers nothing) would never end


class AsyncEngine:
    """The engine's thread, and the streams that wait for it. All methods belong to one event loop.

    Args:
        answered: whether a text holds a complete answer, by which loops after one are told from loops before;
            quick, for it runs on the event loop. None: every loop counts as one before.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        observer: EngineObserver,
        answered: Callable[[str], bool] | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self.observer = observer
        self._answered = answered
        self._streams: dict[str, RequestStream] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._wake = threading.Condition()
        # Guarded by `_wake`: what the loop wants of the thread.
        self._added: deque[Request] = deque()
        self._dropped: set[Request] = set()
        self._stopping = False
        self.death: BaseException | None = None
        self._step_began: float | None = None

    @property
    def step_age_seconds(self) -> float:
        """For how long the step that runs has been running; 0 where none does. On any thread."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def is_stuck(self) -> bool:
        """Whether the step that runs has been running for longer than any does."""
        return self.step_age_seconds > STUCK_SECONDS

    @property
    def num_unfinished(self) -> int:
        """Requests whose stream has not ended."""
        return len(self._streams)

    @property
    def num_untaken(self) -> int:
        """Users' requests that have come since the step that runs began: no step's numbers have them yet."""
        with self._wake:
            return sum(
                request.request_id in self._streams and request.priority != BACKGROUND
                for request in self._added
            )

    @property
    def kernels(self) -> str:
        """What computes: "amx-bf16", "avx512-bf16", "cuda-graphs" or "torch: <why>"."""
        return self._engine.kernels

    @property
    def precision(self) -> str:
        """What the layers multiply in: "bfloat16", or "bfloat16 int8"."""
        return self._engine.config.precision

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self.death is None

    def start(self) -> None:
        """Starts the thread. Call it on the event loop that will read the streams."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends every stream and the thread. Waits for the step that is running, if it ends in time."""
        for stream in list(self._streams.values()):
            stream.abort()
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if self._thread.is_alive():
            logger.critical(
                "The engine's step does not end (%d s): the process leaves it behind", self.step_age_seconds
            )

    def check_alive(self) -> None:
        """Raises EngineDeadError if it has died."""
        if self.death is not None:
            raise _dead(self.death)

    def check(self, prompt_lengths: Sequence[int], max_tokens: int, priority: int = 0) -> None:
        """Raises what `submit` would of requests with so many tokens each, be it the first or the last."""
        for num_tokens in prompt_lengths:
            self._engine.check_fits(num_tokens, max_tokens)
        self.check_places(len(prompt_lengths), priority)

    def check_places(self, count: int, priority: int = 0) -> None:
        """Raises what `submit` would of so many requests, whatever their length."""
        self.check_alive()
        config, is_background = self._engine.config, priority == BACKGROUND
        num_alike = sum(stream.is_background == is_background for stream in self._streams.values())
        if num_alike + count > config.max_num_seqs + config.max_waiting:
            more = "" if count == 1 else f", {count} more are too many"
            raise QueueFullError(
                f"{num_alike} requests are running or waiting, of as many as may (max_num_seqs "
                f"{config.max_num_seqs} + max_waiting {config.max_waiting}){more}: try again later"
            )

    def submit(
        self,
        *,
        request_id: str,
        prompt_token_ids: list[int],
        variant: Variant,
        sampling: SamplingParams,
        priority: int = 0,
        scoring: ScoringParams | None = None,
    ) -> RequestStream:
        """Queues a request; one of priority BACKGROUND gets what users leave, and takes none of their places.

        Raises:
            PromptTooLongError: prompt and answer would not fit the context.
            QueueFullError: as many requests of this priority run and wait as may.
            EngineDeadError: there is no engine any more.
        """
        self.check([len(prompt_token_ids)], sampling.max_tokens, priority)
        assert request_id not in self._streams, f"request id {request_id} is in use"
        request = Request(request_id, prompt_token_ids, variant, sampling, priority=priority, scoring=scoring)
        detokenizer = Detokenizer(self._tokenizer, prompt_token_ids, sampling.stop)
        stream = self._streams[request_id] = RequestStream(
            request, detokenizer, self.observer, self._answered, self._forget
        )
        with self._wake:
            self._added.append(request)
            self._wake.notify()
        return stream

    def _forget(self, request: Request) -> None:
        """A request has ended, whether the engine knows or not."""
        del self._streams[request.request_id]
        with self._wake:
            self._dropped.add(request)
            self._wake.notify()

    def _run(self) -> None:
        """The thread. Anything that escapes from it is the engine's death."""
        try:
            while self._take_orders():
                if self._engine.num_unfinished:
                    self._step_began = time.monotonic()
                    try:
                        outputs, stats = self._engine.step()
                    finally:
                        self._step_began = None
                    self.observer.step(stats)
                    self._call_soon(self._deliver, outputs)
        except BaseException as error:  # the one place where nothing may escape
            logger.critical(
                "The engine has died: nothing can be generated any more. It was at work on %s.",
                ", ".join(self._engine.request_ids) or "nothing",
                exc_info=True,
            )
            self.death = error
            self._call_soon(self._die, error)

    def _take_orders(self) -> bool:
        """On the thread: waits for something to do and takes in what the loop wants. False to stop."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._stopping or self._added or self._dropped or self._engine.num_unfinished
            )
            while self._added:
                self._engine.add(self._added.popleft())
            while self._dropped:
                self._engine.abort(self._dropped.pop())
            return not self._stopping

    def _call_soon(self, function: Callable[..., None], argument: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(function, argument)

    def _deliver(self, outputs: Sequence[TokenOutput]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request.request_id)
            if stream is not None:  # else it has ended meanwhile
                stream.put(output)

    def _die(self, error: BaseException) -> None:
        for stream in list(self._streams.values()):
            stream.put(_dead(error))


def _dead(error: BaseException) -> EngineDeadError:
    return EngineDeadError(f"the engine has died ({type(error).__name__}: {error}): restart the server")
