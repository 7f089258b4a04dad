"""What one variant owns besides its width: low-rank matrices added to its linear maps, y += B (A x).

Knows how deltas are stored, and which network each belongs to. Fits none (compensation/) and computes no
forward pass: what a served variant does with one is the engine's.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from pruning.checkpoints.fingerprints import SHOWN_DIGITS
from pruning.errors import DeltaError, ForeignDeltaError
from pruning.files import write_atomically
from pruning.headed_tensors import DamagedFileError, read_headed

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Setting = str | int | float

PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
FORMAT = 2
METADATA_KEY = "secateur_delta"


def weight_name(layer: int, projection: Projection) -> str:
    """The checkpoint's name of the matrix that computes `projection`, in every supported family."""
    part = "mlp" if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{part}.{projection}.weight"


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix [out, in] as the product of two small ones. `a`: [rank, in]; `b`: [out, rank]."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def parameters(self) -> int:
        return self.a.numel() + self.b.numel()

    def product(self) -> Tensor:
        """B A, [out, in], float32."""
        return self.b.float() @ self.a.float()


@dataclass(frozen=True)
class DeltaProvenance:
    """Which network a delta belongs to, and how it was made.

    Attributes:
        model_name: for people; the digests decide.
        model: fingerprint of the checkpoint.
        task: whose prompts it was made of.
        ranking: digest of the order that the neurons are numbered in.
        sparsity: of the variant, as it was asked for.
        widths: neurons that the variant keeps, one number a layer.
        method: what made it, e.g. "compensation".
        settings: of the method, by name; numbers that it found are among them.
        created: ISO 8601, UTC.
    """

    model_name: str
    model: str
    task: str
    ranking: str
    sparsity: float
    widths: tuple[int, ...]
    method: str
    settings: Mapping[str, Setting]
    created: str


@dataclass(frozen=True, eq=False)
class Delta:
    """Low-rank matrices for some linear maps of each layer of one variant. Compare deltas by `digest`.

    MLP neurons are numbered in ranking order: the inputs of `down_proj` and the outputs of `gate_proj` and
    `up_proj` are the first `widths[l]` neurons. All tensors share one dtype and are on the CPU.
    """

    provenance: DeltaProvenance
    layers: tuple[Mapping[Projection, LowRank], ...]

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the matrices and of what they belong to, but not of when they were made."""
        record = {**asdict(self.provenance), "created": None}
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def parameters(self) -> int:
        """Numbers in all matrices together."""
        return sum(low_rank.parameters for layer in self.layers for low_rank in layer.values())

    def check(self, *, model: str, ranking: str, widths: Sequence[int]) -> None:
        """Raises ForeignDeltaError unless the delta was made for the network in use.

        Args:
            model, ranking: the checkpoint's fingerprint and the ranking's digest.
            widths: of the variant that it is to correct.
        """
        made = self.provenance
        differing = [
            f"the {what} is {used[:SHOWN_DIGITS]}, but the delta was made for {was[:SHOWN_DIGITS]}"
            for what, used, was in (
                ("model's digest", model, made.model),
                ("ranking's digest", ranking, made.ranking),
            )
            if used != was
        ]
        if tuple(widths) != made.widths:
            differing.append(
                f"the widths are {list(widths)}, but the delta was made for {list(made.widths)} "
                f"(sparsity {made.sparsity:g})"
            )
        if differing:
            raise ForeignDeltaError(
                f"the delta belongs to another variant of {made.model_name}: {'; '.join(differing)}; make "
                "one for this variant, or use the model, score, order and allocation that it was made with"
            )

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all.

        Raises:
            DeltaError: it cannot be written, e.g. because the disk is full.
        """
        header = {"format": FORMAT, "digest": self.digest, "provenance": asdict(self.provenance)}
        content = save(self._tensors(), metadata={METADATA_KEY: json.dumps(header)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise DeltaError(
                f"cannot write the delta {path} ({len(content):,} bytes): {error}; make room, or name "
                "another file"
            ) from error

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{layer}.{projection}.{part}": tensor
            for layer, maps in enumerate(self.layers)
            for projection, low_rank in maps.items()
            for part, tensor in (("a", low_rank.a), ("b", low_rank.b))
        }


def load_delta(path: Path) -> Delta:
    """Reads what `Delta.save` wrote.

    Raises:
        DeltaError: there is no such file, it is of another format, or not one bit is as it was written.
    """
    try:
        header, tensors = read_headed(path, METADATA_KEY)
    except FileNotFoundError as error:
        raise DeltaError(f"there is no delta {path}; `secateur compensate --out {path}` makes one") from error
    except DamagedFileError as error:
        raise DeltaError(f"{path} is damaged or no delta ({error}); make it again") from error
    if header.get("format") != FORMAT:
        raise DeltaError(
            f"{path} has format {header.get('format')}; this version reads {FORMAT}: make it again"
        )
    try:
        delta = _assemble(header, tensors)
    except (LookupError, TypeError, ValueError) as error:
        raise DeltaError(f"{path} lacks a part of a delta ({error!r}); make it again") from error
    if delta.digest != header.get("digest"):
        raise DeltaError(f"{path} is damaged: its content does not match its digest; make it again")
    return delta


def _assemble(header: dict[str, Any], tensors: dict[str, Tensor]) -> Delta:
    fields = {**header["provenance"], "widths": tuple(header["provenance"]["widths"])}
    layers: list[dict[Projection, LowRank]] = [{} for _ in fields["widths"]]
    for name in tensors:
        layer, projection, part = name.split(".")
        if projection not in PROJECTIONS:
            raise ValueError(f"{name} is of no known linear map")
        if part == "a":
            pair = LowRank(tensors[name], tensors[f"{layer}.{projection}.b"])
            layers[int(layer)][projection] = pair
    return Delta(DeltaProvenance(**fields), tuple(layers))
