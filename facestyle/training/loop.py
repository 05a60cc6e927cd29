"""fit(): a task, batches, a folder → metrics, previews, checkpoints, a model.

Knows no model: a ``Task`` steps on batches and says what its networks are. Every file is
written atomically, and a run goes on from its last checkpoint as if it had never stopped.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from facestyle.card import METADATA_KEY, ModelCard
from facestyle.checkpoint import MODEL_KEY, save_model, write_atomically
from facestyle.errors import CheckpointError, FacestyleError
from facestyle.families import Task
from facestyle.training.config import RunConfig
from facestyle.training.parallel import Processes
from facestyle.weights import MODEL_FILE

BAD_LIMIT = 10  # iterations in a row without a finite step, after which a run is lost
WARM_UP = 500  # iterations in which nothing that looks wrong means anything
METRICS_FILE = "metrics.jsonl"
BEST_FILE = "best.safetensors"
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")  # as ``write_atomically`` names its files


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a watcher is told every ``log_every`` iterations."""

    step: int
    """Iterations done."""
    losses: Mapping[str, float]
    """Means of the finite values since the last report."""
    seconds: float
    """Mean seconds an iteration since the last report."""
    waiting: float
    """Share of that time spent waiting for data."""
    memory: float
    """Peak memory so far, MB: the GPU's, or the process's own on a CPU."""
    skipped: int
    """Updates left out since the start or the resume, because a gradient was not finite."""
    rates: Mapping[str, float]
    """Learning rates by optimiser."""
    gradients: Mapping[str, float]
    """L2 norms of the last gradients by optimiser."""
    warnings: tuple[str, ...] = ()
    """What looks wrong."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A preview sheet and what it says of the model."""

    step: int
    """Iterations done."""
    path: Path
    """The picture."""
    score: float | None
    """Distance to real pictures, lower is better; None without pictures to compare with."""


class Watcher(Protocol):
    """Whom a run tells how it goes."""

    def announce(self, text: str) -> None:
        """Something worth knowing."""
        ...

    def tick(self, step: int, steps: int) -> None:
        """An iteration is done."""
        ...

    def progress(self, progress: Progress) -> None:
        """The numbers since the last report."""
        ...

    def sheet(self, sheet: Sheet) -> None:
        """A preview sheet is drawn."""
        ...


class Silent:
    """The watcher of all processes of a run but the one that writes."""

    def announce(self, text: str) -> None:
        """Nothing."""

    def tick(self, step: int, steps: int) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def sheet(self, sheet: Sheet) -> None:
        """Nothing."""


Preview = Callable[[int], "Sheet | None"]


def fit(
    task: Task,
    data: Iterator[Mapping[str, torch.Tensor]],
    run: RunConfig,
    folder: Path,
    card: ModelCard,
    *,
    watcher: Watcher,
    preview: Preview,
    stopping: Callable[[], bool],
    processes: Processes | None = None,
) -> bool:
    """Train until ``run.steps`` iterations are done, or ``stopping()``.

    ``data`` continues at ``task.step_index``. Returns True when finished, False when stopped;
    either way the folder holds a checkpoint of the last iteration and the model.

    Raises:
        FacestyleError: no finite step in ``BAD_LIMIT`` iterations in a row, or a full disk;
            the last checkpoint stays as it is. Or a picture that cannot be read, after saving.
    """
    processes = processes or Processes()
    window = _Window(task)
    bad = 0
    while task.step_index < run.steps and not processes.any(stopping()):
        try:
            batch = window.waited_for(data)
        except FacestyleError:  # a bad picture takes no iteration with it
            if processes.writes and task.step_index:
                save(task, run, folder, card)
                watcher.announce(f"saved; go on with: facestyle train --resume {folder}")
            raise
        # Dropout too is a function of (seed, step), and not alike in all processes.
        key = np.random.SeedSequence((run.seed, task.step_index, processes.rank))
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
        skipped = task.optimisers.skipped
        losses = task.step(batch)
        step = task.step_index
        watcher.tick(step, run.steps)

        fine = window.add(losses) and task.optimisers.skipped == skipped
        bad = 0 if fine else bad + 1
        if processes.any(bad >= BAD_LIMIT):
            raise FacestyleError(
                f"no finite step in {BAD_LIMIT} iterations up to {step}",
                f"go on from the last checkpoint with a lower learning rate: --resume {folder}",
            )
        if step % run.log_every == 0 or step == run.steps:
            progress = window.close(task, processes)
            if processes.writes:
                _append(folder, _line(progress))
                watcher.progress(progress)
        if not processes.writes:
            continue
        if step % run.save_every == 0 and step < run.steps:
            save(task, run, folder, card)
        if step % run.sample_every == 0 or step == run.steps:
            _sample(task, folder, card, preview, watcher)
    if processes.writes:
        save(task, run, folder, card)
    return task.step_index >= run.steps


@dataclass
class _Window:
    """Sums between two reports."""

    task: Task
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    first: int = 0

    def __post_init__(self) -> None:
        self.first = self.task.step_index

    def waited_for(self, data: Iterator[Any]) -> Any:
        asked = time.perf_counter()
        batch = next(data)
        self.waited += time.perf_counter() - asked
        return batch

    def add(self, losses: Mapping[str, float]) -> bool:
        """Count the finite losses; whether all are."""
        finite = {name: value for name, value in losses.items() if math.isfinite(value)}
        for name in losses:
            self.sums[name] += finite.get(name, 0.0)
            self.counts[name] += name in finite
        return len(finite) == len(losses)

    def close(self, task: Task, processes: Processes) -> Progress:
        """The report of this window; a new one begins."""
        now = time.perf_counter()
        means = {
            name: total / self.counts[name] if self.counts[name] else math.nan
            for name, total in self.sums.items()
        }
        losses = processes.means(means)
        progress = Progress(
            step=task.step_index,
            losses=losses,
            seconds=(now - self.since) / max(1, task.step_index - self.first),
            waiting=self.waited / (now - self.since),
            memory=peak_memory(processes.device),
            skipped=task.optimisers.skipped,
            rates=task.optimisers.learning_rates(),
            gradients=dict(task.optimisers.gradient_norms),
            warnings=tuple(task.ailments(losses)) if task.step_index > WARM_UP else (),
        )
        self.__init__(task)  # type: ignore[misc]
        return progress


def peak_memory(device: str) -> float:
    """Peak memory so far, MB: allocated on the GPU, or the process's own on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    import sys

    if sys.platform == "win32":
        return math.nan  # it has no such count without another library
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _line(progress: Progress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "seconds": round(progress.seconds, 4),
        "waiting": round(progress.waiting, 4),
        "memory": _rounded(progress.memory),
        "skipped": progress.skipped,
        **{f"lr/{name}": rate for name, rate in progress.rates.items()},
        **{f"gradient/{name}": _rounded(norm) for name, norm in progress.gradients.items()},
        **{name: _rounded(value) for name, value in progress.losses.items()},
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None  # JSON knows no NaN


def _append(folder: Path, line: Mapping[str, Any]) -> None:
    try:
        with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise FacestyleError(
            f"cannot write {folder / METRICS_FILE}: {error.strerror}",
            f"the last checkpoint is whole; go on with --resume {folder}",
        ) from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without one that a crash left unfinished."""
    lines = []
    path = folder / METRICS_FILE
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _sample(task: Task, folder: Path, card: ModelCard, preview: Preview, watcher: Watcher) -> None:
    """Draw the sheet; keep the model if none before it scored better."""
    step = task.step_index
    sheet = preview(step)
    if sheet is None:
        return
    watcher.sheet(sheet)
    score = sheet.score
    if score is None or not math.isfinite(score):
        return
    earlier = [line["swd"] for line in read_metrics(folder) if line.get("swd") is not None]
    _append(folder, {"step": step, "swd": _rounded(score)})
    if score < min(earlier, default=math.inf):
        scored = replace(card.at_step(step), scores={"swd": float(f"{score:.4g}")})
        save_model(folder / BEST_FILE, task.model_parts(), scored)


def save(task: Task, run: RunConfig, folder: Path, card: ModelCard) -> None:
    """Write a training checkpoint and the model, then drop checkpoints beyond ``run.keep``."""
    step = task.step_index
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    parts, card = task.model_parts(), card.at_step(step)
    # Tensors that the task's state has too are written once: the model of an earlier iteration,
    # its average above all, costs nothing to keep.
    state = {"task": task.state_dict(), MODEL_KEY: parts, METADATA_KEY: card.to_json()}

    def write(path: Path) -> None:
        # Through a Python file a full disk is an OSError; torch's own writer hides it.
        with path.open("wb") as file:
            torch.save(state, file)

    # Last the checkpoint: where it is, the model is as new.
    save_model(folder / MODEL_FILE, parts, card)
    write_atomically(checkpoints / f"{step:07d}.pt", write)
    for old in sorted(checkpoints.glob("*.pt"))[: -run.keep]:
        old.unlink()


def saved_checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest last."""
    return sorted((folder / "checkpoints").glob("*.pt"))


def newest_checkpoint(folder: Path) -> Path:
    """Raises CheckpointError for a run without one."""
    saved = saved_checkpoints(folder)
    if not saved:
        raise CheckpointError(f"{folder} holds no checkpoint", "start the run anew")
    return saved[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """``Task.state_dict`` of a training checkpoint; raises CheckpointError for a damaged one."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)["task"]
    except Exception as error:
        raise _unusable(path, error) from error
    return state


def resume(task: Task, folder: Path) -> None:
    """Put a task back to the newest checkpoint of a run.

    Raises:
        CheckpointError: the run has no checkpoint, or it does not fit.
    """
    path = newest_checkpoint(folder)
    state = read_checkpoint(path)
    try:
        task.load_state_dict(state)
    except Exception as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> CheckpointError:
    """Whatever torch says of a damaged file (see checkpoint.py), the remedy is the same."""
    return CheckpointError(
        f"{path} is damaged or does not fit this run ({type(error).__name__})",
        f"delete it to go on from the one before: {len(list(path.parent.glob('*.pt'))) - 1} left",
    )


def sweep(folder: Path) -> None:
    """Delete what a killed process had half written of a run's files: nobody else would."""
    for place in (folder, folder / "checkpoints"):
        for path in place.glob(".*.tmp"):
            if UNFINISHED.fullmatch(path.name) and path.is_file():
                with suppress(OSError):  # it takes room and does no other harm
                    path.unlink()


def forget_after(folder: Path, step: int) -> None:
    """Drop the metrics of iterations that a resumed run will do again."""
    if not (folder / METRICS_FILE).is_file():
        return
    lines = [line for line in read_metrics(folder) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(folder / METRICS_FILE, lambda path: path.write_text(text, encoding="utf-8"))
