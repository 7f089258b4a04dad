from collections.abc import Mapping

import pytest
import torch

from server.loading.devices import cpu_multiplies_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "multiplies"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"bf16": True, "architecture": "aarch64"}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_fp16": True}, False),
        ({}, False),
    ],
)
def test_a_cpu_multiplies_bfloat16_if_any_of_its_instructions_do(
    capabilities: Mapping[str, bool], multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_multiplies_bfloat16() == multiplies


def test_of_a_cpu_that_torch_knows_nothing_of_nothing_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not cpu_multiplies_bfloat16()
