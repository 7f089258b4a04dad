"""What the settings say about which neurons go first, and how widths follow: the same for every command."""

from pruning.profile import SelectivityProfile
from pruning.ranking import Ranking, rank
from pruning.scores import SCORES
from pruning.widths import Allocation
from server.settings import RankingSettings, SettingsError


def ranking_of(settings: RankingSettings, profile: SelectivityProfile) -> Ranking:
    """The order of all neurons. Raises ProfileError where the profile does not suffice for the score."""
    return rank(
        SCORES[settings.score].compute(profile),
        score=settings.score,
        profile_digest=profile.digest,
        order=settings.order,
    )


def allocation_of(settings: RankingSettings) -> Allocation:
    """How widths are chosen. Raises SettingsError for one that the score does not allow."""
    score = SCORES[settings.score]
    if settings.allocation == "auto":
        return score.default_allocation
    if settings.allocation == "global" and not score.comparable_across_layers:
        raise SettingsError(
            f"allocation global weighs neurons of different layers against each other, which the score "
            f"{score.name} does not allow: use uniform, or another score"
        )
    return settings.allocation
