"""fit(): a task, batches, a folder → metrics, previews, checkpoints, a model.

Knows no model: a ``Task`` steps on batches and says what its networks are. Every file is
written atomically, and a run goes on from its last checkpoint as if it had never stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from facestyle.card import ModelCard
from facestyle.checkpoint import save_model, write_atomically
from facestyle.errors import CheckpointError, FacestyleError
from facestyle.training.config import RunConfig

NAN_LIMIT = 10  # iterations in a row without a finite loss, after which a run is lost


class Task(Protocol):
    """A family's training: one step a batch."""

    step_index: int

    def step(self, batch: Any) -> dict[str, float]:
        """One iteration; the losses by name."""
        ...

    def model_parts(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """The state dicts that make the finished model."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next iteration depends on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Strict reverse of ``state_dict``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a watcher is told after an iteration."""

    step: int
    """Iterations done."""
    losses: Mapping[str, float]
    """Means since the last report."""
    seconds: float
    """Mean seconds an iteration since the last report."""
    waiting: float
    """Share of that time spent waiting for data."""


def fit(
    task: Task,
    data: Iterator[Any],
    run: RunConfig,
    folder: Path,
    card: ModelCard,
    *,
    report: Callable[[Progress], None],
    preview: Callable[[int], None],
    stopping: Callable[[], bool],
) -> bool:
    """Train until ``run.steps`` iterations are done, or ``stopping()``.

    ``data`` continues at ``task.step_index``. Returns True when finished, False when stopped;
    either way the folder holds a checkpoint of the last iteration and the model.

    Raises:
        FacestyleError: no finite loss in ``NAN_LIMIT`` iterations in a row, or a full disk.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    waited, since, last_log = 0.0, time.perf_counter(), task.step_index
    bad = 0
    while task.step_index < run.steps and not stopping():
        asked = time.perf_counter()
        batch = next(data)
        waited += time.perf_counter() - asked
        losses = task.step(batch)
        step = task.step_index

        bad = 0 if all(abs(value) < float("inf") for value in losses.values()) else bad + 1
        if bad >= NAN_LIMIT:
            raise FacestyleError(
                f"no finite loss in {NAN_LIMIT} iterations up to {step}",
                f"resume from the last checkpoint with a lower learning rate: --resume {folder}",
            )
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value
            counts[name] = counts.get(name, 0) + 1

        if step % run.log_every == 0 or step == run.steps:
            now = time.perf_counter()
            progress = Progress(
                step=step,
                losses={name: sums[name] / counts[name] for name in sums},
                seconds=(now - since) / (step - last_log),
                waiting=waited / (now - since),
            )
            _log(folder / "metrics.jsonl", progress)
            report(progress)
            sums, counts, waited, since, last_log = {}, {}, 0.0, now, step
        if step % run.save_every == 0 and step < run.steps:
            save(task, run, folder, card)
        if step % run.sample_every == 0 or step == run.steps:
            preview(step)
    save(task, run, folder, card)
    return task.step_index >= run.steps


def _log(path: Path, progress: Progress) -> None:
    line = {
        "step": progress.step,
        "seconds": round(progress.seconds, 4),
        "waiting": round(progress.waiting, 4),
        **{name: round(value, 6) for name, value in progress.losses.items()},
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def save(task: Task, run: RunConfig, folder: Path, card: ModelCard) -> None:
    """Write a training checkpoint and the model, then drop checkpoints beyond ``run.keep``."""
    step = task.step_index
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    state = {"task": task.state_dict(), "rng": torch.get_rng_state()}

    def write(path: Path) -> None:
        # Through a Python file a full disk is an OSError; torch's own writer hides it.
        with path.open("wb") as file:
            torch.save(state, file)

    write_atomically(checkpoints / f"{step:07d}.pt", write)
    save_model(folder / "model.safetensors", task.model_parts(), card.at_step(step))
    for old in sorted(checkpoints.glob("*.pt"))[: -run.keep]:
        old.unlink()


def resume(task: Task, folder: Path) -> None:
    """Put a task back to the newest checkpoint of a run.

    Raises:
        CheckpointError: the run has no checkpoint, or it does not fit.
    """
    saved = sorted((folder / "checkpoints").glob("*.pt"))
    if not saved:
        raise CheckpointError(f"{folder} holds no checkpoint", "start the run anew")
    try:
        state = torch.load(saved[-1], map_location="cpu", weights_only=True)
        task.load_state_dict(state["task"])
    except Exception as error:
        # Whatever torch says of a damaged file (see checkpoint.py), the remedy is the same.
        raise CheckpointError(
            f"{saved[-1]} is damaged or does not fit this run ({type(error).__name__})",
            f"delete it to go on from the one before: {len(saved) - 1} left",
        ) from error
    torch.set_rng_state(state["rng"])
