"""BicycleGAN: one picture to many, by a latent code drawn or read off a reference.

Recognition and loading of published and own checkpoints, and the training presets.
``networks`` holds the architecture, ``objective`` the losses and the step.
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
    from facestyle.families.bicyclegan.networks import EncoderSizes, Sizes
    from facestyle.families.bicyclegan.objective import Config, Task
    from facestyle.training.data import PairedPictures

Shapes = Mapping[str, Mapping[str, Sequence[int]]]

NAME = "bicyclegan"
PUBLISHED_FILE = re.compile(r"(.*net_)G(\.\w+)")  # latest_net_G.pth; the encoder's has an E
DEPTHS = range(5, 11)  # pictures of 32 to 1024 px
# Old torch gave instance norms these; the published program drops them too.

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {"run": {"steps": 200_000, "batch_size": 2}, NAME: {}},
    "compact": {
        "run": {"steps": 16_000, "batch_size": 8, "precision": "auto", "compile": True},
        NAME: {
            "image_size": 64,
            "load_size": 72,
            "generator_width": 32,
            "encoder_width": 32,
            "discriminator_width": 32,
            "discriminator_layers": 2,
            "constant_steps": 8_000,
            "decay_steps": 8_000,
            "kl": 0.0025,  # four encoded pictures a batch in place of one
        },
    },
}


class BicycleGAN:
    """The family object."""

    name = NAME
    title = "BicycleGAN (Zhu et al., NeurIPS 2017)"
    fingerprint = ("model.down.0.weight", "model.submodule.down.1.weight", "fcVar.0.weight")
    presets = PRESETS
    layout = "paired"

    def misfit(self, shapes: Shapes) -> str | None:
        """See ``ModelFamily.misfit``."""
        network = shapes.get("G") or shapes.get("")
        if not network:
            return "it has no part 'G'"
        if _is_encoder(network):
            return "this is the encoder; give latest_net_G.pth"
        first, second = "model.down.0.weight", "model.submodule.down.1.weight"
        if first not in network:
            # The code beside the picture is all that tells such a U-Net from pix2pix's.
            first, second = "model.model.0.weight", "model.model.1.model.1.weight"
        for key in (first, second):
            if key not in network:
                return f"it has no tensor '{key}'"
            if len(network[key]) != 4 or tuple(network[key][2:]) != (4, 4):
                return f"{key} has shape {tuple(network[key])}, expected (any, any, 4, 4)"
        if network[first][1] <= 3:
            return f"{first} takes no latent code beside the picture's channels"
        return None

    def card(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> ModelCard:
        """See ``ModelFamily.card``. A domain that nobody named is called B."""
        networks = _networks(checkpoint)
        sizes, side = _sizes(networks)
        domains = tuple(known.get("domains") or ("B",))
        if len(domains) != 1:
            raise UsageError(
                f"{len(domains)} domain names were given ({', '.join(domains)}), "
                f"{checkpoint.path.name} has 1",
                "name the one domain that it makes",
            )
        return ModelCard(
            family=NAME,
            image_size=side,
            domains=domains,
            styles=("latent", "reference") if "E" in networks else ("latent",),
            latent_dim=sizes.latent_dim,
            alignment=known.get("alignment") or "none",
            name=known.get("name", checkpoint.path.stem),
            licence=known.get("licence", "unknown"),
        )

    def modules(self, checkpoint: Checkpoint, card: ModelCard) -> dict[str, nn.Module]:
        """See ``ModelFamily.modules``."""
        from facestyle.families.bicyclegan.networks import MeanEncoder

        found = _networks(checkpoint)
        sizes, side = _sizes(found)
        said = (card.image_size, card.latent_dim, len(card.domains))
        if said != (side, sizes.latent_dim, 1):
            raise CheckpointError(
                f"{checkpoint.path.name}: its card says {said[0]} px, latent width {said[1]} and "
                f"{said[2]} domain(s), its tensors {side}, {sizes.latent_dim} and 1"
            )
        if "reference" in card.styles and "E" not in found:
            raise CheckpointError(
                f"{checkpoint.path.name}: its card offers reference styles, it has no part 'E'"
            )
        built = _built(found)
        roles = {"generator": built["G"]}
        if "E" in built:
            roles["encoder"] = MeanEncoder(built["E"])
        return {role: module.eval() for role, module in roles.items()}

    def parts(self, checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
        """See ``ModelFamily.parts``; what old torch left in a file is dropped too."""
        built = _built(_networks(checkpoint))
        return {part: network.state_dict() for part, network in built.items()}

    def config(self) -> Config:
        """See ``ModelFamily.config``."""
        from facestyle.families.bicyclegan.objective import Config

        return Config()

    def check(self, config: Config) -> None:
        """See ``ModelFamily.check``."""
        side, layers = config.image_size, config.discriminator_layers
        sides = [2**depth for depth in DEPTHS]
        if side not in sides:
            raise UsageError(
                f"image_size is {side}, expected a power of two from {sides[0]} to {sides[-1]}",
                f"nearest: {min(sides, key=lambda s: abs(s - side))}",
            )
        if config.load_size < side:
            raise UsageError(f"load_size is {config.load_size}, expected {side} or more")
        for name, known in (
            ("where_add", ("all", "input")),
            ("upsample", ("basic", "bilinear")),
            ("encoder", ("resnet", "conv")),
        ):
            if getattr(config, name) not in known:
                raise UsageError(
                    f"{name} is '{getattr(config, name)}', expected {' or '.join(known)}"
                )
        counts = (
            "latent_dim", "generator_width", "encoder_width", "discriminator_layers",
        )  # fmt: skip
        check_numbers(config, counts=counts, rates=("lr",), decays=("beta1",))
        if config.discriminator_width < 2:
            raise UsageError(
                f"discriminator_width is {config.discriminator_width}, expected 2 or more"
            )
        # At half size, after its halvings, two convolutions each cost the discriminator a pixel.
        if side >> (layers + 1) < 3:
            raise UsageError(
                f"discriminator_layers is {layers}, too many at {side} px",
                f"the most: {side.bit_length() - 4}",
            )

    def settled(self, config: Config, pictures: PairedPictures) -> Config:
        """See ``ModelFamily.settled``."""
        return config

    def settings_of(self, shapes: Shapes) -> dict[str, str]:
        """See ``ModelFamily.settings_of``."""
        from facestyle.families.bicyclegan.networks import (
            encoder_sizes_from_shapes,
            sizes_from_shapes,
        )

        encoder = encoder_sizes_from_shapes(shapes["E"]) if "E" in shapes else None
        sizes = sizes_from_shapes(shapes["G"], encoder.latent_dim if encoder else None)
        found = {
            "image_size": str(2**sizes.depth),
            "latent_dim": str(sizes.latent_dim),
            "where_add": f'"{sizes.where_add}"',
            "upsample": f'"{sizes.upsample}"',
            "generator_width": str(sizes.first_width),
        }
        if encoder is not None:
            found["encoder"] = f'"{encoder.kind}"'
            found["encoder_width"] = str(encoder.first_width)
        return found

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
            styles=("latent", "reference"),
            load_size=config.load_size,
            latent_dim=config.latent_dim,
        )

    def sample(
        self, pictures: PairedPictures, config: Config, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """See ``ModelFamily.sample``."""
        from facestyle.families.bicyclegan.objective import draw

        return draw(pictures, config, rng)

    def task(self, config: Config, domains: int, *, device: str, bf16: bool, compile: bool) -> Task:
        """See ``ModelFamily.task``."""
        from facestyle.families.bicyclegan.objective import Task

        assert domains == 1, "the paired layout has one target"
        return Task(config, device=device, bf16=bf16, compile=compile)

    def published(self, parts: Mapping[str, Mapping[str, Tensor]], steps: int) -> dict[str, Any]:
        """See ``ModelFamily.published``: one plain state dict a file."""
        return {f"latest_net_{part}.pth": dict(state) for part, state in parts.items()}


class _Network(NamedTuple):
    """One network's tensors and where they came from."""

    path: Path
    part: str
    state: Mapping[str, Tensor]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.state.items()}


def _is_encoder(network: Mapping[str, Any]) -> bool:
    return all(f"{layer}.weight" in network for layer in ("conv.0", "fc.0", "fcVar.0"))


def _networks(checkpoint: Checkpoint) -> dict[str, _Network]:
    """The generator, and the encoder where the file or the one beside it has one.

    Raises:
        CheckpointError: the file beside it is damaged, or no encoder.
    """
    from facestyle.checkpoint import WHOLE, load_checkpoint

    path, parts = checkpoint.path, checkpoint.parts
    part = "G" if parts.get("G") else WHOLE
    found = {"G": _Network(path, part, parts[part])}
    named = PUBLISHED_FILE.fullmatch(path.name)
    if "E" in parts:
        found["E"] = _Network(path, "E", parts["E"])
    # A file of our own says itself whether it has an encoder.
    elif named is not None and checkpoint.card is None:
        beside = path.with_name(f"{named[1]}E{named[2]}")
        if beside.is_file():
            state = load_checkpoint(beside).parts.get(WHOLE, {})
            if not _is_encoder(state):
                raise CheckpointError(
                    f"{beside.name} beside {path.name} is no BicycleGAN encoder",
                    "move it elsewhere to use the generator alone",
                )
            found["E"] = _Network(beside, WHOLE, state)
    return found


def _sizes(found: Mapping[str, _Network]) -> tuple[Sizes, int]:
    """The generator's sizes, and the side of its pictures in px.

    That is 2^depth; the encoder takes one side alone, so that where it takes a larger one this
    is it (the U-Net takes any multiple).

    Raises:
        CheckpointError: they are no BicycleGAN's, or the encoder is another generator's.
    """
    from facestyle.families.bicyclegan.networks import sizes_from_shapes

    generator, encoder = found["G"], found.get("E")
    read = _encoder_sizes(encoder) if encoder else None
    try:
        sizes = sizes_from_shapes(generator.shapes(), read.latent_dim if read else None)
        if sizes.depth not in DEPTHS or min(sizes.latent_dim, sizes.first_width) < 1:
            raise ValueError(f"depth {sizes.depth}, latent width {sizes.latent_dim}")
        if sizes.input_channels not in (1, 3):
            raise ValueError(f"it takes pictures of {sizes.input_channels} channels")
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{generator.path.name}: its tensors tell no sizes of a BicycleGAN ({error})"
        ) from None
    side = 2**sizes.depth
    if encoder is None or read is None:
        return sizes, side
    if read.latent_dim != sizes.latent_dim or read.image_size < side:
        raise CheckpointError(
            f"{encoder.path.name} has an encoder of {read.image_size} px and latent width "
            f"{read.latent_dim}, the generator in {generator.path.name} takes {side} px and "
            f"{sizes.latent_dim}",
            "the two are of different models",
        )
    return sizes, read.image_size


def _encoder_sizes(encoder: _Network) -> EncoderSizes:
    """Raises CheckpointError where the tensors tell none."""
    from facestyle.families.bicyclegan.networks import encoder_sizes_from_shapes

    try:
        sizes = encoder_sizes_from_shapes(encoder.shapes())
        if min(sizes.latent_dim, sizes.first_width) < 1 or sizes.halvings + 3 not in DEPTHS:
            raise ValueError(f"{sizes.halvings} halvings, latent width {sizes.latent_dim}")
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{encoder.path.name}: its tensors tell no sizes of a BicycleGAN encoder ({error})"
        ) from None
    return sizes


def _built(found: Mapping[str, _Network]) -> dict[str, nn.Module]:
    """The networks by part, strictly loaded.

    Raises:
        CheckpointError: names the first key that is missing, left over or of another shape.
    """
    import torch

    from facestyle.checkpoint import check_fit
    from facestyle.families.bicyclegan.networks import Encoder, Generator
    from facestyle.nn.norms import modernised

    sizes, _ = _sizes(found)
    # On "meta" a network takes no memory, whatever widths a file's first tensors claim.
    with torch.device("meta"):
        built: dict[str, nn.Module] = {"G": Generator(sizes)}
        if "E" in found:
            built["E"] = Encoder(_encoder_sizes(found["E"]))
    for part, network in built.items():
        path, name, state = found[part]
        kept = modernised(state, network)
        check_fit(path, name, kept, network.state_dict())
        network.load_state_dict(kept, strict=True, assign=True)
    return built


FAMILY = BicycleGAN()
