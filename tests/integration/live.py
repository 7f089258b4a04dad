"""A real uvicorn over a real engine on a tiny checkpoint, in a thread of the test's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pruning.ranking.ranking import Ranking
from server.commands.serve import uvicorn_config
from server.engine.engine import Engine
from server.generation import Generations
from server.loading.safety import SafeMargin
from server.loading.sizes import engine_config
from server.monitoring.power import POWERCAP
from server.monitoring.tracing import Tracing
from server.service import LoadedModel, assemble, load_variants
from server.settings import ServeSettings
from server.shutdown import GracefulServer
from tests.tiny import tiny_checkpoint, tiny_ranking

# Long enough that no answer of this length ends before a test has looked at it.
MAX_MODEL_LEN = 16_384
WAIT_SECONDS = 100.0  # a busy machine must not decide; a test as a whole has 120, or as it says


@dataclass(frozen=True)
class Tiny:
    """A checkpoint, an order of its neurons, and where its servers keep what they find out."""

    checkpoint: Checkpoint
    ranking: Ranking
    cache_dir: Path


@dataclass(frozen=True)
class Live:
    """A running server and what is inside it."""

    url: str
    engine: Engine
    generations: Generations
    thread: threading.Thread  # that serves

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_SECONDS, **options)


def make_tiny(directory: Path) -> Tiny:
    path = tiny_checkpoint(directory / "tiny", max_position_embeddings=MAX_MODEL_LEN)
    return Tiny(open_checkpoint(str(path), directory), tiny_ranking(), directory / "cache")


@contextmanager
def running(
    tiny: Tiny, *, tracing: Tracing | None = None, powercap: Path = POWERCAP, **changes: Any
) -> Iterator[Live]:
    """Serves until the block ends; sparsities 0, 0.1, 0.2 and the unsafe 0.35 unless `changes` says."""
    settings = ServeSettings(
        **{
            "dtype": "float32",
            "device": "cpu",
            "sparsities": (0.0, 0.1, 0.2, 0.35),
            "max_model_len": MAX_MODEL_LEN,
            "kv_cache_gib": 0.0625,
            "max_num_seqs": 8,
            "max_waiting": 8,
            "max_num_batched_tokens": 64,
            "max_body_bytes": 100_000,
            "port": 0,
            "cache_dir": tiny.cache_dir,
            "safe_sparsity": 0.2,
            "probe_budget": 0.0,
            "shadow_share": 0.0,
            **changes,
        }
    )
    limits = engine_config(settings, tiny.checkpoint)
    engine, registry = load_variants(settings, tiny.checkpoint, tiny.ranking, "uniform", limits)
    assert settings.safe_sparsity is not None
    margin = SafeMargin(settings.safe_sparsity, "a test's")
    loaded = LoadedModel(tiny.checkpoint, tiny.ranking, margin, engine, registry)
    service = assemble(settings, loaded, tracing=tracing, powercap=powercap)
    started = threading.Event()
    config = uvicorn_config(service.app)
    config.port = settings.port
    server = GracefulServer(
        config,
        service.generations,
        timeout_seconds=0.0,
        on_drain=service.drain,
        on_started=started.set,
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(WAIT_SECONDS)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Live(f"http://127.0.0.1:{port}", engine, service.generations, thread)
    finally:
        server.should_exit = True
        thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
