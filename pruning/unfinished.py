"""What a fit has come to so far, on disk, so that one that was interrupted goes on where it was.

Knows answers and deltas; nothing of how either is made.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from pruning.answers import Answers
from pruning.delta import Delta, DeltaProvenance, LowRank, Projection, load_delta
from pruning.errors import DeltaError
from pruning.files import write_atomically

logger = logging.getLogger(__name__)

ANSWERS_FILE, LAYERS_FILE = "answers.json", "layers.safetensors"
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
    found = load_delta(file)
    settings = dict(found.provenance.settings)
    count = int(settings.pop(FITTED_LAYERS))
    if replace(found.provenance, settings=settings, created=provenance.created) != provenance:
        raise DeltaError(
            f"{work} holds an unfinished fit with other settings, or of another model: remove it to begin "
            "anew, or run with those settings to go on"
        )
    logger.info("going on after layer %d, where an earlier run was interrupted", count)
    return UnfinishedFit(file, provenance, found.layers[:count])


def kept_answers(work: Path, key: Sequence[str], measure: Callable[[], Answers]) -> list[list[int]]:
    """The answers kept in `work` under `key`, else given now and kept."""
    file = work / ANSWERS_FILE
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if known.get("of") != key:
        known = {"of": key, "token_ids": measure().token_ids}
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(known).encode())
    return cast("list[list[int]]", known["token_ids"])
