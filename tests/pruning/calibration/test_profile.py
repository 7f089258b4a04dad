import dataclasses
import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning import files
from pruning.calibration import profile as profile_module
from pruning.calibration.profile import SequenceMoments, TokenMoments, load
from pruning.errors import ProfileError, StaleProfileError
from tests.pruning.calibration.tiny_profiles import matrix, tiny_profile, tiny_provenance

IN_USE = {
    "model": "aaaaaaaaaaaaaaaaaaaa",
    "tokenizer": "bbbbbbbbbbbbbbbbbbbb",
    "data": "cccccccccccccccccccc",
    "dtype": "float32",
}
# Of tiny_profile() as format 1 wrote it. Rankings, and what studies found out about them, hang on digests.
OLD_DIGEST = "62f9336be1b8d148749e6d7f9174a507961f7e7ec2a8926e74ca5e9c15fd2b5a"


def flat(value: Any) -> Any:
    """A profile as plain, comparable data."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return {field.name: flat(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    profile = tiny_profile()
    profile.save(tmp_path / "new" / "p.safetensors")
    loaded = load(tmp_path / "new" / "p.safetensors")

    assert flat(loaded) == flat(profile)
    assert loaded.digest == profile.digest
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["p.safetensors"]


def test_a_saved_profile_has_the_permissions_that_new_files_get(tmp_path: Path) -> None:
    tiny_profile().save(tmp_path / "p.safetensors")
    (tmp_path / "other").write_text("")

    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("p.safetensors", "other")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"taylor_sq_sum": matrix(1, 2, 3, 4, 5, 6)},
        {"taylor_abs_sum": matrix(1, 2, 3, 4, 5, 6)},
        {"target_per_answer": SequenceMoments(2, *([matrix(1, 2, 3, 4, 5, 6)] * 2))},
        {"target_answer": TokenMoments(6, *([matrix(1, 2, 3, 4, 5, 6)] * 3))},
        {"target_per_prompt": SequenceMoments(3, tiny_profile().target_per_prompt.sum, matrix(*[110.0] * 6))},
        {"provenance": tiny_provenance(model="other")},
        {"provenance": tiny_provenance(seed=1)},
        {"provenance": tiny_provenance(unfinished_answers=1)},
    ],
)
def test_the_digest_covers_statistics_and_what_they_were_measured_on(change: dict[str, object]) -> None:
    assert tiny_profile(**change).digest != tiny_profile().digest


def test_the_digest_leaves_out_when_and_with_which_versions() -> None:
    later = tiny_provenance(created="2027-01-01T00:00:00+00:00", versions={"torch": "3"})

    assert tiny_profile(provenance=later).digest == tiny_profile().digest


def test_a_profile_of_what_is_in_use_is_accepted() -> None:
    tiny_profile().check(**IN_USE)
    tiny_profile().check(model=IN_USE["model"], tokenizer=IN_USE["tokenizer"])


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("model", "model's digest"),
        ("tokenizer", "tokenizer's digest"),
        ("data", "calibration data's digest"),
        ("dtype", "dtype"),
    ],
)
def test_a_profile_of_something_else_is_refused_by_name(which: str, words: str) -> None:
    with pytest.raises(StaleProfileError) as caught:
        tiny_profile().check(**{**IN_USE, which: "dddddddddddddddddddd"}, source="models/tiny")

    message = str(caught.value)
    assert f"the {words} is dddddddddddddddd, but" in message
    assert f"measured on {IN_USE[which][:16]}" in message
    assert message.count("digest") == (which != "dtype")
    assert "secateur profile --model models/tiny --task sums --force (and the --prompts" in message


def test_other_end_tokens_are_told_where_they_are_known() -> None:
    older, newer = tiny_profile(), tiny_profile(provenance=tiny_provenance(ends=[1, 2]))
    assert older.digest == newer.digest, "of the same statistics"
    older.check(**IN_USE, ends={3})
    newer.check(**IN_USE, ends={2, 1})
    with pytest.raises(StaleProfileError, match=r"with the tokens \[3\], but ended with \[1, 2\]"):
        newer.check(**IN_USE, ends={3})


def test_every_difference_is_named() -> None:
    with pytest.raises(StaleProfileError, match=r"model's .*; the tokenizer's .*; the calibration data's"):
        tiny_profile().check(model="x", tokenizer="y", data="z")


def test_a_full_disk_leaves_the_old_profile_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    old = tiny_profile()
    old.save(path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ProfileError, match="No space left on device; make room"):
        tiny_profile(taylor_sq_sum=matrix(1, 2, 3, 4, 5, 6)).save(path)

    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]
    assert load(path).digest == old.digest


def test_a_reader_keeps_the_whole_old_profile_while_a_new_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    tiny_profile().save(path)
    old = path.read_bytes()
    new = tiny_profile(taylor_sq_sum=matrix(1, 2, 3, 4, 5, 6))

    with path.open("rb") as reader:
        new.save(path)
        assert reader.read() == old
    assert load(path).digest == new.digest


def test_a_truncated_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    tiny_profile().save(path)
    content = path.read_bytes()

    for kept in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(ProfileError, match=r"damaged.*secateur profile"):
            load(path)


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    tiny_profile().save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ProfileError, match="does not match its digest"):
        load(path)


def test_a_missing_profile_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"no profile .*absent.* secateur profile"):
        load(tmp_path / "absent.safetensors")


def test_a_profile_of_the_first_format_is_read_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tiny_profile(target_per_answer=None, taylor_abs_sum=None)
    monkeypatch.setattr(profile_module, "FORMAT", 1)
    old.save(tmp_path / "p.safetensors")
    monkeypatch.undo()

    loaded = load(tmp_path / "p.safetensors")
    assert flat(loaded) == flat(old)
    assert loaded.digest == OLD_DIGEST


def test_a_profile_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_module, "FORMAT", 0)
    tiny_profile().save(tmp_path / "p.safetensors")
    monkeypatch.undo()

    with pytest.raises(ProfileError, match="has format 0; this version reads 1 and 2"):
        load(tmp_path / "p.safetensors")
