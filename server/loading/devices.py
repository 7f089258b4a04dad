"""Which device and number format the settings mean on this machine."""

from collections.abc import Mapping
from typing import Any, Literal

import torch

from server.engine.config import Dtype
from server.settings import SettingsError

DEVICE_TYPES = ("cpu", "cuda")


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises SettingsError for what is not here."""
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"device {name!r} is none that torch knows: use cpu, cuda or cuda:N") from error
    if device.type not in DEVICE_TYPES:
        raise SettingsError(f"device {name} is not supported: use cpu, cuda or cuda:N")
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count()
        raise SettingsError(f"device {name} is not here, torch sees {count} CUDA devices: use cpu or auto")
    return device


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it, as far as torch can tell; without, bfloat16 is slow."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch has none
    return any("bf16" in name and bool(value) for name, value in capabilities.items())


def resolve_dtype(name: Dtype | Literal["auto"], auto: Dtype) -> Dtype:
    """`auto` unless another was asked for."""
    return auto if name == "auto" else name
