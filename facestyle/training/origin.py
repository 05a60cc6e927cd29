"""A run that begins with the networks of another, or of a finished model: fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from facestyle.errors import CheckpointError, UsageError
from facestyle.training.settings import read_settings

if TYPE_CHECKING:
    from facestyle.card import ModelCard
    from facestyle.families import ModelFamily, Task


def adopt(task: Task, family: ModelFamily, card: ModelCard, origin: Path) -> list[str]:
    """Put the networks of a run or a model into a fresh task; returns their names.

    ``card`` is what the run will say of its model.

    What a finished model does not hold, discriminators mostly, stays fresh.

    Raises:
        FacestyleError: ``origin`` is no run with a checkpoint and no weights file, is of
            another family, its networks have other sizes, or its generator was told labels
            and this one differences of them, or the reverse.
    """
    from facestyle.checkpoint import check_fit, load_checkpoint
    from facestyle.families import detect
    from facestyle.nn.painter import grown
    from facestyle.training import loop

    if origin.is_dir():
        settings, path = read_settings(origin), loop.newest_checkpoint(origin)
        found = settings["family"]
        relative = bool(settings.get(found, {}).get("relative"))
        parts = loop.read_checkpoint(path)["networks"]
    else:
        checkpoint, path = load_checkpoint(origin), origin
        theirs = detect(checkpoint)
        found, parts = theirs.name, theirs.parts(checkpoint)
        relative = checkpoint.card is not None and checkpoint.card.relative
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
    for part, loaded in parts.items():
        mine = state["networks"][part]
        tensors = grown(loaded, mine)
        try:
            check_fit(path, part, tensors, mine)
        except CheckpointError as error:
            raise CheckpointError(
                error.message,
                f"a run begins with networks of its own sizes: set [{family.name}] to theirs",
            ) from None
        for group in ("networks", "averages", "average"):
            if part in state.get(group, {}):
                state[group][part] = tensors
    task.load_state_dict(state)
    return list(parts)
