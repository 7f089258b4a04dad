"""Writes one variant as a stock Hugging Face checkpoint, which transformers and other engines load as it is.

A configuration names one width for all layers. Where a variant's widths differ, layers are filled up with
zeros to the widest one: neurons that compute nothing. Reads and writes tensor by tensor, in the same files
as the original; builds no network. What the card says is model_card.py's.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from pruning.checkpoints.checkpoint import CONFIG_FILE, Checkpoint
from pruning.checkpoints.fingerprints import TOKENIZER_FILES
from pruning.checkpoints.tensors import INDEX_FILE, SINGLE_FILE, TensorReader
from pruning.delta import Delta, weight_name
from pruning.errors import ExportError
from pruning.export.tensor_writer import TensorLayout, write_tensors
from pruning.ranking.ranking import Ranking
from pruning.slicing import check_fit

CARD_FILE = "README.md"
# Licences usually ask to go with the model.
COPIED_FILES = ("generation_config.json", *TOKENIZER_FILES, "LICENSE*", "NOTICE*")
HEAD = "lm_head.weight"
WORK_PREFIX = ".secateur-export-"


def export_checkpoint(
    checkpoint: Checkpoint,
    ranking: Ranking,
    widths: Sequence[int],
    out: Path,
    *,
    dtype: torch.dtype | None,
    card: str,
    progress: bool,
    delta: Delta | None = None,
) -> int:
    """Writes the first `widths[l]` neurons of every layer `l`, in ranking order, and all else as it was.

    A delta is merged: its products are added to the matrices in float32, and the sums rounded once.

    The directory appears under its name whole or not at all; if it is there already, config.json comes last.

    Args:
        out: a directory that is empty, but for remains of exports that were killed, or not there yet.
        dtype: of all floating-point tensors; None keeps the checkpoint's.
        card: Markdown, for README.md.
        progress: whether to show a bar, on stderr.

    Returns:
        The bytes of the weights.

    Raises:
        ExportError: `out` holds something, or cannot be written.
        ModelError: the checkpoint is incomplete or damaged.
        ProfileError: the ranking is of another model, or the widths do not fit it.
        ForeignDeltaError: the delta is of another model, ranking or width.
    """
    architecture = checkpoint.architecture
    check_fit(ranking, widths, architecture.num_layers, architecture.intermediate_size)
    out = out.expanduser().resolve()
    if out.exists() and not (out.is_dir() and all(map(_is_nobodys, out.iterdir()))):
        raise ExportError(f"{out} is there already and not an empty directory; choose another --out")
    if delta is not None:
        delta.check(model=checkpoint.fingerprint, ranking=ranking.digest, widths=widths)
    variant = _Variant(checkpoint, ranking, widths, dtype, delta)
    with checkpoint.open_tensors() as reader:
        variant.check(reader)
        files = {file: variant.layouts(reader, names) for file, names in reader.files.items()}
        head_is_embedding = HEAD not in reader.names
    num_bytes = sum(layout.nbytes for layouts in files.values() for layout in layouts.values())
    with (
        _appearing_whole(out, num_bytes) as work,
        tqdm(total=num_bytes, desc="Exporting", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        for file, layouts in files.items():
            with checkpoint.open_tensors() as reader:  # file by file: what has been read stays mapped
                write_tensors(work / file, layouts, partial(variant.tensor, reader), bar.update)
        if set(files) != {SINGLE_FILE}:
            weight_map = {name: file for file, layouts in files.items() for name in layouts}
            index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
            _write_json(work / INDEX_FILE, index)
        config = json.loads((checkpoint.path / CONFIG_FILE).read_text(encoding="utf-8"))
        _write_json(work / CONFIG_FILE, variant.config(config, head_is_embedding=head_is_embedding))
        for pattern in COPIED_FILES:
            for source in checkpoint.path.glob(pattern):
                shutil.copyfile(source, work / source.name)
        (work / CARD_FILE).write_text(card, encoding="utf-8")
    return num_bytes


class _Variant:
    """What a checkpoint's tensors and configuration become."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        ranking: Ranking,
        widths: Sequence[int],
        dtype: torch.dtype | None,
        delta: Delta | None,
    ) -> None:
        self._dtype = dtype
        self._width = max(widths)
        self._kept: dict[str, tuple[int, Tensor]] = {}  # MLP matrix -> dimension of its neurons, those kept
        for layer, (order, width) in enumerate(zip(ranking.permutation, widths, strict=True)):
            gate, up, down = checkpoint.architecture.mlp_weight_names(layer)
            for name, dimension in ((gate, 0), (up, 0), (down, 1)):
                self._kept[name] = dimension, order[:width]
        self._added = {
            weight_name(layer, projection): low_rank
            for layer, maps in enumerate(delta.layers if delta else ())
            for projection, low_rank in maps.items()
        }

    def check(self, reader: TensorReader) -> None:
        """Raises ModelError where a matrix to cut is not there."""
        for name in self._kept:
            reader.shape(name)

    def layouts(self, reader: TensorReader, names: Sequence[str]) -> dict[str, TensorLayout]:
        return {name: self._layout(reader, name) for name in names}

    def tensor(self, reader: TensorReader, name: str) -> Tensor:
        tensor = reader.get(name)
        stored = self._stored_dtype(tensor.dtype)
        dimension, kept = self._kept.get(name, (0, None))
        if kept is not None:
            tensor = tensor.index_select(dimension, kept)
        if name in self._added:
            tensor = tensor.float() + self._added[name].product()
        if kept is not None:
            missing = self._width - len(kept)
            tensor = pad(tensor, (0, missing) if dimension else (0, 0, 0, missing))
        return tensor.to(stored)

    def config(self, original: dict[str, Any], *, head_is_embedding: bool) -> dict[str, Any]:
        config = {**original, "intermediate_size": self._width}
        if self._dtype is not None:
            for field in {"dtype", "torch_dtype"} & config.keys() or {"torch_dtype"}:
                config[field] = str(self._dtype).removeprefix("torch.")
        if head_is_embedding:  # as it is served; without a word some readers would make up a head
            config["tie_word_embeddings"] = True
        return config

    def _layout(self, reader: TensorReader, name: str) -> TensorLayout:
        shape = list(reader.shape(name))
        if name in self._kept:
            shape[self._kept[name][0]] = self._width
        return TensorLayout(self._stored_dtype(reader.dtype(name)), tuple(shape))

    def _stored_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self._dtype if self._dtype is not None and dtype.is_floating_point else dtype


@contextmanager
def _appearing_whole(out: Path, num_bytes: int) -> Iterator[Path]:
    """A directory to write to, whose files are in `out` at the end, or gone if it does not come to that.

    Within `out` where that is there already: it may be a volume, whose parent is another disk.
    """
    work = (out if out.exists() else out.parent) / f"{WORK_PREFIX}{uuid4().hex}"
    moved: list[Path] = []
    try:
        work.mkdir(parents=True)
        yield work
        if work.parent == out:
            for file in sorted(work.iterdir(), key=lambda file: file.name == CONFIG_FILE):
                moved.append(out / file.name)
                file.replace(out / file.name)
            moved.clear()
        else:
            work.replace(out)
    except OSError as error:
        raise ExportError(
            f"cannot write the checkpoint {out} ({num_bytes:,} bytes of weights): {error}; "
            f"make room, or choose another --out"
        ) from error
    finally:
        for file in moved:
            file.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)


def _is_nobodys(entry: Path) -> bool:
    """What a new file system has, and what is left of an export that was killed."""
    return entry.name == "lost+found" or entry.name.startswith(WORK_PREFIX)


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
