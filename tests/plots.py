"""What a plot says, whatever it looks like: curves differ between versions of matplotlib."""

import re
from pathlib import Path


def words(plot: Path) -> list[str]:
    """The texts of an SVG file, in its order."""
    return re.findall(r">([^<>]+)</text>", plot.read_text(encoding="utf-8"))
