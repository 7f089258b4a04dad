"""What one model's MLP neurons do on one task: statistics of h, and a record of what they were measured on.

h = act(x Wgᵀ) ⊙ (x Wuᵀ) is the input of a layer's down projection, one number a neuron and token. Knows how
profiles are stored and told apart; measures nothing (calibration.py) and judges nothing (ranking/scores.py).
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from pruning.checkpoints.fingerprints import SHOWN_DIGITS
from pruning.errors import ProfileError, StaleProfileError
from pruning.files import write_atomically
from pruning.headed_tensors import DamagedFileError, read_headed

FORMAT = 2
READABLE_FORMATS = (1, 2)  # the first lacks target_per_answer and taylor_abs_sum
METADATA_KEY = "secateur_profile"


@dataclass(frozen=True, eq=False)
class TokenMoments:
    """Sums over tokens; each tensor is float64 [layers, neurons]."""

    tokens: float  # whole, but for moments of tokens that are weighed
    sum: Tensor  # of h
    abs_sum: Tensor  # of |h|
    sq_sum: Tensor  # of h²


@dataclass(frozen=True, eq=False)
class SequenceMoments:
    """Sums over sequences of m, a sequence's mean |h|; each tensor is float64 [layers, neurons]."""

    sequences: int
    sum: Tensor  # of m
    sq_sum: Tensor  # of m²


@dataclass(frozen=True)
class Provenance:
    """What a profile was measured on, and how.

    Attributes:
        model_name: for people; the fingerprints decide.
        model, tokenizer, data: fingerprints of the checkpoint, its tokenizer and the calibration prompts.
        task: name of the target task.
        seed: that the calibration prompts were drawn with.
        dtype: that the model ran in.
        max_new_tokens: that its answers were limited to.
        unfinished_answers: answers that reached that limit; they are part of the statistics.
        ends: the tokens that end an answer; None in profiles that were made before this was kept.
        created: ISO 8601, UTC.
        versions: of the libraries that took part.
    """

    model_name: str
    model: str
    tokenizer: str
    data: str
    task: str
    seed: int
    dtype: str
    max_new_tokens: int
    unfinished_answers: int
    created: str
    versions: Mapping[str, str]
    ends: Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class SelectivityProfile:
    """Statistics per layer and neuron, for the target task and for text that has nothing to do with it.

    Attributes:
        target_prompt, target_answer: over the tokens of the task's prompts, and of the model's own answers.
        distractor_prompt: over the tokens of the distractor prompts.
        target_per_prompt, distractor_per_prompt: over prompt-level means, prompt tokens only.
        target_per_answer: over answer-level means, of answers that the model is fed a token of. None in
            profiles of format 1, as is taylor_abs_sum.
        taylor_abs_sum, taylor_sq_sum: float64 [layers, neurons], sums of |h ∂L/∂h| and (h ∂L/∂h)² over all
            tokens of the target sequences, where L is a sequence's negative log-likelihood, summed over its
            answer tokens.
        gate_norm, up_norm, down_norm: float64 [layers, neurons], Euclidean norms of a neuron's row of Wg,
            row of Wu and column of Wd.
    """

    provenance: Provenance
    target_prompt: TokenMoments
    target_answer: TokenMoments
    distractor_prompt: TokenMoments
    target_per_prompt: SequenceMoments
    target_per_answer: SequenceMoments | None
    distractor_per_prompt: SequenceMoments
    taylor_abs_sum: Tensor | None
    taylor_sq_sum: Tensor
    gate_norm: Tensor
    up_norm: Tensor
    down_norm: Tensor

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the statistics and of what they were measured on, but not of when.

        Which tokens end an answer is seen in the statistics.
        """
        record = {**asdict(self.provenance), "created": None, "versions": None, "counts": _counts(self)}
        del record["ends"]  # so that older digests stand
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
        for name, tensor in sorted(_tensors(self).items()):
            digest.update(f"\n{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def check(
        self,
        *,
        model: str,
        tokenizer: str,
        data: str | None = None,
        dtype: str | None = None,
        ends: Collection[int] | None = None,
        source: str | None = None,
    ) -> None:
        """Raises StaleProfileError unless the profile was measured on what is in use.

        Args:
            model, tokenizer, data: fingerprints in use; None for `data` where the prompts are not at hand.
            dtype: that was asked for; None: any.
            ends: the tokens that end an answer; None: any.
            source: what the model was opened by, for the command in the message.
        """
        measured = self.provenance
        differing = [
            f"the {what} is {used[:SHOWN_DIGITS]}, but the profile was measured on {was[:SHOWN_DIGITS]}"
            for what, used, was in (
                ("model's digest", model, measured.model),
                ("tokenizer's digest", tokenizer, measured.tokenizer),
                ("calibration data's digest", data, measured.data),
                ("dtype", dtype, measured.dtype),
            )
            if used is not None and used != was
        ]
        if ends is not None and measured.ends is not None and set(ends) != set(measured.ends):
            differing.append(
                f"answers end with the tokens {sorted(ends)}, but ended with {sorted(measured.ends)} then"
            )
        if differing:
            raise StaleProfileError(
                f"the profile for task {measured.task!r} is of something else: {'; '.join(differing)}; "
                f"rebuild it with: {_rebuild(source or measured.model_name, measured.task)}"
            )

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all: a file that was there stays until the new one is.

        Raises:
            ProfileError: it cannot be written, e.g. because the disk is full.
        """
        header = {
            "format": FORMAT,
            "digest": self.digest,
            "counts": _counts(self),
            "provenance": asdict(self.provenance),
        }
        content = save(_tensors(self), metadata={METADATA_KEY: json.dumps(header)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise ProfileError(
                f"cannot write the profile {path} ({len(content):,} bytes): {error}; "
                f"make room, or name another directory in SECATEUR_CACHE_DIR"
            ) from error


def load(path: Path) -> SelectivityProfile:
    """Reads what `SelectivityProfile.save` wrote.

    Raises:
        ProfileError: there is no such file, it is of another format, or not one bit is as it was written.
    """
    remedy = f"rebuild it with: {_rebuild('MODEL', 'TASK')}"
    try:
        header, tensors = read_headed(path, METADATA_KEY)
    except FileNotFoundError as error:
        raise ProfileError(
            f"there is no profile {path}; build it with: {_rebuild('MODEL', 'TASK')}"
        ) from error
    except DamagedFileError as error:
        raise ProfileError(f"{path} is damaged or no profile ({error}); {remedy}") from error
    if header.get("format") not in READABLE_FORMATS:
        formats = " and ".join(map(str, READABLE_FORMATS))
        raise ProfileError(
            f"{path} has format {header.get('format')}; this version reads {formats}; {remedy}"
        )
    try:
        profile = _assemble(header, tensors)
    except (KeyError, TypeError) as error:
        raise ProfileError(f"{path} lacks a part of a profile ({error!r}); {remedy}") from error
    if profile.digest != header.get("digest"):
        raise ProfileError(f"{path} is damaged: its content does not match its digest; {remedy}")
    return profile


def _rebuild(model: str, task: str) -> str:
    return (
        f"secateur profile --model {model} --task {task} --force (and the --prompts and --distractors that "
        "it was measured with, if any)"
    )


def _counts(profile: SelectivityProfile) -> dict[str, float]:
    counts: dict[str, float] = {
        "target_prompt": profile.target_prompt.tokens,
        "target_answer": profile.target_answer.tokens,
        "distractor_prompt": profile.distractor_prompt.tokens,
        "target_per_prompt": profile.target_per_prompt.sequences,
        "distractor_per_prompt": profile.distractor_per_prompt.sequences,
    }
    if profile.target_per_answer is not None:
        counts["target_per_answer"] = profile.target_per_answer.sequences
    return counts


def _tensors(profile: SelectivityProfile) -> dict[str, Tensor]:
    tensors = {
        **_token_tensors("target_prompt", profile.target_prompt),
        **_token_tensors("target_answer", profile.target_answer),
        **_token_tensors("distractor_prompt", profile.distractor_prompt),
        **_sequence_tensors("target_per_prompt", profile.target_per_prompt),
        **_sequence_tensors("distractor_per_prompt", profile.distractor_per_prompt),
        "taylor_sq_sum": profile.taylor_sq_sum,
        "gate_norm": profile.gate_norm,
        "up_norm": profile.up_norm,
        "down_norm": profile.down_norm,
    }
    if profile.target_per_answer is not None:
        tensors |= _sequence_tensors("target_per_answer", profile.target_per_answer)
    if profile.taylor_abs_sum is not None:
        tensors["taylor_abs_sum"] = profile.taylor_abs_sum
    return tensors


def _token_tensors(name: str, moments: TokenMoments) -> dict[str, Tensor]:
    return {
        f"{name}.sum": moments.sum,
        f"{name}.abs_sum": moments.abs_sum,
        f"{name}.sq_sum": moments.sq_sum,
    }


def _sequence_tensors(name: str, moments: SequenceMoments) -> dict[str, Tensor]:
    return {f"{name}.sum": moments.sum, f"{name}.sq_sum": moments.sq_sum}


def _assemble(header: dict[str, Any], tensors: dict[str, Tensor]) -> SelectivityProfile:
    counts = header["counts"]

    def token_moments(name: str) -> TokenMoments:
        return TokenMoments(
            tokens=counts[name],
            sum=tensors[f"{name}.sum"],
            abs_sum=tensors[f"{name}.abs_sum"],
            sq_sum=tensors[f"{name}.sq_sum"],
        )

    def sequence_moments(name: str) -> SequenceMoments:
        return SequenceMoments(
            sequences=counts[name], sum=tensors[f"{name}.sum"], sq_sum=tensors[f"{name}.sq_sum"]
        )

    return SelectivityProfile(
        provenance=Provenance(**header["provenance"]),
        target_prompt=token_moments("target_prompt"),
        target_answer=token_moments("target_answer"),
        distractor_prompt=token_moments("distractor_prompt"),
        target_per_prompt=sequence_moments("target_per_prompt"),
        target_per_answer=sequence_moments("target_per_answer") if "target_per_answer" in counts else None,
        distractor_per_prompt=sequence_moments("distractor_per_prompt"),
        taylor_abs_sum=tensors.get("taylor_abs_sum"),
        taylor_sq_sum=tensors["taylor_sq_sum"],
        gate_norm=tensors["gate_norm"],
        up_norm=tensors["up_norm"],
        down_norm=tensors["down_norm"],
    )
