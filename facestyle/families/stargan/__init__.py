"""StarGAN: one generator that changes a face's attributes, each on or off.

Recognition and loading of published and own checkpoints, what the entries of a label vector
mean, and the training presets. ``networks`` holds the architecture, ``objective`` the losses
and the step.

A label vector has one entry an attribute. A model trained on several data sets together takes
the attributes of all, one set after the other, then a mask: one entry a set, 1 for the set whose
entries hold (the others' are 0). A file tells how long its vector is; only with its
discriminator does it tell how much of that is mask, and never where one set ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facestyle.card import ModelCard
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import check_numbers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from facestyle.checkpoint import Checkpoint, State
    from facestyle.families.stargan.objective import Config, Task

Shapes = Mapping[str, Mapping[str, Sequence[int]]]

NAME = "stargan"
IMAGE_SIZE = 128  # px, the published one: a generator alone does not tell its own
JOINT = (5, 8)  # attributes of the published joint model: CelebA's, then RaFD's expressions
ALTERNATIVES = (  # names, in lower case, of which a face has one at a time
    {"black_hair", "blond_hair", "brown_hair", "gray_hair"},
    {"angry", "contemptuous", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"},
)
UNUSED = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}  # statistics, fresh

MAY_BE_0 = ("blocks", "shaper")  # of the sizes that tensors tell

# What differs from the paper in each preset. "compact" learns on two CPU cores.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {
        "run": {
            "steps": 200_000,
            "batch_size": 16,
            "domains": "Black_Hair,Blond_Hair,Brown_Hair,Male,Young",
        },
        NAME: {},
    },
    "compact": {
        "run": {
            "steps": 5_000,
            "batch_size": 16,
            "precision": "auto",
            "ema": 0.995,
            "domains": "Black_Hair,Blond_Hair,Brown_Hair,Male,Young",
        },
        NAME: {
            "image_size": 64,
            "crop": 0,
            "even": True,
            "g_width": 32,
            "g_blocks": 6,
            "roughness": 2.0,
            "relative": True,
            "d_width": 32,
            "d_layers": 5,
            "judge": "attributes",
            "mismatch": 1.0,
            "warmup_steps": 1_000,
            "n_critic": 1,
            "g_lr": 4e-4,
            "d_lr": 4e-4,
            "beta1": 0.0,
            "beta2": 0.99,
            "classify": 0.3,
            "reconstruct": 5.0,
            "reconstruct_every": 4,
            "penalty": 0.05,
            "constant_steps": 3_500,
            "decay_steps": 1_500,
        },
    },
}


class StarGAN:
    """The family object."""

    name = NAME
    title = "StarGAN (Choi et al., CVPR 2018)"
    presets = PRESETS
    layout = "attributes"
    fingerprint = ("main.0.weight", "main.4.weight", "main.9.main.0.weight", "main.9.main.4.weight")

    def misfit(self, shapes: Shapes) -> str | None:
        """See ``ModelFamily.misfit``."""
        from facestyle.nn.painter import is_painter

        part = next((part for part in ("G", "D", "") if part in shapes), None)
        if part is None:
            return "it has no part 'G' and is no single network"
        state = {key: tuple(shape) for key, shape in shapes[part].items()}
        first = state.get("main.0.weight", ())
        if first[1:] == (3, 4, 4) and {"conv1.weight", "conv2.weight"} <= set(state):
            return "it is the discriminator: give the generator's file, <iterations>-G.ckpt"
        if is_painter(state):
            return None
        if len(first) != 4 or first[2:] != (7, 7) or first[1] <= 3:
            return "it has no 7 × 7 convolution 'main.0.weight' that takes a picture and labels"
        for layer, kind, rank in ((1, "norm", 1), (3, "convolution", 4), (6, "convolution", 4)):
            if len(state.get(f"main.{layer}.weight", ())) != rank:
                return f"it has no {kind} 'main.{layer}.weight'"
        return None

    def card(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> ModelCard:
        """See ``ModelFamily.card``. Attributes that nobody named are called by their number.

        ``known`` may have ``attribute_sets`` and ``exclusive``, as the card has them.
        """
        found = _networks(checkpoint)
        sets = _attribute_sets(checkpoint.path.name, found, known)
        domains = tuple(name for names in sets for name in names)
        if len(set(domains)) < len(domains) or not all(domains):
            raise UsageError(f"an attribute is named twice or not at all: {', '.join(domains)}")
        # Groups of the index fall away where the user gives names of their own.
        groups = known.get("exclusive") or ()
        groups = tuple(group for group in groups if set(group.split(",")) <= set(domains))
        return ModelCard(
            family=NAME,
            image_size=found.image_size(known.get("image_size")),
            domains=domains,
            styles=("attributes",),
            attribute_sets=tuple(",".join(names) for names in sets) if len(sets) > 1 else (),
            exclusive=groups or _exclusive(sets),
            alignment=known.get("alignment") or "none",
            pasted="crop",
            name=known.get("name", checkpoint.path.stem),
            licence=known.get("licence", "unknown"),
        )

    def modules(self, checkpoint: Checkpoint, card: ModelCard) -> dict[str, nn.Module]:
        """See ``ModelFamily.modules``. Without the discriminator there is no ``classifier``."""
        import torch

        from facestyle.checkpoint import check_fit
        from facestyle.families.stargan import networks

        found = _networks(checkpoint)
        name, mask = checkpoint.path.name, len(card.attribute_sets)
        said = len(card.domains) + (mask if mask > 1 else 0)
        attributes = found.discriminator.get("attributes", len(card.domains))
        if (said, len(card.domains)) != (found.generator["labels"], attributes):
            raise CheckpointError(
                f"{name}: its card says {len(card.domains)} attributes of {max(mask, 1)} data "
                f"set(s), its tensors {attributes} and {found.generator['labels']} label entries"
            )
        if card.image_size != found.image_size(card.image_size) or card.image_size % 4:
            raise CheckpointError(
                f"{name}: its card says {card.image_size} px, "
                f"its networks take {found.image_size(None)} px"
            )
        # On "meta" a network takes no memory, whatever widths a file's first tensors claim.
        with torch.device("meta"):
            generator = networks.built_generator(found.generator)
            built: dict[str, nn.Module] = {"G": generator}
            if "D" in found.states:
                discriminator = networks.Discriminator(**found.discriminator)
                built["D"] = discriminator
        for part, network in built.items():
            path, label, state = found.states[part]
            state = _with_unused(state)
            check_fit(path, label, state, network.state_dict())
            network.load_state_dict(
                {key: t.float() if t.is_floating_point() else t for key, t in state.items()},
                strict=True,
                assign=True,
            )
        roles: dict[str, nn.Module] = {"generator": generator.eval()}
        if found.generator.get("shaper"):
            roles["flow"] = generator.get_submodule("shaper")
        if "D" in built:
            roles["classifier"] = networks.Classifier(discriminator).eval()
        return roles

    def parts(self, checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
        """See ``ModelFamily.parts``; the discriminator is part of the model, as it tells a
        picture's own attributes."""
        states = _networks(checkpoint).states
        return {part: _with_unused(state) for part, (_, _, state) in states.items()}

    def config(self) -> Config:
        """See ``ModelFamily.config``."""
        from facestyle.families.stargan.objective import Config

        return Config()

    def check(self, config: Config) -> None:
        """See ``ModelFamily.check``."""
        from facestyle.nn.painter import check_moving

        least = max(8, 2**config.d_layers)
        multiple = 8 if config.roughness else 4
        if config.image_size % multiple or config.image_size < least:
            raise UsageError(
                f"image_size is {config.image_size}, expected a multiple of {multiple} "
                f"from {least} with {config.d_layers} discriminator layers",
            )
        check_numbers(
            config,
            counts=("g_width", "d_width", "d_layers", "n_critic", "reconstruct_every"),
            rates=("g_lr", "d_lr"),
            decays=("beta1", "beta2"),
        )
        check_moving(config.roughness, config.warp, config.warp_steps)
        if config.judge not in ("whole", "attributes"):
            raise UsageError(f"unknown judge '{config.judge}'", "known: whole, attributes")
        if config.mismatch and config.judge == "whole":
            raise UsageError(
                f"mismatch is {config.mismatch}, and this judge says nothing of labels",
                'judge = "attributes", or mismatch = 0',
            )
        if config.labels not in ("attributes", "one-hot"):
            raise UsageError(f"unknown labels '{config.labels}'", "known: attributes, one-hot")

    def settled(self, config: Config, pictures: Any) -> Config:
        """See ``ModelFamily.settled``: folders as labels exclude each other."""
        return replace(
            config,
            labels="one-hot" if pictures.one_hot else config.labels,
            crop_from=config.crop_from or (pictures.shorter_side() if config.crop else 0),
        )

    def settings_of(self, shapes: Shapes) -> dict[str, str]:
        """See ``ModelFamily.settings_of``."""
        from facestyle.families.stargan.networks import discriminator_sizes, generator_sizes

        g = generator_sizes(shapes["G"])
        found = {
            "domains": str(g["labels"]),
            "g_width": str(g["width"]),
            "g_blocks": str(g["blocks"]),
            "roughness": "above 0" if "depth" in g else "0",
            "warp": "above 0" if g.get("shaper") else "0",
        }
        if "D" in shapes:
            d = discriminator_sizes(shapes["D"])
            found |= {
                "image_size": str(d["kernel"] << d["layers"]),
                "d_width": str(d["width"]),
                "d_layers": str(d["layers"]),
                "judge": '"whole"' if d["judgements"] == 1 else '"attributes"',
            }
        return found

    def turn(self, config: Config) -> range:
        """See ``ModelFamily.turn``."""
        from facestyle.nn.adversarial import R1_EVERY

        first = config.warmup_steps + (config.warp_steps if config.warp else 0)
        penalties = R1_EVERY if config.judge == "attributes" else 1
        return range(first, first + lcm(config.n_critic * config.reconstruct_every, penalties))

    def learns_until(self, config: Config) -> int | None:
        """See ``ModelFamily.learns_until``."""
        steps = config.constant_steps + config.decay_steps
        return steps if config.decay_steps else None

    def new_card(self, config: Config, domains: Sequence[str]) -> ModelCard:
        """See ``ModelFamily.new_card``."""
        return ModelCard(
            family=NAME,
            image_size=config.image_size,
            domains=tuple(domains),
            styles=("attributes",),
            load_size=_load_size(config),
            pasted="crop",
            exclusive=_exclusive_in(config, domains),
            relative=config.relative,
        )

    def sample(
        self, pictures: Any, config: Config, rng: np.random.Generator
    ) -> Mapping[str, np.ndarray]:
        """See ``ModelFamily.sample``."""
        from facestyle.families.stargan.objective import draw_item

        names = pictures.domains
        groups = [group.split(",") for group in _exclusive_in(config, names)]
        exclusive = [[names.index(name) for name in group] for group in groups]
        return draw_item(pictures, config, exclusive, rng)

    def task(self, config: Config, domains: int, *, device: str, bf16: bool, compile: bool) -> Task:
        """See ``ModelFamily.task``."""
        from facestyle.families.stargan.objective import Task

        return Task(config, domains, device=device, bf16=bf16, compile=compile)

    def published(self, parts: Mapping[str, Mapping[str, Tensor]], steps: int) -> dict[str, Any]:
        """See ``ModelFamily.published``: a file a network."""
        from facestyle.nn.painter import is_painter

        if is_painter({name: tuple(tensor.shape) for name, tensor in parts["G"].items()}):
            raise UsageError(
                "this model's generator is a painter, which the published program does not have",
                "--layout facestyle keeps it",
            )
        return {f"{steps}-{part}.ckpt": _with_unused(state) for part, state in parts.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Networks:
    """A checkpoint's networks, wherever they lie, and the sizes that their tensors tell."""

    states: dict[str, tuple[Path, str, State]]
    """``G``, and ``D`` where it is there: its file, its part's name in it, its tensors."""
    generator: dict[str, int]
    """``networks.built_generator``'s sizes."""
    discriminator: dict[str, int]
    """``networks.Discriminator``'s arguments; empty without it."""

    def image_size(self, known: int | None) -> int:
        """Side in px. Pictures up to 2^layers px larger than the discriminator's kernel tells
        end in a map of the same size: of these ``known`` may be any."""
        if not self.discriminator:
            return known or IMAGE_SIZE
        kernel, layers = self.discriminator["kernel"], self.discriminator["layers"]
        fits = known is not None and known >> layers == kernel
        return known if fits and known else kernel << layers


def _networks(checkpoint: Checkpoint) -> _Networks:
    """Raises CheckpointError for tensors that tell no sizes of a StarGAN."""
    from facestyle.checkpoint import WHOLE, load_checkpoint
    from facestyle.families.stargan.networks import discriminator_sizes, generator_sizes

    path, parts = checkpoint.path, checkpoint.parts
    if WHOLE in parts:
        states = {"G": (path, WHOLE, parts[WHOLE])}
        beside = _discriminator_file(path)
        if beside is not None:
            other = load_checkpoint(beside).parts
            states["D"] = (beside, WHOLE, other.get(WHOLE, {}))
    else:
        states = {part: (path, part, parts[part]) for part in ("G", "D") if part in parts}

    sizes: dict[str, dict[str, int]] = {"D": {}}
    for part, read in (("G", generator_sizes), ("D", discriminator_sizes)):
        if part not in states:
            continue
        file, _, state = states[part]
        try:
            sizes[part] = read({key: tuple(tensor.shape) for key, tensor in state.items()})
            if min(v for name, v in sizes[part].items() if name not in MAY_BE_0) < 1:
                raise ValueError("a width is 0")
        except (KeyError, IndexError, ValueError) as error:
            raise CheckpointError(
                f"{file.name}: its tensors tell no sizes of a StarGAN's {part} ({error})",
                None if file == path else f"it lies beside {path.name}: move it if it is another's",
            ) from None
    labels, attributes = sizes["G"]["labels"], sizes["D"].get("attributes")
    if attributes is not None and (attributes > labels or attributes == labels - 1):
        raise CheckpointError(
            f"{path.name} takes {labels} label entries, "
            f"{states['D'][0].name} knows {attributes} attributes",
            "generator and discriminator must come from one run",
        )
    return _Networks(states=states, generator=sizes["G"], discriminator=sizes["D"])


def _discriminator_file(path: Path) -> Path | None:
    """``200000-D.ckpt`` beside ``200000-G.ckpt``, where it is."""
    match = re.fullmatch(r"(.*[-_]|)G", path.stem)
    beside = path.with_name(f"{match[1]}D{path.suffix}") if match else None
    return beside if beside is not None and beside.is_file() else None


def _attribute_sets(file: str, found: _Networks, known: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The attributes' names, one tuple a data set.

    Where the sets' sizes come from, in this order: a ``|`` between the names given, the sets
    that are known, the published joint layout where all counts fit it. Else all is one set.
    """
    labels, attributes = found.generator["labels"], found.discriminator.get("attributes")
    names = tuple(known.get("domains") or ())
    sets = [tuple(group.split(",")) for group in known.get("attribute_sets") or ()]
    if any("|" in name for name in names):
        sets = [tuple(group.split(",")) for group in ",".join(names).split("|")]
        names = ()
    names = names or tuple(name for group in sets for name in group)

    counts = [len(group) for group in sets]
    count = len(names) or attributes or labels
    if not counts and (labels, count) == (sum(JOINT) + len(JOINT), sum(JOINT)):
        counts = list(JOINT)
    counts = counts or [count]
    if not names and attributes is not None and labels - attributes != _mask(counts):
        raise UsageError(
            f"{file} was trained on {labels - attributes} data sets together, "
            "and does not tell where the attributes of one end",
            "name them with a | between the data sets, such as Male,Young|happy,sad",
        )
    if sum(counts) != count or count + _mask(counts) != labels or attributes not in (None, count):
        tail = "" if attributes is None else f" of which {attributes} are attributes"
        raise UsageError(
            f"{count} attribute names of {len(counts)} data set(s) were given "
            f"({', '.join(names)}), {file} takes {labels} label entries{tail}",
            "of a model trained on several data sets, put a | between them: Male,Young|happy,sad",
        )
    names = names or tuple(map(str, range(count)))
    ends = list(accumulate(counts))
    return [names[end - size : end] for size, end in zip(counts, ends, strict=True)]


def _mask(sets: Sequence[Any]) -> int:
    """Entries of the mask: one a data set, none where there is one set."""
    return len(sets) if len(sets) > 1 else 0


def _exclusive(sets: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Groups of which one holds at a time, by their names, and the published joint model's
    expressions whatever they are called."""
    groups = []
    for index, names in enumerate(sets):
        if tuple(map(len, sets)) == JOINT and index == 1:
            groups.append(tuple(names))
            continue
        for alternatives in ALTERNATIVES:
            groups.append(tuple(name for name in names if name.lower() in alternatives))
    return tuple(",".join(group) for group in groups if len(group) > 1)


def _load_size(config: Config) -> int | None:
    """The whole picture's side where its middle ``crop`` px have ``image_size``; None where the
    crop leaves nothing out."""
    if not 0 < config.crop < config.crop_from:
        return None
    return round(config.image_size * config.crop_from / config.crop)


def _exclusive_in(config: Config, domains: Sequence[str]) -> tuple[str, ...]:
    """The same for a training: of one-hot labels all are one group."""
    if config.labels == "one-hot":
        return (",".join(domains),) if len(domains) > 1 else ()
    return _exclusive([tuple(domains)])


def _with_unused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A generator's state with the norms' running statistics, where the file has none of a kind.

    Nothing reads them (see ``networks.InstanceNorm``), old torch wrote no ``num_batches_tracked``
    and some programs write none at all. A file that has only some of a kind is incomplete.
    """
    import torch

    filled = dict(state)
    norms = [key.removesuffix("weight") for key, t in state.items() if _is_norm(key, t)]
    for leaf, value in UNUSED.items():
        if any(key.endswith(f".{leaf}") for key in state):
            continue
        for norm in norms:
            width = state[f"{norm}weight"].shape
            filled[norm + leaf] = (
                torch.tensor(value) if leaf == "num_batches_tracked" else torch.full(width, value)
            )
    return filled


def _is_norm(key: str, tensor: Tensor) -> bool:
    return key.endswith(".weight") and tensor.ndim == 1


FAMILY = StarGAN()
