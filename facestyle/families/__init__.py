"""The model families: what each must offer, and which one a checkpoint belongs to.

A family is one folder beside this file that holds a ``FAMILY``; this module knows their
names and nothing else of them. Imports no torch: a family imports its networks when used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from facestyle.card import ModelCard
from facestyle.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from facestyle.checkpoint import Checkpoint

Shapes = Mapping[str, Mapping[str, Sequence[int]]]  # part → tensor name → shape

FAMILIES = ("stargan_v2",)


class ModelFamily(Protocol):
    """One published system: recognition, loading, training."""

    name: str
    """As users write it, ``stargan-v2``."""
    title: str
    """As papers write it, with authors and year."""

    def misfit(self, shapes: Shapes) -> str | None:
        """None when these are this family's networks, else the first thing that says no.

        Looks at names and shapes only, so that exactly one family fits any file.
        """
        ...

    def card(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> ModelCard:
        """The card of a checkpoint that carries none, from shapes and what is ``known``
        (fields of ModelCard: domain names, alignment, licence)."""
        ...

    def modules(self, checkpoint: Checkpoint, card: ModelCard) -> dict[str, nn.Module]:
        """The networks by role, strictly loaded.

        Raises:
            CheckpointError: names the first key that is missing, left over or of another shape.
            WeightsError: a second file that the model needs is not there.
        """
        ...

    presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Preset → what differs from the defaults, as ``[run]`` and ``[<family>]`` tables."""

    layout: str
    """How the training pictures lie in folders, a key of ``training.data.LAYOUTS``."""

    def config(self) -> Any:
        """The paper's settings, a frozen dataclass."""
        ...

    def check(self, config: Any) -> None:
        """Raises UsageError for settings that no network can be built from."""
        ...

    def new_card(self, config: Any, domains: Sequence[str]) -> ModelCard:
        """The card of a model to be trained."""
        ...

    def batch(self, pictures: Any, config: Any, size: int, rng: np.random.Generator) -> Any:
        """One iteration's batch, a pure function of its arguments."""
        ...

    def task(self, config: Any, domains: int, *, device: str, bf16: bool, compile: bool) -> Any:
        """A fresh Task (``training.loop``), initialised from torch's random state."""
        ...


def families() -> dict[str, ModelFamily]:
    """Every family by name."""
    found = (import_module(f"facestyle.families.{folder}").FAMILY for folder in FAMILIES)
    return {family.name: family for family in found}


def family_named(name: str) -> ModelFamily:
    """Raises UsageError for a name that is none."""
    known = families()
    if name not in known:
        raise UsageError(f"unknown family '{name}'", f"known: {', '.join(known)}")
    return known[name]


def detect(checkpoint: Checkpoint) -> ModelFamily:
    """The one family whose networks these are.

    Raises:
        CheckpointError: none fits (says why each does not), or more than one does.
    """
    shapes = checkpoint.shapes()
    verdicts = {family.name: (family, family.misfit(shapes)) for family in families().values()}
    fitting = [family for family, misfit in verdicts.values() if misfit is None]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(family.name for family in fitting)
        raise CheckpointError(f"{checkpoint.path.name} fits more than one family: {names}")
    reasons = "; ".join(f"not {name}: {misfit}" for name, (_, misfit) in verdicts.items())
    raise CheckpointError(
        f"{checkpoint.path.name} is of no known family ({reasons})",
        "expected a generator's checkpoint, not a detector's or an optimiser's",
    )
