"""Tiny random checkpoints, each written and opened once a session."""

import dataclasses
from collections.abc import Callable

import pytest

from pruning.checkpoints.checkpoint import open_checkpoint
from server.engine import kernels
from tests.server.engine.support import Loaded
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_ranking


@pytest.fixture(scope="session")
def opened() -> dict[str, Loaded]:
    """What `load` has made so far."""
    return {}


@pytest.fixture
def device() -> str:
    """What engines are loaded on; see `on_every_device`."""
    return "cpu"


@pytest.fixture
def load(
    tmp_path_factory: pytest.TempPathFactory, opened: dict[str, Loaded], device: str
) -> Callable[..., Loaded]:
    def loader(family: str = "qwen2", **overrides: object) -> Loaded:
        key = f"{family}{overrides}"
        if key not in opened:
            path = tiny_checkpoint(tmp_path_factory.mktemp(family) / "tiny", family, **overrides)
            checkpoint = open_checkpoint(str(path), tmp_path_factory.mktemp("cache"))
            opened[key] = Loaded(checkpoint, tiny_ranking())
        return dataclasses.replace(opened[key], device=device)

    return loader


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, load: Callable[..., Loaded]) -> Loaded:
    return load(request.param)


@pytest.fixture(params=[kernels.VECTOR, kernels.MATRIX])
def compiled_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What engines loaded from now on compute with, of what this CPU has."""
    best = kernels.describe()
    if best.startswith("torch"):
        pytest.skip(best)
    if request.param == kernels.MATRIX != best:
        pytest.skip("this CPU has no matrix unit")
    monkeypatch.setattr(kernels, "_best", lambda _: request.param)
    chosen: str = request.param
    return chosen
