"""How pix2pix is trained (Isola et al., CVPR 2017, sections 3.1 and 3.3).

Losses are pure functions of tensors; ``Task`` strings them together in the published order
and owns the optimisers. Knows nothing of files, folders or progress bars.

    x_NCHW  input pictures      y_NCHW  the pictures that are wanted for them
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facestyle.families.pix2pix.networks import Discriminator, Generator, Sizes
from facestyle.nn.adversarial import cross_entropy
from facestyle.nn.losses import linear_fall
from facestyle.nn.updates import Optimisers

INIT_DEVIATION = 0.02  # of every weight about its mean, 0 or a norm's 1 (paper, appendix 6.2)

WON = 0.02  # sum of the discriminator's two losses, of a judge that is hardly ever wrong
GUESSING = 2 * math.log(2)  # the same of one that cannot tell ...
NEAR = 0.002  # ... and how near it counts as that


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained and how; the defaults are the paper's, its lengths those of 400 facades."""

    image_size: int = 256
    """Side of the square picture, px; a power of two from 32 to 1024."""
    load_size: int = 286
    """Side to which a picture is resized before a random ``image_size`` square is cut, px."""
    width: int = 64
    """Channels of the generator's first convolution (``ngf``)."""
    judge_width: int = 64
    """Channels of the discriminator's first convolution (``ndf``)."""
    judge_layers: int = 3
    """Halvings of the discriminator; 3 judges patches of 70 × 70 px."""
    norm: str = "batch"
    """``batch``, ``instance`` or ``none``."""
    dropout: bool = True
    """Dropout in the generator's inner levels: all the noise that it has."""
    lr: float = 2e-4
    """Adam's learning rate."""
    beta1: float = 0.5
    """Adam's first beta; the second is 0.999."""
    constant_steps: int = 40_000
    """Iterations at the full learning rate: 100 epochs of the facades."""
    decay_steps: int = 40_000
    """Iterations over which it then falls to 0."""
    l1: float = 100.0
    """Weight of the L1 loss."""


def sizes_of(config: Config) -> Sizes:
    """The generator's sizes."""
    return Sizes(
        image_size=config.image_size,
        width=config.width,
        norm=config.norm,
        dropout=config.dropout,
    )


def learning_rate(config: Config, step: int) -> float:
    """The learning rate of an iteration: constant, then linear to 0."""
    return config.lr * linear_fall(step, config.constant_steps, config.decay_steps)


class Task:
    """pix2pix in training: networks, optimisers, one ``step`` a batch.

    ``step_index`` is the only schedule state. Dropout draws from torch's random state.
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
            bf16: run convolutions under bfloat16 autocast; weights, optimisers, norm statistics
                and losses stay in float32.
            compile: compile the networks.
        """
        self.config = config
        self.device = torch.device(device)
        self.bf16 = bf16
        self.step_index = 0
        judge = Discriminator(
            width=config.judge_width, layers=config.judge_layers, norm=config.norm
        )
        networks: dict[str, nn.Module] = {"G": Generator(sizes_of(config)), "D": judge}
        self.networks = {
            part: net.apply(_normal_init).to(self.device).to(memory_format=torch.channels_last)
            for part, net in networks.items()
        }
        self.optimisers = Optimisers(
            {
                part: torch.optim.Adam(
                    net.parameters(), lr=config.lr, betas=(config.beta1, 0.999), fused=True
                )
                for part, net in self.networks.items()
            }
        )
        if compile:
            for net in self.networks.values():
                net.compile(dynamic=False)

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration in the published order: the discriminator, then the generator on the
        same fakes. Returns the losses by name, after their weights."""
        config, (generator, judge) = self.config, (self.networks["G"], self.networks["D"])
        x, y = batch["x_NCHW"], batch["y_NCHW"]
        self.optimisers.set_lr(learning_rate(config, self.step_index))
        with self._autocast():
            fake = generator(x).float()

        # Update the discriminator, half as fast as its losses ask for.
        judge.requires_grad_(True)
        with self._autocast():
            logits_fake, logits_real = judge(x, fake.detach()), judge(x, y)
        losses = {
            "D/fake": cross_entropy(logits_fake.float(), real=False),
            "D/real": cross_entropy(logits_real.float(), real=True),
        }
        self.optimisers.update(0.5 * (losses["D/fake"] + losses["D/real"]), "D")

        # Update the generator, against the discriminator as it is now.
        judge.requires_grad_(False)
        with self._autocast():
            logits = judge(x, fake)
        losses["G/adv"] = cross_entropy(logits.float(), real=True)
        losses["G/l1"] = config.l1 * (fake - y).abs().mean()
        self.optimisers.update(losses["G/adv"] + losses["G/l1"], "G")
        self.step_index += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def ailments(self, losses: Mapping[str, float]) -> list[str]:
        """A discriminator that has won or given up: from there on L1 alone teaches, and blurs."""
        judged = losses.get("D/real", math.nan) + losses.get("D/fake", math.nan)
        if judged < WON:
            return ["the discriminator tells all fakes: more pairs, or a smaller judge_width"]
        if abs(judged - GUESSING) < NEAR:
            return ["the discriminator tells nothing apart: try a larger judge_width or a lower l1"]
        return []

    def model_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The finished model: the generator with its running statistics."""
        return {"G": self.networks["G"].state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, but torch's random state."""
        return {
            "step": self.step_index,
            "networks": {part: net.state_dict() for part, net in self.networks.items()},
            "optimisers": self.optimisers.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of ``state_dict``; strict."""
        self.step_index = state["step"]
        for part, net in self.networks.items():
            net.load_state_dict(state["networks"][part])
        self.optimisers.load_state_dict(state["optimisers"])


def _normal_init(module: nn.Module) -> None:
    """Weights normal about 0, a norm's about 1; zero bias."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
        nn.init.normal_(module.weight, mean, INIT_DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
