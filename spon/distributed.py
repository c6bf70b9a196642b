"""Data-parallel training under ``torchrun``: who works on what, and sums over the processes."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Group", "current_group"]


@dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes
    ----------
    rank : int
        Number of this process, from 0. Only process 0 writes files.
    size : int
        Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """The part of a global batch that this process works on.

        Parameters
        ----------
        rows : Tensor, shape (n,)
            Numbers of samples, the same on all processes.

        Returns
        -------
        Tensor, shape (m,)
            ``m`` differs by one at most between the processes, and may be zero.
        """
        return rows[self.rank :: self.size]

    def sum_(self, value: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes.

        A process without a gradient for a parameter adds nothing; a parameter that has none on any
        process keeps none, so that the optimiser treats it as it would in a single process.

        Parameters
        ----------
        parameters : sequence of Parameter
            The same parameters in the same order on all processes.
        """
        if self.size == 1:
            return
        flags = [float(p.grad is not None) for p in parameters]
        parts = [
            p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in parameters
        ]
        # One message for everything: on small networks the latency is what costs.
        total = self.sum_(torch.cat([*parts, parameters[0].new_tensor(flags)]))
        used = total[-len(flags) :].tolist()
        start = 0
        for p, is_used in zip(parameters, used, strict=True):
            if is_used:
                p.grad = total[start : start + p.numel()].view_as(p)
            start += p.numel()

    def same_weights_(self, net: nn.Module) -> None:
        """Give all processes the weights and persistent buffers of process 0, in place."""
        if self.size == 1:
            return
        for value in net.state_dict().values():
            if isinstance(value, Tensor):
                packed = value.contiguous()
                dist.broadcast(packed, src=0)
                value.copy_(packed)

    def same_object(self, value: Any) -> Any:
        """Return the object of process 0 on all processes."""
        if self.size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]


def current_group(device: torch.device) -> Group:
    """Find the processes that ``torchrun`` has started, and connect them if need be.

    Parameters
    ----------
    device : torch.device
        Where the tensors live: gloo on a CPU, nccl on a GPU.

    Returns
    -------
    Group
        A group of one where there is no ``torchrun`` and no initialised process group.
    """
    if not dist.is_available():
        return Group()
    if not dist.is_initialized():
        # The variables that torchrun sets; a scheduler's own are none of our business.
        if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Group()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Group(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
