"""Several processes that train one adapter together, each on a device of its own.

torchrun or `accelerate launch` starts them and says in the environment who is who. They take the same steps
with the same matrices; a step's rows are dealt among them and gradients added up. Knows no networks.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor, distributed

from pruning.errors import DeltaError

Item = TypeVar("Item")

PATIENCE = timedelta(days=2)  # the others wait while the first asks the dense model; launchers end what hangs


@dataclass(frozen=True)
class Processes:
    """Those that train together, seen from one of them.

    Attributes:
        device: of this one.
        index: of this one.
        count: of all.
        on_device: those that share its memory.
    """

    device: torch.device
    index: int = 0
    count: int = 1
    on_device: int = 1

    @property
    def is_first(self) -> bool:
        """The one that writes files and talks."""
        return self.index == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What this one takes of work that all of them see alike."""
        return items[self.index :: self.count]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, with the same bits in each.

        Args:
            tensors: of one dtype, on the device.

        Raises:
            DeltaError: one of them has ended.
        """
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            raise DeltaError(
                f"another of the {self.count} processes has ended, which see; the same command goes on where "
                "the training was last kept"
            ) from error
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Until all have come here. Raises DeltaError as `add_up`."""
        here = torch.zeros(1, device=self.device)
        self.add_up([here])
        here.item()  # on CUDA the sum has only been ordered until somebody looks at it

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """The first does what is inside, and then the others: they find its files."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """All that a launcher started, or this process alone.

    Args:
        device: CUDA without a number means one for each process of a machine.

    Raises:
        DeltaError: more processes than devices, or a device that all of them would share.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "LOCAL_RANK" not in os.environ:  # the latter is the launcher's alone
        yield Processes(device)
        return
    place, on_machine = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if device.type == "cuda":
        if device.index is not None:
            raise DeltaError(f"{on_machine} processes would share the device {device}: use --device cuda")
        devices = torch.cuda.device_count()
        if place >= devices:
            raise DeltaError(
                f"{on_machine} processes were started for {devices} CUDA devices: start one for each"
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    # Its functions keep the group that is there when it is first loaded, and with it gloo's threads; they
    # abort a process that ends now and then (pytorch#179291). A training loads it, so it is loaded before.
    import_module("torch.distributed.nn.functional")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(
            device, distributed.get_rank(), count, on_device=on_machine if device.type == "cpu" else 1
        )
    finally:
        distributed.destroy_process_group()
