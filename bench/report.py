"""`python -m bench.report`: puts the committed results into docs/performance.md, its tables and plots.

The page is written by hand but for what stands between `<!-- NAME -->` and `<!-- end -->`.
"""

import argparse
import re
from pathlib import Path

from bench.results import Results
from bench.tables import TABLES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
_MARKED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, results: Results) -> str:
    """The page with its tables made anew.

    Raises:
        KeyError: the page asks for a table that nobody makes.
    """
    return _MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]](results)}\n{match[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.parse_args()
    from bench.plots import draw  # here, so that tables need no matplotlib

    results = Results(RESULTS)
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    for file in [PAGE, *draw(results, ROOT / "docs" / "images")]:
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
