"""Limits that suit the device, where none are set."""

from pathlib import Path

import pytest
import torch

from pruning.checkpoints.checkpoint import open_checkpoint
from server.loading import sizes
from server.loading.sizes import engine_config, max_num_seqs
from server.settings import ServeSettings
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize(
    ("device", "limits"), [("cpu", (2**30, 64, 512)), ("cuda:1", (4 * 2**30, 256, 4096))]
)
def test_defaults_are_those_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, limits: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sizes, "resolve_device", torch.device)
    checkpoint = open_checkpoint(str(tiny_checkpoint(tmp_path / "tiny", "qwen2")), tmp_path / "cache")
    config = engine_config(ServeSettings(device=device), checkpoint)
    assert (config.kv_cache_bytes, config.max_num_seqs, config.max_num_batched_tokens) == limits
    asked = ServeSettings(device=device, kv_cache_gib=0.5, max_num_seqs=3, max_num_batched_tokens=7)
    config = engine_config(asked, checkpoint)
    assert (config.kv_cache_bytes, config.max_num_seqs, config.max_num_batched_tokens) == (2**29, 3, 7)
    assert max_num_seqs(asked) == 3
