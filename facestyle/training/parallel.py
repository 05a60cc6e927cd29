"""Several processes on one run, as ``torchrun`` starts them: who this one is, what all agree on.

Without torchrun there is one process, and every function here costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from facestyle.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """All processes of a run, seen from one of them."""

    rank: int = 0
    """This one's number; 0 writes the files."""
    world: int = 1
    """How many there are."""
    device: str = "cpu"
    """Where this one computes."""

    @property
    def writes(self) -> bool:
        """Whether this process writes files and says something."""
        return self.rank == 0

    def agreed(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, device=torch.device(self.device))
        return box[0]  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        if self.world == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(votes)
        return bool(votes.item() > 0)

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value's mean over the processes; all must give the same names."""
        if self.world == 1 or not values:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)
        dist.all_reduce(sums)
        return dict(zip(values, (sums / self.world).tolist(), strict=True))


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other processes of torchrun, if this one was started by it.

    Raises:
        UsageError: several processes are to share the one GPU that ``device`` names.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield Processes(device=device)
        return
    if device.startswith("cuda:"):
        raise UsageError(
            f"device {device} is one GPU, and torchrun started {world} processes",
            "--device cuda gives each its own",
        )
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    store, rank, world = next(dist.rendezvous("env://"))
    # torchrun restarts its processes on one store, where the dead ones' addresses still stand.
    store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield Processes(rank=dist.get_rank(), world=world, device=device)
        dist.barrier()  # who leaves first would cut the others' last words off
    finally:
        dist.destroy_process_group()


def launch_id() -> str | None:
    """Names the torchrun that started this process, the same after it has restarted it."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} {os.getppid()}"


def restarted() -> bool:
    """Whether torchrun starts this process again, after one of them died."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
