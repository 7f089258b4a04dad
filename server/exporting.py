"""The composition root of `secateur export`: settings in, a stock checkpoint of one variant on disk."""

import logging
from pathlib import Path

import torch

from pruning.export import export_checkpoint
from pruning.model_card import model_card
from pruning.widths import widths_at
from server.profiles import open_model, profile_for_serving
from server.rankings import allocation_of, ranking_of
from server.settings import ExportSettings

logger = logging.getLogger(__name__)


def export(settings: ExportSettings) -> tuple[Path, int]:
    """What `secateur export` does: the directory written, and the bytes of its weights.

    Raises:
        SecateurError: the settings, the model, the profile or the disk do not allow it.
    """
    allocation = "uniform" if settings.uniform else allocation_of(settings)
    checkpoint = open_model(settings)
    profile = profile_for_serving(settings, checkpoint)
    ranking = ranking_of(settings, profile)
    widths = widths_at(ranking, settings.sparsity, allocation)
    if len(set(widths)) > 1:
        logger.warning(
            "the layers keep between %d and %d neurons, but a checkpoint names one width for all: narrower "
            "ones are filled up with zeros, which saves neither bytes nor time; --uniform does",
            min(widths),
            max(widths),
        )
    num_bytes = export_checkpoint(
        checkpoint,
        ranking,
        widths,
        settings.out,
        dtype=None if settings.dtype == "auto" else getattr(torch, settings.dtype),
        card=model_card(checkpoint, profile.provenance, ranking, settings.sparsity, allocation, widths),
        progress=True,
    )
    return settings.out, num_bytes
