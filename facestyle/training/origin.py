"""A run that begins with the networks of another, or of a finished model: fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from facestyle import weights
from facestyle.errors import CheckpointError, UsageError
from facestyle.training.settings import read_settings

if TYPE_CHECKING:
    from torch import Tensor

    from facestyle.card import ModelCard
    from facestyle.families import ModelFamily, Task

    Networks = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What a run begins with."""

    parts: tuple[str, ...]
    """The networks' names."""
    notes: tuple[str, ...]
    """One line where the domains have other names than the run's, else none."""


def adopt(task: Task, family: ModelFamily, card: ModelCard, origin: Path) -> Adopted:
    """Put the networks of a run or a model into a fresh task.

    ``card`` is what the run will say of its model.

    What a finished model does not hold, discriminators mostly, stays fresh.

    Raises:
        FacestyleError: ``origin`` is no run with a checkpoint and no weights file, is of
            another family, its networks have other sizes, its generator was told labels
            and this one differences of them, or the reverse, or its domains stand in
            another order.
    """
    from facestyle.checkpoint import check_fit, load_checkpoint
    from facestyle.families import detect
    from facestyle.nn.painter import grown
    from facestyle.training import loop

    domains: Sequence[str] | None
    if origin.is_dir():
        settings, path = read_settings(origin), loop.newest_checkpoint(origin)
        found, domains = settings["family"], settings["domains"]
        relative = bool(settings.get(found, {}).get("relative"))
        parts = loop.read_checkpoint(path)["networks"]
    else:
        checkpoint, path = load_checkpoint(origin), origin
        theirs = detect(checkpoint)
        found, parts = theirs.name, theirs.parts(checkpoint)
        relative = checkpoint.card is not None and checkpoint.card.relative
        entry = weights.entry_for(path)
        told = (entry.card or {}).get("domains") if entry else None
        domains = told if checkpoint.card is None else checkpoint.card.domains
    if found != family.name:
        raise UsageError(f"{origin} is of family {found}, this run's is {family.name}")
    if relative != card.relative:
        was, now = (
            "differences of labels" if one else "labels" for one in (relative, card.relative)
        )
        raise UsageError(
            f"{origin}'s generator was told {was}, this run's is told {now}",
            f"set relative = {str(relative).lower()} in [{family.name}]",
        )
    state = task.state_dict()
    # Companions that nothing trains, a landmark network, come with the task itself.
    parts = {part: tensors for part, tensors in parts.items() if part in state["networks"]}
    mine = {part: state["networks"][part] for part in parts}
    parts = {part: grown(tensors, mine[part]) for part, tensors in parts.items()}
    try:
        for part, tensors in parts.items():
            check_fit(path, part, tensors, mine[part])
    except CheckpointError as error:
        raise _misfit(family, origin, parts, mine, error) from None
    notes = _compared(origin, domains, card.domains)
    for part, tensors in parts.items():
        for group in ("networks", "averages", "average"):
            if part in state.get(group, {}):
                state[group][part] = tensors
    task.load_state_dict(state)
    return Adopted(parts=tuple(parts), notes=notes)


def _misfit(
    family: ModelFamily, origin: Path, theirs: Networks, mine: Networks, error: CheckpointError
) -> CheckpointError | UsageError:
    """What has to be set for these networks to fit, where their sizes tell it."""
    has: Mapping[str, str] = {}
    needs: Mapping[str, str] = {}
    # Of a variant that training does not build, shapes may tell nothing.
    with suppress(KeyError, IndexError, ValueError):
        has, needs = (
            family.settings_of({p: {k: tuple(t.shape) for k, t in s.items()} for p, s in n.items()})
            for n in (theirs, mine)
        )
    other = [name for name in has if has[name] != needs.get(name)]
    if "domains" in other:
        number = has["domains"]
        return UsageError(
            f"{origin} has {number} domains, this run has {needs['domains']}",
            f"choose {number} in [run] domains: a run begins with networks of as many",
        )
    if not other:
        return CheckpointError(
            error.message,
            f"a run begins with networks of its own sizes: set [{family.name}] to theirs",
        )
    was, now = (
        ", ".join(_setting(name, values[name]) for name in other if name in values)
        for values in (has, needs)
    )
    return CheckpointError(
        f"{origin} has networks of {was}, this run's are of {now}", f"set {was} in [{family.name}]"
    )


def _setting(name: str, value: str) -> str:
    return f"{name} {value}" if value.startswith("above") else f"{name} = {value}"


def _compared(origin: Path, theirs: Sequence[str] | None, mine: Sequence[str]) -> tuple[str, ...]:
    """One line where domains have other names than their networks had, else none.

    Raises:
        UsageError: a domain would begin as another one that it is not.
    """
    if theirs is None:
        taken = f"{origin} does not name its domains, they are taken to be {', '.join(mine)}"
        return (f"{taken}, in this order",) if len(mine) > 1 else ()
    # Of a model of one direction the network is that to the run's last domain.
    rest = len(mine) - len(theirs)
    meant = mine[rest:]
    if any(name in mine and name != meant[place] for place, name in enumerate(theirs)):
        new = iter([name for name in mine if name not in theirs])
        order = [next(new) for _ in range(rest)]
        order += [name if name in mine else next(new) for name in theirs]
        raise UsageError(
            f"{origin} has the domains {', '.join(theirs)}, this run has them in another order: "
            f"{', '.join(mine)}",
            f'set domains = "{",".join(order)}" in [run], for networks know them by their place',
        )
    if list(theirs) == list(meant):
        return ()
    return (
        f"{origin} has the domains {', '.join(theirs)}, this run {', '.join(meant)}: "
        "each begins as the one in its place",
    )
