"""Says how useful each MLP neuron is to the target task, one number a neuron, from a profile.

Pure functions of a profile. Higher is more useful; ranking.py sorts, widths.py cuts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from pruning.errors import ProfileError
from pruning.profile import SelectivityProfile, TokenMoments
from pruning.widths import Allocation

EPSILON = 1e-6  # of equation 2 of arXiv 2604.27115


@dataclass(frozen=True)
class Score:
    """A way of judging neurons.

    Attributes:
        name: what the configuration calls it.
        compute: profile -> float64 [layers, neurons].
        comparable_across_layers: whether a neuron of one layer may be weighed against one of another.
    """

    name: str
    compute: Callable[[SelectivityProfile], Tensor]
    comparable_across_layers: bool

    @property
    def default_allocation(self) -> Allocation:
        """One global order where values compare across layers, else the same width everywhere."""
        return "global" if self.comparable_across_layers else "uniform"


def taylor2(profile: SelectivityProfile) -> Tensor:
    """E[(h ∂L/∂h)²] over all tokens of the target sequences.

    L is the negative log-likelihood of the dense model's own answer. Leaving a neuron out changes L by
    -h ∂L/∂h to first order; the mean square of that is, up to a factor, the divergence from the dense
    model to second order (Fisher information), in nats, and so means the same in every layer. The
    criterion of Molchanov et al., 2019 (arXiv 1906.10771), on activations in place of weights.
    """
    tokens = profile.target_prompt.tokens + profile.target_answer.tokens
    _require(tokens, "tokens of target sequences", profile)
    return profile.taylor_sq_sum / tokens


def wanda(profile: SelectivityProfile) -> Tensor:
    """‖W_d column‖ √E[h²] over the tokens of the dense model's own answers.

    How far a neuron moves the residual stream. After Sun et al., 2023 (arXiv 2306.11695), with the whole
    neuron in place of one weight.
    """
    return profile.down_norm * (_mean_square(profile.target_answer, profile)).sqrt()


def selectivity(profile: SelectivityProfile) -> Tensor:
    """(μ_target - μ_distractor) / (σ + 1e-6), equation 2 of arXiv 2604.27115.

    μ is the mean over prompts of a prompt's mean |h|; σ is the standard deviation of those prompt-level
    means around their common mean, over the prompts of both domains pooled (dividing by their number).
    """
    target, distractor = profile.target_per_prompt, profile.distractor_per_prompt
    _require(target.prompts, "target prompts", profile)
    _require(distractor.prompts, "distractor prompts", profile)
    prompts = target.prompts + distractor.prompts
    mean = (target.sum + distractor.sum) / prompts
    variance = (target.sq_sum + distractor.sq_sum) / prompts - mean.square()
    # Rounding can take the difference of two nearly equal numbers below zero.
    deviation = variance.clamp(min=0).sqrt()
    difference = target.sum / target.prompts - distractor.sum / distractor.prompts
    return difference / (deviation + EPSILON)


def magnitude(profile: SelectivityProfile) -> Tensor:
    """‖W_g row‖ ‖W_u row‖ ‖W_d column‖: how large a neuron's output can get, data unseen."""
    return profile.gate_norm * profile.up_norm * profile.down_norm


def random(profile: SelectivityProfile) -> Tensor:
    """Uniform in [0, 1), drawn with the profile's seed: the control that a score has to beat."""
    return _uniform(profile, profile.provenance.seed)


def random_score(seed: int) -> Score:
    """The same control drawn with `seed`, which its name tells, and so every ranking's digest."""
    return Score(f"random-{seed}", partial(_uniform, seed=seed), comparable_across_layers=False)


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        score.name: score
        for score in (
            Score("taylor2", taylor2, comparable_across_layers=True),
            Score("wanda", wanda, comparable_across_layers=False),
            Score("selectivity", selectivity, comparable_across_layers=False),
            Score("magnitude", magnitude, comparable_across_layers=False),
            Score("random", random, comparable_across_layers=False),
        )
    }
)
DEFAULT_SCORE = "taylor2"


def _uniform(profile: SelectivityProfile, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(profile.down_norm.shape, generator=generator, dtype=torch.float64)


def _mean_square(moments: TokenMoments, profile: SelectivityProfile) -> Tensor:
    _require(moments.tokens, "answer tokens", profile)
    return moments.sq_sum / moments.tokens


def _require(count: int, what: str, profile: SelectivityProfile) -> None:
    if count == 0:
        raise ProfileError(
            f"the profile for task {profile.provenance.task!r} counts no {what}, which this score needs; "
            f"rebuild it with more calibration prompts"
        )
