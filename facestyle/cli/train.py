"""``train``: a folder of pictures in, a model out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from facestyle.cli import options
from facestyle.cli.report import INTERRUPTED, reporting
from facestyle.errors import UsageError


def train(
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with one folder of pictures a domain.")
    ] = None,
    family: Annotated[str, typer.Option("--family", help="The model family.")] = "stargan-v2",
    preset: Annotated[
        str, typer.Option("--preset", help="paper (256 px, GPU) or compact (64 px, CPU).")
    ] = "paper",
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML with [run] and a family table.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Iterations.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where run folders are made.")] = Path(
        "runs"
    ),
    name: Annotated[str, typer.Option("--name", help="Run folder's name, before -N.")] = "run",
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with this run folder.")
    ] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a model on a folder of pictures.

    Example: facestyle train --data faces --preset compact --steps 2
    """
    with reporting(as_json=as_json, quiet=quiet, debug=debug) as report:
        if (data is None) == (resume is None):
            raise UsageError("give either --data DIR, or --resume RUN")
        if resume is not None and (config or steps):
            raise UsageError(
                "--resume goes on with the run's own settings", "drop --config, --steps"
            )

        from facestyle import training
        from facestyle.backend_torch import best_device
        from facestyle.training.config import read_toml
        from facestyle.training.loop import Progress

        def told(progress: Progress) -> None:
            losses = "  ".join(f"{key} {value:.3f}" for key, value in progress.losses.items())
            report.note(f"{progress.step}  {progress.seconds:.2f} s/it  {losses}")

        if resume is not None:
            outcome = training.proceed(resume, report=told, announce=report.note)
        else:
            assert data is not None
            tables = read_toml(config) if config else {}
            if steps is not None:
                tables = {**tables, "run": {**tables.get("run", {}), "steps": steps}}
            outcome = training.start(
                data,
                family=family,
                preset=preset,
                tables=tables,
                runs=runs,
                name=name,
                device=best_device(device),
                command=shlex.join(["facestyle", *sys.argv[1:]]),
                report=told,
                announce=report.note,
            )
        model = outcome.folder / "model.safetensors"
        if not outcome.finished:
            report.note(f"stopped and saved; go on with: facestyle train --resume {outcome.folder}")
            raise typer.Exit(INTERRUPTED)
        report.result({"run": str(outcome.folder), "model": str(model)}, str(model))
