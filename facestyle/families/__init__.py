"""The model families: what each must offer, and which one a checkpoint belongs to.

A family is one folder beside this file that holds a ``FAMILY``; this module finds the folders
and knows nothing else of them. Imports no torch: a family imports its networks when used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol

from facestyle.card import ModelCard
from facestyle.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from facestyle.checkpoint import Checkpoint
    from facestyle.nn.updates import Optimisers

Shapes = Mapping[str, Mapping[str, Sequence[int]]]  # part → tensor name → shape


class ModelFamily(Protocol):
    """One published system: recognition, loading, training."""

    name: str
    """As users write it, ``stargan-v2``."""
    title: str
    """As papers write it, with authors and year."""

    fingerprint: tuple[str, ...]
    """Names of tensors that its files have: tells which family a stranger is nearest to."""

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

    def parts(self, checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
        """The state dicts that make the finished model, by part; what a training checkpoint
        holds beside them is left out, companion files are brought in."""
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

    def settled(self, config: Any, pictures: Any) -> Any:
        """The settings with what a run's pictures decide, which it then keeps."""
        ...

    def settings_of(self, shapes: Shapes) -> dict[str, str]:
        """The settings by which networks of these shapes are built, by name, as far as shapes
        tell, as TOML has them; and ``domains``, how many, where the shapes depend on it.

        Raises:
            KeyError, IndexError, ValueError: a tensor that decides a size is missing.
        """
        ...

    def turn(self, config: Any) -> range:
        """The iterations of one full turn: from the first in which all that learns does, until
        what is not done in each has been done as often as in the mean of a run."""
        ...

    def learns_until(self, config: Any) -> int | None:
        """The iteration from which on the learning rate is 0; None where it never is."""
        ...

    def new_card(self, config: Any, domains: Sequence[str]) -> ModelCard:
        """The card of a model to be trained."""
        ...

    def sample(
        self, pictures: Any, config: Any, rng: np.random.Generator
    ) -> Mapping[str, np.ndarray]:
        """One item of a batch, with all that its step draws at random; a pure function."""
        ...

    def task(self, config: Any, domains: int, *, device: str, bf16: bool, compile: bool) -> Task:
        """A fresh task, initialised from torch's random state."""
        ...

    def published(self, parts: Mapping[str, Mapping[str, Tensor]], steps: int) -> dict[str, Any]:
        """File name → content for ``torch.save``: a finished model as the published program
        writes it.

        Raises:
            UsageError: it has networks that this program does not have.
        """
        ...


class Task(Protocol):
    """A family in training: networks, optimisers, one ``step`` a batch.

    ``step_index`` is the only schedule state: every schedule is a pure function of it. The
    loop seeds torch's random state before each step, so that dropout is a function of it too.
    """

    @property
    def step_index(self) -> int:
        """Iterations done."""
        ...

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What learns, by name."""
        ...

    @property
    def optimisers(self) -> Optimisers:
        """Through which it learns."""
        ...

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration in the published order; the losses by name. ``batch`` holds the items
        of ``sample`` stacked, on the task's device."""
        ...

    def ailments(self, losses: Mapping[str, float]) -> list[str]:
        """What the mean losses of some iterations say is going wrong, one line each."""
        ...

    def model_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The state dicts that make the finished model, by their published names."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next iteration depends on; the networks' own as ``networks``."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Strict reverse of ``state_dict``."""
        ...


def check_numbers(
    config: Any,
    *,
    counts: Collection[str] = (),
    rates: Collection[str] = (),
    decays: Collection[str] = (),
    shares: Collection[str] = (),
) -> None:
    """Raises UsageError for a number out of its range, which is 0 or more where nothing is said.

    Args:
        config: a frozen dataclass.
        counts: settings of 1 or more.
        rates: of more than 0.
        decays: from 0 to below 1.
        shares: from 0 to 1.
    """
    for name, value in vars(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        fits, expected = value >= 0, "0 or more"
        if name in counts:
            fits, expected = value >= 1, "1 or more"
        elif name in rates:
            fits, expected = value > 0, "more than 0"
        elif name in decays:
            fits, expected = 0 <= value < 1, "0 to below 1"
        elif name in shares:
            fits, expected = 0 <= value <= 1, "a share from 0 to 1"
        if not fits:
            raise UsageError(f"{name} is {value}, expected {expected}")


def families() -> dict[str, ModelFamily]:
    """Every family by name, in the alphabetical order of the folders."""
    folders = sorted(module.name for module in iter_modules(__path__) if module.ispkg)
    found = (import_module(f"{__name__}.{folder}").FAMILY for folder in folders)
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
    raise _stranger(checkpoint, verdicts)


def _stranger(
    checkpoint: Checkpoint, verdicts: Mapping[str, tuple[ModelFamily, str | None]]
) -> CheckpointError:
    """Names the family whose tensor names the file's come closest to, and what speaks against."""
    names = {name for part in checkpoint.shapes().values() for name in part}

    def likeness(family: ModelFamily) -> float:
        return sum(name in names for name in family.fingerprint) / len(family.fingerprint)

    nearest, misfit = max(verdicts.values(), key=lambda verdict: likeness(verdict[0]))
    return CheckpointError(
        f"{checkpoint.path.name} is of no known family"
        + (f", nearest {nearest.name}, but {misfit}" if likeness(nearest) else ""),
        f"expected a generator of {', '.join(verdicts)}; not a detector's or an optimiser's file",
    )
