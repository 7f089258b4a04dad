"""A ranking on disk, with what it was made of. Knows the file, not how rankings are made."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from pruning.calibration.profile import Provenance
from pruning.checkpoints.fingerprints import SHOWN_DIGITS
from pruning.errors import RankingError
from pruning.files import write_atomically
from pruning.headed_tensors import DamagedFileError, read_headed
from pruning.ranking.ranking import Ranking, from_positions
from pruning.ranking.widths import Allocation

FORMAT = 1
METADATA_KEY = "secateur_ranking"


@dataclass(frozen=True, eq=False)
class SavedRanking:
    """A ranking that is no function of one profile.

    Attributes:
        allocation: that it was made for. "global" can also be served uniformly, but not the other way round.
        measured_at: the sparsities of the model at which neurons were measured.
        provenance: what was measured, and how.
    """

    ranking: Ranking
    allocation: Allocation
    measured_at: tuple[float, ...]
    provenance: Provenance

    def check(self, *, model: str, tokenizer: str) -> None:
        """Raises RankingError unless it is of the model and tokenizer with these fingerprints."""
        for what, used, was in (
            ("model", model, self.provenance.model),
            ("tokenizer", tokenizer, self.provenance.tokenizer),
        ):
            if used != was:
                raise RankingError(
                    f"the ranking is of another {what}, with digest {was[:SHOWN_DIGITS]}; that of the {what} "
                    f"in use is {used[:SHOWN_DIGITS]}; make one with: secateur rank"
                )

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all. Raises RankingError."""
        ranking = self.ranking
        position = torch.empty_like(ranking.permutation)
        position.scatter_(1, ranking.permutation, ranking.global_position)
        header = {
            "format": FORMAT,
            "digest": ranking.digest,
            "score": ranking.score,
            "profile_digest": ranking.profile_digest,
            "allocation": self.allocation,
            "measured_at": self.measured_at,
            "provenance": asdict(self.provenance),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save({"position": position}, metadata={METADATA_KEY: json.dumps(header)}))
        except OSError as error:
            raise RankingError(f"cannot write the ranking {path}: {error}; name another --out") from error


def load_ranking(path: Path) -> SavedRanking:
    """Reads what `SavedRanking.save` wrote.

    Raises:
        RankingError: there is no such file, it is of another format, or not one bit is as it was written.
    """
    remedy = "make one with: secateur rank"
    try:
        header, tensors = read_headed(path, METADATA_KEY)
    except FileNotFoundError as error:
        raise RankingError(f"there is no ranking {path}; {remedy}") from error
    except DamagedFileError as error:
        raise RankingError(f"{path} is damaged or no ranking ({error}); {remedy}") from error
    if header.get("format") != FORMAT:
        raise RankingError(f"{path} has format {header.get('format')}; this version reads {FORMAT}; {remedy}")
    try:
        ranking = from_positions(
            tensors["position"], score=header["score"], profile_digest=header["profile_digest"]
        )
        saved = SavedRanking(
            ranking,
            header["allocation"],
            tuple(header["measured_at"]),
            Provenance(**header["provenance"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise RankingError(f"{path} lacks a part of a ranking ({error!r}); {remedy}") from error
    if ranking.digest != header.get("digest"):
        raise RankingError(f"{path} is damaged: its content does not match its digest; {remedy}")
    return saved
