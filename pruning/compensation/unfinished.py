"""What a fit has come to so far, on disk, so that one that was interrupted goes on where it was.

Knows deltas; nothing of how they are made.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pruning.delta import Delta, DeltaProvenance, LowRank, Projection, load_delta
from pruning.errors import DeltaError

logger = logging.getLogger(__name__)

LAYERS_FILE = "layers.safetensors"
FITTED_LAYERS = "fitted_layers"

Layer = Mapping[Projection, LowRank]


class UnfinishedFit:
    """The layers fitted so far, on disk as an unfinished delta. Made by `load_unfinished`."""

    def __init__(self, file: Path, provenance: DeltaProvenance, layers: Sequence[Layer]) -> None:
        self._file = file
        self._provenance = provenance
        self._layers = list(layers)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(self._layers)

    def add(self, layer: Layer) -> None:
        """The next layer's, written at once. Raises DeltaError."""
        self._layers.append(layer)
        settings = {**self._provenance.settings, FITTED_LAYERS: len(self._layers)}
        missing = len(self._provenance.widths) - len(self._layers)
        layers = (*self._layers, *({} for _ in range(missing)))
        Delta(replace(self._provenance, settings=settings), layers).save(self._file)


def load_unfinished(work: Path, provenance: DeltaProvenance) -> UnfinishedFit:
    """What lies in `work`, or nothing yet.

    Raises:
        DeltaError: it is damaged, or of a fit with another provenance.
    """
    file = work / LAYERS_FILE
    if not file.exists():
        return UnfinishedFit(file, provenance, ())
    try:
        found = load_delta(file)
    except DeltaError as error:
        raise DeltaError(f"{work} holds an unfinished fit that cannot go on ({error}): remove it") from error
    settings = dict(found.provenance.settings)
    count = int(settings.pop(FITTED_LAYERS))
    if replace(found.provenance, settings=settings, created=provenance.created) != provenance:
        raise DeltaError(
            f"{work} holds an unfinished fit with other settings, or of another model: remove it to begin "
            "anew, or run with those settings to go on"
        )
    logger.info("going on after layer %d, where an earlier run was interrupted", count)
    return UnfinishedFit(file, provenance, found.layers[:count])
