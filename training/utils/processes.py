"""The processes that train together, one for each device: their number, this process's role, and reductions over them."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def get_world_size() -> int:
    """Return the number of processes, from torchrun's environment, because the process group may not exist yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Return whether this process is the one that writes to disk and to the log."""
    return int(os.environ.get("RANK", "0")) == 0


@functools.cache
def _cpu_group() -> torch.distributed.ProcessGroup:
    import torch

    return torch.distributed.new_group(backend="gloo")  # so that these reductions never wait for a GPU


def largest_over_processes(number: float) -> float:
    """Return the maximum of a number over the processes. All processes must call this."""
    if get_world_size() == 1:
        return number
    import torch

    largest = torch.tensor(float(number))
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=_cpu_group())
    return largest.item()


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes, in the order of their ranks. All processes must call this."""
    if get_world_size() == 1:
        return [value]
    import torch

    values: list[Any] = [None] * get_world_size()
    torch.distributed.all_gather_object(values, value, group=_cpu_group())
    return values


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Average a tensor over the processes, in place."""
    if get_world_size() > 1:
        import torch

        torch.distributed.all_reduce(tensor)
        tensor /= get_world_size()
    return tensor


def wait_for_all_processes() -> None:
    if get_world_size() > 1:
        import torch

        torch.distributed.barrier()
