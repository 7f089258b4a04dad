"""What the console borrows is what was pinned, all of it or nothing; no installation fails for it."""

import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from server.console import fetch as module
from server.console.fetch import LOCK, FetchError, fetch


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as members:
        for name, text in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text)
            members.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


ARCHIVE = archive(code="draw()", LICENSE="MIT", unwanted="much")


def write_lock(
    directory: Path, content: bytes = ARCHIVE, wanted: tuple[str, ...] = ("code", "LICENSE")
) -> Path:
    package = {
        "version": "1",
        "url": "https://registry.invalid/thing-1.tgz",
        "integrity": f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}",
        "files": {f"package/{name}": f"thing.{name}" for name in wanted},
    }
    path = directory / "vendor.lock.json"
    path.write_text(json.dumps({"thing": package}))
    return path


def unreachable(url: str) -> bytes:
    raise OSError("no network")


def test_the_wanted_files_are_taken_and_nothing_else(tmp_path: Path) -> None:
    lock, vendor = write_lock(tmp_path), tmp_path / "vendor"
    asked: list[str] = []
    assert fetch(lock, vendor, lambda url: asked.append(url) or ARCHIVE)
    assert asked == ["https://registry.invalid/thing-1.tgz"]
    assert {path.name for path in vendor.iterdir()} == {"thing.code", "thing.LICENSE", lock.name}
    assert (vendor / "thing.code").read_text() == "draw()"
    # Nothing is asked of the network again, until something else is pinned.
    assert not fetch(lock, vendor, unreachable)
    write_lock(tmp_path, wanted=("code",))
    assert fetch(lock, vendor, lambda url: ARCHIVE)
    assert not (vendor / "thing.LICENSE").exists()


@pytest.mark.parametrize("delivered", [ARCHIVE + b"\0", archive(code="steal()", LICENSE="MIT"), b""])
def test_another_archive_is_refused_and_what_was_there_stays(tmp_path: Path, delivered: bytes) -> None:
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    (vendor / "old").write_text("old")
    with pytest.raises(FetchError, match=r"sha512 .* pinned is"):
        fetch(write_lock(tmp_path), vendor, lambda url: delivered)
    assert [path.name for path in vendor.iterdir()] == ["old"]


def test_what_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"thing 1 cannot be fetched \(no network\)"):
        fetch(write_lock(tmp_path), tmp_path / "vendor", unreachable)
    with pytest.raises(FetchError, match="thing 1 has no file package/map"):
        fetch(write_lock(tmp_path, wanted=("code", "map")), tmp_path / "vendor", lambda url: ARCHIVE)
    assert not (tmp_path / "vendor").exists()


def test_an_installation_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail() -> bool:
        raise FetchError("uplot 1 cannot be fetched (no network)")

    monkeypatch.setattr(module, "fetch", fail)
    module.main()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "tables instead of charts" in told


def test_everything_borrowed_is_pinned_with_its_licence() -> None:
    for package in json.loads(LOCK.read_text()).values():
        assert package["integrity"].startswith("sha512-")
        assert package["version"] in package["url"]
        assert any(name.endswith(".LICENSE") for name in package["files"].values())


def test_the_program_needs_the_standard_library_alone() -> None:
    code = f"import runpy, sys; runpy.run_path({module.__file__!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()
