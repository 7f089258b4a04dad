"""What the settings say about which neurons go first, and how widths follow: the same for every command."""

from dataclasses import dataclass
from pathlib import Path

from pruning.calibration.profile import Provenance, SelectivityProfile
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.ranking.ranking import Ranking, rank
from pruning.ranking.ranking_file import SavedRanking, load_ranking
from pruning.ranking.scores import SCORES
from pruning.ranking.widths import Allocation
from server.loading.profiles import profile_for_serving
from server.settings import AllocationName, RankingSettings, ScoreName, SettingsError

# A task whose calibration takes all items of another: nothing is left of that one to be judged by.
_USES_UP = {"humaneval": "mbpp"}


@dataclass(frozen=True)
class RankedModel:
    """The order of a model's neurons, how widths follow from it, and what it was measured on."""

    ranking: Ranking
    allocation: Allocation
    provenance: Provenance


def ranked(settings: RankingSettings, checkpoint: Checkpoint) -> RankedModel:
    """By the ranking that is named, else by score, from a profile that is measured where there is none.

    Raises:
        SettingsError: the allocation is not one that the order allows, or the order was measured on the very
            items that it would be judged by.
        SecateurError: the ranking is of another model; as `profile_for_serving`.
    """
    if settings.ranking is not None:
        saved = open_ranking(settings.ranking, checkpoint, settings.task)
        ranking = saved.ranking.reversed() if settings.order == "reverse" else saved.ranking
        return RankedModel(ranking, _saved_allocation(settings, saved), saved.provenance)
    allocation = allocation_of(settings.score, settings.allocation)
    profile = profile_for_serving(settings, checkpoint)
    check_apart(profile.provenance, settings.task)
    return RankedModel(ranking_of(settings, profile), allocation, profile.provenance)


def open_ranking(path: Path, checkpoint: Checkpoint, task: str) -> SavedRanking:
    """One that is to be judged by `task`.

    Raises:
        RankingError: it cannot be read, or is of another model.
        SettingsError: as `check_apart`.
    """
    saved = load_ranking(path)
    saved.check(model=checkpoint.fingerprint, tokenizer=checkpoint.tokenizer_fingerprint)
    check_apart(saved.provenance, task)
    return saved


def check_apart(provenance: Provenance, task: str) -> None:
    """Raises SettingsError where neurons were measured on the items that `task` judges by."""
    if uses_up(provenance.task, task):
        raise SettingsError(
            f"neurons were measured for {provenance.task}, on both halves of {task}: judged by it they would "
            f"look better than they are. Use --task {provenance.task}, or measure for {task}"
        )


def uses_up(made_for: str, task: str) -> bool:
    """Whether what was made for one task has seen the items that the other judges by."""
    return _USES_UP.get(made_for) == task


def ranking_of(settings: RankingSettings, profile: SelectivityProfile) -> Ranking:
    """By score. Raises ProfileError where the profile does not suffice for it."""
    return rank(
        SCORES[settings.score].compute(profile),
        score=settings.score,
        profile_digest=profile.digest,
        order=settings.order,
    )


def allocation_of(score_name: ScoreName, asked: AllocationName) -> Allocation:
    """How widths are chosen. Raises SettingsError for one that the score does not allow."""
    score = SCORES[score_name]
    if asked == "auto":
        return score.default_allocation
    if asked == "global" and not score.comparable_across_layers:
        raise SettingsError(
            f"allocation global weighs neurons of different layers against each other, which the score "
            f"{score.name} does not allow: use uniform, or another score"
        )
    return asked


def _saved_allocation(settings: RankingSettings, saved: SavedRanking) -> Allocation:
    if settings.allocation == "auto":
        return saved.allocation
    if settings.allocation == "global" and saved.allocation == "uniform":
        raise SettingsError(
            f"the ranking {settings.ranking} was made for equal widths and says nothing of layers against "
            f"each other: use allocation uniform, or auto"
        )
    return settings.allocation
