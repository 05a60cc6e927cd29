"""Changes of a face's attributes, and what an attribute model's generator is told of them.

Pure functions of a card and arrays; knows no networks and no faces.

    labels_NA  label vectors     logits_NA  a classifier's answers     N faces, A attributes
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from facestyle.card import ModelCard
from facestyle.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is to change of a face's attributes (attribute models, such as StarGAN)."""

    on: tuple[str, ...] = ()
    """Attributes that the result shall have; of an exclusive group the others go off."""
    off: tuple[str, ...] = ()
    """Attributes that it shall not have."""
    flip: tuple[str, ...] = ()
    """Attributes to reverse."""
    source: tuple[str, ...] | None = None
    """The attributes that the picture has; None to let the model's classifier say it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes that it changes."""
        return tuple(dict.fromkeys((*self.on, *self.off, *self.flip)))

    @property
    def words(self) -> str:
        """For people and recipes: ``Blond_Hair, no Smiling, flip Male``."""
        off, flip = (f"no {name}" for name in self.off), (f"flip {name}" for name in self.flip)
        return ", ".join([*self.on, *off, *flip])

    def among(self, domains: Collection[str]) -> Edit:
        """What of it is asked of these attributes."""

        def some(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in names if name in domains)

        return replace(self, on=some(self.on), off=some(self.off), flip=some(self.flip))


def check(edit: Edit, card: ModelCard) -> None:
    """Raises UsageError where nothing is to change, an attribute is wanted in two ways, or two of
    one exclusive group may come."""
    wanted = [*edit.on, *edit.off, *edit.flip]
    if not wanted:
        raise UsageError("no attribute to change", f"it knows {', '.join(card.domains)}")
    if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise UsageError(f"'{twice[0]}' is wanted in two ways", "name it once")
    for group in _groups(card):
        if len(both := [name for name in (*edit.on, *edit.flip) if name in group]) > 1:
            raise UsageError(
                f"{' and '.join(both)} exclude each other",
                f"set or flip one of {', '.join(group)}",
            )


def apart(edit: Edit, card: ModelCard) -> list[Edit]:
    """Of a generator of differences one edit for each of them, of an exclusive group's one; of
    any other the edit itself."""
    if not card.relative:
        return [edit]
    groups = {name: tuple(group) for group in _groups(card) for name in group}
    wanted = dict.fromkeys(groups.get(name, (name,)) for name in edit.names)
    return [edit.among(names) for names in wanted]


def depends_on_face(edit: Edit, card: ModelCard) -> bool:
    """Whether what the generator is told depends on what the face has.

    Attributes that all exclude each other leave nothing of it; of differences only those
    depend on it that reverse something, or take the place of others.
    """
    if card.relative:
        grouped = {name for group in _groups(card) for name in group}
        return bool(edit.flip or grouped & set(edit.on))
    return not any(
        bool(edit.on) and set(edit.on) <= set(group) and _is_whole_set(group, card)
        for group in _groups(card)
    )


def seen(logits_NA: np.ndarray, card: ModelCard) -> dict[str, np.ndarray]:
    """The attributes that a classifier sees, (N,) bool each."""
    found = {name: logits_NA[:, i] > 0 for i, name in enumerate(card.domains)}
    for group in _groups(card):
        # At most the likeliest; a bald head has no hair colour, an expression is always one.
        columns = [card.domains.index(name) for name in group]
        best = logits_NA[:, columns].argmax(axis=1)
        always = _is_whole_set(group, card)
        for place, name in enumerate(group):
            found[name] = (best == place) & (always | found[name])
    return found


def labels(edit: Edit, card: ModelCard, own: Mapping[str, np.ndarray]) -> np.ndarray:
    """The label vectors (N, A) that ask the generator for faces with these changes.

    Of several data sets' attributes only the set with the edit counts: the mask says so. A
    generator of differences is told 1 of what is to come and -1 of what is to go, and of what
    was asked for by name even where the face seems to have it: the classifier may be wrong.

    Args:
        own: the attributes that the faces have, (N,) bool each.

    Raises:
        UsageError: attributes of different data sets.
    """
    names, wanted = card.domains, set(edit.names)
    sets = _sets(card)
    chosen = [wanted <= set(members) for members in sets]
    if not any(chosen):
        raise UsageError(
            f"{', '.join(sorted(wanted))} come from different data sets",
            "change the attributes of one set at a time",
        )
    active = set(sets[chosen.index(True)])
    target = dict(own)
    for name in (*edit.on, *edit.off, *edit.flip):
        value = ~own[name] if name in edit.flip else np.full_like(own[name], name in edit.on)
        for group in _groups(card):
            if name in group:
                for other in group:
                    target[other] = target[other] & ~value
        target[name] = value
    labels_NA = np.stack([target[name] for name in names], axis=1).astype(np.float32)
    if card.relative:
        before = dict(own) | {name: ~target[name] for name in wanted}
        labels_NA -= np.stack([before[name] for name in names], axis=1)
    labels_NA *= np.array([name in active for name in names], np.float32)
    if len(sets) > 1:
        mask_NM = np.repeat(np.array([chosen], np.float32), len(labels_NA), axis=0)
        labels_NA = np.concatenate([labels_NA, mask_NM], axis=1)
    return labels_NA


def _groups(card: ModelCard) -> list[list[str]]:
    return [group.split(",") for group in card.exclusive]


def _sets(card: ModelCard) -> list[list[str]]:
    return [members.split(",") for members in card.attribute_sets] or [list(card.domains)]


def _is_whole_set(group: Sequence[str], card: ModelCard) -> bool:
    return any(set(group) == set(members) for members in _sets(card))
