"""The processes of a run: this one alone, or all those started by `torchrun`, on one machine or many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selva_ref.training.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process and the number of processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, batch: int, accumulate: int) -> list[list[int]]:
        """Indices of the global batch that this process computes, in `accumulate` equal parts.

        Raises:
            TrainingError: the batch cannot be divided this way.
        """
        parts = self.size * accumulate
        if batch % parts:
            division = f"{self.size} processes times {accumulate} parts"
            raise TrainingError(f"batch {batch}: must be a multiple of {parts} ({division})")
        size = batch // parts
        first = self.rank * accumulate * size
        return [list(range(begin, begin + size)) for begin in range(first, first + accumulate * size, size)]

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wraps `module` so that its gradients are averaged over the processes."""
        return module if self.size == 1 else DistributedDataParallel(module, broadcast_buffers=False)

    def mean(self, value: Tensor) -> float:
        """Mean of a scalar over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return float(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: they all stop together."""
        return self.mean(torch.tensor(float(flag), device=self.device)) > 0


def pick_device(name: str) -> torch.device:
    """Returns this process's device for "auto", "cpu" or "cuda".

    Raises:
        TrainingError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise TrainingError(f"device cuda: {torch.cuda.device_count()} GPUs are visible, none for process {index}")
    return torch.device("cuda", index)


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """Connects the processes that `torchrun` started; without it, this process is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(rank=0, size=1, device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=size, device=device)
    finally:
        dist.destroy_process_group()
