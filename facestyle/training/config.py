"""What a training run is told: defaults ← preset ← TOML ← flags, as frozen dataclasses.

Knows the run's own settings and how TOML becomes a dataclass. A family's settings
(widths, loss weights) are its own ``Config``; this module only fills it in.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from facestyle.card import PASTED
from facestyle.errors import UsageError
from facestyle.families import ModelFamily

Settings = TypeVar("Settings")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, batch, hardware and bookkeeping of a run."""

    steps: int = 100_000
    """Iterations."""
    batch_size: int = 8
    """Pictures an iteration."""
    seed: int = 777
    """Seeds weights and batches; batch i is a pure function of (seed, i)."""
    domains: str = ""
    """Comma-separated domain folders in their order, or attributes to learn; empty for all."""
    precision: str = "fp32"
    """``fp32`` (the published arithmetic), ``tf32`` (a GPU's rounded float32 products), ``bf16``
    (autocast; norms, losses and gradient penalties in float32), or ``auto``: bf16 where the
    device computes in it, else fp32."""
    ema: float = 0.0
    """Decay, an iteration, of a moving average of the weights, which then is the model; 0 takes
    the last weights, as published. StarGAN v2 averages by itself: see its own table."""
    compile: bool = False
    """torch.compile the networks: a minute or two of waiting, then faster iterations."""
    threads: int = 0
    """CPU threads of torch; 0 is torch's own choice when the run starts."""
    workers: int = 1
    """Processes that decode pictures beside the training process; 0 decodes in it."""
    log_every: int = 50
    """Iterations between two lines of metrics.jsonl."""
    sample_every: int = 1000
    """Iterations between two preview sheets, and two scores on pictures held out."""
    save_every: int = 500
    """Iterations between two checkpoints."""
    keep: int = 2
    """Training checkpoints kept; older ones are deleted once a newer one is safe."""
    tensorboard: bool = False
    """Write TensorBoard events as well (needs facestyle[tensorboard])."""
    alignment: str = ""
    """Template that the training pictures were aligned to, or ``none``; written into the model's
    card. Empty: what ``facestyle prepare`` noted in the data folder, else ``none``."""
    pasted: str = ""
    """What of the crop goes back into a photo, ``face``, ``skin`` or ``crop``, for the card.
    Empty: what suits the family."""
    on_skin: str = ""
    """Comma-separated domains of whose change only that of the face's skin goes back, for the card:
    attributes for which a model that changes hair does nothing to it."""
    as_shade: str = ""
    """Comma-separated domains of whose change a photo is shown where they darken it, as behind grey
    glass, for the card: dark glasses."""
    on_hair: str = ""
    """Comma-separated domains, two or more, that are colours of hair, for the card: of their change
    only that of the hair goes back."""
    drawings: str = ""
    """Comma-separated domains that are drawings, for the card: pictures of their own."""
    eyes: float = 1.0
    """How many times as large photos' eyes are made in training, and later before one becomes a
    drawing: a drawing's are so much larger, and small ones are overlooked."""
    mouth: float = 0.0
    """How many times as large, at most 1, the photo's mouth is in a drawing of it, which has the
    photo's brows and forehead then too, for the card: for networks that draw few mouths. 0 leaves
    the drawing its own."""
    both_ways: bool = False
    """Whether a result is to be the mean with that of the mirrored face, for the card: calmer, for
    twice the time of ``translate``."""
    licence: str = "unknown"
    """Terms of the resulting weights, for the card."""
    about: str = ""
    """One line on the data, for the card."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a run's TOML file: ``[run]`` and one named after the family.

    Raises:
        UsageError: the file is missing, cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no config file {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read the config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None


def resolve(family: ModelFamily, preset: str, tables: Mapping[str, Any]) -> tuple[RunConfig, Any]:
    """The run's and the family's settings: defaults ← preset ← ``tables``.

    Raises:
        UsageError: an unknown preset, table or key, or a value that does not fit.
    """
    if preset not in family.presets:
        raise UsageError(f"unknown preset '{preset}'", f"known: {', '.join(family.presets)}")
    for table in tables:
        if table not in ("run", family.name):
            raise UsageError(
                f"unknown table [{table}] in the config", f"use [run] or [{family.name}]"
            )
    run, config = RunConfig(), family.config()
    for source, origin in ((family.presets[preset], f"preset {preset}"), (tables, "the config")):
        run = merged(run, source.get("run", {}), f"{origin} [run]")
        config = merged(config, source.get(family.name, {}), f"{origin} [{family.name}]")
    for name, value in vars(run).items():
        least = 0 if name in ("threads", "workers", "seed") else 1
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise UsageError(f"{name} is {value}, expected {least} or more")
    if run.precision not in PRECISIONS:
        raise UsageError(f"unknown precision '{run.precision}'", f"known: {', '.join(PRECISIONS)}")
    if run.pasted not in ("", *PASTED):
        raise UsageError(f"unknown pasted '{run.pasted}'", f"known: {', '.join(PASTED)}")
    if not 0 <= run.ema < 1:
        raise UsageError(f"ema is {run.ema}, expected 0 to less than 1")
    if run.ema and hasattr(config, "ema"):
        raise UsageError(
            f"[run] has an ema, and {family.name} averages by itself", f"set it in [{family.name}]"
        )
    family.check(config)
    return run, config


def merged(settings: Settings, changes: Mapping[str, Any], where: str) -> Settings:
    """``settings`` with ``changes`` applied.

    Raises:
        UsageError: an unknown key (with the nearest name) or a value of the wrong type.
    """
    hints = typing.get_type_hints(type(settings))
    known = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    clean: dict[str, Any] = {}
    for key, value in changes.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"unknown setting '{key}' in {where}",
                f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}",
            )
        clean[name] = _checked(value, hints[name], f"{where}.{name}")
    return replace(settings, **clean)  # type: ignore[type-var]


def _checked(value: Any, wanted: Any, where: str) -> Any:
    """``value`` if its type fits; whole numbers pass as floats, booleans never as numbers."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if type(value) is int and float in options:
        return float(value)
    if type(value) not in options:
        names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
        raise UsageError(f"{where} is {value!r}, expected {names}")
    return value
