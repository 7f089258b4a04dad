"""`python -m bench.report`: puts the committed results into docs/performance.md, its tables and plots.

The page is written by hand but for what stands between `<!-- NAME MACHINE -->` (or `<!-- NAME -->`, of all
machines) and `<!-- end -->`.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from bench.results import Results, by_machine
from bench.tables import SUMMARIES, TABLES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
_MARKED = re.compile(r"(<!-- (\w+)(?: ([\w-]+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, machines: Mapping[str, Results]) -> str:
    """The page with its tables made anew.

    Raises:
        KeyError: the page asks for a table that nobody makes, or of a machine that nobody measured on.
    """

    def filled(match: re.Match[str]) -> str:
        name, machine = match[2], match[3]
        table = SUMMARIES[name](machines) if machine is None else TABLES[name](machines[machine])
        return f"{match[1]}{table}\n{match[4]}"

    return _MARKED.sub(filled, page)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.parse_args()
    from bench.plots import draw  # here, so that tables need no matplotlib

    machines = by_machine(RESULTS)
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), machines), encoding="utf-8")
    for file in [PAGE, *draw(machines, ROOT / "docs" / "images")]:
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
