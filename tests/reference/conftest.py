"""Finds the reference checkpoints."""

import os
from pathlib import Path

import pytest

MODELS = Path(os.environ.get("REFERENCE_MODELS") or "~/.cache/reference-models").expanduser()


@pytest.fixture(scope="module", params=["smollm2-135m", "coder-0.5b"])
def model_path(request: pytest.FixtureRequest) -> Path:
    path = MODELS / request.param
    if not (path / "config.json").exists():
        pytest.skip(f"{path} is not there; set REFERENCE_MODELS to where the reference checkpoints are")
    return path
