"""How each peer is started so that it is at its best on this machine, at bfloat16 like ours."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.peers.setup import Peers
from bench.servers import Launch

MAX_MODEL_LEN = 8448  # the longest context that is measured, and an answer
MAX_NUM_SEQS = 128  # the most requests at once that are measured
_SERVER = Path(__file__).with_name("openvino_server.py")

# (where the peers are, checkpoint, the cores it may use) -> how to start it
Engine = Callable[[Peers, Path, Sequence[int]], Launch]


def openvino(peers: Peers, checkpoint: Path, cores: Sequence[int]) -> Launch:
    model = peers.openvino_model(checkpoint)
    command = [str(peers.python("openvino")), str(_SERVER), str(model), "--port", "{port}"]
    options = ["--threads", str(len(cores)), "--max-num-seqs", str(MAX_NUM_SEQS)]
    return Launch("openvino", checkpoint.name, [*command, *options], "/health")


def vllm(peers: Peers, checkpoint: Path, cores: Sequence[int]) -> Launch:
    """With Intel's OpenMP and tcmalloc in front, as its manual advises: both are faster than the defaults."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "LD_PRELOAD": ":".join(map(str, _preloaded(peers))),
    }
    options = [
        "--dtype",
        "bfloat16",
        "--max-model-len",
        str(MAX_MODEL_LEN),
        "--max-num-seqs",
        str(MAX_NUM_SEQS),
    ]
    options += ["--no-enable-prefix-caching", "--host", "127.0.0.1", "--port", "{port}"]
    command = [str(peers.python("vllm").with_name("vllm")), "serve", str(checkpoint)]
    command += ["--served-model-name", checkpoint.name, *options]
    return Launch("vllm", checkpoint.name, command, "/health", environment)


ENGINES: dict[str, Engine] = {"openvino": openvino, "vllm": vllm}


def all_cores() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def _preloaded(peers: Peers) -> list[Path]:
    system = sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))[:1]
    own = [path for path in [peers.directory / "vllm" / "lib" / "libiomp5.so"] if path.exists()]
    return system + own
