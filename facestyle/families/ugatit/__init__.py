"""U-GAT-IT: two domains without pairs, one network a direction, guided by attention.

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
    from facestyle.families.ugatit.networks import Sizes
    from facestyle.families.ugatit.objective import Config, Task
    from facestyle.training.data import LabelledPictures

Shapes = Mapping[str, Mapping[str, Sequence[int]]]

NAME = "ugatit"
WHOLE = ""  # the one part of a file that is a plain state dict (checkpoint.WHOLE)
IMAGE_SIZE = 256  # px, the paper's; a light network's tensors tell none
GENERATORS = ("genA2B", "genB2A")
DISCRIMINATORS = ("disGA", "disGB", "disLA", "disLB")

# What differs from the paper in each preset. "paper" and "light" are the published settings;
# "compact" learns something at 64 px on two CPU cores in half an hour.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {"run": {"steps": 1_000_000, "batch_size": 1}, NAME: {}},
    "light": {"run": {"steps": 1_000_000, "batch_size": 1}, NAME: {"light": True}},
    "compact": {
        "run": {"steps": 6_000, "batch_size": 2, "precision": "auto", "compile": True},
        NAME: {
            "image_size": 64,
            "load_size": 72,
            "width": 32,
            "light": True,
            "global_layers": 6,
            "judge": "domains",
            "r1": 0.2,
            "warmup_steps": 400,
            "cycle": 5.0,
            "identity": 2.0,
            "cam": 1.0,
            "lr": 2e-4,
            "lr_fall_from": 3_000,
            "lr_fall_to": 6_000,
        },
    },
}


class UGATIT:
    """The family object."""

    name = NAME
    title = "U-GAT-IT (Kim et al., ICLR 2020)"
    presets = PRESETS
    layout = "unpaired"
    fingerprint = (
        "DownBlock.1.weight",
        "gap_fc.weight",
        "gmp_fc.weight",
        "conv1x1.bias",
        "FC.0.weight",
        "UpBlock1_1.norm1.rho",
        "UpBlock2.3.rho",
    )

    def misfit(self, shapes: Shapes) -> str | None:
        """See ``ModelFamily.misfit``."""
        part = WHOLE if WHOLE in shapes else "genA2B"
        if part not in shapes:
            return "it has no part 'genA2B'"
        for key in self.fingerprint:
            if key not in shapes[part]:
                return f"{part or 'it'} has no tensor '{key}'"
        return None

    def card(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> ModelCard:
        """See ``ModelFamily.card``. Domains that nobody named are called A and B."""
        sizes = _sizes(checkpoint)
        targets = ("A", "B") if "genB2A" in checkpoint.parts else ("B",)
        domains = tuple(known.get("domains") or targets)
        if len(set(domains)) < len(domains):
            raise UsageError(f"a domain is named twice: {', '.join(domains)}")
        if len(domains) != len(targets):
            raise UsageError(
                f"{len(domains)} domain names were given ({', '.join(domains)}), "
                f"{checkpoint.path.name} has {len(targets)}",
                "name the one domain that it makes" if len(targets) == 1 else None,
            )
        return ModelCard(
            family=NAME,
            image_size=sizes.image_size or known.get("image_size") or IMAGE_SIZE,
            domains=domains,
            styles=("fixed",),
            alignment=known.get("alignment") or "none",
            pasted="crop",
            name=known.get("name", checkpoint.path.stem),
            licence=known.get("licence", "unknown"),
        )

    def modules(self, checkpoint: Checkpoint, card: ModelCard) -> dict[str, nn.Module]:
        """See ``ModelFamily.modules``."""
        import torch

        from facestyle.checkpoint import check_fit
        from facestyle.families.ugatit.networks import Attention, Generator

        sizes, parts = _sizes(checkpoint), checkpoint.parts
        # The last domain is the one that genA2B makes.
        sources = [WHOLE if WHOLE in parts else "genA2B"]
        sources += ["genB2A"] * ("genB2A" in parts)
        side = sizes.image_size or card.image_size
        if (card.image_size, len(card.domains)) != (side, len(sources)):
            raise CheckpointError(
                f"{checkpoint.path.name}: its card says {card.image_size} px and "
                f"{len(card.domains)} domain(s), its tensors {side} and {len(sources)}"
            )
        if side % 4:
            raise CheckpointError(
                f"{checkpoint.path.name}: its card says {side} px, expected a multiple of 4"
            )
        modules: dict[str, nn.Module] = {}
        for part, domain in zip(sources, reversed(card.domains), strict=True):
            # On "meta" a network takes no memory, whatever widths a file's first tensors claim.
            with torch.device("meta"):
                generator = Generator(sizes)
            check_fit(checkpoint.path, part, parts[part], generator.state_dict())
            state = {name: tensor.float() for name, tensor in parts[part].items()}
            generator.load_state_dict(state, strict=True, assign=True)
            modules[f"generator.{domain}"] = generator.eval()
            modules[f"attention.{domain}"] = Attention(generator).eval()
        return modules

    def parts(self, checkpoint: Checkpoint) -> dict[str, Mapping[str, Tensor]]:
        """See ``ModelFamily.parts``."""
        named = {part or "genA2B": state for part, state in checkpoint.parts.items()}
        return {part: named[part] for part in GENERATORS if part in named}

    def config(self) -> Config:
        """See ``ModelFamily.config``."""
        from facestyle.families.ugatit.objective import Config

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
        check_numbers(
            config,
            counts=("width", "blocks", "judge_width"),
            rates=("lr", "d_lr_factor"),
            decays=("beta1", "unseen"),
        )
        # All layers but two halve the side; what the last ones see has 3 px or more.
        most = (side // 3).bit_length() + 1
        for name in ("global_layers", "local_layers"):
            if config.judge == "patches" and not 3 <= getattr(config, name) <= most:
                raise UsageError(
                    f"{name} is {getattr(config, name)}, expected 3 to {most} at {side} px"
                )
        most = side.bit_length() - 2
        if config.judge == "domains" and not 1 <= config.judge_levels <= most:
            raise UsageError(
                f"judge_levels is {config.judge_levels}, expected 1 to {most} at {side} px"
            )
        if config.judge not in ("patches", "domains"):
            raise UsageError(f"unknown judge '{config.judge}'", "known: patches, domains")
        if config.mismatch and config.judge == "patches":
            raise UsageError(
                f"mismatch is {config.mismatch}, and these discriminators know one domain each",
                'judge = "domains", or mismatch = 0',
            )
        if config.unseen and config.judge == "patches":
            raise UsageError(
                f"unseen is {config.unseen}, and these discriminators see all of a picture",
                'judge = "domains", or unseen = 0',
            )
        if config.recolour and config.judge == "patches":
            raise UsageError(
                "recolour is on, and these discriminators see pictures as they are",
                'judge = "domains", or recolour = false',
            )
        if config.restore and not config.identity:
            raise UsageError(
                "restore is on, and the identity loss it is of is off",
                "identity = 10, or restore = false",
            )
        if config.judge_levels != 1 and config.judge == "patches":
            raise UsageError(
                f"judge_levels is {config.judge_levels}, and these discriminators see one size "
                "of patches each",
                'judge = "domains", or judge_levels = 1',
            )
        if config.lr_fall_to < config.lr_fall_from:
            raise UsageError(
                f"lr_fall_to is {config.lr_fall_to}, expected {config.lr_fall_from} or more",
                "the learning rate cannot end before it begins to fall",
            )

    def settled(self, config: Config, pictures: LabelledPictures) -> Config:
        """See ``ModelFamily.settled``."""
        return config

    def settings_of(self, shapes: Shapes) -> dict[str, str]:
        """See ``ModelFamily.settings_of``."""
        from facestyle.families.ugatit.networks import sizes_from_shapes

        sizes = sizes_from_shapes(next(shapes[part] for part in GENERATORS if part in shapes))
        found = {
            "width": str(sizes.width),
            "blocks": str(sizes.blocks),
            "light": str(sizes.image_size is None).lower(),
        }
        if sizes.image_size is not None:
            found["image_size"] = str(sizes.image_size)
        return found

    def turn(self, config: Config) -> range:
        """See ``ModelFamily.turn``."""
        from facestyle.nn.adversarial import R1_EVERY

        first = config.warmup_steps
        return range(first, first + (R1_EVERY if config.judge == "domains" else 1))

    def learns_until(self, config: Config) -> int:
        """See ``ModelFamily.learns_until``."""
        return max(config.lr_fall_to, config.lr_fall_from + 1)

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
        from facestyle.families.ugatit.objective import draw

        return draw(pictures, config, rng)

    def task(self, config: Config, domains: int, *, device: str, bf16: bool, compile: bool) -> Task:
        """See ``ModelFamily.task``."""
        from facestyle.families.ugatit.objective import Task

        assert domains == 2, "the unpaired layout has two domains"
        return Task(config, device=device, bf16=bf16, compile=compile)

    def published(self, parts: Mapping[str, Mapping[str, Tensor]], steps: int) -> dict[str, Any]:
        """See ``ModelFamily.published``: one dict of state dicts, ``facestyle`` for its data set.

        A finished model holds no discriminators; those that ``parts`` has are written too.
        """
        named = {part or "genA2B": state for part, state in parts.items()}
        content = {
            part: {name: tensor.detach().cpu().contiguous() for name, tensor in named[part].items()}
            for part in (*GENERATORS, *DISCRIMINATORS)
            if part in named
        }
        return {f"facestyle_params_{steps:07d}.pt": content}


def _sizes(checkpoint: Checkpoint) -> Sizes:
    """The generators' sizes from the tensors of genA2B.

    Raises:
        CheckpointError: they are no U-GAT-IT's.
    """
    from facestyle.families.ugatit.networks import sizes_from_shapes

    shapes = checkpoint.shapes()
    try:
        return sizes_from_shapes(shapes[WHOLE if WHOLE in shapes else "genA2B"])
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path.name}: its tensors tell no sizes of a U-GAT-IT ({error})"
        ) from None


FAMILY = UGATIT()
