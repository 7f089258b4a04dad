"""How far a model goes astray from its dense self along the dense one's own answers, token by token.

Teacher-forced: both read the same tokens, and their next-token distributions are compared at each. Knows
transformers' decoders of the supported families; knows no tasks and draws no conclusions.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from pruning.calibration.activations import LOGIT_ROWS, decoder
from pruning.calibration.batches import IGNORED_LABEL, TokenBatch, TokenSequence, grouped, pad_batch

if TYPE_CHECKING:  # takes a second and 80 MB to import; who has a model has done it
    from transformers import PreTrainedModel

BATCH_TOKENS = 1024
BATCH_ROWS = 64


@dataclass(frozen=True)
class AnswerDivergence:
    """Along one answer.

    Attributes:
        kl: KL(dense ‖ model) of the next-token distributions before each of the answer's tokens, nats.
        agreements: before how many of them both hold the same token for the likeliest.
        end_probability: that the model gives to the answer's last token, where that ends the sequence; None
            for an answer that was cut off.
    """

    kl: tuple[float, ...]
    agreements: int
    end_probability: float | None


class DenseReference:
    """What the dense model computes along its own answers.

    Holds the head's inputs, not its outputs: a hundredth of the memory, and nothing is lost, for the head is
    never pruned.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        sequences: Sequence[TokenSequence],
        eos_token_ids: Collection[int],
        *,
        progress: bool,
    ) -> None:
        """Runs the model, which must be whole, over all sequences; each has an answer."""
        assert all(sequence.answer for sequence in sequences)
        self._model = model
        self._eos = frozenset(eos_token_ids)
        self._sequences = tuple(sequences)
        self._groups = list(grouped([len(s.fed) for s in sequences], BATCH_TOKENS, BATCH_ROWS))
        self._hidden = [
            self._head_inputs(self._batch(group)).cpu()
            for group in tqdm(self._groups, desc="dense", unit="batch", disable=not progress)
        ]  # of each group [answer tokens, hidden], sequence after sequence

    @property
    def held_bytes(self) -> int:
        """Of the head's inputs, which are kept on the CPU, where the model is there as well."""
        return sum(hidden.nbytes for hidden in self._hidden) if self._model.device.type == "cpu" else 0

    def divergence(self, *, progress: bool, description: str = "pruned") -> list[AnswerDivergence]:
        """The model as it is now, e.g. while neurons are masked; one entry a sequence, in their order."""
        found: dict[int, AnswerDivergence] = {}
        for group, dense in tqdm(
            list(zip(self._groups, self._hidden, strict=True)),
            desc=description,
            unit="batch",
            disable=not progress,
            leave=False,
        ):
            hidden = self._head_inputs(self._batch(group))
            lengths = [len(self._sequences[index].answer) for index in group]
            rows = zip(
                torch.split(hidden, lengths), torch.split(dense.to(hidden.device), lengths), strict=True
            )
            for index, (ours, theirs) in zip(group, rows, strict=True):
                found[index] = self._compare(ours, theirs, self._sequences[index].answer)
        return [found[index] for index in range(len(self._sequences))]

    def _batch(self, group: Sequence[int]) -> TokenBatch:
        return pad_batch([self._sequences[index] for index in group], self._model.device)

    @torch.no_grad()
    def _head_inputs(self, batch: TokenBatch) -> Tensor:
        """[answer tokens of all sequences, hidden]: at the position before each."""
        hidden = decoder(self._model)(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state  # [sequences, tokens, hidden]
        return cast("Tensor", hidden[batch.labels != IGNORED_LABEL])

    @torch.no_grad()
    def _compare(self, hidden: Tensor, dense: Tensor, answer: Sequence[int]) -> AnswerDivergence:
        head = cast("Any", self._model).lm_head
        kl: list[float] = []
        agreements, end_probability = 0, None
        for rows, dense_rows in zip(
            torch.split(hidden, LOGIT_ROWS), torch.split(dense, LOGIT_ROWS), strict=True
        ):
            ours = head(rows).float().log_softmax(dim=-1)  # [tokens, vocabulary]
            theirs = head(dense_rows).float().log_softmax(dim=-1)
            kl += (theirs.exp() * (theirs - ours)).sum(dim=-1).tolist()
            agreements += int((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
            end_probability = float(ours[-1, answer[-1]].exp()) if answer[-1] in self._eos else None
        return AnswerDivergence(tuple(kl), agreements, end_probability)
