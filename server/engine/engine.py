"""The engine: one step is schedule, run, sample, update. Synchronous, single-threaded, tokens in and out."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PretrainedConfig

from pruning.checkpoints.checkpoint import Checkpoint
from pruning.delta import Delta
from pruning.ranking.ranking import Ranking
from server.engine.config import EngineConfig
from server.engine.delta import ServedDelta
from server.engine.errors import EngineConfigError, PromptTooLongError
from server.engine.kernels import KernelChoice, choose_kernels
from server.engine.kernels.decoder import CompiledDecoder
from server.engine.kernels.packing import pack_weights
from server.engine.kv_cache import BlockPool
from server.engine.model import Decoder, DecoderModel
from server.engine.model_runner import ModelRunner
from server.engine.request import FinishReason, Request, TokenLogprobs
from server.engine.scheduler import Scheduler
from server.engine.stats import StepStats
from server.engine.weights import WeightReader, WeightSize, load_weights


class TokenOutput(NamedTuple):
    """One request's new token. `finish_reason` is set when it was the last; a request of `max_tokens` 0 ends
    without one. `Request.scored` is complete by then. `time` is when its step ended, monotonic."""

    request: Request
    token_id: int | None
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None
    time: float


class Engine:
    """A loaded model, its KV memory and its queue.

    Attributes:
        resident_widths: neurons held per layer; no variant may be wider.
        weight_bytes, kv_bytes: device memory of weights and of KV blocks.
        kernels: what computes, "amx-bf16", "avx512-bf16", "cuda-graphs" or "torch: <why>".
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: ModelRunner,
        scheduler: Scheduler,
        pool: BlockPool,
        decoder: Decoder,
        weights: WeightSize,
        kernels: str,
    ) -> None:
        self.config = config
        self.resident_widths = weights.widths
        self.weight_bytes = weights.num_bytes
        self.kv_bytes = decoder.kv_bytes
        self.kernels = kernels
        self._runner = runner
        self._scheduler = scheduler
        self._pool = pool
        self._decoder = decoder
        self._weights = weights

    @property
    def request_ids(self) -> Sequence[str]:
        """Of the requests that run."""
        return [request.request_id for request in self._scheduler.running]

    @property
    def num_unfinished(self) -> int:
        return self._scheduler.num_unfinished

    @property
    def num_kv_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_free_kv_blocks(self) -> int:
        return self._pool.num_free

    def check_fits(self, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raises PromptTooLongError for a request that could not be finished."""
        limit = self.config.max_model_len
        if num_prompt_tokens + max_tokens > limit:
            raise PromptTooLongError(
                f"the prompt has {num_prompt_tokens:,} tokens and the answer up to {max_tokens:,}; "
                f"together they may have {limit:,} (max_model_len): shorten the prompt or lower max_tokens"
            )

    def add(self, request: Request) -> None:
        """Queues a request. Raises PromptTooLongError."""
        self.check_fits(len(request.prompt_token_ids), request.sampling.max_tokens)
        self._scheduler.add(request)

    def abort(self, request: Request) -> None:
        """Drops a request, unless it has finished already; its blocks are free at once."""
        self._scheduler.abort(request)

    def step(self) -> tuple[list[TokenOutput], StepStats]:
        """Computes one batch. Only while requests are unfinished."""
        start = time.monotonic()
        decision = self._scheduler.schedule()
        batch_tokens: Counter[str] = Counter()
        background_tokens: Counter[str] = Counter()
        running: Counter[str] = Counter()
        for item in decision.scheduled:
            tokens = background_tokens if item.request.is_background else batch_tokens
            tokens[item.request.variant.name] += item.num_tokens
        for request in self._scheduler.running:
            if not request.is_background:
                running[request.variant.name] += 1
        num_solo_rows = decision.num_solo_rows
        sampled, scored = self._runner.run(decision)
        chosen = {key: [token.token_id for token in tokens] for key, tokens in sampled.items()}
        results = self._scheduler.update(decision, chosen, scored)
        logprobs = {key: iter([token.logprobs for token in tokens]) for key, tokens in sampled.items()}
        end = time.monotonic()
        outputs = []
        for request, token_id, reason in results:
            of_token = None if token_id is None else next(logprobs[request.request_id])
            outputs.append(TokenOutput(request, token_id, of_token, reason, end))
        return outputs, StepStats(
            step_seconds=end - start,
            batch_tokens=batch_tokens,
            running=running,
            num_waiting=self._scheduler.num_waiting_users,
            kv_usage_ratio=self._pool.usage_ratio,
            prefix_queries=decision.prefix_queries,
            prefix_hits=decision.prefix_hits,
            preemptions=decision.preemptions,
            guessed_tokens=sum(len(item.guesses) for item in decision.scheduled),
            right_guesses=sum(token_id is not None for _, token_id, _ in results) - len(sampled),
            background_tokens=background_tokens,
            num_background=self._scheduler.num_background,
            num_solo_rows=num_solo_rows,
        )

    @property
    def embedding_bytes(self) -> int:
        """Weight bytes of the embedding, whether or not it is the head as well."""
        return self._weights.embedding_bytes

    def load_delta(self, delta: Delta) -> ServedDelta:
        """A delta in the form that computes, for a `Variant` to hold. Whoever asks has checked that it fits.

        Takes milliseconds a megabyte; may be called on any thread while the engine runs.
        """
        return self._decoder.load_delta(delta)

    def parameters(self, widths: tuple[int, ...]) -> int:
        """Of the whole network at `widths`, tied matrices once."""
        return self._weights.parameters_at(widths)

    def standalone_bytes(self, widths: tuple[int, ...], delta_parameters: int = 0) -> int:
        """Weight bytes of a checkpoint cut to `widths`, and of the numbers of a delta beside it."""
        itemsize: int = getattr(torch, self.config.dtype).itemsize
        return self._weights.bytes_at(widths) + delta_parameters * itemsize


def load_engine(
    checkpoint: Checkpoint,
    ranking: Ranking,
    resident_widths: tuple[int, ...],
    config: EngineConfig,
    *,
    progress: bool = False,
) -> Engine:
    """Reads the weights, the widest variant's neurons only, and makes room for KV.

    Raises:
        ModelError: the checkpoint is damaged.
        EngineConfigError: the limits contradict each other or the model, or a GPU has no room for them.
    """
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    token_bytes = checkpoint.architecture.kv_bytes_per_token(dtype.itemsize)
    num_blocks = config.kv_cache_bytes // (token_bytes * config.block_size)
    _check(config, num_blocks * config.block_size, checkpoint.config.max_position_embeddings)
    reader = WeightReader(
        checkpoint,
        ranking,
        resident_widths,
        device=device,
        dtype=dtype,
        quantized=config.quantization == "int8",
        progress=progress,
    )
    kernels = choose_kernels(config, checkpoint.config)
    try:
        decoder, size = _load_decoder(kernels, reader, checkpoint.config, config, num_blocks)
    except torch.OutOfMemoryError as error:
        raise EngineConfigError(
            f"{config.device} has no room for the weights and {config.kv_cache_bytes / 2**30:.3g} GiB of KV "
            "cache (kv_cache_gib): lower it, leave the widest sizes out (sparsities), keep weights in 8 bits "
            f"(quantization) or end what else is on the device. {str(error).partition('. See ')[0]}"
        ) from error
    pool = BlockPool(num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching)
    scheduler = Scheduler(config, pool, checkpoint.eos_token_ids)
    runner = ModelRunner(decoder, config.block_size)
    return Engine(config, runner, scheduler, pool, decoder, size, kernels.description)


def _load_decoder(
    kernels: KernelChoice,
    reader: WeightReader,
    model_config: PretrainedConfig,
    config: EngineConfig,
    num_blocks: int,
) -> tuple[Decoder, WeightSize]:
    if kernels.library is None:
        weights = load_weights(reader)
        shape = config.max_model_len, num_blocks, config.block_size
        if not kernels.uses_graphs:
            return DecoderModel(model_config, weights, *shape), weights.size
        # Here, because Triton need not be installed.
        from server.engine.kernels.cuda.decoder import CudaDecoder

        small_step = max(config.max_num_seqs, config.prompt_lookup_tokens)
        return CudaDecoder(model_config, weights, *shape, small_step), weights.size
    packed = pack_weights(kernels.library, reader)
    decoder = CompiledDecoder(
        kernels.library,
        model_config,
        packed,
        config.max_model_len,
        num_blocks,
        config.block_size,
        kernels.uses_matrix_unit,
    )
    return decoder, packed.size


def _check(config: EngineConfig, num_kv_tokens: int, max_positions: int) -> None:
    if config.max_model_len > num_kv_tokens:
        raise EngineConfigError(
            f"{config.kv_cache_bytes:,} bytes of KV cache hold {num_kv_tokens:,} tokens, but max_model_len "
            f"is {config.max_model_len:,}: enlarge the KV cache or lower max_model_len"
        )
    if config.max_model_len > max_positions:
        raise EngineConfigError(
            f"max_model_len is {config.max_model_len:,}, but the model's positions end at {max_positions:,}: "
            "lower max_model_len"
        )
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise EngineConfigError(
            f"max_num_batched_tokens ({config.max_num_batched_tokens}) is below max_num_seqs "
            f"({config.max_num_seqs}): a step must have room for one token of every running request"
        )
