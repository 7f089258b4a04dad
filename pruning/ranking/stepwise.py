"""Ranks neurons by taking a few away, measuring what is left, and so on: later ones are judged in the network
that will do without the earlier ones. The order of removal is the ranking, so variants nest as ever.

Knows scores and calibrations; the file of the finished ranking is ranking_file.py's.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pruning.calibration.calibration import Calibration
from pruning.errors import RankingError
from pruning.files import write_atomically
from pruning.headed_tensors import DamagedFileError, read_headed
from pruning.ranking.divergence import DenseReference
from pruning.ranking.masking import keeping
from pruning.ranking.ranking import from_positions
from pruning.ranking.ranking_file import SavedRanking
from pruning.ranking.reweighing import divergence_weights, reweighed
from pruning.ranking.scores import Score
from pruning.ranking.widths import Allocation

logger = logging.getLogger(__name__)

METADATA_KEY = "secateur_steps"


@dataclass(frozen=True)
class Steps:
    """When neurons are measured anew.

    Attributes:
        step: share of all neurons that goes between two measurements.
        max_sparsity: up to which it goes on; the last measurement orders what remains.
        allocation: one order over all layers, or equally many out of each.
        reweigh: count tokens by how far the model that is measured is from the dense one (reweighing.py).
    """

    step: float
    max_sparsity: float
    allocation: Allocation
    reweigh: bool = False

    @property
    def measured_at(self) -> tuple[float, ...]:
        """The sparsity of the model at each measurement, 0 first."""
        count = math.ceil(round(self.max_sparsity / self.step, 6))
        return tuple(round(number * self.step, 6) for number in range(count))

    def num_kept(self, sparsity: float, num_layers: int, num_neurons: int) -> int:
        """Neurons, all layers together, that `sparsity` leaves."""
        if self.allocation == "uniform":
            return num_layers * round(num_neurons * (1 - sparsity))
        return round(num_layers * num_neurons * (1 - sparsity))


@dataclass(frozen=True, eq=False)
class StepsSoFar:
    """Where an interrupted ranking goes on.

    Attributes:
        done: measurements so far.
        position: int64 [layers, neurons], the place of each neuron in the order of all; those that are still
            kept at the next measurement have the lowest.
        profile_digest: of the first measurement, of the whole model.
    """

    done: int
    position: Tensor
    profile_digest: str

    def save(self, path: Path, key: str) -> None:
        """Writes one file, whole or not at all. Raises RankingError."""
        header = {
            "key": key,
            "done": self.done,
            "profile_digest": self.profile_digest,
        }
        try:
            write_atomically(
                path, save({"position": self.position}, metadata={METADATA_KEY: json.dumps(header)})
            )
        except OSError as error:
            raise RankingError(f"cannot write {path}: {error}; make room, or name another --out") from error


def load_steps(path: Path, key: str) -> StepsSoFar | None:
    """What `StepsSoFar.save` wrote under the same key; None where there is nothing.

    Raises:
        RankingError: it is damaged, or of something else.
    """
    if not path.exists():
        return None
    way_out = "measure from the beginning with --force, or name another --out"
    try:
        header, tensors = read_headed(path, METADATA_KEY)
        so_far = StepsSoFar(header["done"], tensors["position"], header["profile_digest"])
    except (DamagedFileError, KeyError) as error:
        raise RankingError(f"{path} is damaged ({error}); {way_out}") from error
    if header.get("key") != key:
        raise RankingError(f"{path} holds measurements of another model, data or settings; {way_out}")
    return so_far


def steps_key(*parts: object) -> str:
    """Names all that steps depend on; hexadecimal SHA-256."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


def rank_in_steps(
    calibration: Calibration,
    score: Score,
    steps: Steps,
    *,
    start: StepsSoFar | None,
    on_step: Callable[[StepsSoFar], None],
    progress: bool,
) -> SavedRanking:
    """Measures, takes neurons away, measures again, to the end.

    Args:
        start: where to go on.
        on_step: called after every measurement.

    Raises:
        ProfileError: activations are not finite, or too few for the score.
    """
    shape = (calibration.architecture.num_layers, calibration.architecture.intermediate_size)
    so_far = start or StepsSoFar(0, torch.arange(math.prod(shape)).view(shape), profile_digest="")
    measured_at = steps.measured_at
    dense = None
    if steps.reweigh:
        dense = DenseReference(calibration.model, calibration.targets, (), progress=progress)
        calibration = replace(calibration, held_bytes=dense.held_bytes)
    for number in range(so_far.done, len(measured_at)):
        num_kept = steps.num_kept(measured_at[number], *shape)
        name = f"step {number + 1} of {len(measured_at)}"
        with keeping(calibration.model, so_far.position < num_kept):
            measured = calibration
            if dense is not None:
                weights = divergence_weights(dense.divergence(progress=progress, description=name))
                measured = replace(calibration, targets=reweighed(calibration.targets, weights))
            profile = measured.measure(progress=progress, description=name)
        so_far = StepsSoFar(
            number + 1,
            reordered(so_far.position, num_kept, score.compute(profile), steps.allocation),
            so_far.profile_digest or profile.digest,
        )
        on_step(so_far)
    ranking = from_positions(
        so_far.position,
        score=f"{score.name}{', reweighed,' if steps.reweigh else ''} in steps of {steps.step:g}",
        profile_digest=so_far.profile_digest,
    )
    return SavedRanking(ranking, steps.allocation, measured_at, calibration.provenance)


def reordered(position: Tensor, num_kept: int, scores: Tensor, allocation: Allocation) -> Tensor:
    """New places, by score, for the neurons whose places are below `num_kept`; the others keep theirs.

    Under "uniform" the best of every layer come first, then the second best, and so on: as many go out of
    each, if as many were kept in each.

    Args:
        position: int64 [layers, neurons].
        scores: [layers, neurons]; those of neurons that are gone do not count.
    """
    kept = (position < num_kept).flatten()
    layers, neurons = position.shape
    by_score = scores.flatten().masked_fill(~kept, -math.inf).sort(descending=True, stable=True).indices
    if allocation == "uniform":
        place = torch.empty_like(by_score)
        place[by_score] = torch.arange(by_score.numel())
        # Within each layer: how many neurons of it are better.
        place_in_layer = place.view(layers, neurons).argsort(dim=1).argsort(dim=1)
        turn = place_in_layer * layers + torch.arange(layers).unsqueeze(1)
        by_score = turn.flatten().argsort()
    new = position.flatten().clone()
    new[by_score[:num_kept]] = torch.arange(num_kept)
    return new.view(layers, neurons)
