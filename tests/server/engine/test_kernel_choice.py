"""Which kernels compute, and that the engine on top of them serves every family."""

import ctypes
import dataclasses
import importlib.util
import logging

import pytest
import torch

from server.engine import kernels
from server.engine.errors import KernelsUnavailableError
from server.engine.kernels import cuda, library
from server.engine.kernels.library import BatchStruct, KernelLibrary, load_library
from tests.server.engine.support import CONFIG, Loaded, generate, logit_gap, prompt

compiled = pytest.mark.usefixtures("compiled_kernels")  # once for each unit that multiplies


@compiled
def test_every_family_is_served_by_the_compiled_kernels(loaded: Loaded) -> None:
    """Mixed widths, chunked prefill and decoding, against transformers in float32."""
    narrow = loaded.variant((64, 96, 40))
    engine = loaded.engine(dtype="bfloat16")
    assert engine.kernels == kernels.describe()
    asked = [(prompt(seed, 30 + 20 * seed), [loaded.dense, narrow][seed % 2]) for seed in range(5)]
    for (token_ids, variant), output in zip(asked, generate(engine, asked), strict=True):
        assert logit_gap(loaded.reference(variant), token_ids, output) <= 0.1  # as with torch in bfloat16
    reference = loaded.reference(narrow)
    assert engine.parameters(narrow.widths) == reference.num_parameters()
    assert engine.standalone_bytes(narrow.widths) == 2 * reference.num_parameters()


@compiled
def test_a_tied_embedding_is_held_once(load) -> None:
    tied, untied = load("llama", tie_word_embeddings=True), load("llama")
    engines = [loaded.engine(dtype="bfloat16") for loaded in (tied, untied)]
    assert engines[1].weight_bytes - engines[0].weight_bytes == 320 * 64 * 2


def test_the_matrix_unit_is_left_out_on_request(load) -> None:
    if kernels.describe().startswith("torch"):
        pytest.skip(kernels.describe())
    loaded = load("qwen2")
    engine = loaded.engine(dtype="bfloat16", kernels="avx512")
    assert engine.kernels == kernels.VECTOR
    [output] = generate(engine, [(prompt(0, 40), loaded.dense)])
    assert logit_gap(loaded.reference(loaded.dense), prompt(0, 40), output) <= 0.1


@compiled
def test_kernels_share_the_openmp_pool_of_torch() -> None:
    from server.engine.kernels.library import _openmp_pools

    load_library()
    assert len(_openmp_pools()) == 1


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"kernels": "torch"}, "the setting kernels asks for torch"),
        ({"dtype": "float32"}, "the dtype is float32"),
        ({"block_size": 7}, "block_size is 7"),
    ],
)
def test_torch_computes_where_the_kernels_cannot_or_must_not(
    load, limits: dict, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load("qwen2")
    with caplog.at_level(logging.INFO, logger=kernels.__name__):
        engine = loaded.engine(**{"dtype": "bfloat16", **limits})
    assert engine.kernels.startswith("torch: ")
    assert reason in engine.kernels
    assert [record for record in caplog.records if reason in record.message]
    token_ids = prompt(0, 40)
    [output] = generate(engine, [(token_ids, loaded.dense)])
    assert logit_gap(loaded.reference(loaded.dense), token_ids, output) <= 0.1


@pytest.mark.parametrize(
    ("limits", "description"),
    [
        ({}, kernels.GRAPHS),
        ({"dtype": "float32"}, kernels.GRAPHS),
        ({"kernels": "torch"}, "torch: the setting kernels asks for torch"),
    ],
)
def test_what_computes_on_a_cuda_device(
    load, monkeypatch: pytest.MonkeyPatch, limits: dict, description: str
) -> None:
    """A stand-in for Triton on a device, which works."""
    monkeypatch.setattr(kernels, "check_triton", lambda device: None)
    config = dataclasses.replace(CONFIG, device="cuda:0", **limits)
    choice = kernels.choose_kernels(config, load("qwen2").checkpoint.config)
    assert (choice.library, choice.description) == (None, description)


@pytest.mark.parametrize(
    ("is_installed", "reason"),
    [(False, "triton is not installed"), (True, "triton does not work here: Failed to find C compiler")],
)
def test_torch_computes_where_triton_cannot(
    load, monkeypatch: pytest.MonkeyPatch, is_installed: bool, reason: str
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler\nand more that nobody needs to read")

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (object() if is_installed else None) if name == "triton" else find_spec(name),
    )
    monkeypatch.setattr(torch.cuda, "device", fails)
    cuda.check_triton.cache_clear()
    config = dataclasses.replace(CONFIG, device="cuda:0")
    choice = kernels.choose_kernels(config, load("qwen2").checkpoint.config)
    cuda.check_triton.cache_clear()
    assert choice.description == f"torch: {reason}"


@compiled
def test_kernels_of_other_sources_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(BatchStruct):
        _fields_ = (("more", ctypes.c_void_p),)

    monkeypatch.setattr(library, "BatchStruct", Longer)
    with pytest.raises(KernelsUnavailableError, match="built from other sources: install again"):
        load_library.__wrapped__()


def test_torch_computes_where_nothing_was_built(load, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_built() -> KernelLibrary:
        raise KernelsUnavailableError("they were not built")

    monkeypatch.setattr(kernels, "load_library", not_built)
    assert kernels.describe() == "torch: they were not built"
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    assert kernels.choose_kernels(config, load("qwen2").checkpoint.config).library is None
