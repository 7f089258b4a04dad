"""The screenshots of the documentation: a real server under load, in a real browser. `make screenshots`.

What they show is what the server does on this machine while they are taken; nothing is made up or retouched.
"""

import argparse
import io
import itertools
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import httpx
from PIL import Image
from playwright.sync_api import Page, expect

from eval.tasks.arithmetic import ArithmeticTask
from tests.console.browser import chromium

OUT = Path(__file__).parents[2] / "docs" / "images"
SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
NUM_CLIENTS = 6
LOAD_SECONDS = 75
MAX_BYTES = 200_000
# One that the sparsest size gets wrong.
PROMPT = (
    "In the garden Paul buys 5 crates of stamps, 12 stamps in each. Later Paul adds 37 stamps. Luis has as "
    "many stamps as Paul and 2 more. Adam gives Luis 4 stamps. Maya saw 89 ribbons at the market. How many "
    "stamps does Luis have in the end?"
)


@contextmanager
def server(cache_dir: str) -> Iterator[str]:
    """`secateur serve` with probes that may take a third of the engine; its address."""
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--cache-dir", cache_dir]
    options = ["--probe-budget", "0.3", "--allow-unsafe", "--sparsities", ",".join(map(str, SPARSITIES))]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            first = next(line for line in process.stdout if " serves " in line)
            yield first.split()[-1]
        finally:
            process.terminate()


@contextmanager
def load(url: str) -> Iterator[None]:
    """Clients that ask arithmetic of all sizes, each with pauses of its own."""
    done = threading.Event()

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        items = itertools.cycle(ArithmeticTask().evaluation(500, seed=seed))
        with httpx.Client(base_url=url, timeout=60) as client:
            while not done.wait(rng.expovariate(4)):
                body = {"messages": [{"role": "user", "content": next(items).prompt}], "temperature": 0}
                # The sizes that were shown to be degraded refuse: that is part of the picture.
                client.post("/v1/chat/completions", json={**body, "sparsity": rng.choice(SPARSITIES)})

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def take(page: Page, url: str, scheme: str, out: Path) -> None:
    """One of each view."""
    sizes = [("size", f"math-mini:s{size}") for size in ("0", "30", "60")]
    page.goto(f"{url}/#playground?{urlencode([('prompt', PROMPT), ('allow_unsafe', '1'), *sizes])}")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("status").filter(has_text="All have answered")).to_be_visible()
    shoot(page, out / f"console-playground-{scheme}.png")
    page.get_by_role("link", name="Live").click()
    expect(page.locator("#live-variants tbody tr")).to_have_count(len(SPARSITIES))
    shoot(page, out / f"console-live-{scheme}.png")
    page.get_by_role("link", name="Variants").click()
    expect(page.locator("#variant-table tbody tr")).to_have_count(len(SPARSITIES))
    shoot(page, out / f"console-variants-{scheme}.png")


def shoot(page: Page, path: Path) -> None:
    """The whole page, in 256 colours: it has hardly more, and a third of the bytes."""
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < MAX_BYTES, f"{path} has {path.stat().st_size:,} bytes, {MAX_BYTES:,} at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the images")
    parser.add_argument("--seconds", type=float, default=LOAD_SECONDS, help="load before they are taken")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache_dir, server(cache_dir) as url, load(url):
        threading.Event().wait(arguments.seconds)
        with chromium() as browser:
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
                page.on("console", lambda message: print(message.text, file=sys.stderr))
                take(page, url, scheme, arguments.out)


if __name__ == "__main__":
    main()
