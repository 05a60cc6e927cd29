"""A moving average of a task's weights (EMA) as its model, for families that publish without one.

The last weights of a GAN swing about; their average over some hundred iterations is steadier and
looks better than any of them (Yazıcı et al., ICLR 2019). StarGAN v2 has an average of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facestyle.families import Task
from facestyle.nn.updates import Optimisers


class Averaged:
    """A ``Task`` around another one: the same steps, averaged weights in ``model_parts``."""

    def __init__(self, task: Task, decay: float) -> None:
        """Begin with the weights that the task has.

        Args:
            decay: of the average, an iteration; less in the first iterations, which would
                otherwise show in it for long.
        """
        self._task = task
        self._decay = decay
        self._average = {
            part: {name: tensor.detach().clone() for name, tensor in state.items()}
            for part, state in task.model_parts().items()
        }

    @property
    def step_index(self) -> int:
        """Of the task."""
        return self._task.step_index

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Of the task: those that learn."""
        return self._task.networks

    @property
    def optimisers(self) -> Optimisers:
        """Of the task."""
        return self._task.optimisers

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """The task's iteration; then the average moves."""
        losses = self._task.step(batch)
        done = self._task.step_index
        moved = 1 - min(self._decay, (1 + done) / (10 + done))
        for part, state in self._task.model_parts().items():
            mine = self._average[part]
            # Counters, which are whole numbers, have no average.
            names = [name for name, tensor in state.items() if tensor.is_floating_point()]
            with torch.no_grad():
                torch._foreach_lerp_([mine[n] for n in names], [state[n] for n in names], moved)
                for name in state.keys() - set(names):
                    mine[name].copy_(state[name])
        return losses

    def ailments(self, losses: Mapping[str, float]) -> list[str]:
        """Of the task."""
        return self._task.ailments(losses)

    def model_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The averages."""
        return dict(self._average)

    def state_dict(self) -> dict[str, Any]:
        """The task's, and the averages; what is put into it changes nothing here."""
        average = {part: dict(state) for part, state in self._average.items()}
        return {**self._task.state_dict(), "average": average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of ``state_dict``; strict."""
        self._task.load_state_dict({key: state[key] for key in state if key != "average"})
        for part, mine in self._average.items():
            saved = state["average"][part]
            if saved.keys() != mine.keys():
                raise KeyError(f"{part}: {', '.join(sorted(saved.keys() ^ mine.keys()))}")
            for name, tensor in mine.items():
                tensor.copy_(saved[name])
