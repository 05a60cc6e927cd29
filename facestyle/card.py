"""The model card: all that the pixel side of the tool must know of a model.

A card travels with the weights (safetensors or ONNX metadata, ``weights/index.toml``).
It knows nothing of networks: widths and depths are read from the tensors.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from facestyle.errors import CheckpointError

METADATA_KEY = "facestyle.card"  # where safetensors and ONNX metadata keep the JSON
STYLES = frozenset({"fixed", "latent", "reference", "attributes", "dropout"})
PASTED = ("face", "skin", "crop")
JOINERS = ("\u200c", "\u200d")  # zero width
MOST_EYES = 3  # times as large: a drawing's take half of a face, not all of it


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model does, on which pictures, and under which terms."""

    family: str
    """``stargan-v2``, ``ugatit``, ..."""
    image_size: int
    """Side of the square picture that the networks take, in px."""
    domains: tuple[str, ...]
    """Domain names in the order of the networks' domain index."""
    styles: tuple[str, ...]
    """How a style can be had: ``latent`` (drawn from a seed), ``reference`` (read off a picture),
    ``fixed`` (one a domain), ``attributes`` (changes of the picture's own attributes),
    ``dropout`` (noise from a seed, at the published program's own statistics)."""
    latent_dim: int | None = None
    """Width of the latent code, where there is one."""
    attribute_sets: tuple[str, ...] = ()
    """Attribute models: the comma-joined domains of each data set that gave labels. Of more than
    one, the label vector ends in a mask that says whose labels hold."""
    exclusive: tuple[str, ...] = ()
    """Attribute models: comma-joined domains of which one holds at a time, such as hair colours."""
    relative: bool = False
    """Attribute models: whether the generator is given the label wanted less the face's own, not
    the label wanted."""
    alignment: str = "none"
    """Name of the template (``faces.align.TEMPLATES``), or ``none`` for whole pictures."""
    load_size: int | None = None
    """Side in px of the training pictures from which ``image_size`` was cut at random, where it
    was: faces were seen larger than on the template, see ``zoom``."""
    pasted: str = "face"
    """What of an aligned crop goes back into the photo: the ``face`` by an ellipse, its ``skin`` by
    its colours, so that hair and background stay the photo's, or all of the ``crop`` for models
    that change hair too (``faces.masks.MASKS``)."""
    on_skin: tuple[str, ...] = ()
    """Domains whose change goes back onto the face's skin alone, whatever ``pasted`` is, and with
    little of its colour (``faces.paste.in_own_colour``): for attributes that have nothing to do
    with hair, of a model that changes hair too."""
    as_shade: tuple[str, ...] = ()
    """Domains of whose change only where they darken is kept: the photo as behind grey glass
    (``faces.paste.as_shade``): of a model whose glasses have colours, and they are stains."""
    on_hair: tuple[str, ...] = ()
    """Attribute models: domains that are colours of hair, two or more. Of their change only that of
    the hair goes back, which is found by where their results differ (``faces.masks.hair``)."""
    drawings: tuple[str, ...] = ()
    """Domains that are drawings: a face becomes one with firm lines (``faces.paste.drawn``), as a
    picture of its own, and nothing of the photo's fine detail in it."""
    eyes: float | None = None
    """How many times as large eyes are in the photos that the generators know: a photo's are made
    so before it becomes a drawing, and back to size in a photo made of one
    (``faces.align.with_larger_eyes``); None leaves them as they are."""
    mouth: float | None = None
    """How many times as large, at most 1, the photo's mouth is in a drawing of it, which has the
    photo's brows and forehead then too (``faces.paste.with_own_features``): of a model that draws
    few mouths. None leaves the drawing its own."""
    both_ways: bool = False
    """Whether a result is the mean of what the networks make of a face and of its mirror image: a
    stain or half-shut eye that they make on one side alone is noise, and half as strong then, for
    twice the generator's time."""
    name: str = ""
    """Short name for people."""
    licence: str = "unknown"
    """Terms of use of the weights."""
    about: str = ""
    """One line: what it is for."""
    data: str = ""
    """What it was trained on."""
    seed: int | None = None
    """Seed of the training run."""
    steps: int | None = None
    """Training iterations."""
    command: str = ""
    """The command that made it."""
    scores: Mapping[str, float] | None = None
    """Measured quality, by metric name."""

    @property
    def zoom(self) -> float:
        """How many times as large as on the template a face is cut, to be as it was learned."""
        return (self.load_size or self.image_size) / self.image_size

    def to_json(self) -> str:
        """Compact JSON with sorted keys, so that equal cards give equal bytes."""
        filled = {
            k: v for k, v in asdict(self).items() if v not in (None, "", ()) and v is not False
        }
        return json.dumps(filled, sort_keys=True, ensure_ascii=False)

    def at_step(self, steps: int) -> ModelCard:
        """The card of the same run after ``steps`` iterations."""
        return replace(self, steps=steps)

    @staticmethod
    def from_json(text: str) -> ModelCard:
        """Read a card; raises CheckpointError where it is no card of this version."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise CheckpointError("the model card is not JSON") from None
        if not isinstance(values, dict):
            raise CheckpointError("the model card is not a JSON object")
        return card_from(values)


def card_from(values: Mapping[str, Any]) -> ModelCard:
    """A card from plain values (JSON or TOML), lists made tuples.

    Raises:
        CheckpointError: an unknown or missing field, or one of the wrong type.
    """
    known = {field.name: field for field in fields(ModelCard)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise CheckpointError(
            f"the model card has unknown fields: {', '.join(map(ascii, unknown[:3]))}",
            "it was written by a newer facestyle: update this one",
        )
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise CheckpointError(f"the model card has no {name}")
        if name in values and not _FITS[str(field.type)](values[name]):
            raise CheckpointError(
                f"the model card's {name} is {ascii(values[name])[:40]}, expected {field.type}"
            )
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    card = ModelCard(**plain)
    if not 8 <= card.image_size <= 8192:
        raise CheckpointError(
            f"the model card's image_size is {card.image_size}, expected 8 to 8192 px"
        )
    if card.load_size is not None and card.load_size < card.image_size:
        raise CheckpointError(
            f"the model card's load_size is {card.load_size}, expected {card.image_size} or more"
        )
    if fault := fault_in(card.domains):
        raise CheckpointError(f"the model card {fault}")
    for name, listed in (
        ("drawings", card.drawings), ("on_skin", card.on_skin), ("as_shade", card.as_shade),
        ("on_hair", card.on_hair),
    ):  # fmt: skip
        if strangers := set(listed) - set(card.domains):
            raise CheckpointError(
                f"the model card's {name} has '{min(strangers)}', which is no domain"
            )
    ways = [*card.on_skin, *card.as_shade, *card.on_hair]
    if twice := [name for name in card.domains if ways.count(name) > 1]:
        raise CheckpointError(
            f"the model card has '{twice[0]}' go back in two ways, "
            "expected one of on_skin, as_shade and on_hair"
        )
    if card.pasted not in PASTED:
        raise CheckpointError(f"the model card's pasted is not among {', '.join(PASTED)}")
    if not card.styles or not set(card.styles) <= STYLES:
        raise CheckpointError(f"the model card's styles are not among {', '.join(sorted(STYLES))}")
    if "latent" in card.styles and not card.latent_dim:
        raise CheckpointError("the model card has latent styles and no latent_dim")
    if card.on_hair and (len(card.on_hair) < 2 or "attributes" not in card.styles):
        raise CheckpointError(
            f"the model card's on_hair is {', '.join(card.on_hair)}, "
            "expected two or more of a model of attributes"
        )
    if card.eyes is not None and not 1 <= card.eyes <= MOST_EYES:
        raise CheckpointError(f"the model card's eyes is {card.eyes}, expected 1 to {MOST_EYES}")
    if card.mouth is not None and not 0 < card.mouth <= 1:
        raise CheckpointError(f"the model card's mouth is {card.mouth}, expected 0 to 1")
    for name, times in (("eyes", card.eyes), ("mouth", card.mouth)):
        if times is not None and not (card.drawings and card.alignment != "none"):
            raise CheckpointError(
                f"the model card's {name} is {times}, and it makes no drawings of aligned faces"
            )
    if card.eyes is not None and len(card.domains) > len(card.drawings) + 1:
        # What comes from a photo would lose the eyes' size on its way to another domain of photos.
        raise CheckpointError(
            f"the model card's eyes is {card.eyes}, and more than one domain is of photos"
        )
    for group in (*card.attribute_sets, *card.exclusive):
        if strangers := set(group.split(",")) - set(card.domains):
            raise CheckpointError(f"the model card groups '{min(strangers)}', which is no domain")
    return card


def fault_in(domains: Sequence[str]) -> str:
    """What is wrong with domain names, if anything: they become parts of file names."""
    if not domains or any(not name or {"/", "\\"} & {*name} for name in domains):
        return "has no usable domain names"
    if not all(_is_text(name) and "\n" not in name for name in domains):
        return "has a domain name that cannot be printed"
    return "names a domain twice" if len(set(domains)) < len(domains) else ""


def _is_text(value: Any) -> bool:
    # Spaces of all kinds, and what joins the parts of an emoji; nothing that moves a cursor.
    return isinstance(value, str) and all(
        char.isprintable() or char in JOINERS or unicodedata.category(char) == "Zs"
        for char in value.replace("\n", " ")
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        _is_text(text) and "\n" not in text for text in value
    )


def _is_scores(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_text(name) and _is_number(score) for name, score in value.items()
    )


_FITS: Mapping[str, Callable[[Any], bool]] = {  # by a field's annotation
    "str": _is_text,
    "bool": lambda value: isinstance(value, bool),
    "int": _is_whole,
    "int | None": lambda value: value is None or _is_whole(value),
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[str, ...]": _is_texts,
    "Mapping[str, float] | None": lambda value: value is None or _is_scores(value),
}
