"""pix2pix: one picture to its other side (edges to photos, labels to facades), learned from pairs.

Recognition and loading of published and own checkpoints, and the training presets.
``networks`` holds the architecture, ``objective`` the losses and the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from facestyle.card import ModelCard
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import check_numbers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from facestyle.checkpoint import Checkpoint
    from facestyle.families.pix2pix.networks import Generator, Sizes
    from facestyle.families.pix2pix.objective import Config, Task
    from facestyle.training.data import PairedPictures

Shapes = Mapping[str, Mapping[str, Sequence[int]]]

NAME = "pix2pix"
PARTS = ("G", "")  # the generator's name in our own files; a published file is its state dict
PUBLISHED_FILE = "latest_net_G.pth"
TARGET = "B"  # what nobody named, as the published program calls it

# What differs from the paper in each preset. "paper" is its setting on 400 facades, 200 epochs;
# "compact" learns on two CPU cores in half an hour.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {"run": {"steps": 80_000, "batch_size": 1}, NAME: {}},
    "compact": {
        # Compiling gains nothing here: most of the time is spent in convolutions.
        "run": {"steps": 20_000, "batch_size": 8, "precision": "auto"},
        NAME: {
            "image_size": 64,
            "load_size": 72,
            "width": 32,
            "judge_width": 32,
            "constant_steps": 10_000,
            "decay_steps": 10_000,
        },
    },
}


class Pix2Pix:
    """The family object."""

    name = NAME
    title = "pix2pix (Isola et al., CVPR 2017)"
    presets = PRESETS
    layout = "paired"
    fingerprint = ("model.model.0.weight", "model.model.1.model.1.weight", "model.model.3.weight")

    def misfit(self, shapes: Shapes) -> str | None:
        """See ``ModelFamily.misfit``.

        BicycleGAN's U-Net that takes its latent code at the input has the same names; it is told
        by the channels that the code adds to the picture's.
        """
        from facestyle.families.pix2pix.networks import LEVELS, sizes_from_shapes

        generator = next((shapes[part] for part in PARTS if part in shapes), None)
        if generator is None:
            return f"it has no part '{PARTS[0]}'"
        for key in self.fingerprint:
            shape = tuple(generator.get(key, ()))
            if key not in generator:
                return f"it has no tensor '{key}'"
            if len(shape) != 4 or shape[2:] != (4, 4) or min(shape) < 1:
                return f"{key} has shape {shape}, expected a 4 × 4 convolution"
        sizes = sizes_from_shapes(generator)
        if sizes.channels_in not in (1, 3) or sizes.channels_out not in (1, 3):
            return (
                f"its U-Net makes {sizes.channels_out} channels of {sizes.channels_in}, "
                "expected 1 or 3 of 1 or 3"
            )
        if sizes.levels not in LEVELS:
            return f"its U-Net halves {sizes.levels} times, expected {LEVELS[0]} to {LEVELS[-1]}"
        return None

    def card(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> ModelCard:
        """See ``ModelFamily.card``. Whether a file was trained with dropout cannot be seen: the
        published default is taken for granted."""
        sizes = _sizes(checkpoint)
        domains = tuple(known.get("domains") or (TARGET,))
        if len(domains) != 1:
            raise UsageError(
                f"{len(domains)} domain names were given ({', '.join(domains)}), "
                f"{checkpoint.path.name} makes one kind of picture",
                "name the target alone",
            )
        return ModelCard(
            family=NAME,
            image_size=sizes.image_size,
            domains=domains,
            styles=_styles(sizes),
            alignment=known.get("alignment") or "none",
            name=known.get("name", checkpoint.path.stem),
            licence=known.get("licence", "unknown"),
        )

    def modules(self, checkpoint: Checkpoint, card: ModelCard) -> dict[str, nn.Module]:
        """See ``ModelFamily.modules``."""
        from facestyle.families.pix2pix.networks import Sampler

        sizes = _sizes(checkpoint)
        if (card.image_size, len(card.domains)) != (sizes.image_size, 1):
            raise CheckpointError(
                f"{checkpoint.path.name}: its card says {card.image_size} px and "
                f"{len(card.domains)} domains, its tensors {sizes.image_size} and 1"
            )
        generator = _built(checkpoint)
        (domain,) = card.domains
        roles: dict[str, nn.Module] = {f"generator.{domain}": generator.eval()}
        if "dropout" in card.styles:
            roles[f"sampler.{domain}"] = Sampler(generator).eval()
        return roles

    def parts(self, checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
        """See ``ModelFamily.parts``; what old torch left in a file, or out of it, is put right."""
        return {PARTS[0]: _built(checkpoint).state_dict()}

    def config(self) -> Config:
        """See ``ModelFamily.config``."""
        from facestyle.families.pix2pix.objective import Config

        return Config()

    def check(self, config: Config) -> None:
        """See ``ModelFamily.check``."""
        from facestyle.families.pix2pix.networks import LEVELS, NORMS, most_layers

        side, sides = config.image_size, [2**level for level in LEVELS]
        if side not in sides:
            raise UsageError(
                f"image_size is {side}, expected a power of two from {sides[0]} to {sides[-1]}",
                f"nearest: {min(sides, key=lambda s: abs(s - side))}",
            )
        if config.load_size < side:
            raise UsageError(
                f"load_size is {config.load_size}, expected at least image_size, {side}",
                f"the published ratio is {round(side * 286 / 256)}",
            )
        if not 1 <= config.judge_layers <= most_layers(side):
            raise UsageError(
                f"judge_layers is {config.judge_layers}, expected 1 to {most_layers(side)} "
                f"at {side} px"
            )
        if config.norm not in NORMS:
            raise UsageError(f"unknown norm '{config.norm}'", f"known: {', '.join(NORMS)}")
        counts = ("width", "judge_width", "decay_steps")
        check_numbers(config, counts=counts, rates=("lr",), decays=("beta1",))

    def settled(self, config: Config, pictures: PairedPictures) -> Config:
        """See ``ModelFamily.settled``."""
        return config

    def settings_of(self, shapes: Shapes) -> dict[str, str]:
        """See ``ModelFamily.settings_of``."""
        from facestyle.families.pix2pix.networks import sizes_from_shapes

        sizes = sizes_from_shapes(shapes[PARTS[0]])
        return {
            "image_size": str(sizes.image_size),
            "width": str(sizes.width),
            "norm": f'"{sizes.norm}"',
        }

    def turn(self, config: Config) -> range:
        """See ``ModelFamily.turn``."""
        return range(1)

    def learns_until(self, config: Config) -> int:
        """See ``ModelFamily.learns_until``."""
        return config.constant_steps + max(1, config.decay_steps)

    def new_card(self, config: Config, domains: Sequence[str]) -> ModelCard:
        """See ``ModelFamily.new_card``."""
        from facestyle.families.pix2pix.objective import sizes_of

        return ModelCard(
            family=NAME,
            image_size=config.image_size,
            domains=tuple(domains),
            load_size=config.load_size,
            styles=_styles(sizes_of(config)),
        )

    def sample(
        self, pictures: PairedPictures, config: Config, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """See ``ModelFamily.sample``: a pair, cropped and mirrored alike (paper, section 3.3)."""
        x_CHW, y_CHW = pictures.load_pair(rng, config.image_size, config.load_size)
        return {"x_NCHW": x_CHW, "y_NCHW": y_CHW}

    def task(self, config: Config, domains: int, *, device: str, bf16: bool, compile: bool) -> Task:
        """See ``ModelFamily.task``."""
        from facestyle.families.pix2pix.objective import Task

        return Task(config, device=device, bf16=bf16, compile=compile)

    def published(self, parts: Mapping[str, Mapping[str, Tensor]], steps: int) -> dict[str, Any]:
        """See ``ModelFamily.published``."""
        return {PUBLISHED_FILE: dict(parts[_part(parts)])}


def _part(parts: Mapping[str, Any]) -> str:
    return next(part for part in PARTS if part in parts)


def _styles(sizes: Sizes) -> tuple[str, ...]:
    drops = any(sizes.drops_at(level) for level in range(1, sizes.levels + 1))
    return ("fixed", "dropout") if drops else ("fixed",)


def _sizes(checkpoint: Checkpoint) -> Sizes:
    from facestyle.families.pix2pix.networks import sizes_from_shapes

    return sizes_from_shapes(checkpoint.shapes()[_part(checkpoint.parts)])


def _built(checkpoint: Checkpoint) -> Generator:
    """The generator, strictly loaded.

    Raises:
        CheckpointError: names the first key that is missing, left over or of another shape.
    """
    import torch

    from facestyle.checkpoint import check_fit
    from facestyle.families.pix2pix.networks import Generator
    from facestyle.nn.norms import modernised

    # On "meta" a network takes no memory, whatever widths a file's first tensors claim.
    with torch.device("meta"):
        generator = Generator(_sizes(checkpoint))
    part = _part(checkpoint.parts)
    state = modernised(checkpoint.parts[part], generator)
    check_fit(checkpoint.path, part, state, generator.state_dict())
    generator.load_state_dict(state, strict=True, assign=True)
    return generator


FAMILY = Pix2Pix()
