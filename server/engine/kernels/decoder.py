"""The decoder as the compiled kernels compute it: one call for all layers of a step, one for the head.

Activations and KV are bfloat16, sums and the residual stream float32. Takes the same batches as DecoderModel;
agrees with it up to rounding.
"""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig

from pruning.delta import Delta
from server.engine.batch import Batch
from server.engine.delta import DeltaRows, ServedDelta
from server.engine.kernels.delta import PackedDelta, pack_delta
from server.engine.kernels.library import (
    BatchStruct,
    HeadFunction,
    KernelLibrary,
    LayerStruct,
    MatrixStruct,
    ModelStruct,
    num_threads,
)
from server.engine.kernels.memory import system_zeros
from server.engine.kernels.packing import PackedLayer, PackedMatrix, PackedWeights
from server.engine.model import ModelGeometry, rotary_tables
from server.engine.quantization import rows_of

_SLACK = 32  # elements behind the KV: a vector load of the last keys may go that far


class PackedKV:
    """Keys and values of one layer, laid out for multiplication (src/model.h). In pairs of bfloat16:

    keys: [blocks, kv_heads, head_dim / 2, block_size]; values: [blocks, kv_heads, block_size / 2, head_dim].
    """

    def __init__(self, num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> None:
        count = num_blocks * block_size * kv_heads * head_dim
        # Zeros, because values that nobody wrote are multiplied with weights of zero, and 0 * NaN is NaN.
        self.keys = system_zeros(count + _SLACK)[:count]
        self.values = system_zeros(count + _SLACK)[:count]


class CompiledDecoder:
    """A `Decoder`.

    Args:
        max_model_len: the longest context, in tokens.
        num_blocks, block_size: KV blocks, and the tokens in each; even.
        uses_matrix_unit: multiply on the CPU's matrix unit; it has one.
    """

    def __init__(
        self,
        library: KernelLibrary,
        config: PretrainedConfig,
        weights: PackedWeights,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        uses_matrix_unit: bool,
    ) -> None:
        self._geometry = geometry = ModelGeometry.from_config(config)
        self._library = library
        self._weights = weights
        self._hidden_size: int = config.hidden_size
        self._vocab_size: int = config.vocab_size
        self._kv = [
            PackedKV(num_blocks, block_size, geometry.num_kv_heads, geometry.head_dim) for _ in weights.layers
        ]
        tables = rotary_tables(config, max_model_len, torch.empty(1, 1, dtype=torch.float32))
        cos, sin = self._rotary = tables[0].contiguous(), tables[1].contiguous()
        self._model = ModelStruct(
            hidden=config.hidden_size,
            heads=geometry.num_heads,
            kv_heads=geometry.num_kv_heads,
            head_dim=geometry.head_dim,
            block_size=block_size,
            matrix=uses_matrix_unit,
            eps=geometry.norm_eps,
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
        )
        layers = zip(weights.layers, self._kv, geometry.windows, strict=True)
        self._head_struct = matrix_struct(weights.head)
        self._layers = (LayerStruct * len(weights.layers))(*(layer_struct(*layer) for layer in layers))
        self._neurons = max(layer.neurons for layer in weights.layers)
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._logits_memory = torch.empty(0, self._vocab_size)

    @property
    def kv_bytes(self) -> int:
        """Memory of keys and values, all layers."""
        return sum(kv.keys.nbytes + kv.values.nbytes for kv in self._kv)

    def load_delta(self, delta: Delta) -> ServedDelta:
        """A delta of a variant of this model, ready to compute with. Safe on any thread."""
        return pack_delta(self._library, delta, self._geometry.qkv_rows)

    def forward(self, batch: Batch) -> torch.Tensor:
        """What the layers make of `batch.output_rows`, [rows, hidden] in float32; keeps keys and values."""
        threads = num_threads()
        residual = self._embed(batch.token_ids)
        step = _batch_struct(batch, residual)
        outputs, rows = None, None
        if not batch.wants_all:
            outputs = _batch_struct(batch.outputs(), residual)
            rows = torch.tensor(batch.output_rows, dtype=torch.int32)
        self._library.forward(
            self._model,
            self._layers,
            len(self._layers),
            step,
            outputs,
            None if rows is None else rows.data_ptr(),
            self._workspace_for(len(batch.token_ids), step.rank_pairs, threads),
            threads,
        )
        return residual[: len(batch.output_rows)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] in float32, of rows that `forward` gave. The next call writes over them."""
        if len(hidden) > len(self._logits_memory):
            # Kept: memory fresh from the system costs a page fault for every 1,024 logits.
            self._logits_memory = torch.empty(len(hidden), self._vocab_size)
        logits = self._logits_memory[: len(hidden)]
        self._head(self._library.head, hidden, logits)
        return logits

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows] the token of the largest logit, the lowest id on a tie, of rows that `forward` gave."""
        token_ids = torch.empty(len(hidden), dtype=torch.int32)
        self._head(self._library.likeliest, hidden, token_ids)
        return token_ids

    def _head(self, function: HeadFunction, hidden: torch.Tensor, to: torch.Tensor) -> None:
        if not len(hidden):
            return
        threads = num_threads()
        hidden = hidden.contiguous()
        function(
            self._model,
            hidden.data_ptr(),
            len(hidden),
            self._weights.norm.data_ptr(),
            self._head_struct,
            self._vocab_size,
            to.data_ptr(),
            self._workspace_for(len(hidden), 0, threads),
            threads,
        )

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] → [tokens, hidden] float32."""
        if self._weights.embedding is not None:
            return rows_of(self._weights.embedding, token_ids).float()
        words = self._weights.head.panels.shape[1]
        rows = torch.empty(len(token_ids), self._hidden_size)
        self._library.unpack_rows(
            self._head_struct, words, token_ids.data_ptr(), *rows.shape, rows.data_ptr(), 1
        )
        return rows

    def _workspace_for(self, num_tokens: int, rank_pairs: int, threads: int) -> int:
        """The address of memory for a step of that many tokens; grows to the largest step."""
        needed = self._library.workspace_bytes(self._model, num_tokens, self._neurons, rank_pairs, threads)
        if needed > len(self._workspace):
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        return self._workspace.data_ptr()


def matrix_struct(matrix: PackedMatrix) -> MatrixStruct:
    """Where it is. Valid as long as `matrix` lives."""
    return MatrixStruct(matrix.panels.data_ptr(), None if matrix.scales is None else matrix.scales.data_ptr())


def layer_struct(layer: PackedLayer, kv: PackedKV, window: int | None) -> LayerStruct:
    """Where everything of a layer is. Valid as long as `layer` and `kv` live."""
    fields: dict[str, int | MatrixStruct] = {}
    for name, value in vars(layer).items():
        if isinstance(value, torch.Tensor):
            fields[name] = value.data_ptr()
        elif isinstance(value, PackedMatrix):
            fields[name] = matrix_struct(value)
    return LayerStruct(
        **fields,
        keys=kv.keys.data_ptr(),
        values=kv.values.data_ptr(),
        neurons=layer.neurons,
        window=window or 0,
    )


def _batch_struct(batch: Batch, residual: torch.Tensor) -> BatchStruct:
    """`residual`: [tokens or more, hidden] float32."""
    tables = [block for span in batch.spans for block in span.block_table]
    lengths = [len(span.block_table) for span in batch.spans]
    return BatchStruct.of(
        len(batch.token_ids),
        len(batch.spans),
        residual=residual,
        positions=batch.positions.int(),
        slots=batch.slots.int(),
        starts=torch.tensor([0, *(span.stop for span in batch.spans)], dtype=torch.int32),
        block_tables=torch.tensor(tables, dtype=torch.int32),
        table_starts=torch.tensor([0, *lengths[:-1]], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        widths=torch.from_numpy(batch.row_widths()),
        **_delta_groups(batch.deltas, len(batch.token_ids)),
        rank_pairs=max((_packed(rows).rank_pairs for rows in batch.deltas), default=0),
    )


def _delta_groups(deltas: Sequence[DeltaRows], num_tokens: int) -> dict[str, torch.Tensor]:
    """Where groups of tokens with one delta, or with none, end, and where their deltas are, 0 for none.

    Nothing where no token has one.
    """
    ends: list[int] = []
    addresses: list[int] = []

    def close(end: int, address: int) -> None:
        if end > (ends[-1] if ends else 0):
            ends.append(end)
            addresses.append(address)

    for rows in deltas:
        close(rows.start, 0)
        close(rows.stop, _packed(rows).address)
    if not ends:
        return {}
    close(num_tokens, 0)
    return {
        "group_ends": torch.tensor(ends, dtype=torch.int32),
        "group_deltas": torch.tensor(addresses, dtype=torch.int64),
    }


def _packed(rows: DeltaRows) -> PackedDelta:
    assert isinstance(rows.delta, PackedDelta), "it was made by this decoder"
    return rows.delta
