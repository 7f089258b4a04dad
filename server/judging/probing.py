"""Probes in the serving process: the engine answers them at background priority, within a share of its time.

Begins and ends with the server, and runs more of them when asked to. How probes are chosen, paced and judged
is for eval/.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eval.generate import Answer, GenerateError
from eval.probing.budget import TokenBucket
from eval.probing.evidence_store import EvidenceStore
from eval.probing.guard import Guard, GuardEvidence
from eval.probing.prober import Identity, Prober, Subject
from eval.probing.verdicts import Criterion, Evidence, Verdict, VerdictChange
from eval.task import Task
from pruning.errors import SecateurError
from server.engine.async_engine import AsyncEngine
from server.engine.request import BACKGROUND, SamplingParams
from server.errors import ModelNotFoundError, ProbeConflictError
from server.judging.answering import ask
from server.monitoring.workload import Workload
from server.tokenization import PromptTokenizer
from server.variants import VariantRegistry

logger = logging.getLogger(__name__)

# Until the first step has been timed: on an idle server probes are all there is to time.
UNMEASURED_TOKENS_PER_SECOND = 100.0
# Saved up while users queue; no less, or the share of a slow model would never come to a whole token.
SAVED_SECONDS = 20.0


class EngineGenerate:
    """The serving engine as an `eval.generate.Generate`: greedy, behind all users, loops cut off."""

    def __init__(
        self,
        engine: AsyncEngine,
        registry: VariantRegistry,
        tokenizer: PromptTokenizer,
        on_answer: Callable[[str, int], None],
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._tokenizer = tokenizer
        self._on_answer = on_answer
        self._numbers = itertools.count()

    async def __call__(self, prompt: str, *, variant: str, max_tokens: int) -> Answer:
        by_name = {v.name: v for v in self._registry.in_service()}
        if variant not in by_name:
            raise GenerateError(f"{variant} is not served any more")
        asked = await ask(
            self._engine,
            self._tokenizer,
            prompt,
            by_name[variant],
            SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_on_loop=True),
            request_id=f"probe-{next(self._numbers)}",
            priority=BACKGROUND,
        )
        found = asked.answer
        self._on_answer(variant, found.prompt_tokens + found.completion_tokens)
        return found


@dataclass
class ProbeRun:
    """Probes that somebody asked for, and how far they have come. `evidence` is there when they are done."""

    variants: tuple[str, ...]
    items: int
    items_done: int = 0
    state: Literal["running", "done", "failed", "cancelled"] = "running"
    error: str | None = None
    evidence: dict[str, Evidence] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbesOff:
    """Variants are not judged here, and why."""

    reason: str

    def __str__(self) -> str:
        return f"not probed: {self.reason}"


class Probing:
    """The prober of a serving process; a `server.variants.EvidenceSource`.

    Args:
        budget: share of the engine's capacity that probes may take; 0: only those of `run_now`.
        blocked: whether users wait, so that nothing may be spent.
        on_verdict: told of a variant and its new verdict.
        guard: watches them on general prompts as well; None: nobody does.
        at_once: probes that the engine takes at the same time.
    """

    def __init__(
        self,
        task: Task,
        generate: EngineGenerate,
        registry: VariantRegistry,
        store: EvidenceStore,
        *,
        identity: Identity,
        criterion: Criterion,
        budget: float,
        workload: Workload,
        blocked: Callable[[], bool],
        on_verdict: Callable[[str, Verdict], None],
        guard: Guard | None,
        at_once: int,
    ) -> None:
        self.guard = guard
        self.task = task
        self.criterion = criterion
        self.budget = budget
        self.latest_run: ProbeRun | None = None
        self._registry = registry
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        bucket = TokenBucket(
            lambda: budget * (workload.tokens_per_second or UNMEASURED_TOKENS_PER_SECOND),
            blocked=blocked,
            burst_seconds=SAVED_SECONDS,
        )
        self._prober = Prober(
            task,
            generate,
            self._subjects,
            store,
            bucket,
            identity=identity,
            criterion=criterion,
            on_verdict=lambda variant, before, after, grounds: on_verdict(variant, after),
            guard=guard,
            at_once=at_once,
        )
        self._prober.load()

    def __str__(self) -> str:
        pace = f"{100 * self.budget:g}% of the engine at most" if self.budget else "only when asked for"
        return f"probed with {self.task.name} ({pace}), held to {100 * self.criterion.tolerance:g} points"

    @property
    def reference(self) -> str:
        """The variant that the others are held to: the densest in service."""
        return self._registry.in_service()[0].name

    def evidence(self, variant: str) -> Evidence | None:
        return self._prober.evidence(variant)

    def changes(self, variant: str) -> Sequence[VerdictChange]:
        return self._prober.changes(variant)

    def guard_evidence(self, variant: str) -> GuardEvidence | None:
        return self._prober.guard_evidence(variant)

    def start(self) -> None:
        """Begins to probe, on the running event loop."""
        if self.budget > 0:
            self._spawn(self._prober.run())

    def cancel(self) -> None:
        """Ends all probes soon; what they had shown is kept. Any number of times."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Ends all probes and closes the store."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._store.close)

    async def refresh(self) -> None:
        """Looks up what is known of variants that are new here."""
        await self._prober.refresh()

    def run_now(self, variants: Sequence[str] | None, items: int) -> ProbeRun:
        """Begins to probe so many items at once, whatever the budget, still behind all users.

        Raises:
            ModelNotFoundError: there is no such variant in service.
            ProbeConflictError: the last run is not done.
        """
        served = [variant.name for variant in self._registry.in_service()]
        unknown = [name for name in variants or () if name not in served]
        if unknown:
            raise ModelNotFoundError(
                f"there is no variant {unknown[0]!r} in service; there are {', '.join(served)}",
                param="variants",
            )
        if self.latest_run is not None and self.latest_run.state == "running":
            raise ProbeConflictError(
                f"a run of probes is at item {self.latest_run.items_done} of {self.latest_run.items}: wait "
                "for its end (GET /admin/probes/run)"
            )
        self.latest_run = ProbeRun(tuple(served if variants is None else variants), items)
        self._spawn(self._run(self.latest_run))
        return self.latest_run

    async def _run(self, run: ProbeRun) -> None:
        def progress(done: int, total: int) -> None:
            run.items_done = done

        try:
            run.evidence = await self._prober.run_now(run.variants, run.items, progress)
            run.state = "done"
        except SecateurError as error:
            run.state, run.error = "failed", str(error)
        except asyncio.CancelledError:
            run.state = "cancelled"
            raise
        except Exception as error:
            run.state, run.error = "failed", f"a fault of the server's own, see its log: {error!r}"
            raise

    def _subjects(self) -> list[Subject]:
        return [Subject(v.name, v.sparsity, v.widths, v.delta_digest) for v in self._registry.in_service()]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("probing has ended by a fault of the server's own", exc_info=error)
