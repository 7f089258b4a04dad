"""The composition root of `secateur export`: settings in, a stock checkpoint of one variant on disk."""

import logging
from pathlib import Path

import torch

from pruning.delta import load_delta
from pruning.export.export import export_checkpoint
from pruning.export.model_card import model_card
from pruning.ranking.widths import widths_at
from server.loading.profiles import open_model
from server.loading.rankings import ranked
from server.settings import ExportSettings

logger = logging.getLogger(__name__)


def export(settings: ExportSettings) -> tuple[Path, int]:
    """What `secateur export` does: the directory written, and the bytes of its weights.

    Raises:
        SecateurError: the settings, the model, the profile or the disk do not allow it.
    """
    if settings.uniform:
        settings = settings.model_copy(update={"allocation": "uniform"})
    checkpoint = open_model(settings)
    known = ranked(settings, checkpoint)
    widths = widths_at(known.ranking, settings.sparsity, known.allocation)
    if len(set(widths)) > 1:
        logger.warning(
            "the layers keep between %d and %d neurons, but a checkpoint names one width for all: narrower "
            "ones are filled up with zeros, which saves neither bytes nor time; --uniform does",
            min(widths),
            max(widths),
        )
    delta = None if settings.delta is None else load_delta(settings.delta)
    num_bytes = export_checkpoint(
        checkpoint,
        known.ranking,
        widths,
        settings.out,
        dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
        card=model_card(
            checkpoint, known.provenance, known.ranking, settings.sparsity, known.allocation, widths, delta
        ),
        progress=True,
        delta=delta,
    )
    return settings.out, num_bytes


def export_summary(directory: Path, num_bytes: int) -> str:
    """For people: where it is, and how large."""
    return f"{directory}\n  {num_bytes:,} bytes of weights"
