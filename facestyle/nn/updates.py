"""One safe update of a task's networks: backward, average over processes, step or skip.

Every family trains through ``Optimisers``, so that a gradient that is not finite, several
processes and what is logged of learning rates and gradients are handled once. Knows no losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 1 << 25  # values in one exchange between processes; 128 MB of float32


class Optimisers:
    """A task's optimisers by name."""

    def __init__(self, optimisers: Mapping[str, torch.optim.Optimizer]) -> None:
        self._optimisers = dict(optimisers)
        self.skipped = 0
        """Updates left out since the start because a gradient was not finite."""
        self.gradient_norms: dict[str, float] = {}
        """L2 norm of the last gradient of each optimiser that was stepped."""

    def update(self, loss: Tensor, *names: str) -> bool:
        """One step of the named optimisers down the gradient of ``loss``; see ``finish``."""
        self.begin()
        loss.backward()
        return self.finish(*names)

    def begin(self) -> None:
        """Forget all gradients. Then come backward passes, one or several, whose gradients add
        up: a step in stages keeps only one stage's graph in memory."""
        for optimiser in self._optimisers.values():
            optimiser.zero_grad(set_to_none=True)

    def finish(self, *names: str) -> bool:
        """Step the named optimisers down what the backward passes left, in all processes alike.

        A gradient with NaN or infinity would spoil weights and moments for good: then nothing
        is stepped, the skip is counted, and False comes back.
        """
        gradients = {name: self._gradients(name) for name in names}
        _average([gradient for group in gradients.values() for gradient in group])
        norms = {
            name: torch.nn.utils.get_total_norm(group) for name, group in gradients.items() if group
        }
        # One wait for the device, not one a norm.
        values = torch.stack(list(norms.values())).tolist() if norms else []
        self.gradient_norms |= dict(zip(norms, values, strict=True))
        if not all(abs(value) < float("inf") for value in values):
            self.skipped += 1
            return False
        for name in names:
            self._optimisers[name].step()
        return True

    def set_lr(self, lr: float, *names: str) -> None:
        """The learning rate of the named optimisers, or of all."""
        for name in names or self._optimisers:
            for group in self._optimisers[name].param_groups:
                group["lr"] = lr

    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each optimiser."""
        return {name: float(o.param_groups[0]["lr"]) for name, o in self._optimisers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Moments, steps and learning rates, by optimiser."""
        return {name: optimiser.state_dict() for name, optimiser in self._optimisers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of ``state_dict``; raises KeyError where an optimiser has no state."""
        for name, optimiser in self._optimisers.items():
            optimiser.load_state_dict(state[name])

    def _gradients(self, name: str) -> list[Tensor]:
        return [
            parameter.grad
            for group in self._optimisers[name].param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]


def _average(gradients: list[Tensor]) -> None:
    """Each gradient's mean over all processes, in place.

    GAN steps run a network several times under changing freezes, which DistributedDataParallel's
    hooks do not follow; one exchange after the backward pass is the same arithmetic.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    bucket: list[Tensor] = []
    for index, gradient in enumerate(gradients):
        bucket.append(gradient)
        last = index == len(gradients) - 1
        if last or sum(one.numel() for one in bucket) >= BUCKET:
            flat = torch.cat([one.reshape(-1) for one in bucket])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for one, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                one.copy_(mean.view_as(one))
            bucket = []
