"""train(): a data folder and settings → a run folder that holds a model.

Ties a family's training to the loop: names the run, writes what was resolved, watches for
signals, draws previews. The loop itself (``loop``) knows none of this.
"""

from __future__ import annotations

import json
import platform
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from facestyle import __version__
from facestyle.card import ModelCard
from facestyle.errors import UsageError
from facestyle.families import family_named
from facestyle.training.loop import Progress

SETTINGS_FILE = "run.json"  # all that --resume needs


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    folder: Path
    """The run folder."""
    finished: bool
    """False when it was interrupted; resume it with --resume folder."""


def start(
    data: Path,
    *,
    family: str = "stargan-v2",
    preset: str = "paper",
    tables: Mapping[str, Any] | None = None,
    runs: Path = Path("runs"),
    name: str = "run",
    device: str = "cpu",
    command: str = "",
    report: Callable[[Progress], None],
    announce: Callable[[str], None],
) -> Outcome:
    """Train a new model in ``runs/<name>-N``, N never reused.

    Raises:
        FacestyleError: the settings, the data or the run folder are unusable.
    """
    import torch

    training = family_named(family).training(preset, tables or {})
    if not training.run.threads:
        # Another number of threads adds in another order: a resumed run keeps its own.
        training = replace(training, run=replace(training.run, threads=torch.get_num_threads()))
    pictures = training.data(data)
    card = training.card(pictures.domains)
    folder = _new_folder(runs, name)
    settings = {
        "facestyle": __version__,
        "python": platform.python_version(),
        "family": family,
        "data": str(data),
        "device": device,
        "command": command,
        "domains": list(card.domains),
        "run": asdict(training.run),
        family: asdict(training.config),
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return _run(folder, training, pictures, settings, report, announce, resumed=False)


def proceed(
    folder: Path, *, report: Callable[[Progress], None], announce: Callable[[str], None]
) -> Outcome:
    """Go on with a run from its newest checkpoint.

    Raises:
        UsageError: not a run folder.
        CheckpointError: no checkpoint in it, or a damaged one.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise UsageError(f"{folder} is no run folder (no {SETTINGS_FILE})", "give runs/<name>-N")
    settings = json.loads(path.read_text(encoding="utf-8"))
    family = settings["family"]
    tables = {"run": settings["run"], family: settings[family]}
    training = family_named(family).training("paper", tables)
    pictures = training.data(Path(settings["data"]))
    if list(pictures.domains) != settings["domains"]:
        raise UsageError(
            f"{settings['data']} now has the domains {', '.join(pictures.domains)}, "
            f"the run was started with {', '.join(settings['domains'])}"
        )
    return _run(folder, training, pictures, settings, report, announce, resumed=True)


def _run(
    folder: Path,
    training: Any,
    pictures: Any,
    settings: Mapping[str, Any],
    report: Callable[[Progress], None],
    announce: Callable[[str], None],
    *,
    resumed: bool,
) -> Outcome:
    import torch

    from facestyle.training import loop
    from facestyle.training.data import batches
    from facestyle.training.preview import Previewer

    run = training.run
    torch.set_num_threads(run.threads)
    task = training.task(pictures.domains, settings["device"])
    if resumed:
        loop.resume(task, folder)
    counts = ", ".join(
        f"{name} {len(files)}" for name, files in zip(pictures.domains, pictures.files, strict=True)
    )
    announce(f"{counts} pictures; from iteration {task.step_index} to {run.steps} in {folder}")
    card: ModelCard = replace(
        training.card(pictures.domains), name=folder.name, command=settings["command"]
    )
    data = batches(
        training.draw(pictures),
        seed=run.seed,
        start=task.step_index,
        stop=run.steps,
        workers=run.workers,
    )
    with _stop_signals() as stopping:
        finished = loop.fit(
            task,
            data,
            run,
            folder,
            card,
            report=report,
            preview=Previewer(task, card, pictures, folder / "samples"),
            stopping=stopping,
        )
    return Outcome(folder=folder, finished=finished)


def _new_folder(runs: Path, name: str) -> Path:
    for number in count(1):
        folder = runs / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot make {folder}: {error.strerror}", "choose --runs DIR"
            ) from None
        return folder
    raise AssertionError("count() ends nowhere")


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM asks the loop to stop after its iteration; a second one
    acts as usual."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, receive)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
