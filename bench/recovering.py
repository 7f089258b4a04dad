"""What a training step of `secateur recover` takes, and its delta: `python -m bench.recovering --help`.

One row of made-up tokens, half of them an answer's, forward and back through the pruned network at the
default settings of the command. The order of the neurons is made up as well: it costs the same.
"""

import argparse
import resource
import time

import torch

from pruning.calibration.batches import TokenSequence
from pruning.calibration.calibration import load_network
from pruning.checkpoints.checkpoint import default_cache_dir, open_checkpoint
from pruning.delta import Delta, DeltaProvenance
from pruning.ranking.ranking import rank
from pruning.ranking.widths import widths_at
from pruning.recovery.loss import TopTokens, losses
from pruning.recovery.network import AdaptedNetwork, AdapterSettings
from pruning.recovery.packing import pack
from server.engine.kernels.delta import pack_delta
from server.engine.kernels.library import load_library
from server.settings import RecoverSettings

KIB_PER_GIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recovering")
    parser.add_argument("--model", required=True, help="checkpoint directory or hub id")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="compute activations again on the way back")
    parser.add_argument("--sequence-tokens", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    defaults = {name: field.default for name, field in RecoverSettings.model_fields.items()}

    checkpoint = open_checkpoint(arguments.model, default_cache_dir())
    architecture = checkpoint.architecture
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(architecture.num_layers, architecture.intermediate_size, generator=generator)
    ranking = rank(scores, score="random", profile_digest="none")
    widths = widths_at(ranking, arguments.sparsity, "uniform")
    network = AdaptedNetwork(
        load_network(checkpoint, torch.device("cpu"), torch.bfloat16),
        ranking,
        [widths],
        AdapterSettings(rank=arguments.rank or defaults["rank"], alpha=defaults["alpha"], seed=0),
        recompute=arguments.recompute,
    )
    loaded = _peak_gib()
    vocabulary, length = checkpoint.config.vocab_size, arguments.sequence_tokens

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=generator).tolist())

    # One token of an answer is never fed.
    count = max(1, defaults["row_tokens"] // length)
    row = pack(
        [TokenSequence(tokens(length // 2), tokens(length - length // 2 + 1)) for _ in range(count)],
        network.device,
    )
    kept = (len(row.labels), defaults["top_tokens"])
    likeliest = TopTokens(
        torch.randint(vocabulary, kept, generator=generator).int(),
        torch.randn(kept[0], kept[1] + 1, generator=generator).log_softmax(-1),
    )
    optimizer = torch.optim.AdamW(network.parameters().values(), lr=0.0)
    for _ in range(2):  # the first one also finds its memory
        started, processor = time.perf_counter(), time.process_time()
        hidden = network.hidden(row, 0)
        scale = 1 / len(row.labels)
        losses(network.head, hidden, row.labels, likeliest, ce_weight=0.1, gradient_scale=scale)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - processor
    print(
        f"{checkpoint.name} at {arguments.sparsity:g}: {row.input_ids.shape[1]:,} tokens in "
        f"{processor_seconds:.1f} s of processor time ({seconds:.1f} s on the clock, "
        f"{arguments.threads} threads); {_peak_gib():.2f} GiB at the peak, {loaded:.2f} until loaded"
    )
    made_for = DeltaProvenance(checkpoint.name, "", "", "", arguments.sparsity, widths, "none", {}, "")
    delta = Delta(made_for, network.layers(0))
    outputs = [architecture.head_dim * heads for heads in (architecture.num_heads, architecture.num_kv_heads)]
    packed = pack_delta(load_library(), delta, (outputs[0], outputs[1], outputs[1]))
    with checkpoint.open_tensors() as reader:
        stored = sum(2 * torch.Size(reader.shape(name)).numel() for name in reader.names)
    print(
        f"its delta: {delta.parameters:,} numbers, {2 * delta.parameters / 1e6:.1f} MB in bfloat16; the "
        f"compiled kernels hold {packed.num_bytes / 1e6:.1f}, {packed.num_bytes / stored:.1%} of its weights"
    )


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB


if __name__ == "__main__":
    main()
