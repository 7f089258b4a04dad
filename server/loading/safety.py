"""The safe sparsity that a study has found, kept where `serve` looks for it.

`secateur study` writes it, `secateur serve` reads it. Knows the file; judges nothing.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pruning.files import write_atomically
from pruning.ranking.widths import Allocation
from server.engine.config import Quantization

logger = logging.getLogger(__name__)

UNMEASURED_SAFE_SPARSITY = 0.2  # arXiv 2604.27115's, of other models


class SafeSparsity(BaseModel):
    """The largest sparsity that a study found safe, and what that word meant there.

    Attributes:
        sparsity: every smaller one that was studied is safe too; 0 where none is.
        task: that the answers were graded on.
        tolerance: accuracy lost to the dense model that counts as safe, a share of all items.
        confidence: with which the loss was shown to be within it.
        items: graded for each sparsity.
        measured_at: when the study ended, ISO 8601 with its offset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sparsity: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    task: str
    tolerance: float
    confidence: float
    items: int
    measured_at: str


@dataclass(frozen=True)
class SafeMargin:
    """The sparsity beyond which a variant is served only where allowed, and who says so."""

    sparsity: float
    source: str


@dataclass(frozen=True)
class SafetyFile:
    """What is kept of studies of some variants, for these and no others.

    Attributes:
        cache_dir: where it is kept.
        ranking: digest of the order in which their neurons go.
        allocation: how their widths follow from it.
        quantization: of their weights.
    """

    cache_dir: Path
    ranking: str
    allocation: Allocation
    quantization: Quantization = "none"

    @property
    def path(self) -> Path:
        numbers = "" if self.quantization == "none" else f"-{self.quantization}"
        return self.cache_dir / "safety" / f"{self.ranking[:16]}-{self.allocation}{numbers}.json"

    def read(self) -> SafeSparsity | None:
        """What the last study found; None where there was none or the file is damaged."""
        try:
            return SafeSparsity.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            logger.warning("cannot read the safe sparsity in %s, so it is not used: %s", self.path, error)
            return None

    def write(self, found: SafeSparsity) -> None:
        """Keeps `found` in place of what was there. Raises OSError.

        The latest study counts, for its user has chosen task and tolerance; if it saw less, that is logged.
        """
        before = self.read()
        if before is not None and before.items > found.items:
            logger.warning("what %s held until now came of more items: %s", self.path, before)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, f"{found.model_dump_json(indent=2)}\n".encode())

    def margin(self, setting: float | None) -> SafeMargin:
        """What is set, else what a study found, else a paper's word on other models."""
        if setting is not None:
            return SafeMargin(setting, "set by safe_sparsity")
        found = self.read()
        if found is None:
            return SafeMargin(
                UNMEASURED_SAFE_SPARSITY, "arXiv 2604.27115's, not measured: see `secateur study`"
            )
        return SafeMargin(
            found.sparsity,
            f"studied on {found.task}, {found.items:,} items: at most {100 * found.tolerance:g} points lost "
            f"({100 * found.confidence:g}%), {found.measured_at}",
        )
