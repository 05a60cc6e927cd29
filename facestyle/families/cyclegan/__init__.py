"""CycleGAN: two domains without pairs, one network a direction.

Recognition and loading of published and own checkpoints, and the training presets.
``networks`` holds the architecture, ``objective`` the losses and the step. The ResNet generator
is also pix2pix's other one: such a file loads here, as a model of one direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from facestyle.card import ModelCard
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import check_numbers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from facestyle.checkpoint import Checkpoint
    from facestyle.families.cyclegan.objective import Config, Task
    from facestyle.training.data import LabelledPictures

Shapes = Mapping[str, Mapping[str, Sequence[int]]]

NAME = "cyclegan"
TARGETS = {"G_A": "B", "G_B": "A"}  # published network → the domain that it makes
PUBLISHED_FILE = re.compile(r"(.*net_)(G_[AB])(\.\w+)")  # latest_net_G_A.pth, 200_net_G_B.pth
IMAGE_SIZE = 256  # the published programs' own; no tensor tells it
# Old torch gave instance norms these; the published programs drop them too.

# What differs from the paper in each preset; "compact" learns at 64 px on two CPU cores.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {"run": {"steps": 200_000, "batch_size": 1}, NAME: {}},
    "compact": {
        "run": {"steps": 10_000, "batch_size": 4, "precision": "auto", "compile": True},
        NAME: {
            "image_size": 64,
            "load_size": 72,
            "generator_width": 24,
            "blocks": 6,
            "discriminator_width": 32,
            "constant_steps": 5_000,
            "decay_steps": 5_000,
        },
    },
}


class CycleGAN:
    """The family object."""

    name = NAME
    title = "CycleGAN (Zhu et al., ICCV 2017)"
    presets = PRESETS
    layout = "unpaired"
    fingerprint = (
        "model.1.weight",
        "model.4.weight",
        "model.7.weight",
        "model.10.conv_block.1.weight",
    )

    def misfit(self, shapes: Shapes) -> str | None:
        """See ``ModelFamily.misfit``."""
        networks = [shapes[part] for part in ("", *TARGETS) if part in shapes]
        if not networks:
            return "it has no part 'G_A' or 'G_B'"
        for network in networks:
            for key in self.fingerprint:
                if key not in network:
                    return f"it has no tensor '{key}'"
            first = tuple(network["model.1.weight"])
            if first[1:] != (3, 7, 7):
                return f"model.1.weight has shape {first}, expected (any, 3, 7, 7)"
        return None

    def card(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> ModelCard:
        """See ``ModelFamily.card``. Domains that nobody named are called A and B."""
        made = [TARGETS[part] for part in _generators(checkpoint)]
        domains = tuple(known.get("domains") or sorted(made))
        if len(set(domains)) < len(domains):
            raise UsageError(f"a domain is named twice: {', '.join(domains)}")
        if len(domains) != len(made):
            raise UsageError(
                f"{len(domains)} domain names were given ({', '.join(domains)}), "
                f"{checkpoint.path.name} has {len(made)}",
                "name the one domain that it makes" if len(made) == 1 else None,
            )
        return ModelCard(
            family=NAME,
            image_size=known.get("image_size") or IMAGE_SIZE,
            domains=domains,
            styles=("fixed",),
            alignment=known.get("alignment") or "none",
            pasted="crop",
            name=known.get("name", checkpoint.path.stem),
            licence=known.get("licence", "unknown"),
        )

    def modules(self, checkpoint: Checkpoint, card: ModelCard) -> dict[str, nn.Module]:
        """See ``ModelFamily.modules``."""
        found = _generators(checkpoint)
        if len(card.domains) != len(found):
            raise CheckpointError(
                f"{checkpoint.path.name}: its card says {len(card.domains)} domain(s), "
                f"it has {len(found)} generator(s)"
            )
        names = dict(zip(sorted(TARGETS[part] for part in found), card.domains, strict=True))
        return {
            f"generator.{names[TARGETS[part]]}": _loaded(network) for part, network in found.items()
        }

    def parts(self, checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
        """See ``ModelFamily.parts``; what old torch left in a file is dropped too."""
        found = _generators(checkpoint)
        return {part: _loaded(network).state_dict() for part, network in found.items()}

    def config(self) -> Config:
        """See ``ModelFamily.config``."""
        from facestyle.families.cyclegan.objective import Config

        return Config()

    def check(self, config: Config) -> None:
        """See ``ModelFamily.check``."""
        side = config.image_size
        if side % 4 or not 32 <= side <= 1024:
            raise UsageError(
                f"image_size is {side}, expected a multiple of 4 from 32 to 1024",
                f"nearest: {min(max(round(side / 4) * 4, 32), 1024)}",
            )
        if config.load_size < side:
            raise UsageError(f"load_size is {config.load_size}, expected {side} or more")
        counts = ("generator_width", "blocks", "discriminator_width")
        check_numbers(config, counts=counts, rates=("lr",), decays=("beta1",))

    def settled(self, config: Config, pictures: LabelledPictures) -> Config:
        """See ``ModelFamily.settled``."""
        return config

    def settings_of(self, shapes: Shapes) -> dict[str, str]:
        """See ``ModelFamily.settings_of``."""
        from facestyle.families.cyclegan.networks import sizes_from_shapes

        sizes = sizes_from_shapes(next(shapes[part] for part in TARGETS if part in shapes))
        return {"generator_width": str(sizes.width), "blocks": str(sizes.blocks)}

    def turn(self, config: Config) -> range:
        """See ``ModelFamily.turn``."""
        return range(1)

    def learns_until(self, config: Config) -> int:
        """See ``ModelFamily.learns_until``."""
        return config.constant_steps + max(1, config.decay_steps)

    def new_card(self, config: Config, domains: Sequence[str]) -> ModelCard:
        """See ``ModelFamily.new_card``."""
        return ModelCard(
            family=NAME,
            image_size=config.image_size,
            domains=tuple(domains),
            styles=("fixed",),
            load_size=config.load_size,
            pasted="crop",
        )

    def sample(
        self, pictures: LabelledPictures, config: Config, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """See ``ModelFamily.sample``."""
        from facestyle.families.cyclegan.objective import draw

        return draw(pictures, config, rng)

    def task(self, config: Config, domains: int, *, device: str, bf16: bool, compile: bool) -> Task:
        """See ``ModelFamily.task``."""
        from facestyle.families.cyclegan.objective import Task

        assert domains == 2, "the unpaired layout has two domains"
        return Task(config, device=device, bf16=bf16, compile=compile)

    def published(self, parts: Mapping[str, Mapping[str, Tensor]], steps: int) -> dict[str, Any]:
        """See ``ModelFamily.published``: one plain state dict a file. A generator alone gets the
        name that the published one-way test looks for."""
        if "G_B" not in parts:
            return {"latest_net_G.pth": dict(parts["G_A"])}
        return {f"latest_net_{part}.pth": dict(state) for part, state in parts.items()}


class _Network(NamedTuple):
    """One generator's tensors and where they came from."""

    path: Path
    part: str
    state: Mapping[str, Tensor]


def _generators(checkpoint: Checkpoint) -> dict[str, _Network]:
    """The generators by published name, G_A first: of one file, or of the two beside each other.

    A file whose name tells no direction is taken for G_A.

    Raises:
        CheckpointError: the file beside it is damaged, or no CycleGAN generator.
    """
    from facestyle.checkpoint import WHOLE, load_checkpoint

    path, parts = checkpoint.path, checkpoint.parts
    if WHOLE not in parts:
        return {part: _Network(path, part, parts[part]) for part in TARGETS if part in parts}
    named = PUBLISHED_FILE.fullmatch(path.name)
    if named is None:
        return {"G_A": _Network(path, WHOLE, parts[WHOLE])}
    found = {named[2]: _Network(path, WHOLE, parts[WHOLE])}
    other = "G_B" if named[2] == "G_A" else "G_A"
    beside = path.with_name(f"{named[1]}{other}{named[3]}")
    # A file of our own says itself how many directions it has.
    if checkpoint.card is None and beside.is_file():
        second = load_checkpoint(beside)
        misfit = FAMILY.misfit(second.shapes())
        if misfit is not None or WHOLE not in second.parts:
            raise CheckpointError(
                f"{beside.name} beside {path.name} is no CycleGAN generator"
                f" ({misfit or 'it has several parts'})",
                "move it elsewhere to use one direction alone",
            )
        found[other] = _Network(beside, WHOLE, second.parts[WHOLE])
    return dict(sorted(found.items()))


def _loaded(network: _Network) -> nn.Module:
    """The generator, strictly loaded.

    Raises:
        CheckpointError: names the first key that is missing, left over or of another shape.
    """
    import torch

    from facestyle.checkpoint import check_fit
    from facestyle.families.cyclegan.networks import Generator, sizes_from_shapes
    from facestyle.nn.norms import modernised

    path, part, state = network
    try:
        sizes = sizes_from_shapes({name: tuple(value.shape) for name, value in state.items()})
        if sizes.width < 1:
            raise ValueError("a width is 0")
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path.name}: its tensors tell no sizes of a CycleGAN generator ({error})"
        ) from None
    # On "meta" a network takes no memory, whatever widths a file's first tensors claim.
    with torch.device("meta"):
        built = Generator(sizes)
    kept = modernised(state, built)
    check_fit(path, part, kept, built.state_dict())
    built.load_state_dict(kept, strict=True, assign=True)
    return built.eval()


FAMILY = CycleGAN()
