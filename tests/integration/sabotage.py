"""The embedded model in an order that needs no profile, and ways to break it while it is served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pruning.checkpoints.checkpoint import open_checkpoint
from pruning.checkpoints.tensors import TensorReader
from pruning.ranking.ranking import rank
from server.engine.engine import Engine
from server.loading.profiles import EMBEDDED_MODELS
from tests.integration.live import Tiny


def ranked_math_mini(directory: Path) -> Tiny:
    """Neurons by the size of their weights: that needs no profile, and 20% less is as good as dense."""
    checkpoint = open_checkpoint(str(EMBEDDED_MODELS / "math-mini"), directory)
    with checkpoint.open_tensors() as tensors:
        scores = [
            _norms(tensors, layer, "gate", 1)
            * _norms(tensors, layer, "up", 1)
            * _norms(tensors, layer, "down", 0)
            for layer in range(checkpoint.config.num_hidden_layers)
        ]
    ranking = rank(torch.stack(scores), score="magnitude", profile_digest="none")
    return Tiny(checkpoint, ranking, directory / "cache")


def reverse_neurons(engine: Engine) -> None:
    """The last neurons come first: dense computes the same sum, a prefix another. Twice is once undone."""
    for layer in engine._runner._decoder._layers:
        for weights, neurons in ((layer._mlp.gate, 0), (layer._mlp.up, 0), (layer._mlp.down, 1)):
            weights.copy_(weights.flip(neurons))


def between_steps(engine: Engine, action: Callable[[Engine], None]) -> None:
    """Has the engine's own thread do it before its next step."""
    step = engine.step

    def act_and_step() -> Any:
        engine.step = step
        action(engine)
        return step()

    engine.step = act_and_step


def _norms(tensors: TensorReader, layer: int, matrix: str, dim: int) -> torch.Tensor:
    return tensors.get(f"model.layers.{layer}.mlp.{matrix}_proj.weight").float().norm(dim=dim)
