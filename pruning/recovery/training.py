"""The training itself: steps, schedule, held-out measurements, early stop; goes on where it was interrupted.

All that is random in a step follows from the seed and the step's number, so a run that is resumed takes the
same steps as one that never stopped. Knows no checkpoints, prompts or deltas.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from tqdm import tqdm

from pruning.errors import DeltaError
from pruning.recovery.dense import TaughtSequence
from pruning.recovery.loss import LossSums, TopTokens, losses
from pruning.recovery.network import AdaptedNetwork
from pruning.recovery.packing import Row, fill_rows, pack, plan_steps
from pruning.recovery.processes import Processes
from pruning.recovery.progress import HeldOutLoss, Progress, ProgressFile, StepLoss, VariantLosses

logger = logging.getLogger(__name__)

Schedule = Literal["cosine", "linear", "constant"]

LARGEST_GRADIENT = 1.0  # its norm, beyond which it is scaled down
BETAS = (0.9, 0.99)
VARIANT_STREAM = 7_919  # sets the draws of widths apart from those of orders


@dataclass(frozen=True)
class TrainingSettings:
    """How the matrices are trained, by AdamW without weight decay.

    Attributes:
        learning_rate: at its peak.
        schedule: how it falls after the warm-up, to zero at the end unless constant.
        warmup: share of the steps in which it rises.
        epochs: how often every answer is read.
        batch_tokens: fed in one step, about.
        row_tokens: fed at once.
        ce_weight: of the cross-entropy beside the divergence.
        evaluations: how often held-out answers are measured on the way.
        patience: so many measurements without a new best end the training.
        seed: of the order of the answers and of which width reads a row.
        save_seconds: between writes of the progress; measurements are written as well.
    """

    learning_rate: float
    schedule: Schedule
    warmup: float
    epochs: int
    batch_tokens: int
    row_tokens: int
    ce_weight: float
    evaluations: int
    patience: int
    seed: int
    save_seconds: float


def learning_rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """Of the step with that number, the first being 0, of so many."""
    warmup = settings.warmup * steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1.0, steps - warmup)  # of what follows the warm-up
    falling = {"cosine": (1 + math.cos(math.pi * share)) / 2, "linear": 1 - share, "constant": 1.0}
    return settings.learning_rate * falling[settings.schedule]


class Trainer:
    """Trains a network's matrices on what the dense model said.

    Args:
        training, held_out: each not empty.
        file: where the progress is kept; the first of the processes writes it.
        processes: each has a trainer with the same arguments and calls the same methods.

    Raises:
        DeltaError: what is in `file` is damaged or of another run.
    """

    def __init__(
        self,
        network: AdaptedNetwork,
        training: Sequence[TaughtSequence],
        held_out: Sequence[TaughtSequence],
        settings: TrainingSettings,
        file: ProgressFile,
        processes: Processes,
    ) -> None:
        self._network = network
        self._training = training
        self._held_out = held_out
        self._settings = settings
        self._file = file
        self._processes = processes
        self._plan = plan_steps(
            _lengths(training),
            row_tokens=settings.row_tokens,
            step_tokens=settings.batch_tokens,
            epochs=settings.epochs,
            seed=settings.seed,
        )
        self._held_out_rows = fill_rows(_lengths(held_out), range(len(held_out)), settings.row_tokens)
        self._parameters = network.parameters()
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=settings.learning_rate, betas=BETAS, weight_decay=0.0
        )
        self._progress = Progress()
        self._best: dict[str, Tensor] = {}
        self._resume()

    @property
    def num_steps(self) -> int:
        """Planned; an early stop leaves some out."""
        return len(self._plan)

    def run(self, *, progress: bool) -> Progress:
        """Trains to the end, or until held-out answers no longer gain; then the best matrices are in place.

        Raises:
            DeltaError: the loss is not finite, or progress cannot be kept.
        """
        done = self._progress
        started = time.monotonic() - done.seconds
        saved = time.monotonic()
        every = math.ceil(len(self._plan) / self._settings.evaluations)
        with tqdm(
            total=len(self._plan),
            initial=len(done.steps),
            desc="recovering",
            unit="step",
            disable=not progress,
        ) as bar:
            while True:
                step = len(done.steps)
                is_last = step == len(self._plan)
                is_due = (step % every == 0 or is_last) and (
                    not done.held_out or done.held_out[-1].step < step
                )
                if is_due:
                    self._measure(step, started)
                if is_due or time.monotonic() - saved >= self._settings.save_seconds:
                    self._save(started)
                    saved = time.monotonic()
                bar.set_postfix_str(self._told())
                if is_last or len(done.held_out) - 1 - done.best >= self._settings.patience:
                    break
                self._step(step, started)
                bar.update()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._best[name])
        return done

    def held_out_losses(self) -> VariantLosses:
        """With the matrices as they are."""
        sums = [self._held_out_loss(variant) for variant in range(self._network.num_variants)]
        return VariantLosses(
            cross_entropy=tuple(found.mean_cross_entropy for found in sums),
            divergence=tuple(found.mean_divergence for found in sums),
        )

    def _step(self, step: int, started: float) -> None:
        rows = self._plan[step]
        rate = learning_rate_at(step, len(self._plan), self._settings)
        answer_tokens = sum(len(self._training[index].sequence.answer) for row in rows for index in row)
        generator = torch.Generator().manual_seed(self._settings.seed * VARIANT_STREAM + step)
        variants = torch.randint(self._network.num_variants, (len(rows),), generator=generator).tolist()
        sums = LossSums()
        for row, variant in self._processes.share(list(zip(rows, variants, strict=True))):
            packed, dense = self._row(self._training, row)
            sums += losses(
                self._network.head,
                self._network.hidden(packed, variant),
                packed.labels,
                dense,
                ce_weight=self._settings.ce_weight,
                gradient_scale=1 / answer_tokens,
            )
        sums = self._over_all(sums)
        if not math.isfinite(sums.cross_entropy + sums.divergence):
            raise DeltaError(
                f"the loss is not finite at step {step + 1} of {len(self._plan)}: lower --learning-rate "
                f"({self._settings.learning_rate:g})"
            )
        self._add_up_gradients()
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), LARGEST_GRADIENT)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._progress.steps.append(
            StepLoss(
                step=step,
                learning_rate=rate,
                cross_entropy=sums.mean_cross_entropy,
                divergence=sums.mean_divergence,
                fed_tokens=sum(len(self._training[index].sequence.fed) for row in rows for index in row),
                seconds=time.monotonic() - started,
            )
        )

    def _measure(self, step: int, started: float) -> None:
        found = self.held_out_losses()
        self._progress.held_out.append(
            HeldOutLoss(found.cross_entropy, found.divergence, step=step, seconds=time.monotonic() - started)
        )
        if self._progress.best == len(self._progress.held_out) - 1:
            self._best = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def _held_out_loss(self, variant: int) -> LossSums:
        sums = LossSums()
        for row in self._processes.share(self._held_out_rows):
            packed, dense = self._row(self._held_out, row)
            hidden = self._network.hidden(packed, variant)
            sums += losses(
                self._network.head, hidden, packed.labels, dense, ce_weight=self._settings.ce_weight
            )
        return self._over_all(sums)

    def _over_all(self, sums: LossSums) -> LossSums:
        """Those of all processes together."""
        parts = torch.tensor(
            [sums.tokens, sums.cross_entropy, sums.divergence],
            dtype=torch.float64,
            device=self._network.device,
        )
        self._processes.add_up([parts])
        tokens, cross_entropy, divergence = parts.tolist()
        return LossSums(round(tokens), cross_entropy, divergence)

    def _add_up_gradients(self) -> None:
        for parameter in self._parameters.values():
            if parameter.grad is None:  # no row of this step was this process's
                parameter.grad = torch.zeros_like(parameter)
        self._processes.add_up([cast("Tensor", parameter.grad) for parameter in self._parameters.values()])

    def _row(self, taught: Sequence[TaughtSequence], row: Row) -> tuple[Any, TopTokens]:
        members = [taught[index] for index in row]
        device = self._network.device
        dense = TopTokens(
            torch.cat([member.dense.ids for member in members]).to(device),
            torch.cat([member.dense.log_probs for member in members]).to(device),
        )
        return pack([member.sequence for member in members], device), dense

    def _told(self) -> str:
        held_out = self._progress.held_out[self._progress.best].divergence
        return f"held-out KL {' '.join(f'{value:.5f}' for value in held_out)}"

    def _save(self, started: float) -> None:
        if not self._processes.is_first:
            return
        self._progress.seconds = time.monotonic() - started
        optimizer = self._optimizer.state_dict()["state"]
        self._file.save(
            self._progress,
            {
                **{f"now.{name}": parameter for name, parameter in self._parameters.items()},
                **{f"best.{name}": tensor for name, tensor in self._best.items()},
                **{
                    f"optimizer.{index}.{name}": tensor
                    for index, state in optimizer.items()
                    for name, tensor in state.items()
                },
            },
        )

    @torch.no_grad()
    def _resume(self) -> None:
        found = self._file.load()
        if found is None:
            return
        self._progress, tensors = found
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "now":
                self._parameters[rest].copy_(tensor)
            elif part == "best":
                self._best[rest] = tensor.to(self._network.device)
            else:
                index, _, moment = rest.partition(".")
                state.setdefault(int(index), {})[moment] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        logger.info("going on after step %d of %d", len(self._progress.steps), len(self._plan))


def _lengths(sequences: Sequence[TaughtSequence]) -> list[int]:
    return [len(taught.sequence.fed) for taught in sequences]
