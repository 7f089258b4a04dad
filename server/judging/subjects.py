"""What an evaluation runs on, as the settings say: a study's strategies, one variant, the engine's limits.

Loads profiles, not weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from eval.study.study import TIMED_REQUESTS
from eval.subject import REVERSED_SUFFIX, Strategy
from eval.task import Task, TaskItem
from pruning.calibration.profile import SelectivityProfile
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.ranking.ranking import Ranking, rank, unranked
from pruning.ranking.scores import SCORES, Score, random_score
from pruning.ranking.widths import Allocation
from server.engine.config import EngineConfig
from server.judging.local import LocalSubject
from server.loading.deltas import read_delta
from server.loading.profiles import open_model, profile_for_serving
from server.loading.rankings import ranked
from server.loading.sizes import engine_config
from server.settings import EvalSettings, StudySettings


@dataclass(frozen=True)
class LocalStudy:
    """The strategies on a checkpoint, each with its sparsities.

    Attributes:
        subjects: the first has the dense model besides, and is timed.
        ranking, allocation: the first strategy's, with which `serve` would look for a safe sparsity.
        model: about all of them, for whoever reads the results.
    """

    subjects: list[LocalSubject]
    ranking: Ranking
    allocation: Allocation
    model: dict[str, Any]


def local_study(settings: StudySettings, task: Task, items: Sequence[TaskItem]) -> LocalStudy:
    """What the settings ask for; measures a profile where there is none.

    Raises:
        SecateurError: the model, the profile or the settings do not allow it.
    """
    checkpoint = open_model(settings)
    known = ranked(settings, checkpoint)
    config = limits(settings, checkpoint, task, items)
    first = LocalSubject(
        strategy=_strategy(known.ranking),
        sparsities=tuple(sorted({0.0, *settings.sparsities})),
        checkpoint=checkpoint,
        ranking=known.ranking,
        allocation=known.allocation,
        config=config,
        stop_on_loop=settings.stop_on_loop,
        is_timed=True,
    )
    pruned = replace(first, sparsities=settings.sparsities, is_timed=False)
    others = [SCORES[name] for name in settings.compare_scores]
    others += [random_score(seed) for seed in settings.random_seeds]
    subjects = [first]
    if others:
        profile = profile_for_serving(settings, checkpoint)
        subjects += [_scored(pruned, other, settings, profile) for other in others]
    if settings.reverse:
        reverse = known.ranking.reversed()
        subjects.append(replace(pruned, strategy=_strategy(reverse), ranking=reverse))
    model = {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint[:16],
        "profile": known.ranking.profile_digest[:16],
        "allocation": known.allocation,
        "dtype": config.precision,
        "kernels": first.identity(0.0)["kernels"],
    }
    return LocalStudy(subjects, known.ranking, known.allocation, model)


def local_variant(settings: EvalSettings, task: Task, items: Sequence[TaskItem]) -> LocalSubject:
    """The one variant that the settings name. Raises SecateurError."""
    checkpoint = open_model(settings)
    allocation: Allocation = "uniform"
    if settings.sparsity == 0 and settings.delta is None:
        architecture = checkpoint.architecture
        ranking = unranked(architecture.num_layers, architecture.intermediate_size)
    else:
        known = ranked(settings, checkpoint)
        ranking, allocation = known.ranking, known.allocation
    return LocalSubject(
        strategy=_strategy(ranking),
        sparsities=(settings.sparsity,),
        checkpoint=checkpoint,
        ranking=ranking,
        allocation=allocation,
        config=limits(settings, checkpoint, task, items),
        stop_on_loop=settings.stop_on_loop,
        delta=None if settings.delta is None else read_delta(settings.delta, settings.task),
    )


def limits(
    settings: EvalSettings | StudySettings, checkpoint: Checkpoint, task: Task, items: Sequence[TaskItem]
) -> EngineConfig:
    """As `serve` would set them, but with room for as many full answers as run at once."""
    config = engine_config(settings, checkpoint)
    tokenizer = checkpoint.tokenizer()
    longest = max(len(prompt_token_ids(tokenizer, item.prompt)) for item in items) + task.max_new_tokens
    if settings.max_model_len is None:
        longest = min(longest, checkpoint.config.max_position_embeddings)
        config = replace(config, max_model_len=longest)
    if settings.kv_cache_gib is None:
        token_bytes = checkpoint.architecture.kv_bytes_per_token(getattr(torch, config.dtype).itemsize)
        tokens = (longest + config.block_size) * config.max_num_seqs
        config = replace(config, kv_cache_bytes=tokens * token_bytes)
    # Nobody is turned away: what asks is this process.
    return replace(config, max_waiting=config.max_waiting + config.max_num_seqs + TIMED_REQUESTS)


def _scored(
    pruned: LocalSubject, score: Score, settings: StudySettings, profile: SelectivityProfile
) -> LocalSubject:
    """Another score, with the widths that suit it, unless the settings ask for equal ones."""
    uniform = settings.allocation == "uniform"
    return replace(
        pruned,
        strategy=Strategy(score.name, score.name, "forward"),
        ranking=rank(score.compute(profile), score=score.name, profile_digest=profile.digest),
        allocation="uniform" if uniform else score.default_allocation,
    )


def _strategy(ranking: Ranking) -> Strategy:
    name = ranking.score if ranking.order == "forward" else ranking.score + REVERSED_SUFFIX
    return Strategy(name, ranking.score, ranking.order)
