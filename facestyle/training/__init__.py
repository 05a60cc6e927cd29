"""start(), proceed(), estimate(): a data folder and settings → a run folder that holds a model.

Ties a family's training to the loop: names the run, writes what was resolved, watches for
signals, joins other processes, draws previews. The loop itself (``loop``) knows none of this.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facestyle.card import MOST_EYES
from facestyle.errors import CheckpointError, FacestyleError, InputError, UsageError
from facestyle.families import ModelFamily, Task, family_named
from facestyle.training.config import RunConfig, resolve
from facestyle.training.origin import adopt
from facestyle.training.settings import (
    begun,
    new_folder,
    new_settings,
    read_settings,
    write_settings,
)

if TYPE_CHECKING:
    from facestyle.card import ModelCard
    from facestyle.training.data import Pictures
    from facestyle.training.loop import Preview, Watcher
    from facestyle.training.parallel import Processes

MEASURED_STEPS = 3  # of a dry run, at least
NO_MEMORY = re.compile(  # in an error of torch that has no class of its own
    r"DefaultCPUAllocator: can't allocate|CUDA error: out of memory|ALLOC_FAILED"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    folder: Path
    """The run folder."""
    finished: bool
    """False when it was interrupted; resume it with --resume folder."""
    terminated: bool = False
    """Whether that was SIGTERM."""
    writes: bool = True
    """Whether this process, of all that torchrun started, is the one that says something."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would take, measured on a few real iterations."""

    counts: Mapping[str, int]
    """Pictures by domain."""
    parameters: Mapping[str, int]
    """Of each network."""
    seconds: float
    """An iteration in the mean of the run, without the waiting for compilation."""
    memory: float
    """Peak, MB: the GPU's, or the whole process's on a CPU."""
    steps: int
    """Iterations of the whole run."""
    notes: tuple[str, ...] = ()
    """What the run would say at its start, where something is worth knowing."""


def start(
    data: Path,
    *,
    family: str = "stargan-v2",
    preset: str = "paper",
    tables: Mapping[str, Any] | None = None,
    runs: Path = Path("runs"),
    name: str = "run",
    device: str = "cpu",
    origin: Path | None = None,
    command: str = "",
    watcher: Watcher,
) -> Outcome:
    """Train a new model in ``runs/<name>-N``, N never reused.

    Where torchrun starts it again after a process died, it goes on with the run it began.

    Args:
        origin: a run folder or a model of the same family and sizes, with whose networks this
            run begins instead of fresh ones; iterations and optimisers begin anew.

    Raises:
        FacestyleError: the settings, the data, the origin or the run folder are unusable.
    """
    from facestyle.training import parallel

    chosen = family_named(family)
    run_config, config = resolve(chosen, preset, tables or {})
    with parallel.joined(device) as processes:
        folder = processes.agreed(begun(runs) if processes.writes else None)
        if folder is not None:
            return _run(folder, read_settings(folder), watcher, processes)
        run_config = _settled(run_config, data, device)
        pictures = _pictures(chosen, run_config, data)
        config = chosen.settled(config, pictures)
        settings = new_settings(data, chosen, run_config, config, pictures, device, command)
        card = _card(chosen, config, run_config, pictures, settings)
        if origin is not None:
            # Tried before a run is made; the task that trains does it again.
            adopt(_new_task(chosen, config, run_config, pictures, "cpu"), chosen, card, origin)
            settings["origin"] = str(origin.resolve())
        if processes.writes:
            folder = new_folder(runs, name)
            write_settings(folder, {**settings, "launch": parallel.launch_id()})
        folder = processes.agreed(folder)
        assert folder is not None, "the first process has made it"
        return _run(folder, settings, watcher, processes)


def proceed(
    folder: Path, *, steps: int | None = None, device: str | None = None, watcher: Watcher
) -> Outcome:
    """Go on with a run from its newest checkpoint.

    Args:
        steps: a new end for the run.
        device: another one than the run had until now.

    Raises:
        UsageError: not a run folder, or other domains than the run was started with.
        CheckpointError: no checkpoint in it, or a damaged one.
    """
    from facestyle.backends.on_torch import best_device
    from facestyle.training import parallel
    from facestyle.training.loop import BEST_FILE, saved_checkpoints
    from facestyle.weights import MODEL_FILE

    settings = read_settings(folder)
    before = settings
    if steps is not None:
        settings = {**settings, "run": {**settings["run"], "steps": steps}}
    settings = {**settings, "device": best_device(device or settings["device"])}
    saved = saved_checkpoints(folder)
    if steps is not None and saved and steps < (done := int(saved[-1].stem)):
        raise UsageError(
            f"{folder} has done {done} iterations, asked for were {steps}",
            "a new end lies beyond what is done",
        )
    with parallel.joined(settings["device"]) as processes:
        if not saved and processes.writes:
            # Killed before its first checkpoint, or robbed of all: what models it has stay.
            kept = [place for name in (MODEL_FILE, BEST_FILE) if (place := _aside(folder / name))]
            told = f"; {' and '.join(map(str, kept))} is what it had" if kept else ""
            watcher.announce(f"{folder} has no checkpoint, it begins anew{told}")
        if processes.writes and settings != before:
            write_settings(folder, settings)
        return _run(folder, settings, watcher, processes)


def _aside(path: Path) -> Path | None:
    """Rename a file to the first ``name-before-N`` that is free; None where it is not there."""
    if not path.is_file():
        return None
    names = (path.with_stem(f"{path.stem}-before-{number}") for number in count(1))
    place = next(name for name in names if not name.exists())
    return path.rename(place)


def estimate(
    data: Path,
    *,
    family: str,
    preset: str,
    tables: Mapping[str, Any] | None = None,
    device: str = "cpu",
    origin: Path | None = None,
) -> Estimate:
    """What ``start`` would take: counts, sizes, and a few iterations on the real data.

    Writes nothing. Raises what ``start`` would.
    """
    import torch

    from facestyle.training.loop import peak_memory

    chosen = family_named(family)
    run, config = resolve(chosen, preset, tables or {})
    run = _settled(run, data, device)
    compiled: tuple[str, ...] = ()
    if run.compile:
        # That takes minutes, which nobody waits for to learn how long it takes.
        run = replace(run, compile=False)
        compiled = ("measured without compiling; with it an iteration takes a little less",)
    pictures = _pictures(chosen, run, data)
    config = chosen.settled(config, pictures)
    settings = new_settings(data, chosen, run, config, pictures, device, command="")
    card = _card(chosen, config, run, pictures, settings)
    with _memory_told(settings, device):
        task = _new_task(chosen, config, run, pictures, device)
        notes = compiled + _lull(chosen, config, run)
        if origin is not None:
            notes += adopt(task, chosen, card, origin).notes
        turn = chosen.turn(config)
        turns = ceil(MEASURED_STEPS / len(turn))
        # As if all before had been done: a judge that learns alone takes a part of the time.
        task.load_state_dict({**task.state_dict(), "step": turn.start})
        stop = turn.start + 1 + turns * len(turn)
        seconds = []
        for batch in _batches(chosen, config, run, pictures, turn.start, stop, device):
            began = time.perf_counter()
            task.step(batch)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    # The first is left out, and of equal iterations the fastest counts.
    alike = [min(seconds[1 + place :: len(turn)]) for place in range(len(turn))]
    return Estimate(
        counts=pictures.counts(),
        parameters={
            name: sum(p.numel() for p in network.parameters())
            for name, network in task.networks.items()
        },
        seconds=sum(alike) / len(alike),
        memory=peak_memory(device),
        steps=run.steps,
        notes=notes,
    )


def _run(
    folder: Path, settings: Mapping[str, Any], watcher: Watcher, processes: Processes
) -> Outcome:
    """What a new run and a resumed one share: from settings to the end of the loop."""
    with _memory_told(settings, processes.device, folder):
        return _trained(folder, settings, watcher, processes)


@contextmanager
def _memory_told(
    settings: Mapping[str, Any], device: str, folder: Path | None = None
) -> Iterator[None]:
    """Raises FacestyleError where memory ends: what takes less, and what of a run is saved."""
    import torch

    from facestyle.training.loop import saved_checkpoints

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not told and not NO_MEMORY.search(str(error)):
            raise
        saved = saved_checkpoints(folder) if folder else []
        where = f"; {saved[-1]} is whole: --resume goes on where there is more" if saved else ""
        raise FacestyleError(
            f"out of memory on {device} with batch_size {settings['run']['batch_size']}",
            f"a smaller batch_size in [run] or image_size in [{settings['family']}] takes less"
            + where,
        ) from None


def _trained(
    folder: Path, settings: Mapping[str, Any], watcher: Watcher, processes: Processes
) -> Outcome:
    """``_run``, while there is memory."""
    from facestyle.training import loop
    from facestyle.training.data import digest

    watcher = watcher if processes.writes else loop.Silent()
    family = family_named(settings["family"])
    tables = {name: settings[name] for name in ("run", family.name)}
    run, config = resolve(family, "paper", tables)
    pictures = _pictures(family, run, Path(settings["data"]))
    if list(pictures.domains) != settings["domains"]:
        raise UsageError(
            f"{settings['data']} now has the domains {', '.join(pictures.domains)}, "
            f"the run was started with {', '.join(settings['domains'])}"
        )
    if settings.get("pictures", digest(pictures)) != digest(pictures):
        watcher.announce(
            f"{settings['data']} has other pictures than when the run began: "
            "it goes on, and not to the same weights"
        )
    if run.batch_size % processes.world:
        raise UsageError(
            f"batch_size {run.batch_size} cannot be shared by {processes.world} processes",
            "choose a multiple",
        )
    task = _new_task(family, config, run, pictures, processes.device)
    begins, card = "", _card(family, config, run, pictures, settings)
    if loop.saved_checkpoints(folder):
        loop.resume(task, folder)
    elif settings.get("origin"):
        adopted = adopt(task, family, card, Path(settings["origin"]))
        begins = f", beginning with {', '.join(adopted.parts)} of {settings['origin']}"
        for note in adopted.notes:
            watcher.announce(note)
    card = replace(card, name=folder.name)
    preview: Preview = _no_preview
    if processes.writes:
        loop.sweep(folder)
        loop.forget_after(folder, task.step_index)
        counts = ", ".join(f"{name} {number}" for name, number in pictures.counts().items())
        for note in _lull(family, config, run, folder if loop.saved_checkpoints(folder) else None):
            watcher.announce(note)
        watcher.announce(
            f"{counts}; from iteration {task.step_index} to {run.steps} in {folder}{begins}"
        )
        preview = _previewer(family, run, settings, task, card, folder, pictures, watcher)
        watcher = _with_tensorboard(watcher, folder) if run.tensorboard else watcher
    data = _batches(
        family, config, run, pictures, task.step_index, run.steps, processes.device, processes
    )
    with closing(data), _stop_signals() as received:
        finished = loop.fit(
            task, data, run, folder, card, watcher=watcher, preview=preview,
            stopping=lambda: bool(received), processes=processes,
        )  # fmt: skip
    terminated = not finished and received[:1] == [signal.SIGTERM]
    return Outcome(folder=folder, finished=finished, terminated=terminated, writes=processes.writes)


def _lull(
    family: ModelFamily, config: Any, run: RunConfig, resumed: Path | None = None
) -> tuple[str, ...]:
    """One line where the learning rate is 0 before the run ends, else none."""
    end = family.learns_until(config)
    if end is None or end >= run.steps:
        return ()
    remedy = f"fewer steps, or a later fall in [{family.name}]"
    if resumed is not None:
        remedy = f"to learn on, begin a new run with a later fall and --from {resumed}"
    return (
        f"the learning rate is 0 from iteration {end} on, so up to {run.steps} nothing is "
        f"learned any more; {remedy}",
    )


def _card(
    family: ModelFamily,
    config: Any,
    run: RunConfig,
    pictures: Pictures,
    settings: Mapping[str, Any],
) -> ModelCard:
    """What the model will say of itself.

    Raises:
        UsageError: nobody could use the model with it.
    """
    from facestyle.card import ModelCard
    from facestyle.faces.align import template_points

    card = family.new_card(config, pictures.domains)
    card = replace(
        card,
        alignment=run.alignment,
        pasted=run.pasted or card.pasted,
        on_skin=_names(run.on_skin),
        as_shade=_names(run.as_shade),
        on_hair=_names(run.on_hair),
        drawings=_names(run.drawings),
        eyes=None if run.eyes == 1 else run.eyes,
        mouth=run.mouth or None,
        both_ways=run.both_ways,
        licence=run.licence,
        data=run.about,
        seed=run.seed,
        command=settings["command"],
    )
    if card.alignment != "none":
        template_points(card.alignment)
    try:
        ModelCard.from_json(card.to_json())
    except CheckpointError as error:
        raise UsageError(f"with these settings {error.message}", error.hint) from None
    return card


def _no_preview(step: int) -> None:
    return None


def _previewer(
    family: ModelFamily,
    run: RunConfig,
    settings: Mapping[str, Any],
    task: Task,
    card: Any,
    folder: Path,
    pictures: Pictures,
    watcher: Watcher,
) -> Preview:
    """Sheets and scores on the ``val`` half where the data has one."""
    from facestyle.training.data import LAYOUTS, half_of
    from facestyle.training.preview import Previewer

    held_out = half_of(Path(settings["data"]), "val")
    if held_out is None:
        watcher.announce("no train/ and val/: sheets and scores are of training pictures")
    else:
        try:
            pictures = LAYOUTS[family.layout](held_out, _names(run.domains) or pictures.domains)
        except (InputError, UsageError) as error:
            watcher.announce(f"{error.message}: sheets and scores are of training pictures")
    return Previewer(family, task, card, pictures, folder / "samples", settings["device"])


def _pictures(family: ModelFamily, run: RunConfig, data: Path) -> Pictures:
    from facestyle.training.data import read_layout

    pictures = read_layout(family.layout, data, _names(run.domains))
    for setting in ("drawings", "on_skin", "as_shade", "on_hair"):
        named = _names(getattr(run, setting))
        if strangers := [name for name in named if name not in pictures.domains]:
            raise UsageError(
                f"{setting} names '{strangers[0]}', which is no domain of this run",
                f"its domains: {', '.join(pictures.domains)}",
            )
    colours = _names(run.on_hair)
    if colours and (len(colours) < 2 or family.layout != "attributes"):
        raise UsageError(
            f"on_hair is {run.on_hair}, expected two or more of a model of attributes",
            "hair is found by where their results differ; leave it out, or name another",
        )
    return pictures if run.eyes == 1 else _with_larger_eyes(pictures, run)


def _with_larger_eyes(pictures: Pictures, run: RunConfig) -> Pictures:
    """Raises UsageError where eyes are to be enlarged that nobody finds or draws."""
    from facestyle.faces.align import template_points
    from facestyle.training.data import LabelledPictures, LargerEyes

    if not 1 <= run.eyes <= MOST_EYES:
        raise UsageError(f"eyes is {run.eyes}, expected 1 to {MOST_EYES}")
    if not run.drawings:
        raise UsageError(
            f"eyes is {run.eyes}, and no domain is a drawing's", "name it in drawings, or eyes = 1"
        )
    if run.alignment == "none":
        raise UsageError(
            f"eyes is {run.eyes}, and these pictures are not aligned",
            "alignment = the template that they were cut to, or eyes = 1",
        )
    if not isinstance(pictures, LabelledPictures):
        raise UsageError(
            f"eyes is {run.eyes}, and this data has no folder of drawings beside one of photos",
            "eyes = 1",
        )
    drawings = _names(run.drawings)
    photos = [name for name in pictures.domains if name not in drawings]
    if len(photos) != 1:
        raise UsageError(
            f"eyes is {run.eyes}, and {len(photos)} domains are of photos, expected 1",
            "eyes = 1, or [run] domains with one of photos beside drawings",
        )
    larger = LargerEyes(
        times=run.eyes, template_52=template_points(run.alignment), drawings=drawings
    )
    return replace(pictures, larger_eyes=larger)


def _names(joined: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in joined.split(",")) if joined else ()


def _new_task(
    family: ModelFamily, config: Any, run: RunConfig, pictures: Pictures, device: str
) -> Task:
    """A fresh task of this seed, and torch set to the run's arithmetic."""
    import torch

    from facestyle.training.average import Averaged

    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = run.precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = run.precision != "fp32"
    task = family.task(
        config,
        len(pictures.domains),
        device=device,
        bf16=run.precision == "bf16",
        compile=run.compile,
    )
    return Averaged(task, run.ema) if run.ema else task


def _batches(
    family: ModelFamily,
    config: Any,
    run: RunConfig,
    pictures: Pictures,
    first: int,
    stop: int,
    device: str,
    processes: Processes | None = None,
) -> Generator[Mapping[str, Any], None, None]:
    from facestyle.training.data import batches

    return batches(
        partial(family.sample, pictures, config),
        run.batch_size,
        seed=run.seed,
        start=first,
        stop=stop,
        workers=run.workers,
        device=device,
        rank=processes.rank if processes else 0,
        world=processes.world if processes else 1,
    )


def _prepared_alignment(data: Path) -> str:
    """The template that ``prepare`` cut this data to; ``none`` where it did not."""
    from facestyle.training.prepare import SETTINGS as PREPARED

    try:
        return str(json.loads((data / PREPARED).read_text(encoding="utf-8"))["align"])
    except (OSError, ValueError, KeyError):
        return "none"


def _settled(run: RunConfig, data: Path, device: str) -> RunConfig:
    """What the data and this machine decide. A resumed run keeps it, wherever it goes on: another
    number of threads adds in another order."""
    import torch

    from facestyle.backends.on_torch import computes_bf16

    if not run.threads:
        run = replace(run, threads=torch.get_num_threads())
    if run.precision == "auto":
        run = replace(run, precision="bf16" if computes_bf16(device) else "fp32")
    if not run.alignment:
        run = replace(run, alignment=_prepared_alignment(data))
    return run


def _with_tensorboard(watcher: Watcher, folder: Path) -> Watcher:
    from facestyle.training.tensorboard import TensorBoard

    return TensorBoard(watcher, folder)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """What has arrived: the first Ctrl-C or SIGTERM asks the loop to stop after its iteration; a
    second one acts as usual."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
