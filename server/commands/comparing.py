"""The composition root of `secateur compare`: settings in; a table, a recommendation and its ranking out."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from eval.comparison.comparison import Candidate, Comparison, Measured, compare
from eval.comparison.report import render
from eval.comparison.store import ComparisonStore, as_json
from eval.provenance import provenance
from eval.task import Task, TaskItem
from eval.tasks.registry import open_task
from pruning.calibration.batches import with_answers
from pruning.calibration.calibration import load_network
from pruning.calibration.profile import Provenance, SelectivityProfile
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.ranking.divergence import AnswerDivergence, DenseReference
from pruning.ranking.masking import keeping, kept_neurons
from pruning.ranking.ranking import Ranking, rank
from pruning.ranking.ranking_file import SavedRanking
from pruning.ranking.scores import SCORES, protected_neurons
from pruning.ranking.widths import Allocation, exact_sparsity, widths_at
from server.loading.profiles import measured_answers, measuring_on, open_model, profile_for_serving
from server.loading.rankings import check_apart, open_ranking
from server.settings import CompareSettings, SettingsError

if TYPE_CHECKING:  # takes a second and 80 MB to import; a comparison that is complete needs no model
    from transformers import PreTrainedModel

FAR_SEED = 2**32  # nobody's seed: items that have no end are others by it
RESULTS, RANKING = "results.json", "ranking.safetensors"


@dataclass(frozen=True, eq=False)
class _Contender:
    """A candidate with its order, and what that was measured on."""

    candidate: Candidate
    ranking: Ranking
    measured_at: tuple[float, ...]
    provenance: Provenance

    def saved(self) -> SavedRanking:
        return SavedRanking(self.ranking, self.candidate.allocation, self.measured_at, self.provenance)


def compare_rankings(settings: CompareSettings) -> str:
    """What `secateur compare` does: measures what is not measured yet, and writes what came of it.

    Returns the report, for a terminal.

    Raises:
        SecateurError: the settings, the task, the model or the disk do not allow it.
    """
    task = open_task(settings.task, settings.task_options())
    checkpoint = open_model(settings)
    # By candidate: two files may hold the same order, and what is there twice would count twice.
    contenders = list({each.candidate: each for each in _contenders(settings, checkpoint)}.values())
    out = settings.out or Path("comparisons") / f"{Path(settings.model).name}-{settings.task}"
    store = ComparisonStore(out)
    comparison = _measure(settings, task, checkpoint, contenders, store)
    store.write(RESULTS, as_json(comparison))
    best = next(c for c in contenders if c.candidate == comparison.recommended)
    best.saved().save(out / RANKING)
    return f"{render(comparison)}\n{out / RESULTS}\n{out / RANKING}: for serve --ranking"


def _contenders(settings: CompareSettings, checkpoint: Checkpoint) -> Iterator[_Contender]:
    """Every score with every option that makes a difference to it, then the rankings out of files."""
    profile = profile_for_serving(settings, checkpoint)
    check_apart(profile.provenance, settings.task)
    for name in settings.scores or SCORES:
        for allocation in settings.allocations:
            if allocation == "uniform" or SCORES[name].comparable_across_layers:
                yield from _protected(settings, profile, name, allocation)
    for path in settings.rankings:
        saved = open_ranking(path, checkpoint, settings.task)
        candidate = Candidate(
            f"{path.stem}: {saved.ranking.score}", saved.allocation, 0, 0, saved.ranking.digest
        )
        yield _Contender(candidate, saved.ranking, saved.measured_at, saved.provenance)


def _protected(
    settings: CompareSettings, profile: SelectivityProfile, name: str, allocation: Allocation
) -> Iterator[_Contender]:
    for share in settings.protect_neurons:
        for layers in settings.protect_layers:
            if layers and allocation == "uniform":
                continue  # all widths are equal, so a whole layer cannot be kept
            ranking = rank(
                SCORES[name].compute(profile),
                score=_label(name, share, layers),
                profile_digest=profile.digest,
                protected=protected_neurons(profile, share, layers),
            )
            candidate = Candidate(name, allocation, share, layers, ranking.digest)
            yield _Contender(candidate, ranking, (0.0,), profile.provenance)


def _label(score: str, share: float, layers: int) -> str:
    """What a ranking says of where it comes from."""
    return score if not share and not layers else f"{score}, {share:g} and {layers} outer layers protected"


def _measure(
    settings: CompareSettings,
    task: Task,
    checkpoint: Checkpoint,
    contenders: list[_Contender],
    store: ComparisonStore,
) -> Comparison:
    if not contenders:
        raise SettingsError(
            f"none of the scores {', '.join(settings.scores)} allows {', '.join(settings.allocations)}: "
            f"add allocation uniform, or a score that compares across layers"
        )
    items = _items(task, settings.items, settings.seed)
    tokenizer = checkpoint.tokenizer()
    prompts = [prompt_token_ids(tokenizer, item.prompt) for item in items]
    device, dtype = measuring_on(settings, checkpoint)
    identity = [checkpoint.fingerprint, str(dtype), device.type, sorted(checkpoint.eos_token_ids)]

    @cache  # as is `reference`: only where there is something to measure
    def network() -> "PreTrainedModel":
        return load_network(checkpoint, device, dtype)

    answers = measured_answers(settings, checkpoint, [item.prompt for item in items], task.max_new_tokens)

    @cache
    def reference() -> DenseReference:
        sequences = with_answers(prompts, answers.token_ids)
        return DenseReference(network(), sequences, checkpoint.eos_token_ids, progress=True)

    neurons = checkpoint.architecture.intermediate_size

    def divergences(kept: torch.Tensor, name: str) -> list[AnswerDivergence]:
        def run() -> list[AnswerDivergence]:
            dense = reference()
            with keeping(network(), kept):
                return dense.divergence(progress=True, description=name)

        digest = hashlib.sha256(kept.numpy().tobytes()).hexdigest()
        return store.divergences(_key(*identity, prompts, answers.token_ids, digest), run)

    measured = []
    cells = [(contender, sparsity) for contender in contenders for sparsity in settings.sparsities]
    for contender, sparsity in tqdm(cells, desc="cells", unit="cell"):
        candidate = contender.candidate
        widths = widths_at(contender.ranking, sparsity, candidate.allocation)
        found = divergences(kept_neurons(contender.ranking, widths), f"{candidate.name}, {sparsity:g}")
        measured.append(Measured(candidate, sparsity, exact_sparsity(widths, neurons), widths, found))
    whole = torch.ones(checkpoint.architecture.num_layers, neurons, dtype=torch.bool)
    return compare(
        measured,
        divergences(whole, "dense"),
        model={
            "name": checkpoint.name,
            "fingerprint": checkpoint.fingerprint,
            "profile": contenders[0].ranking.profile_digest,
            "dtype": str(dtype).removeprefix("torch."),
        },
        task={
            "name": task.name,
            "digest": task.digest,
            "items": len(items),
            "seed": settings.seed,
            "max_new_tokens": task.max_new_tokens,
            "unfinished_answers": answers.unfinished,
        },
        provenance=provenance(),
        seed=settings.seed,
    )


def _items(task: Task, count: int, seed: int) -> list[TaskItem]:
    """The last ones, where `eval` and `study` take the first: what some choose is then judged by others.

    Raises TaskError where there are fewer than `count`.
    """
    if task.num_evaluation is None:
        return task.evaluation(count, seed + FAR_SEED)
    return task.evaluation(max(count, task.num_evaluation), seed)[-count:]


def _key(*parts: object) -> str:
    """Names all that a measurement depends on; hexadecimal SHA-256."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
