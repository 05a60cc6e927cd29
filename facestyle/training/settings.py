"""A run's folder and its ``run.json``, which is all that --resume needs."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facestyle import __version__
from facestyle.errors import UsageError
from facestyle.training.config import RunConfig
from facestyle.weights import RUN_FILE

if TYPE_CHECKING:
    from facestyle.families import ModelFamily
    from facestyle.training.data import Pictures


def new_folder(runs: Path, name: str) -> Path:
    """``runs/<name>-N``, made; raises UsageError where it cannot be."""
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


def begun(runs: Path) -> Path | None:
    """The run that this torchrun began before it started its processes again."""
    from facestyle.training import parallel

    if parallel.restarted() and runs.is_dir():
        for folder in sorted(runs.iterdir()):
            with suppress(UsageError, ValueError):
                if read_settings(folder).get("launch") == parallel.launch_id():
                    return folder
    return None


def new_settings(
    data: Path,
    family: ModelFamily,
    run: RunConfig,
    config: Any,
    pictures: Pictures,
    device: str,
    command: str,
) -> dict[str, Any]:
    """What a run was asked for, resolved: families, numbers, data, versions."""
    import torch

    from facestyle.training.data import digest

    return {
        "facestyle": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "family": family.name,
        "data": str(data.resolve()),
        "device": device,
        "command": command,
        "domains": list(pictures.domains),
        "pictures": digest(pictures),
        "run": asdict(run),
        family.name: asdict(config),
    }


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """In one step: a run has its settings or none."""
    from facestyle.checkpoint import write_atomically

    text = json.dumps(settings, indent=2) + "\n"
    write_atomically(folder / RUN_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def read_settings(folder: Path) -> dict[str, Any]:
    """Raises UsageError for a folder that is no run's, or whose settings cannot be read."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise UsageError(f"{folder} is no run folder (no {RUN_FILE})", "give runs/<name>-N")
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "start the run anew") from None
    return settings
