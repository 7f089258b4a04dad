"""Fetches what the console borrows, when the package is built or installed: `python server/console/fetch.py`.

vendor.lock.json pins each npm package by its integrity hash and names the files that are taken out of it, its
licence among them. Needs nothing but the standard library: setup.py runs it before there is anything else.
Where a package cannot be had the console does without: an installation never fails for a chart.
"""

import base64
import hashlib
import hmac
import http.client
import io
import json
import shutil
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOCK = HERE / "vendor.lock.json"
VENDOR = HERE / "vendor"
TIMEOUT_SECONDS = 20.0
MAX_ARCHIVE_BYTES = 16 * 2**20

Download = Callable[[str], bytes]


class FetchError(Exception):
    """A package cannot be had, or is not the one that was pinned."""


def download(url: str) -> bytes:
    """Raises OSError or HTTPException where that fails, FetchError for an archive beyond all reason."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        archive: bytes = response.read(MAX_ARCHIVE_BYTES + 1)
    if len(archive) > MAX_ARCHIVE_BYTES:
        raise FetchError(f"{url} is larger than {MAX_ARCHIVE_BYTES:,} bytes")
    return archive


def fetch(lock: Path = LOCK, vendor: Path = VENDOR, download: Download = download) -> bool:
    """Makes `vendor` what `lock` says, all of it or nothing; without the network where it is so already.

    Returns:
        Whether anything had to be fetched.

    Raises:
        FetchError: a package cannot be reached, or its hash is another; `vendor` stays as it was.
    """
    pinned = lock.read_text(encoding="utf-8")
    stamp = vendor / lock.name  # written last: where it agrees, everything is there
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == pinned:
        return False
    files: dict[str, bytes] = {}
    for name, package in json.loads(pinned).items():
        try:
            archive = download(package["url"])
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{name} {package['version']} cannot be fetched ({error})") from error
        files |= unpack(name, package, archive)
    shutil.rmtree(vendor, ignore_errors=True)
    vendor.mkdir()
    for file_name, content in files.items():
        (vendor / file_name).write_bytes(content)
    stamp.write_text(pinned, encoding="utf-8")
    return True


def unpack(name: str, package: Mapping[str, Any], archive: bytes) -> dict[str, bytes]:
    """The files that are wanted of an npm archive, by the names they are kept under.

    Raises:
        FetchError: the archive is not the one that was pinned, or lacks a file.
    """
    algorithm, _, expected = package["integrity"].partition("-")
    found = base64.b64encode(hashlib.new(algorithm, archive).digest()).decode()
    if not hmac.compare_digest(found, expected):
        raise FetchError(f"{package['url']} has {algorithm} {found}, pinned is {expected}")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members:
        for path, kept_as in package["files"].items():
            try:
                content = members.extractfile(path)  # read here: no path of the archive's own is written to
            except KeyError:
                content = None
            if content is None:
                raise FetchError(f"{name} {package['version']} has no file {path}")
            files[kept_as] = content.read()
    return files


def main() -> None:
    """One line where something was fetched or could not be; never an error."""
    try:
        if fetch():
            print(f"fetched the console's chart library into {VENDOR}")
    except FetchError as error:
        print(f"the console will show tables instead of charts: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
