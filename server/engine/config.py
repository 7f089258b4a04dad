"""The engine's limits, fixed when it starts."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["bfloat16", "float16", "float32"]
Kernels = Literal["auto", "avx512", "torch"]
Quantization = Literal["none", "int8"]


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine may hold and do at once.

    Attributes:
        device: a torch device, e.g. "cpu" or "cuda:0".
        dtype: of weights, activations and KV.
        quantization: "int8" keeps matrices in 8 bits, and rounds what they multiply
            (server/engine/quantization.py).
        block_size: tokens in a KV block.
        kv_cache_bytes: memory for KV blocks, all layers together.
        max_model_len: prompt and answer of one request, in tokens.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: tokens in one step, prompt and output together.
        max_waiting: requests that wait; one more is refused.
        prompt_lookup_tokens: a step of fewer tokens is filled up to so many with guesses at what greedy
            requests say next (server/engine/lookup.py); 0 never guesses.
        enable_prefix_caching: keep the KV of finished requests for prompts that begin alike.
        kernels: "torch" computes everything with torch; "auto" uses the compiled kernels where the machine,
            the dtype and the model allow it; "avx512" too, but not the matrix unit of CPUs that have one.
    """

    device: str
    dtype: Dtype
    block_size: int
    kv_cache_bytes: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_waiting: int
    enable_prefix_caching: bool
    prompt_lookup_tokens: int = 0
    kernels: Kernels = "auto"
    quantization: Quantization = "none"

    @property
    def precision(self) -> str:
        """What the layers multiply in: "bfloat16", or "bfloat16 int8" where matrices have 8 bits."""
        return self.dtype if self.quantization == "none" else f"{self.dtype} {self.quantization}"
