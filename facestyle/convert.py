"""convert(): a finished run or any checkpoint → our safetensors, or the published layout.

The networks stay as they are, bit by bit; only the wrapping changes. Both ways are checked by
loading: what a family would not load is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from facestyle import weights
from facestyle.checkpoint import load_checkpoint, save_model, write_atomically
from facestyle.errors import FacestyleError, UsageError
from facestyle.families import family_named
from facestyle.opening import card_of

LAYOUTS = ("facestyle", "published")


def convert(
    model: str | Path,
    target: Path,
    layout: str = "facestyle",
    *,
    half: bool = False,
    domains: Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a model in another layout and return the files written.

    Args:
        model: a run folder, a checkpoint, or a name of the index.
        target: our layout: the file to write; the published one: a folder for its files.
        layout: ``facestyle`` (safetensors with a card) or ``published`` (what the family's own
            program reads; it has no place for a card).
        half: float16 tensors, in our layout alone.
        overwrite: replace files that exist.

    Raises:
        UsageError: a file exists, an unknown layout, or for the published one ``half``, or a model
            of which the published program could not know what it wants to be told.
        FacestyleError: the model cannot be loaded, or the target cannot be written.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout '{layout}'", f"known: {', '.join(LAYOUTS)}")
    if half and layout != "facestyle":
        raise UsageError("the published layout is float32", "drop --half")
    checkpoint = load_checkpoint(weights.resolve(model))
    card = card_of(checkpoint, domains)
    if card.relative and layout == "published":
        raise UsageError(
            f"{card.name or card.family} wants differences of labels, and the published program "
            "gives labels",
            "--layout facestyle keeps that with it",
        )
    family = family_named(card.family)
    family.modules(checkpoint, card)  # strict: says what is wrong before anything is written
    parts = family.parts(checkpoint)
    if layout == "facestyle":
        if target.suffix != ".safetensors":
            raise UsageError(f"{target} is no .safetensors file", "such as -o model.safetensors")
        _check_free([target], overwrite)
        save_model(target, parts, card, half=half)
        return [target]
    files = family.published(parts, card.steps or 0)
    _check_free([target / name for name in files], overwrite)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FacestyleError(f"cannot make the folder {target}: {error.strerror}") from None
    written = []
    for name, content in files.items():
        write_atomically(target / name, partial(_torch_save, content))
        written.append(target / name)
    return written


def _check_free(paths: Sequence[Path], overwrite: bool) -> None:
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise UsageError(f"{there[0]} exists", "--overwrite replaces it")


def _torch_save(content: Any, path: Path) -> None:
    with path.open("wb") as file:  # through a Python file a full disk is an OSError
        torch.save(content, file)
