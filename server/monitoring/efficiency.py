"""What one generated token costs a variant, as its shape has it: FLOPs, and bytes of weights read.

Counted: two FLOPs for every weight of a matrix that multiplies, the head's and a delta's among them; the
bytes of all weights that a step of one token reads, norms and biases among them. Not counted: attention's own
two products, which grow with the context (4 · layers · heads · head_dim FLOPs a token attended to), keys and
values, norms, rotation, softmax, and the embedding's one row. Measures nothing and knows no machine.
"""

from dataclasses import dataclass

from pruning.checkpoints.checkpoint import Checkpoint
from server.engine.engine import Engine
from server.engine.variant import Variant
from server.engine.weights import has_own_head


@dataclass(frozen=True)
class TokenCost:
    """Of one token, alone in its step."""

    flops: int
    weight_bytes: int


class CostModel:
    """Costs of the variants that `engine` serves of `checkpoint`.

    Attributes:
        dense: of the model with all its neurons, whether or not that is served.
    """

    def __init__(self, checkpoint: Checkpoint, engine: Engine) -> None:
        architecture = self._architecture = checkpoint.architecture
        self._head: int = checkpoint.config.vocab_size * architecture.hidden_size
        # Where the embedding is the head as well, all of it is read after all.
        self._unread_bytes = engine.embedding_bytes if has_own_head(checkpoint) else 0
        widths = (architecture.intermediate_size,) * architecture.num_layers
        self.dense = TokenCost(self._flops(widths), engine.standalone_bytes(widths) - self._unread_bytes)

    def of(self, variant: Variant) -> TokenCost:
        """Of one token of `variant`."""
        delta_parameters = 0 if variant.delta is None else variant.delta.num_parameters
        return TokenCost(
            self._flops(variant.widths) + 2 * delta_parameters,
            variant.standalone_bytes - self._unread_bytes,
        )

    def _flops(self, widths: tuple[int, ...]) -> int:
        shape = self._architecture
        attention = 2 * shape.hidden_size * shape.head_dim * (shape.num_heads + shape.num_kv_heads)
        neurons = 3 * shape.hidden_size * sum(widths)
        return 2 * (shape.num_layers * attention + neurons + self._head)
