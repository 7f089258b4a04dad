"""The model card of an exported variant: what it is, and what it was made of. Pure text; measures nothing."""

from collections.abc import Sequence

from pruning.calibration.profile import Provenance
from pruning.checkpoints.checkpoint import Checkpoint
from pruning.delta import Delta
from pruning.ranking.ranking import Ranking
from pruning.ranking.widths import Allocation, exact_sparsity

_HEADER = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [pruning, secateur]
---
"""
_UNIFORM = "Every layer keeps the same number of neurons: to every program this is a smaller model."
_PADDED = """\
The layers keep different numbers of neurons, but a configuration names one number for all. Narrower layers
are filled up with zeros to the widest: neurons that compute nothing and change no answer. So this checkpoint
answers as the pruned model does, but **the zeros take as many bytes and as much time as neurons**; an export
with one width for all layers (`--uniform`) has none."""
_CORRECTED = "A low-rank correction was fitted and merged into the weights; all else is as it was."
_LIMITS = """\
Its accuracy has not been measured. Pruning costs some, and more on other tasks than on the one named above.
The licence is the original model's."""


def model_card(
    checkpoint: Checkpoint,
    provenance: Provenance,
    ranking: Ranking,
    sparsity: float,
    allocation: Allocation,
    widths: Sequence[int],
    delta: Delta | None = None,
) -> str:
    """Markdown with a header for the Hugging Face hub.

    Args:
        provenance: of the profile that `ranking` comes from.
        sparsity: as it was asked for.
        delta: that was merged into the weights.
    """
    neurons = checkpoint.architecture.intermediate_size
    uniform = len(set(widths)) == 1
    kept = f"{widths[0]} in every layer" if uniform else f"{', '.join(map(str, widths))}, first layer to last"
    rows = {
        "model": f"{provenance.model_name}, digest `{provenance.model}`",
        "tokenizer": f"digest `{provenance.tokenizer}`",
        "task": f"{provenance.task}, digest of its prompts `{provenance.data}`",
        "profile": f"of {provenance.created}, in {provenance.dtype}, digest `{ranking.profile_digest}`",
        "ranking": f"score {ranking.score}, order {ranking.order}, digest `{ranking.digest}`",
        "sparsity": f"{sparsity:g} asked for, {exact_sparsity(widths, neurons):.6f} exactly",
        "allocation": allocation,
        "neurons": f"{kept}, of {neurons}",
        "`intermediate_size`": str(max(widths)),
    }
    if delta is not None:
        rows["delta"] = f"{delta.provenance.method}, digest `{delta.digest}`, merged into the weights"
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    title = f"# {checkpoint.name} without {100 * sparsity:g}% of its MLP neurons"
    origin = (
        f"Made from {checkpoint.name} by `secateur export`: the MLP neurons that went are the last in the "
        f"order below. "
    ) + ("Nothing was retrained, and all else is as it was." if delta is None else _CORRECTED)
    return (
        "\n\n".join([_HEADER + "\n" + title, origin, _UNIFORM if uniform else _PADDED, table, _LIMITS]) + "\n"
    )
