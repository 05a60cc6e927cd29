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
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from facestyle import __version__
from facestyle.errors import UsageError
from facestyle.families import family_named
from facestyle.training.config import resolve
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

    from facestyle.training.data import LAYOUTS

    chosen = family_named(family)
    run_config, config = resolve(chosen, preset, tables or {})
    if not run_config.threads:
        # Another number of threads adds in another order: a resumed run keeps its own.
        run_config = replace(run_config, threads=torch.get_num_threads())
    pictures = LAYOUTS[chosen.layout](data)
    folder = _new_folder(runs, name)
    settings = {
        "facestyle": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "family": family,
        "data": str(data.resolve()),
        "device": device,
        "command": command,
        "domains": list(pictures.domains),
        "run": asdict(run_config),
        family: asdict(config),
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return _run(folder, pictures, settings, report, announce, resumed=False)


def proceed(
    folder: Path, *, report: Callable[[Progress], None], announce: Callable[[str], None]
) -> Outcome:
    """Go on with a run from its newest checkpoint.

    Raises:
        UsageError: not a run folder.
        CheckpointError: no checkpoint in it, or a damaged one.
    """
    from facestyle.training.data import LAYOUTS

    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise UsageError(f"{folder} is no run folder (no {SETTINGS_FILE})", "give runs/<name>-N")
    settings = json.loads(path.read_text(encoding="utf-8"))
    pictures = LAYOUTS[family_named(settings["family"]).layout](Path(settings["data"]))
    if list(pictures.domains) != settings["domains"]:
        raise UsageError(
            f"{settings['data']} now has the domains {', '.join(pictures.domains)}, "
            f"the run was started with {', '.join(settings['domains'])}"
        )
    return _run(folder, pictures, settings, report, announce, resumed=True)


def _run(
    folder: Path,
    pictures: Any,
    settings: Mapping[str, Any],
    report: Callable[[Progress], None],
    announce: Callable[[str], None],
    *,
    resumed: bool,
) -> Outcome:
    """What a new run and a resumed one share: from settings to the end of the loop."""
    import torch

    from facestyle.training import loop
    from facestyle.training.data import batches
    from facestyle.training.preview import Previewer

    family = family_named(settings["family"])
    tables = {name: settings[name] for name in ("run", family.name)}
    run, config = resolve(family, "paper", tables)
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    task = family.task(
        config,
        len(pictures.domains),
        device=settings["device"],
        bf16=run.precision == "bf16",
        compile=run.compile,
    )
    if resumed:
        loop.resume(task, folder)
    counts = ", ".join(
        f"{name} {len(files)}" for name, files in zip(pictures.domains, pictures.files, strict=True)
    )
    announce(f"{counts} pictures; from iteration {task.step_index} to {run.steps} in {folder}")
    card = replace(
        family.new_card(config, pictures.domains),
        name=folder.name,
        alignment=run.alignment,
        licence=run.licence,
        data=run.about,
        seed=run.seed,
        command=settings["command"],
    )
    data = batches(
        partial(family.batch, pictures, config, run.batch_size),
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
