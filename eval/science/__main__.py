"""`python -m eval.science`: puts the committed studies together into docs/science.md, its tables and plots.

Measures nothing. The page is written by hand but for what stands between `<!-- NAME -->` and `<!-- end -->`.
"""

import argparse
import re
from pathlib import Path

from eval.science.collect import collect
from eval.science.plots import draw
from eval.science.tables import PARTS, Grounds

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "science.md"
STUDIES = ROOT / "docs" / "studies"
IMAGES = ROOT / "docs" / "images"
_MARKED = re.compile(r"(<!-- ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, grounds: Grounds) -> str:
    """The page with its parts made anew.

    Raises:
        KeyError: the page asks for a part that nobody makes.
    """
    return _MARKED.sub(lambda match: f"{match[1]}{PARTS[match[2]](grounds)}\n{match[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.science", description=(__doc__ or "").partition("\n")[0]
    )
    parser.parse_args()
    grounds = collect(STUDIES)
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), grounds), encoding="utf-8")
    for file in [PAGE, *draw(grounds, IMAGES)]:
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
