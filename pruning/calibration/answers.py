"""What a model answered. Knows neither how nor why it was asked."""

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Answers:
    """What a model answered, in the order of the prompts.

    Attributes:
        token_ids: with the end-of-sequence token where the answer came to one.
        unfinished: how many did not come to one.
    """

    token_ids: list[list[int]]
    unfinished: int

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the tokens."""
        return hashlib.sha256(json.dumps(self.token_ids).encode()).hexdigest()
