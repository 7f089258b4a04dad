"""Says how useful each MLP neuron is to the target task, one number a neuron, from a profile.

Pure functions of a profile. Higher is more useful; ranking.py sorts, widths.py cuts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from pruning.calibration.profile import SelectivityProfile, TokenMoments
from pruning.errors import ProfileError
from pruning.ranking.widths import Allocation

EPSILON = 1e-6  # of equation 2 of arXiv 2604.27115


@dataclass(frozen=True)
class Score:
    """A way of judging neurons.

    Attributes:
        name: what the configuration calls it.
        compute: profile -> float64 [layers, neurons].
        comparable_across_layers: whether a neuron of one layer may be weighed against one of another.
        uses_distractors: whether it takes a profile of foreign prompts.
    """

    name: str
    compute: Callable[[SelectivityProfile], Tensor]
    comparable_across_layers: bool
    uses_distractors: bool = False

    @property
    def default_allocation(self) -> Allocation:
        """One global order where values compare across layers, else the same width everywhere."""
        return "global" if self.comparable_across_layers else "uniform"


def taylor2(profile: SelectivityProfile) -> Tensor:
    """E[(h ∂L/∂h)²] over all tokens of the target sequences.

    L is the negative log-likelihood of the dense model's own answer. Leaving a neuron out changes L by
    -h ∂L/∂h to first order. Were the answers drawn from the model, the mean square of that would be, up to a
    factor, the divergence from the dense model to second order (Fisher information); they are greedy ones,
    which makes it an empirical Fisher and small where the model is sure. It means the same in every layer.
    The criterion of Molchanov et al., 2019 (arXiv 1906.10771), on activations in place of weights.
    """
    tokens = profile.target_prompt.tokens + profile.target_answer.tokens
    _require(tokens, "tokens of target sequences", profile)
    return profile.taylor_sq_sum / tokens


def taylor1(profile: SelectivityProfile) -> Tensor:
    """E|h ∂L/∂h| over all tokens of the target sequences.

    How far leaving a neuron out moves L, as in `taylor2`, to first order and without regard to the sign. The
    criterion of Molchanov et al., 2016 (arXiv 1611.06440), per token in place of per feature map.
    """
    tokens = profile.target_prompt.tokens + profile.target_answer.tokens
    _require(tokens, "tokens of target sequences", profile)
    if profile.taylor_abs_sum is None:
        raise ProfileError(_lacking("|h ∂L/∂h|", profile))
    return profile.taylor_abs_sum / tokens


def wanda(profile: SelectivityProfile) -> Tensor:
    """‖W_d column‖ √E[h²] over the tokens of the dense model's own answers.

    How far a neuron moves the residual stream. After Sun et al., 2023 (arXiv 2306.11695), with the whole
    neuron in place of one weight.
    """
    return profile.down_norm * (_mean_square(profile.target_answer, profile)).sqrt()


def taylor2_wanda(profile: SelectivityProfile) -> Tensor:
    """√taylor2 · wanda: what a neuron did to the loss, times what it does to the residual stream."""
    return taylor2(profile).sqrt() * wanda(profile)


def taylor2_mixed(profile: SelectivityProfile) -> Tensor:
    """taylor2 decides how many neurons each layer keeps, taylor2_wanda which.

    The values of `taylor2` in each layer, dealt out in the order of `taylor2_wanda`: the one compares across
    layers, the other does not.
    """
    values = taylor2(profile).sort(dim=1, descending=True).values
    order = taylor2_wanda(profile).argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(values).scatter_(1, order, values)


def act_l2(profile: SelectivityProfile) -> Tensor:
    """√Σ m² over the dense model's own answers, where m is an answer's mean |h|.

    Muralidharan et al., 2024 (Minitron, arXiv 2407.14679): mean over the sequence, L2 norm over the batch;
    of |h| in place of h, whose signs would cancel.
    """
    answers = profile.target_per_answer
    if answers is None or answers.sequences == 0:
        raise ProfileError(_lacking("answers by themselves", profile))
    return answers.sq_sum.sqrt()


def flap(profile: SelectivityProfile) -> Tensor:
    """Var(h) ‖W_d column‖² over the tokens of the dense model's own answers.

    What is lost where a neuron's mean is kept as a bias: the fluctuation metric of An et al., 2023 (FLAP,
    arXiv 2312.11983). No such bias is kept here, so a neuron whose output is large but constant is
    judged too leniently.
    """
    answer = profile.target_answer
    variance = _mean_square(answer, profile) - (answer.sum / answer.tokens).square()
    # Rounding can take the difference of two nearly equal numbers below zero.
    return variance.clamp(min=0) * profile.down_norm.square()


def selectivity(profile: SelectivityProfile) -> Tensor:
    """(μ_target - μ_distractor) / (σ + 1e-6), equation 2 of arXiv 2604.27115.

    μ is the mean over prompts of a prompt's mean |h|; σ is the standard deviation of those prompt-level
    means around their common mean, over the prompts of both domains pooled (dividing by their number).
    """
    target, distractor = profile.target_per_prompt, profile.distractor_per_prompt
    _require(target.sequences, "target prompts", profile)
    _require(distractor.sequences, "distractor prompts", profile)
    prompts = target.sequences + distractor.sequences
    mean = (target.sum + distractor.sum) / prompts
    variance = (target.sq_sum + distractor.sq_sum) / prompts - mean.square()
    # Rounding can take the difference of two nearly equal numbers below zero.
    deviation = variance.clamp(min=0).sqrt()
    difference = target.sum / target.sequences - distractor.sum / distractor.sequences
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


def protected_neurons(profile: SelectivityProfile, share: float, layers: int) -> Tensor | None:
    """bool [layers, neurons], those that should go last; None where nothing is asked for.

    Args:
        share: of each layer's neurons, the strongest by `act_l2`.
        layers: so many first and so many last ones, as a whole.
    """
    if share == 0 and layers == 0:
        return None
    strength = act_l2(profile) if share else torch.zeros_like(profile.down_norm)
    num_layers, num_neurons = strength.shape
    strongest = strength.argsort(dim=1, descending=True, stable=True)[:, : round(share * num_neurons)]
    protected = torch.zeros(num_layers, num_neurons, dtype=torch.bool).scatter_(1, strongest, True)
    protected[:layers] = True
    protected[max(num_layers - layers, 0) :] = True
    return protected


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        score.name: score
        for score in (
            Score("taylor2", taylor2, comparable_across_layers=True),
            Score("taylor1", taylor1, comparable_across_layers=True),
            Score("taylor2_wanda", taylor2_wanda, comparable_across_layers=False),
            Score("taylor2_mixed", taylor2_mixed, comparable_across_layers=True),
            Score("wanda", wanda, comparable_across_layers=False),
            Score("flap", flap, comparable_across_layers=False),
            Score("act_l2", act_l2, comparable_across_layers=False),
            Score("selectivity", selectivity, comparable_across_layers=False, uses_distractors=True),
            Score("magnitude", magnitude, comparable_across_layers=False),
            Score("random", random, comparable_across_layers=False),
        )
    }
)
DEFAULT_SCORE = "taylor2_mixed"


def _uniform(profile: SelectivityProfile, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(profile.down_norm.shape, generator=generator, dtype=torch.float64)


def _mean_square(moments: TokenMoments, profile: SelectivityProfile) -> Tensor:
    _require(moments.tokens, "answer tokens", profile)
    return moments.sq_sum / moments.tokens


def _require(count: float, what: str, profile: SelectivityProfile) -> None:
    if count == 0:
        raise ProfileError(_lacking(what, profile))


def _lacking(what: str, profile: SelectivityProfile) -> str:
    return (
        f"the profile for task {profile.provenance.task!r} counts no {what}, which this score needs; "
        f"rebuild it with `secateur profile --force`, and more prompts where it is not of an older version"
    )
