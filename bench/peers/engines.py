"""How each peer is started so that it is at its best on this machine, at bfloat16 like ours."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from bench.peers.setup import Peers
from bench.servers import Launch

MAX_MODEL_LEN = 8448  # the longest context that is measured, and an answer
MAX_NUM_SEQS = 128  # the most requests at once that are measured
_SERVER = Path(__file__).with_name("openvino_server.py")

# What prompt lookup may guess in a step, and the n-gram that it looks for: as ours.
GUESSED_TOKENS, NGRAM = 11, 3

# (where the peers are, checkpoint, whether it guesses by prompt lookup) -> how to start it
Engine = Callable[[Peers, Path, bool], Launch]


def openvino(peers: Peers, checkpoint: Path, lookup: bool) -> Launch:
    """On all cores: one core for each of four servers was slower than all for all."""
    model = peers.openvino_model(checkpoint)
    command = [str(peers.python("openvino")), str(_SERVER), str(model), "--port", "{port}"]
    options = ["--threads", str(len(_cores())), "--max-num-seqs", str(MAX_NUM_SEQS)]
    options += ["--guessed-tokens", str(GUESSED_TOKENS), "--ngram", str(NGRAM)] if lookup else []
    return Launch("openvino", checkpoint.name, [*command, *options], "/health")


def vllm(peers: Peers, checkpoint: Path, lookup: bool) -> Launch:
    """With Intel's OpenMP and tcmalloc in front, as its manual advises: both are faster than the defaults."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, _cores())),
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
    if lookup:
        ngram = {"method": "ngram", "num_speculative_tokens": GUESSED_TOKENS}
        ngram |= {"prompt_lookup_min": NGRAM, "prompt_lookup_max": NGRAM}
        options += ["--speculative-config", json.dumps(ngram)]
    command = [str(peers.python("vllm").with_name("vllm")), "serve", str(checkpoint)]
    command += ["--served-model-name", checkpoint.name, *options]
    return Launch("vllm", checkpoint.name, command, "/health", environment)


ENGINES: dict[str, Engine] = {"openvino": openvino, "vllm": vllm}


def _cores() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def _preloaded(peers: Peers) -> list[Path]:
    system = sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"))[:1]
    own = [path for path in [peers.directory / "vllm" / "lib" / "libiomp5.so"] if path.exists()]
    return system + own
