"""What `secateur serve` says when it is ready: the variants, how safe they are, and a request to try."""

import json
import socket

import torch

from server import __version__
from server.judging.probing import ProbesOff, Probing
from server.service import LoadedModel
from server.settings import ServeSettings
from server.variants import VariantStatus


def summary(
    settings: ServeSettings, loaded: LoadedModel, probing: Probing | ProbesOff, listener: socket.socket
) -> str:
    engine, registry, margin = loaded.engine, loaded.registry, loaded.margin
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    statuses = registry.offer().statuses
    config = engine.config
    open_to_all = [
        status.variant
        for status in statuses
        if settings.allow_unsafe or status.variant.sparsity <= margin.sparsity
    ]
    body = {
        "model": open_to_all[-1].name,
        "messages": [
            {"role": "user", "content": "Tom has 3 boxes of 12 eggs. He sells 7. How many are left?"}
        ],
        "temperature": 0,
    }
    lines = [
        f"secateur {__version__} serves {registry.model} on {url}",
        "",
        f"{'variant':<28} {'sparsity':>8} {'parameters':>13} {'alone':>13}",
        *(_row(status) for status in statuses),
        "",
        f"safe up to {margin.sparsity:g}: {margin.source}",
        str(probing),
        f"{config.device}, {config.precision}, {torch.get_num_threads()} threads; all variants share "
        f"{engine.weight_bytes / 1e6:.2f} MB of weights; KV cache {engine.kv_bytes / 2**30:.2f} GiB",
        "",
        f"curl {url}/v1/chat/completions -H 'content-type: application/json' \\",
        f"  -d '{json.dumps(body)}'",
    ]
    return "\n".join(["", *(f"  {line}".rstrip() for line in lines), ""])


def _row(status: VariantStatus) -> str:
    variant = status.variant
    return (
        f"{variant.name:<28} {variant.exact_sparsity:>8.4f} {variant.parameters / 1e6:>11.2f} M "
        f"{variant.standalone_bytes / 1e6:>10.2f} MB  {'default' if status.is_default else ''}"
    )
