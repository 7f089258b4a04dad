"""A delta on disk is what was saved, and is used for nothing but what it was made for."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruning.delta import Delta, DeltaProvenance, LowRank, load_delta
from pruning.errors import DeltaError, ForeignDeltaError

PROVENANCE = DeltaProvenance(
    model_name="tiny",
    model="a" * 64,
    task="counting",
    ranking="b" * 64,
    sparsity=0.3,
    widths=(3, 2),
    method="compensation",
    settings={"rank": 1, "tokens": 7},
    created="2026-01-01T00:00:00+00:00",
)


def delta(**overrides: object) -> Delta:
    generator = torch.Generator().manual_seed(0)
    layers = tuple(
        {"down_proj": LowRank(torch.randn(1, k, generator=generator), torch.randn(4, 1, generator=generator))}
        for k in (3, 2)
    )
    return Delta(dataclasses.replace(PROVENANCE, **overrides), layers)


def test_a_saved_delta_is_the_delta(tmp_path: Path) -> None:
    saved = delta()
    saved.save(tmp_path / "deltas" / "d.safetensors")
    loaded = load_delta(tmp_path / "deltas" / "d.safetensors")
    assert loaded.provenance == saved.provenance
    assert loaded.digest == saved.digest
    for before, after in zip(saved.layers, loaded.layers, strict=True):
        assert before.keys() == after.keys()
        assert torch.equal(before["down_proj"].product(), after["down_proj"].product())
    assert loaded.parameters == (3 + 4) + (2 + 4)
    assert [file.name for file in (tmp_path / "deltas").iterdir()] == ["d.safetensors"]


def test_the_digest_names_all_but_the_date() -> None:
    digest = delta().digest
    assert delta(created="2027").digest == digest
    others = {
        "model": "c",
        "ranking": "c",
        "widths": (3, 1),
        "sparsity": 0.2,
        "method": "recovery",
        "settings": {},
    }
    assert len({digest, *(delta(**{name: value}).digest for name, value in others.items())}) == 7
    other = delta()
    other.layers[1]["down_proj"].b[3, 0] += 1
    assert other.digest != digest


@pytest.mark.parametrize(
    ("used", "message"),
    [
        ({"model": "c" * 64}, "the model's digest is cccccccccccccccc, but .* for aaaaaaaaaaaaaaaa;"),
        ({"ranking": "c" * 64}, "the ranking's digest is cccccccccccccccc, but .* for bbbbbbbbbbbbbbbb;"),
        ({"widths": (3, 3)}, r"the widths are \[3, 3\], but .* \[3, 2\] \(sparsity 0.3\)"),
    ],
)
def test_a_delta_of_another_variant_is_refused(used: dict, message: str) -> None:
    fitting = {"model": PROVENANCE.model, "ranking": PROVENANCE.ranking, "widths": PROVENANCE.widths}
    delta().check(**fitting)
    with pytest.raises(ForeignDeltaError, match=message):
        delta().check(**{**fitting, **used})


def rewritten(path: Path, change) -> Path:
    """The same file with its tensors or its header changed."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["secateur_delta"])
    tensors = load_file(path)
    change(tensors, header)
    save_file(tensors, path, metadata={"secateur_delta": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, header: tensors["0.down_proj.a"].add_(1), "does not match its digest"),
        (lambda tensors, header: header["provenance"].update(ranking="c"), "does not match its digest"),
        (lambda tensors, header: header.update(format=1), "has format 1; this version reads 2: make"),
        (
            lambda tensors, header: tensors.update(
                {f"9.down_proj.{part}": torch.ones(1, 1) for part in ("a", "b")}
            ),
            "lacks a part of a delta",
        ),
        (lambda tensors, header: tensors.pop("0.down_proj.b"), "lacks a part of a delta"),
        (lambda tensors, header: header["provenance"].pop("widths"), "lacks a part of a delta"),
        (lambda tensors, header: tensors.update({"0.head.a": torch.ones(1)}), "lacks a part of a delta"),
        (lambda tensors, header: tensors.update({"2.down_proj.a": torch.ones(1)}), "lacks a part of a delta"),
    ],
)
def test_a_damaged_delta_is_refused(change, message: str, tmp_path: Path) -> None:
    delta().save(tmp_path / "d")
    with pytest.raises(DeltaError, match=message):
        load_delta(rewritten(tmp_path / "d", change))


def test_what_is_no_delta_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match=r"there is no delta .*`secateur compensate"):
        load_delta(tmp_path / "none")
    save_file({"weight": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(DeltaError, match="is damaged or no delta"):
        load_delta(tmp_path / "other")
    (tmp_path / "file").write_text("delta")
    with pytest.raises(DeltaError, match=r"cannot write the delta .* name another file"):
        delta().save(tmp_path / "file" / "d")
