"""What may be concluded from counts of solved problems. Pure: knows nothing of tasks or models."""

import math
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval for a proportion (Wilson, 1927, JASA 22, p. 209), low and high end in 0..1.

    Unlike the normal approximation it keeps its coverage near 0 and 1, where good models live.

    Raises:
        ValueError: no trials, more successes than trials, or a confidence outside (0, 1).
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(
            f"{successes} successes in {trials} trials; it takes 0 <= successes <= trials, trials > 0"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence is {confidence}; it must be between 0 and 1, e.g. 0.95")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    denominator = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At the ends the formula is exact in theory and off by a rounding error in floating point.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def least_accuracy(tolerance: float) -> float:
    """The share of the items beyond which a loss of at most `tolerance` says something, 0 < tolerance < 1/2.

    Who solves less than the tolerance cannot lose more. Whoever solves twice as much, and loses no more than
    the tolerance, keeps at least half.
    """
    return 2 * tolerance


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact McNemar test (binomial, conditional on the discordant pairs).

    Args:
        only_first: items that only the first of the two solved.
        only_second: items that only the second solved.

    Source: McNemar, 1947, Psychometrika 12, p. 153; the exact form as in Fagerland, Lydersen and Laake, 2013,
    BMC Medical Research Methodology 13:91, equation 2.

    Raises:
        ValueError: a count is negative.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"discordant pairs are {only_first} and {only_second}; counts are never negative")
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, tail / 2 ** (discordant - 1)) if discordant else 1.0


def minimum_detectable_drop(
    items: int,
    dense_accuracy: float,
    *,
    agreement: float = 0.0,
    confidence: float = 0.95,
    power: float = 0.8,
) -> float:
    """The smallest drop below `dense_accuracy` that `items` paired items would show, as a share of the items.

    One-sided, by the normal approximation for paired proportions (Connor, 1987, Biometrics 43, p. 207). It
    is about one look at a fixed number of items; a sequential test needs more of them. NaN where not even
    the loss of all accuracy would show.

    Args:
        agreement: how far both fail at the same items: 0 as if independent, 1 as far as it can go. The former
            is the cautious choice, real variants are in between.
        power: the probability that such a drop is shown.

    Raises:
        ValueError: no items, or a share outside its range.
    """
    if items < 1 or not 0 < dense_accuracy <= 1 or not 0 <= agreement <= 1:
        raise ValueError(
            f"{items} items, dense accuracy {dense_accuracy}, agreement {agreement}; it takes items > 0, "
            "0 < accuracy <= 1, 0 <= agreement <= 1"
        )
    if not 0 < confidence < 1 or not 0 < power < 1:
        raise ValueError(f"confidence {confidence}, power {power}; both must be between 0 and 1")
    z_confidence, z_power = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(power)

    def shows(drop: float) -> bool:
        accuracy = dense_accuracy - drop
        # Solved by the variant alone: none at full agreement, else as if by chance.
        regained = (1 - agreement) * accuracy * (1 - dense_accuracy)
        discordant = drop + 2 * regained
        needed = z_confidence * math.sqrt(discordant) + z_power * math.sqrt(discordant - drop * drop)
        return drop * math.sqrt(items) >= needed

    if not shows(dense_accuracy):
        return math.nan
    low, high = 0.0, dense_accuracy
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high
