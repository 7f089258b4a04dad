"""Measures math-mini: held-out accuracy of the dense model, and what pruning leaves of it.

Everything is seeded and runs through plain transformers, greedily. Knows nothing of how the card looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from eval.statistics import wilson_interval
from eval.task import TaskItem
from eval.tasks.arithmetic import ArithmeticTask
from pruning.calibration.calibration import CalibrationData, build_profile
from pruning.calibration.profile import SelectivityProfile
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint, default_cache_dir, open_checkpoint
from pruning.ranking.ranking import Order, Ranking, rank
from pruning.ranking.scores import SCORES
from pruning.ranking.widths import Allocation, exact_sparsity, widths_at
from pruning.slicing import slice_model
from training.answers import own_answers

DTYPE = torch.bfloat16  # the one that the checkpoint is stored in
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)


@dataclass(frozen=True)
class Strategy:
    """A way to choose the neurons that stay. `seed` matters to random scores alone."""

    label: str
    score: str
    order: Order
    allocation: Allocation
    seed: int = 0


STRATEGIES = (
    Strategy("selective: taylor2_mixed, one order over all layers", "taylor2_mixed", "forward", "global"),
    Strategy("selective: taylor2, one order over all layers", "taylor2", "forward", "global"),
    Strategy("selective: the paper's selectivity, equal widths", "selectivity", "forward", "uniform"),
    Strategy("random, equal widths, seed 0", "random", "forward", "uniform", seed=0),
    Strategy("random, equal widths, seed 1", "random", "forward", "uniform", seed=1),
    Strategy("reverse: taylor2_mixed, one order over all layers", "taylor2_mixed", "reverse", "global"),
)


@dataclass(frozen=True)
class Accuracy:
    """Problems solved, and the 95% Wilson interval of their share."""

    solved: int
    items: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.solved / self.items


@dataclass(frozen=True)
class Point:
    """One sparsity of one strategy: the sparsity asked for, the one that rounded widths give, the outcome."""

    sparsity: float
    exact_sparsity: float
    widths: tuple[int, ...]
    accuracy: Accuracy


@dataclass(frozen=True)
class Curve:
    """What one strategy leaves of the model, by rising sparsity, from 0 on."""

    strategy: Strategy
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Results:
    """Everything measured, and on what.

    Attributes:
        model: fingerprint of the checkpoint.
        seed: that evaluation and calibration items were drawn with.
        calibration_items: target prompts, and as many distractors, that neurons were scored on.
        dense: of the whole model.
        curves: on the first items of those that `dense` was measured on.
        example: a held-out problem and the dense model's answer.
        versions: of the libraries that took part.
    """

    model: str
    dtype: str
    seed: int
    calibration_items: int
    dense: Accuracy
    curves: tuple[Curve, ...]
    example: tuple[str, str]
    versions: dict[str, str]


def measure(path: Path, items: int, curve_items: int, calibration_items: int, seed: int) -> Results:
    """Evaluates the checkpoint at `path` on `items` problems, and each pruned one on the first `curve_items`.

    Raises:
        ValueError: fewer `items` than `curve_items`.
    """
    if items < curve_items:
        raise ValueError(
            f"{items} items, but {curve_items} for the curves, which are some of them; raise items"
        )
    task = ArithmeticTask()
    checkpoint = open_checkpoint(str(path), default_cache_dir())
    tokenizer = checkpoint.tokenizer()
    problems = task.evaluation(items, seed)

    answers = _answers(_load(checkpoint), tokenizer, task, problems, progress=True)
    profile = _profile(checkpoint, task, calibration_items, seed)
    architecture = checkpoint.architecture
    whole = Point(
        sparsity=0.0,
        exact_sparsity=0.0,
        widths=(architecture.intermediate_size,) * architecture.num_layers,
        accuracy=_accuracy(task, problems[:curve_items], answers[:curve_items]),
    )
    curves = []
    with tqdm(total=len(STRATEGIES) * len(SPARSITIES), desc="pruned", unit="variant") as bar:
        for strategy in STRATEGIES:
            ranking = _ranking(profile, strategy)
            points = [whole]
            for sparsity in SPARSITIES:
                widths = widths_at(ranking, sparsity, strategy.allocation)
                model = slice_model(_load(checkpoint), ranking, widths)
                pruned = _answers(model, tokenizer, task, problems[:curve_items], progress=False)
                accuracy = _accuracy(task, problems[:curve_items], pruned)
                exact = exact_sparsity(widths, architecture.intermediate_size)
                points.append(Point(sparsity, exact, widths, accuracy))
                bar.update()
            curves.append(Curve(strategy, tuple(points)))
    return Results(
        model=checkpoint.fingerprint,
        dtype=str(DTYPE).removeprefix("torch."),
        seed=seed,
        calibration_items=calibration_items,
        dense=_accuracy(task, problems, answers),
        curves=tuple(curves),
        example=(problems[0].prompt, answers[0]),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def _load(checkpoint: Checkpoint) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=DTYPE, local_files_only=True)
    return cast("PreTrainedModel", model.eval())  # type: ignore[no-untyped-call]


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: ArithmeticTask,
    items: Sequence[TaskItem],
    *,
    progress: bool,
) -> list[str]:
    prompts = [prompt_token_ids(tokenizer, item.prompt) for item in items]
    answers = own_answers(model, prompts, task.max_new_tokens, progress=progress)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers.token_ids]


def _accuracy(task: ArithmeticTask, items: Sequence[TaskItem], answers: Sequence[str]) -> Accuracy:
    solved = sum(task.grade(item, answer) for item, answer in zip(items, answers, strict=True))
    return Accuracy(solved, len(items), *wilson_interval(solved, len(items)))


def _profile(checkpoint: Checkpoint, task: ArithmeticTask, items: int, seed: int) -> SelectivityProfile:
    data = CalibrationData(
        target=tuple(item.prompt for item in task.calibration(items, seed)),
        distractor=tuple(task.distractors(items, seed)),
        seed=seed,
        max_new_tokens=task.max_new_tokens,
    )
    tokenizer = checkpoint.tokenizer()
    prompts = [prompt_token_ids(tokenizer, prompt) for prompt in data.target]
    answers = own_answers(_load(checkpoint), prompts, task.max_new_tokens, progress=True)
    return build_profile(checkpoint, task.name, data, answers, device="cpu", dtype=DTYPE, progress=True)


def _ranking(profile: SelectivityProfile, strategy: Strategy) -> Ranking:
    seeded = replace(profile, provenance=replace(profile.provenance, seed=strategy.seed))
    return rank(
        SCORES[strategy.score].compute(seeded),
        score=strategy.score,
        profile_digest=profile.digest,
        order=strategy.order,
    )
