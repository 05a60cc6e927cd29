"""What CycleGAN learns from (Zhu et al., ICCV 2017, sections 3 and 4).

Losses are pure functions of tensors; ``Task`` strings them together in the published order and
owns the optimisers and the replay pools. Knows nothing of files, folders or progress bars.

    a_NCHW, b_NCHW  pictures of the two domains, float [-1, 1]
    G_A  takes A to B, D_A judges B;  G_B  takes B to A, D_B judges A  (the published names)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from facestyle.families.cyclegan.networks import Discriminator, Generator, Sizes
from facestyle.nn.adversarial import ReplayPool, drawn, pool_draws
from facestyle.nn.losses import l1, linear_fall, realness_loss
from facestyle.nn.updates import Optimisers

if TYPE_CHECKING:
    from facestyle.training.data import LabelledPictures

Losses = dict[str, Tensor]

WON = 0.01  # a discriminator's loss below which it is hardly ever wrong; 0.25 is guessing
LOST = 2.0  # adversarial losses above this are nowhere between 0 and 1, where targets lie


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained and how; the defaults are the paper's."""

    image_size: int = 256
    """Side of the square picture, px; a multiple of 4, at least 32."""
    load_size: int = 286
    """Side to which a picture is resized before the random crop to image_size, px."""
    generator_width: int = 64
    """Channels of the generators' first convolution."""
    blocks: int = 9
    """Residual blocks of a generator; the paper has 6 at 128 px and below."""
    discriminator_width: int = 64
    """Channels of the discriminators' first convolution."""
    lr: float = 2e-4
    """Adam's learning rate."""
    beta1: float = 0.5
    """Adam's first moment; the second is 0.999."""
    constant_steps: int = 100_000
    """Iterations at full learning rate. The paper has 100 epochs; an epoch is one pass over the
    larger domain, so that this is 100 times its pictures over the batch size (here 1000 / 1)."""
    decay_steps: int = 100_000
    """Iterations after those over which the learning rate falls to 0; the paper's other 100
    epochs."""
    cycle_A: float = 10.0
    """Weight of the cycle A → B → A."""
    cycle_B: float = 10.0
    """Weight of the cycle B → A → B."""
    identity: float = 0.5
    """Weight of the identity loss, times the cycle weight of the same domain; 0 leaves it out."""
    pool: int = 50
    """Earlier results of each generator that its discriminator may be shown again; 0 is none."""


def draw(
    pictures: LabelledPictures, config: Config, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One item of a batch: a picture of each domain, and what the replay pools will do with the
    item's results: a swap from 0.5 on, and with which slot."""
    item = {
        name: pictures.jittered(domain, rng, config.image_size, config.load_size)
        for domain, name in enumerate("AB")
    }
    for name in "AB":
        item |= pool_draws(name, config.pool, rng)
    return item


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Half of both terms, which slows D down against G (paper, section 4)."""
    return 0.5 * (realness_loss(logits_real, real=True) + realness_loss(logits_fake, real=False))


def learning_rate(config: Config, step: int) -> float:
    """The learning rate at an iteration: constant, then linear to 0."""
    return config.lr * linear_fall(step, config.constant_steps, config.decay_steps)


def ailments(losses: Mapping[str, float]) -> list[str]:
    """What mean losses say is going wrong, one line each."""
    found = []
    for judge in ("D_A", "D_B"):
        if losses.get(judge, 1.0) < WON:
            found.append(
                f"{judge} is hardly ever wrong (loss {losses[judge]:.2g}, 0.25 is guessing): "
                "its generator learns little; more pictures or a smaller discriminator_width help"
            )
    for name in ("G_A", "G_B", "D_A", "D_B"):
        if losses.get(name, 0.0) > LOST:
            found.append(f"{name} is {losses[name]:.2g}, usual is 0 to 1: a lower lr may help")
    return found


class Task:
    """CycleGAN in training: two generators, two discriminators, one ``step`` a batch.

    ``step_index`` is the only schedule state: the learning rate is a pure function of it.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        compile: bool = False,
    ) -> None:
        """Fresh networks, initialised from torch's global random state.

        Args:
            bf16: run convolutions under bfloat16 autocast; weights, optimisers, norm
                statistics, losses and the replay pools stay in float32.
            compile: compile the networks for the step.
        """
        sizes = Sizes(width=config.generator_width, blocks=config.blocks)
        self.config = config
        self.device = torch.device(device)
        self.bf16 = bf16
        self.step_index = 0
        networks: dict[str, nn.Module] = {
            "G_A": Generator(sizes),
            "G_B": Generator(sizes),
            "D_A": Discriminator(config.discriminator_width),
            "D_B": Discriminator(config.discriminator_width),
        }
        self.networks = {
            part: net.apply(_normal_init).to(self.device).to(memory_format=torch.channels_last)
            for part, net in networks.items()
        }
        self.optimisers = Optimisers(
            {
                group: torch.optim.Adam(
                    [p for part in parts for p in self.networks[part].parameters()],
                    lr=config.lr,
                    betas=(config.beta1, 0.999),
                    fused=True,
                )
                for group, parts in (
                    ("generators", ("G_A", "G_B")),
                    ("discriminators", ("D_A", "D_B")),
                )
            }
        )
        self.pools = {
            name: ReplayPool(config.pool, config.image_size, self.device) for name in "AB"
        }
        self._run = {
            part: torch.compile(net, dynamic=False) if compile else net
            for part, net in self.networks.items()
        }

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration in the published order; the losses by name, after their weights."""
        self.optimisers.set_lr(learning_rate(self.config, self.step_index))

        self._train_only("G_A", "G_B")
        losses, fakes = self._generator_losses(batch["A"], batch["B"])
        self.optimisers.update(_total(losses), "generators")

        self._train_only("D_A", "D_B")
        judged = self._discriminator_losses(batch, fakes)
        self.optimisers.update(_total(judged), "discriminators")

        self.step_index += 1
        losses |= judged
        values = torch.stack([value.detach() for value in losses.values()]).tolist()
        return dict(zip(losses, values, strict=True))

    def _generator_losses(self, a: Tensor, b: Tensor) -> tuple[Losses, dict[str, Tensor]]:
        """Adversarial, cycle and identity losses (paper, equations 1 to 3 and section 5.2),
        and the generators' results by domain, without their graph."""
        config, run = self.config, self._run
        with self._autocast():
            # Nothing in a generator looks across pictures: two sources go through as one batch.
            if config.identity > 0:
                fake_B, same_B = run["G_A"](torch.cat([a, b])).chunk(2)
                fake_A, same_A = run["G_B"](torch.cat([b, a])).chunk(2)
            else:
                fake_B, fake_A = run["G_A"](a), run["G_B"](b)
            back_A, back_B = run["G_B"](fake_B), run["G_A"](fake_A)
            logits_B, logits_A = run["D_A"](fake_B), run["D_B"](fake_A)
        losses = {}
        if config.identity > 0:
            losses["idt_A"] = config.cycle_B * config.identity * l1(same_B, b)
            losses["idt_B"] = config.cycle_A * config.identity * l1(same_A, a)
        losses |= {
            "G_A": realness_loss(logits_B, real=True),
            "G_B": realness_loss(logits_A, real=True),
            "cycle_A": config.cycle_A * l1(back_A, a),
            "cycle_B": config.cycle_B * l1(back_B, b),
        }
        return losses, {"A": fake_A.detach(), "B": fake_B.detach()}

    def _discriminator_losses(
        self, batch: Mapping[str, Tensor], fakes: Mapping[str, Tensor]
    ) -> Losses:
        losses = {}
        for part, name in (("D_A", "B"), ("D_B", "A")):
            fake = fakes[name]
            if self.config.pool > 0:
                fake = self.pools[name].shown(fake, *drawn(name, batch))
            with self._autocast():
                both = torch.cat([batch[name], fake])
                logits = self._run[part](both.contiguous(memory_format=torch.channels_last))
            losses[part] = discriminator_loss(*logits.chunk(2))
        return losses

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _train_only(self, *parts: str) -> None:
        """Gradients for these parts alone: what a step does not update costs nothing."""
        for part, net in self.networks.items():
            net.requires_grad_(part in parts)

    def ailments(self, losses: Mapping[str, float]) -> list[str]:
        """See ``ailments``."""
        return ailments(losses)

    def model_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The finished model: both generators, by their published names."""
        return {part: self.networks[part].state_dict() for part in ("G_A", "G_B")}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, but the random state of batches."""
        return {
            "step": self.step_index,
            "networks": {part: net.state_dict() for part, net in self.networks.items()},
            "optimisers": self.optimisers.state_dict(),
            "pools": {name: pool.state_dict() for name, pool in self.pools.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of ``state_dict``; strict."""
        self.step_index = state["step"]
        for part, net in self.networks.items():
            net.load_state_dict(state["networks"][part])
        self.optimisers.load_state_dict(state["optimisers"])
        for name, pool in self.pools.items():
            pool.load_state_dict(state["pools"][name])


def _total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _normal_init(module: nn.Module) -> None:
    """Normal weights of deviation 0.02 and zero bias on convolutions (paper, appendix 7.2)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
