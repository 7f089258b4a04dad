"""A fitted delta does what its report says, goes on where it was, and brings a pruned model nearer."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from eval.tasks.registry import open_calibration
from pruning.calibration.batches import TokenSequence, pad_batch
from pruning.calibration.calibration import CalibrationData, load_network
from pruning.calibration.layerwise import LayerwiseModel
from pruning.chat_prompts import prompt_token_ids
from pruning.checkpoints.checkpoint import Checkpoint, open_checkpoint
from pruning.compensation import layer_fit
from pruning.compensation.compensation import CompensationSettings, compensate
from pruning.compensation.layer_fit import LayerFit, RoleBatch
from pruning.compensation.streams import Streams, StreamStore
from pruning.delta import Delta
from pruning.errors import DeltaError, MemoryBoundError
from pruning.held_out import held_out, part
from pruning.ranking.widths import widths_at
from pruning.slicing import merge_delta, slice_model
from server.loading.profiles import calibration_data, open_model
from server.settings import ProfileSettings, load_settings
from tests.pruning.answered import answers_to
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_ranking

SETTINGS = CompensationSettings(rank=4, device="cpu", dtype=torch.float32, max_memory_bytes=2**30)
DATA = CalibrationData(
    target=tuple(f"Say {'so ' * (i % 7)}{i}" for i in range(60)), distractor=("x",), seed=3, max_new_tokens=12
)
WIDTHS = (64, 192, 40)  # the middle layer is whole


def fit(checkpoint: Checkpoint, work: Path, **changes: object) -> Delta:
    settings = dataclasses.replace(SETTINGS, **changes)
    answers = answers_to(DATA, checkpoint)
    return compensate(
        checkpoint, tiny_ranking(), WIDTHS, 0.3, "counting", DATA, answers, settings, work, progress=False
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return open_checkpoint(str(path), tmp_path_factory.mktemp("cache"))


def divergence(checkpoint: Checkpoint, delta: Delta | None) -> float:
    """KL(dense ‖ pruned) on the answers held out, by whole networks one sequence at a time."""

    def network():
        return AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32).eval()

    dense, pruned = network(), slice_model(network(), tiny_ranking(), WIDTHS)
    if delta is not None:
        merge_delta(pruned, delta)
    tokenizer = checkpoint.tokenizer()
    answers = answers_to(DATA, checkpoint).token_ids
    total = count = 0.0
    for message, answer in zip(DATA.target, answers, strict=True):
        prompt = prompt_token_ids(tokenizer, message)
        if not held_out(prompt):
            continue
        fed = torch.tensor([prompt + answer[:-1]])
        with torch.no_grad():
            expected, found = (
                F.log_softmax(model(fed).logits[0, len(prompt) - 1 :], dim=-1) for model in (dense, pruned)
            )
        total += float((expected.exp() * (expected - found)).sum())
        count += len(answer)
    return total / count


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_reported_is_what_the_merged_model_does(family: str, tmp_path: Path) -> None:
    window = {"sliding_window": 20} if family == "mistral" else {}
    path = tiny_checkpoint(tmp_path / "tiny", family, **window)
    checkpoint = open_checkpoint(str(path), tmp_path / "cache")
    delta = fit(checkpoint, tmp_path / "work")
    delta.check(model=checkpoint.fingerprint, ranking=tiny_ranking().digest, widths=WIDTHS)
    reported = delta.provenance.settings
    for name, merged in (("kl_nats_before", None), ("kl_nats_after", delta)):
        expected = divergence(checkpoint, merged)
        assert reported[name] == pytest.approx(expected, rel=1e-3), name
    assert all(set(layer) <= {"down_proj"} for layer in delta.layers)
    assert {m.a.dtype for layer in delta.layers for m in layer.values()} == {torch.bfloat16}


def test_the_first_layer_is_the_dense_solve(tiny: Checkpoint, tmp_path: Path) -> None:
    """Where nothing was pruned before: by least squares over all tokens, λ chosen on two parts of ten."""
    whole = dataclasses.replace(SETTINGS, rank=40)  # as the first layer's width: nothing is truncated
    given = answers_to(DATA, tiny)
    fitting = compensate(
        tiny, tiny_ranking(), (40, 192, 64), 0.3, "counting", DATA, given, whole, tmp_path, progress=False
    )
    found = fitting.layers[0]["down_proj"].product().double()
    answers = given.token_ids
    model = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32).eval()
    layer, kept = model.model.layers[0], tiny_ranking().permutation[0, :40]
    seen: list[torch.Tensor] = []
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for message, answer in zip(DATA.target, answers, strict=True):
        chat = [{"role": "user", "content": message}]
        prompt = tiny.tokenizer().apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            model(torch.tensor([prompt + answer[:-1]]))

    def rows(indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """h and what is missing, each token scaled by the root of its weight."""
        stream = torch.cat([seen[index] for index in indices])
        with torch.no_grad():
            x = layer.post_attention_layernorm(stream)
            h = (F.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x))[:, kept]
            missing = layer.mlp(x) - h @ layer.mlp.down_proj.weight[:, kept].T
        scale = stream.square().mean(1, keepdim=True).rsqrt()
        return (h * scale).double(), (missing * scale).double()

    def solved(indices: list[int], ridge: float) -> torch.Tensor:
        h, missing = rows(indices)
        penalty = ridge * h.square().sum() / h.shape[1] * torch.eye(h.shape[1], dtype=torch.float64)
        return torch.linalg.solve(h.T @ h + penalty, h.T @ missing).T

    parts = [part(prompt_token_ids(tiny.tokenizer(), message)) for message in DATA.target]
    judged = [index for index, each in enumerate(parts) if each in (1, 2)]
    fitted = [index for index, each in enumerate(parts) if each > 2]

    def left(ridge: float) -> float:
        h, missing = rows(judged)
        return float((missing - h @ solved(fitted, ridge).T).square().sum())

    expected = solved(fitted + judged, min(layer_fit.RIDGES, key=left))
    assert (found - expected).norm() < 0.01 * expected.norm()  # in bfloat16


def test_a_layer_is_to_mend_half_of_what_is_amiss(tiny: Checkpoint, tmp_path: Path) -> None:
    """t is half what the dense MLP makes of x, half what leads back to the dense stream, by hand."""
    model = LayerwiseModel(load_network(tiny, torch.device("cpu"), torch.float32))
    batch = RoleBatch("fitted", pad_batch([TokenSequence((5, 6, 7))], torch.device("cpu")))
    store = StreamStore(tmp_path, 0, torch.device("cpu"))
    run = LayerFit(model, tiny_ranking(), WIDTHS, 4, [batch], store)
    dense, corrected = torch.randn(2, 1, 3, 64, generator=torch.Generator().manual_seed(5))
    seen: list[torch.Tensor] = []

    class Sums:
        def add(self, *given: torch.Tensor) -> None:
            seen.extend(given)

    neurons = run._neurons(0)
    with torch.no_grad():
        run._add(0, neurons, Streams(dense, corrected, None), batch, SimpleNamespace(fitted=Sums()))
        x = model.mlp_input(0, corrected[0])
        mlp, kept = model.mlps[0], tiny_ranking().permutation[0, : WIDTHS[0]]
        h = (F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))[:, kept]
        back = dense[0] - corrected[0]
        missing = (mlp(x) + back) / 2 - h @ mlp.down_proj.weight[:, kept].T
    for found, expected in zip(seen, (h, missing, 1 / corrected[0].square().mean(dim=1)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_dense_stream_leaves_a_layer_where_the_corrected_one_waits(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    model = LayerwiseModel(load_network(tiny, torch.device("cpu"), torch.float32))
    batch = RoleBatch("fitted", pad_batch([TokenSequence((5, 6, 7))], torch.device("cpu")))
    run = LayerFit(model, tiny_ranking(), WIDTHS, 4, [batch], StreamStore(tmp_path, 0, torch.device("cpu")))
    with torch.no_grad():
        stream, inputs = model.embed(batch.tokens)
        run._inputs.append(inputs)
        left = run._attend(0, 0, Streams(stream, stream, None))
        expected = left.corrected + model.mlps[0](model.mlp_input(0, left.corrected))
    torch.testing.assert_close(left.corrected, model.attend(0, stream, inputs))
    torch.testing.assert_close(left.dense, expected)


def test_an_interrupted_fit_goes_on_to_the_same_delta(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(tiny, tmp_path / "whole")
    fitted: list[int] = []
    solve = layer_fit.LayerFit._solve

    def interrupted(run, layer: int, *rest):
        if layer == 2 and fitted == [0, 1]:
            raise KeyboardInterrupt
        fitted.append(layer)
        return solve(run, layer, *rest)

    monkeypatch.setattr(layer_fit.LayerFit, "_solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, tmp_path / "work")
    fitted.append(-1)
    assert fit(tiny, tmp_path / "work").digest == whole.digest
    assert fitted == [0, 1, -1, 2], "no layer is fitted twice"
    with pytest.raises(DeltaError, match=r"unfinished fit with other settings.*: remove it"):
        fit(tiny, tmp_path / "work", rank=5)


def test_the_least_memory_that_works_is_named_and_gives_the_same_delta(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(MemoryBoundError) as refused:
        fit(tiny, tmp_path / "work", max_memory_bytes=3_000_000)
    bound = int(float(re.search(r"at least ([\d.]+) GiB", str(refused.value))[1]) * 2**30)
    within = fit(tiny, tmp_path / "work", max_memory_bytes=bound)
    assert any((tmp_path / "work" / "streams").iterdir()), "streams wait on disk"
    whole = fit(tiny, tmp_path / "whole")
    assert not (tmp_path / "whole" / "streams").exists()
    assert within.digest == whole.digest


def test_what_cannot_be_fitted_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match=r"the rank is 41; .* from 1 to 40"):
        fit(tiny, tmp_path, rank=41)
    with pytest.raises(MemoryBoundError, match=r"at least 0\.\d+ GiB: the model 0\.001.* raise --max-memory"):
        fit(tiny, tmp_path, max_memory_bytes=500_000)
    few = dataclasses.replace(DATA, target=DATA.target[:2])
    with pytest.raises(DeltaError, match="2 prompts are too few"):
        compensate(
            tiny,
            tiny_ranking(),
            WIDTHS,
            0.3,
            "counting",
            few,
            answers_to(few, tiny),
            SETTINGS,
            tmp_path,
            progress=False,
        )


def test_what_overflows_is_told_with_the_layer(tmp_path: Path) -> None:
    """In float16 a stream of small numbers weighs so much that its products are none."""
    path = tiny_checkpoint(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e-3)
        model.model.layers[0].post_attention_layernorm.weight.mul_(2e2)
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    model.save_pretrained(path)
    checkpoint = open_checkpoint(str(path), tmp_path / "cache")
    with pytest.raises(DeltaError, match=r"layer 1 of 3 computes is not finite .* bfloat16 or float32"):
        fit(checkpoint, tmp_path / "work", dtype=torch.float16)


def test_a_pruned_model_comes_nearer_to_the_dense_one(tmp_path: Path) -> None:
    """math-mini on answers that nothing was fitted on, 30% of its neurons removed at random."""
    settings = load_settings(ProfileSettings, {})
    checkpoint = open_model(settings)
    data = calibration_data(open_calibration("arithmetic", settings.task_options()), 30, 0)
    order = tiny_ranking(6, checkpoint.architecture.intermediate_size)
    widths = widths_at(order, 0.3, "uniform")
    fitting = dataclasses.replace(SETTINGS, rank=32)
    answers = answers_to(data, checkpoint)
    delta = compensate(
        checkpoint, order, widths, 0.3, "counting", data, answers, fitting, tmp_path, progress=False
    )
    found = delta.provenance
    assert found.settings["kl_nats_after"] < 0.25 * found.settings["kl_nats_before"]
