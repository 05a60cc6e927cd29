"""StarGAN v2: diverse synthesis over several domains, styled by a latent code or a reference.

Recognition and loading of published and own checkpoints, and the training presets.
``networks`` holds the architecture, ``objective`` the losses and the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facestyle.card import ModelCard
from facestyle.errors import CheckpointError, UsageError, WeightsError
from facestyle.families import check_numbers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from facestyle.checkpoint import Checkpoint, State
    from facestyle.families.stargan_v2.networks import Sizes
    from facestyle.families.stargan_v2.objective import Config, Task
    from facestyle.training.data import LabelledPictures

Shapes = Mapping[str, Mapping[str, Sequence[int]]]

NAME = "stargan-v2"
PARTS = {"generator": "generator", "mapping_network": "mapping", "style_encoder": "encoder"}
MAY_BE_0 = ("w_hpf", "painter_blocks", "shaper", "plain_encoder")  # of the sizes that tensors tell
LANDMARK_FILE = "wing.ckpt"  # the published 98-landmark FAN, for checkpoints that lack theirs

# What differs from the paper in each preset. "paper" is AFHQ's setting at 256 px; "compact"
# learns on two CPU cores in hours and on a GPU in minutes.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {"run": {}, NAME: {}},
    "compact": {
        "run": {
            "steps": 10_000,
            "batch_size": 16,
            "precision": "auto",
            "compile": True,
        },
        NAME: {
            "image_size": 64,
            "first_width": 32,
            "max_width": 128,
            "mapping_width": 256,
            "lr": 2e-4,
            "mapping_lr": 2e-6,
            "r1_every": 16,
            "diversity_steps": 10_000,
            "ema": 0.998,
            "alternate": True,
        },
    },
}


class StarGANv2:
    """The family object."""

    name = NAME
    title = "StarGAN v2 (Choi et al., CVPR 2020)"
    presets = PRESETS
    layout = "labelled"
    fingerprint = (
        "from_rgb.weight",
        "decode.0.norm1.fc.weight",
        "shared.0.weight",
        "unshared.0.6.weight",
    )

    def misfit(self, shapes: Shapes) -> str | None:
        """See ``ModelFamily.misfit``."""
        from facestyle.nn.painter import is_painter

        wanted = [
            ("generator", "from_rgb.weight"),
            ("generator", "decode.0.norm1.fc.weight"),
            ("mapping_network", "shared.0.weight"),
            ("mapping_network", "unshared.0.6.weight"),
        ]
        if is_painter(shapes.get("generator", {})):
            wanted = wanted[2:]
        for part, key in wanted:
            if part not in shapes:
                return f"it has no part '{part}'"
            if key not in shapes[part]:
                return f"{part} has no tensor '{key}'"
        return None

    def card(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> ModelCard:
        """See ``ModelFamily.card``. Domains that nobody named are called by their number."""
        sizes = _sizes(checkpoint)
        domains = tuple(known.get("domains") or (str(i) for i in range(sizes.domains)))
        if len(set(domains)) < len(domains):
            raise UsageError(f"a domain is named twice: {', '.join(domains)}")
        if len(domains) != sizes.domains:
            raise UsageError(
                f"{len(domains)} domain names were given ({', '.join(domains)}), "
                f"{checkpoint.path.name} has {sizes.domains} domains"
            )
        styles = ("latent", "reference") if "style_encoder" in checkpoint.parts else ("latent",)
        return ModelCard(
            family=NAME,
            image_size=sizes.image_size,
            domains=domains,
            styles=styles,
            latent_dim=sizes.latent_dim,
            # Published face models (those with the high-pass) are aligned to their own mean face.
            alignment=known.get("alignment") or (NAME if sizes.w_hpf > 0 else "none"),
            name=known.get("name", checkpoint.path.stem),
            licence=known.get("licence", "unknown"),
        )

    def modules(self, checkpoint: Checkpoint, card: ModelCard) -> dict[str, nn.Module]:
        """See ``ModelFamily.modules``."""
        import torch

        from facestyle.checkpoint import check_fit
        from facestyle.families.stargan_v2 import networks

        sizes = _sizes(checkpoint)
        said = (card.image_size, len(card.domains), card.latent_dim)
        if said != (sizes.image_size, sizes.domains, sizes.latent_dim):
            raise CheckpointError(
                f"{checkpoint.path.name}: its card says {said[0]} px, {said[1]} domains and "
                f"latent width {said[2]}, its tensors "
                f"{sizes.image_size}, {sizes.domains} and {sizes.latent_dim}"
            )
        parts = _whole(checkpoint, sizes)
        if "reference" in card.styles and "style_encoder" not in parts:
            raise CheckpointError(
                f"{checkpoint.path.name}: its card offers reference styles, "
                "it has no part 'style_encoder'"
            )
        # On "meta" a network takes no memory, whatever widths a file's first tensors claim.
        with torch.device("meta"):
            built: dict[str, nn.Module] = {
                "generator": networks.built_generator(sizes),
                "mapping_network": networks.MappingNetwork(sizes),
            }
            if "style_encoder" in parts:
                built["style_encoder"] = networks.StyleEncoder(sizes)
        for part, network in built.items():
            check_fit(checkpoint.path, part, parts[part], network.state_dict())
            state = {name: tensor.float() for name, tensor in parts[part].items()}
            network.load_state_dict(state, strict=True, assign=True)
        if sizes.w_hpf > 0:
            fan = landmark_network(checkpoint)
            built["generator"] = networks.MaskedGenerator(built["generator"], fan)
        roles = {PARTS[part]: network.eval() for part, network in built.items()}
        if sizes.shaper:
            roles["flow"] = built["generator"].get_submodule("shaper")
        return roles

    def parts(self, checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
        """See ``ModelFamily.parts``; a constant that a published file lacks is brought in."""
        wanted = (*PARTS, "fan")
        parts = _whole(checkpoint, _sizes(checkpoint))
        return {part: state for part, state in parts.items() if part in wanted}

    def config(self) -> Config:
        """See ``ModelFamily.config``."""
        from facestyle.families.stargan_v2.objective import Config

        return Config()

    def check(self, config: Config) -> None:
        """See ``ModelFamily.check``."""
        from facestyle.nn.painter import check_moving

        side = config.image_size
        if side & (side - 1) or not 16 <= side <= 1024:
            raise UsageError(
                f"image_size is {side}, expected a power of two from 16 to 1024",
                f"nearest: {min((2**k for k in range(4, 11)), key=lambda s: abs(s - side))}",
            )
        check_numbers(
            config,
            counts=(
                "first_width", "max_width", "mapping_width", "latent_dim", "style_dim", "blocks",
                "judge_width", "r1_every",
            ),
            decays=("beta2", "ema"),
            shares=("other_domain", "tone"),
        )  # fmt: skip
        if config.first_width > config.max_width:
            raise UsageError(
                f"first_width is {config.first_width}, expected max_width, {config.max_width}, "
                "at most",
                f"max_width = {config.first_width}, or a smaller first_width",
            )
        if config.roughness and config.w_hpf:
            raise UsageError(
                "roughness and w_hpf are both set: a painter keeps the photo's edges anyway",
                "w_hpf = 0, or roughness = 0",
            )
        check_moving(config.roughness, config.warp, config.warp_steps)
        if config.judge not in ("residual", "plain"):
            raise UsageError(f"unknown judge '{config.judge}'", "known: residual, plain")

    def settled(self, config: Config, pictures: LabelledPictures) -> Config:
        """See ``ModelFamily.settled``."""
        return config

    def settings_of(self, shapes: Shapes) -> dict[str, str]:
        """See ``ModelFamily.settings_of``."""
        from facestyle.families.stargan_v2.networks import sizes_from_shapes

        sizes = sizes_from_shapes(shapes)
        kept = ("domains", "image_size", "first_width", "max_width", "mapping_width")
        found = {name: str(getattr(sizes, name)) for name in (*kept, "latent_dim", "style_dim")}
        found["w_hpf"] = "above 0" if sizes.w_hpf else "0"
        found["roughness"] = "above 0" if sizes.painter_blocks else "0"
        found["warp"] = "above 0" if sizes.shaper else "0"
        if sizes.painter_blocks:
            found["blocks"] = str(sizes.painter_blocks)
        if "style_encoder" in shapes:
            found["judge"] = '"plain"' if sizes.plain_encoder else '"residual"'
        return found

    def turn(self, config: Config) -> range:
        """See ``ModelFamily.turn``."""
        first = config.warmup_steps + (config.warp_steps if config.warp else 0)
        return range(first, first + (2 if config.alternate else 1) * config.r1_every)

    def learns_until(self, config: Config) -> int | None:
        """See ``ModelFamily.learns_until``."""
        return None

    def new_card(self, config: Config, domains: Sequence[str]) -> ModelCard:
        """See ``ModelFamily.new_card``."""
        return ModelCard(
            family=NAME,
            image_size=config.image_size,
            domains=tuple(domains),
            styles=("latent", "reference"),
            latent_dim=config.latent_dim,
        )

    def sample(
        self, pictures: LabelledPictures, config: Config, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """See ``ModelFamily.sample``."""
        from facestyle.families.stargan_v2.objective import sample

        return sample(pictures, config, rng)

    def task(self, config: Config, domains: int, *, device: str, bf16: bool, compile: bool) -> Task:
        """See ``ModelFamily.task``. A high-pass needs the landmark network in the cache."""
        from facestyle.families.stargan_v2.objective import Task

        fan = landmark_network(None) if config.w_hpf > 0 else None
        return Task(config, domains, device=device, bf16=bf16, compile=compile, fan=fan)

    def published(self, parts: Mapping[str, Mapping[str, Tensor]], steps: int) -> dict[str, Any]:
        """See ``ModelFamily.published``."""
        from facestyle.families.stargan_v2.networks import sizes_from_shapes

        shapes = {p: {k: tuple(t.shape) for k, t in state.items()} for p, state in parts.items()}
        sizes = sizes_from_shapes(shapes)
        if sizes.painter_blocks or sizes.plain_encoder:
            own = (
                "generator is a painter" if sizes.painter_blocks else "style encoder is a plain one"
            )
            raise UsageError(
                f"this model's {own}, which the published program does not have",
                "--layout facestyle keeps it",
            )
        return {f"{steps:06d}_nets_ema.ckpt": {part: dict(state) for part, state in parts.items()}}


def _sizes(checkpoint: Checkpoint) -> Sizes:
    """The networks' sizes from a checkpoint's tensors.

    Raises:
        CheckpointError: they are no StarGAN v2's.
    """
    from facestyle.families.stargan_v2.networks import sizes_from_shapes

    shapes = checkpoint.shapes()
    generator = shapes["generator"]
    blocks = len({key.split(".")[1] for key in generator if key.startswith(("encode.", "down."))})
    try:
        sizes = sizes_from_shapes(shapes)
        # The high-pass adds a block; its kernel, where it is in the file, tells its weight.
        if "hpf.filter" in generator:
            centre = float(checkpoint.parts["generator"]["hpf.filter"][1, 1])
            sizes = replace(sizes, w_hpf=8 / centre)
            if not {"style_encoder", "discriminator"} & set(shapes):
                sizes = replace(sizes, image_size=2 ** (blocks + 1))
        if min(value for name, value in vars(sizes).items() if name not in MAY_BE_0) < 1:
            raise ValueError("a width is 0")
    except (KeyError, IndexError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"{checkpoint.path.name}: its tensors tell no sizes of a StarGAN v2 ({error})"
        ) from None
    expected = sizes.levels - 1 if sizes.painter_blocks else sizes.levels + (sizes.w_hpf > 0)
    if not 16 <= sizes.image_size <= 1024 or not sizes.w_hpf >= 0 or blocks != expected:
        raise CheckpointError(
            f"{checkpoint.path.name}: generator has {blocks} encode blocks, "
            f"expected {expected} at {sizes.image_size} px",
            "the file is of a variant that facestyle does not know",
        )
    return sizes


def _whole(checkpoint: Checkpoint, sizes: Sizes) -> dict[str, State]:
    """The parts with the high-pass's constant, which the published CelebA-HQ file lacks."""
    from facestyle.families.stargan_v2.networks import HighPass

    parts = dict(checkpoint.parts)
    if sizes.w_hpf > 0 and "hpf.filter" not in parts["generator"]:
        constant = HighPass(sizes.w_hpf).get_buffer("filter")
        parts["generator"] = {**parts["generator"], "hpf.filter": constant}
    return parts


def landmark_network(checkpoint: Checkpoint | None) -> nn.Module:
    """The 98-landmark FAN: from the checkpoint's own ``fan`` part, a ``wing.ckpt`` beside it,
    or the cache.

    Raises:
        WeightsError: none of these is there; says where to get it and where to put it.
        CheckpointError: the file is another network's.
    """
    from facestyle import weights
    from facestyle.checkpoint import WHOLE, check_fit, load_checkpoint

    if checkpoint is not None and "fan" in checkpoint.parts:
        path, state = checkpoint.path, checkpoint.parts["fan"]
    else:
        entry = weights.index()["stargan-v2-wing"]
        beside = checkpoint.path.with_name(LANDMARK_FILE) if checkpoint else None
        found = beside if beside is not None and beside.is_file() else weights.locate(entry.name)
        if found is None:
            raise WeightsError(
                f"{checkpoint.path.name if checkpoint else 'w_hpf'} needs the landmark network "
                f"{LANDMARK_FILE}, found none beside it or in {weights.cache_dir()}",
                f"run 'facestyle models pull {entry.name}', or get {entry.url}",
            )
        path = found
        parts = load_checkpoint(path).parts
        state = parts.get(WHOLE) or parts.get("fan") or next(iter(parts.values()))
    fan = _fan()
    check_fit(path, "fan", state, fan.state_dict())
    fan.load_state_dict(dict(state))
    return fan.eval().requires_grad_(False)


def _fan() -> nn.Module:
    """facexlib's FAN, untrained. Its file alone is run: the package's own ``__init__`` takes
    seconds to import trackers that need numba and filterpy."""
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    package = find_spec("facexlib")
    if package is None or not package.submodule_search_locations:
        raise UsageError("the high-pass needs facexlib", "pip install facexlib")
    file = Path(package.submodule_search_locations[0]) / "alignment" / "awing_arch.py"
    spec = spec_from_file_location("facexlib_awing_arch", file)
    assert spec is not None, f"{file} is a Python file"
    assert spec.loader is not None, f"{file} is a Python file"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    fan: nn.Module = module.FAN(num_modules=1, num_landmarks=98, device="cpu")
    return fan


FAMILY = StarGANv2()
