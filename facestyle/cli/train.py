"""``train`` and ``train-report``: a folder of pictures in, a model out, and how it went."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facestyle.cli import options
from facestyle.cli.report import INTERRUPTED, TERMINATED, Reporter, reporting
from facestyle.errors import UsageError

if TYPE_CHECKING:
    from facestyle.training.loop import Progress, Sheet


def train(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with one folder of pictures a domain.")
    ] = None,
    family: Annotated[str, typer.Option("--family", help="The model family.")] = "stargan-v2",
    preset: Annotated[
        str, typer.Option("--preset", help="paper (a GPU's work) or compact (64 px, a CPU's).")
    ] = "paper",
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML with [run] and a family table.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Iterations; with --resume a new end.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where run folders are made.")] = Path(
        "runs"
    ),
    name: Annotated[str, typer.Option("--name", help="Run folder's name, before -N.")] = "run",
    origin: Annotated[
        str | None,
        typer.Option("--from", help="Begin with a model's or a run folder's networks: fine-tune."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with this run folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, measure a few iterations, write nothing.")
    ] = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a model on a folder of pictures. Several GPUs: torchrun -m facestyle train ...

    Example: facestyle train --data faces --preset compact --steps 2
    """
    with reporting(as_json=as_json, quiet=quiet, debug=debug) as report:
        if (data is None) == (resume is None):
            raise UsageError("give either --data DIR, or --resume RUN")
        own = {name: f"--{name}" for name in ("family", "preset", "runs", "name", "config")}
        own |= {"dry_run": "--dry-run", "origin": "--from"}
        if resume is not None and (given := [n for n in own if _is_given(context, n)]):
            raise UsageError(
                "--resume goes on with the run's own settings",
                f"drop {', '.join(own[name] for name in given)}",
            )

        from facestyle import training
        from facestyle.backends.on_torch import best_device
        from facestyle.training.config import read_toml
        from facestyle.weights import MODEL_FILE, resolve

        begins = None
        if origin is not None:
            begins = Path(origin) if Path(origin).is_dir() else resolve(origin)
        tables = read_toml(config) if config else {}
        if steps is not None:
            tables = {**tables, "run": {**tables.get("run", {}), "steps": steps}}
        if data is not None and dry_run:
            _tell_estimate(
                training.estimate(
                    data,
                    family=family,
                    preset=preset,
                    tables=tables,
                    device=best_device(device),
                    origin=begins,
                ),
                report,
            )
            return
        with report.progress("training", unit=" iterations") as update:
            watcher = _Told(report, update)
            if resume is not None:
                outcome = training.proceed(
                    resume,
                    steps=steps,
                    device=device if _is_given(context, "device") else None,
                    watcher=watcher,
                )
            else:
                assert data is not None, "one of the two was given"
                outcome = training.start(
                    data,
                    family=family,
                    preset=preset,
                    tables=tables,
                    runs=runs,
                    name=name,
                    device=best_device(device),
                    origin=begins,
                    command=shlex.join(["facestyle", *sys.argv[1:]]),
                    watcher=watcher,
                )
        model = outcome.folder / MODEL_FILE
        if not outcome.finished:
            if outcome.writes:
                again = f"facestyle train --resume {outcome.folder}"
                report.note(f"stopped and saved; go on with: {again}")
            raise typer.Exit(TERMINATED if outcome.terminated else INTERRUPTED)
        if outcome.writes:
            report.result({"run": str(outcome.folder), "model": str(model)}, str(model))


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line, and is not its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


class _Told:
    """A run's watcher: notes and a bar on stderr."""

    def __init__(self, report: Reporter, update: Any) -> None:
        self._report = report
        self._update = update
        self._warned: set[str] = set()

    def announce(self, text: str) -> None:
        self._report.note(text)

    def tick(self, step: int, steps: int) -> None:
        self._update(step, steps)

    def progress(self, progress: Progress) -> None:
        losses = "  ".join(f"{key} {value:.3f}" for key, value in progress.losses.items())
        self._report.note(f"{progress.step}  {progress.seconds:.2f} s/it  {losses}")
        for warning in progress.warnings:
            if warning not in self._warned:  # once, not at every report
                self._warned.add(warning)
                self._report.note(f"warning, iteration {progress.step}: {warning}")

    def sheet(self, sheet: Sheet) -> None:
        score = "" if sheet.score is None else f", distance to real pictures {sheet.score:.4f}"
        self._report.note(f"{sheet.path}{score}")


def _tell_estimate(found: Any, report: Reporter) -> None:
    hours = found.seconds * found.steps / 3600
    for note in found.notes:
        report.note(note)
    report.result(
        {
            "counts": dict(found.counts),
            "parameters": dict(found.parameters),
            "seconds_an_iteration": found.seconds,
            "memory_mb": found.memory,
            "steps": found.steps,
            "hours": hours,
            "notes": list(found.notes),
        },
        "\n".join(
            [
                *(f"{name:<20} {number:>12,} pictures" for name, number in found.counts.items()),
                *(f"{name:<20} {n:>12,} parameters" for name, n in found.parameters.items()),
                f"{'memory, peak':<20} {found.memory:>12,.0f} MB",
                f"{'an iteration':<20} {found.seconds:>12.2f} s",
                f"{'whole run':<20} {hours:>12.1f} hours for {found.steps:,} iterations",
            ]
        ),
    )


def train_report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file (RUN/report.html).")
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write one HTML page with a run's curves, samples and settings.

    Example: facestyle train-report runs/run-1
    """
    with reporting(as_json=as_json, debug=debug) as report:
        from facestyle.checkpoint import write_atomically
        from facestyle.training.report import run_report

        target = output or run / "report.html"
        if target.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"{target} is no HTML file", f"such as -o {target.stem}.html")
        page = run_report(run)
        write_atomically(target, lambda path: path.write_text(page, encoding="utf-8"))
        report.result({"report": str(target)}, str(target))
