"""What BicycleGAN learns from (Zhu et al., NeurIPS 2017, section 3).

Losses are pure functions of tensors; ``Task`` strings them together in the published order and
owns the optimisers. Knows nothing of files, folders or progress bars.

    a_NCHW, b_NCHW  a pair: the picture given and the one wanted for it, float [-1, 1]
    z_NL, mu_NL, logvar_NL  latent code; mean and log variance of what B's code may be
    encoded  cVAE-GAN's half of a batch: B's own code, sampled, must bring B back
    random   cLR-GAN's half: a code drawn at random must be read off the result again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from facestyle.errors import UsageError
from facestyle.families.bicyclegan.networks import (
    POOLED,
    Discriminator,
    Encoder,
    EncoderSizes,
    Generator,
    Sizes,
)
from facestyle.nn import losses
from facestyle.nn.losses import l1, linear_fall
from facestyle.nn.updates import Optimisers

if TYPE_CHECKING:
    from facestyle.training.data import PairedPictures

Losses = dict[str, Tensor]

INIT_GAIN = 0.02  # of the published xavier initialisation
WARM_UP = 2000  # iterations after which a code should mean something
SILENT = 0.1  # nats that a batch's codes tell of its pictures, so few that it is nothing


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained and how; the defaults are the paper's."""

    image_size: int = 256
    """Side of the square picture, px; a power of two from 32 to 1024."""
    load_size: int = 286
    """Side to which a pair is resized before the random crop to image_size, px."""
    latent_dim: int = 8
    """Width of the latent code."""
    where_add: str = "all"
    """Where the code enters the generator: ``all`` levels, or at the ``input`` alone."""
    upsample: str = "basic"
    """How the generator doubles: ``basic`` (transposed convolution) or ``bilinear``."""
    dropout: bool = False
    """Dropout in the generator's inner levels while training."""
    encoder: str = "resnet"
    """The encoder's kind: ``resnet`` or ``conv``."""
    generator_width: int = 64
    """Channels of the generator's first convolution."""
    encoder_width: int = 64
    """Channels of the encoder's first convolution."""
    discriminator_width: int = 64
    """Channels of the discriminators' first convolution; half of it at half size."""
    discriminator_layers: int = 3
    """Halvings of a discriminator: 3 judge 70 px patches, 2 (published at 128 px) 34 px."""
    lr: float = 2e-4
    """Adam's learning rate."""
    beta1: float = 0.5
    """Adam's first moment; the second is 0.999."""
    constant_steps: int = 100_000
    """Iterations at full learning rate; published: 30 to 200 epochs, by data set."""
    decay_steps: int = 100_000
    """Iterations after those over which the learning rate falls to 0; published: as many."""
    gan: float = 1.0
    """Weight of the adversarial loss of results with encoded codes."""
    gan2: float = 1.0
    """Weight of the adversarial loss of results with random codes."""
    l1: float = 10.0
    """Weight of the difference between B and what its own code brings back."""
    z: float = 0.5
    """Weight of the difference between a random code and the one read off its result."""
    kl: float = 0.01
    """Weight of the KL divergence of encoded codes from a standard normal; a sum over the
    batch, so that a larger batch weighs it more."""


def draw(
    pictures: PairedPictures, config: Config, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One item of a batch: a pair and a standard normal code. The code is the noise around the
    mean of B's own where the item is encoded, and the random code where it is not."""
    a, b = pictures.load_pair(rng, config.image_size, config.load_size)
    return {"A": a, "B": b, "z": rng.standard_normal(config.latent_dim, np.float32)}


def realness_loss(logits: Sequence[Tensor], real: bool) -> Tensor:
    """Least squares toward 1 (``real``) or 0 (Mao et al., ICCV 2017), summed over scales."""
    return torch.stack([losses.realness_loss(one, real) for one in logits]).sum()


def kl_loss(mu_NL: Tensor, logvar_NL: Tensor) -> Tensor:
    """KL(N(mu, var) || N(0, 1)), summed over widths and batch (equation 6)."""
    return -0.5 * (1 + logvar_NL - mu_NL.square() - logvar_NL.exp()).sum()


def learning_rate(config: Config, step: int) -> float:
    """The learning rate at an iteration: constant, then linear to 0."""
    return config.lr * linear_fall(step, config.constant_steps, config.decay_steps)


class Task:
    """BicycleGAN in training: generator, encoder, a discriminator a half; one ``step`` a batch.

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
                statistics, codes and losses stay in float32.
            compile: compile the networks for the step.
        """
        self.config = config
        self.device = torch.device(device)
        self.bf16 = bf16
        self.step_index = 0
        sizes, encoder_sizes = network_sizes(config)
        networks: dict[str, nn.Module] = {
            "G": Generator(sizes),
            "E": Encoder(encoder_sizes),
            "D": Discriminator(config.discriminator_width, config.discriminator_layers),
            "D2": Discriminator(config.discriminator_width, config.discriminator_layers),
        }
        self.networks = {
            part: net.apply(_xavier_init).to(self.device).to(memory_format=torch.channels_last)
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
        self._run = {
            part: torch.compile(net, dynamic=False) if compile else net
            for part, net in self.networks.items()
        }

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration in the published order; the losses by name, after their weights.

        Items with an even place in the batch are encoded, the others random. A random item
        lends its code and its B, which D2 sees as real; its result is made of the A of the
        encoded item before it, as published.

        Raises:
            UsageError: the batch is odd.
        """
        a, b, z = (batch[name] for name in ("A", "B", "z"))
        if len(a) % 2:
            raise UsageError(
                f"the batch has {len(a)} pairs, expected an even number (half of them for "
                "encoded codes, half for random ones)",
                f"set batch_size to {len(a) + 1}, for each process",
            )
        self.optimisers.set_lr(learning_rate(self.config, self.step_index))
        for net in self.networks.values():
            net.train()

        # Update G and E, D and D2 looking on.
        self._train_only("G", "E")
        losses, fakes = self._generator_losses(a[0::2], b[0::2], z[0::2], z[1::2])
        self.optimisers.update(torch.stack(list(losses.values())).sum(), "G", "E")

        # Update D with the encoded half, then D2 with the random half.
        for part, real, fake in zip(("D", "D2"), (b[0::2], b[1::2]), fakes, strict=True):
            self._train_only(part)
            losses[part] = self._discriminator_loss(part, real, fake)
            self.optimisers.update(losses[part], part)

        self.step_index += 1
        values = torch.stack([value.detach() for value in losses.values()]).tolist()
        return dict(zip(losses, values, strict=True))

    def _generator_losses(
        self, a: Tensor, b: Tensor, noise: Tensor, z_random: Tensor
    ) -> tuple[Losses, tuple[Tensor, Tensor]]:
        """All that G and E learn from (equation 9), and the results without their graph."""
        config, run = self.config, self._run
        with self._autocast():
            mu, logvar = (code.float() for code in run["E"](b))
            z_encoded = mu + noise * (0.5 * logvar).exp()
            # Instance norms look at each picture alone: both halves go through as one batch.
            results = run["G"](torch.cat([a, a]), torch.cat([z_encoded, z_random]))
            encoded, random = results.chunk(2)
            logits, logits2 = run["D"](encoded), run["D2"](random)
            # The code read off a random result moves the generator alone (section 3.3): an
            # encoder that is frozen while it reads passes gradients on and takes none.
            self.networks["E"].requires_grad_(False)
            z_back = run["E"](random)[0]
            self.networks["E"].requires_grad_(True)
        losses = {
            "G_GAN": config.gan * realness_loss(logits, real=True),
            "G_GAN2": config.gan2 * realness_loss(logits2, real=True),
            "kl": config.kl * _processes() * kl_loss(mu, logvar),
            "G_L1": config.l1 * l1(encoded, b),
            "z_L1": config.z * l1(z_back, z_random),
        }
        return losses, (encoded.detach(), random.detach())

    def _discriminator_loss(self, part: str, real: Tensor, fake: Tensor) -> Tensor:
        with self._autocast():
            both = [scale.chunk(2) for scale in self._run[part](torch.cat([real, fake]))]
        reals, fakes = zip(*both, strict=True)
        return realness_loss(reals, real=True) + realness_loss(fakes, real=False)

    def ailments(self, losses: Mapping[str, float]) -> list[str]:
        """What the mean losses of some iterations say is going wrong."""
        config, found = self.config, []
        for part, whose in (("D", "encoded"), ("D2", "random")):
            if losses.get(part, 1.0) < 0.02:
                found.append(f"{part} tells all results with {whose} codes: G learns little of it")
        said = losses.get("kl", np.inf) / config.kl if config.kl > 0 else np.inf
        if self.step_index >= WARM_UP and said < SILENT:
            found.append("E tells nothing of a picture: codes and references have no effect")
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _train_only(self, *parts: str) -> None:
        """Gradients for these parts alone: what a step does not update costs nothing."""
        for part, net in self.networks.items():
            net.requires_grad_(part in parts)

    def model_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The finished model: generator and encoder, by their published names."""
        return {part: self.networks[part].state_dict() for part in ("G", "E")}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, but the random state of batches."""
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


def network_sizes(config: Config) -> tuple[Sizes, EncoderSizes]:
    """The sizes of generator and encoder."""
    depth = config.image_size.bit_length() - 1
    return Sizes(
        depth=depth,
        latent_dim=config.latent_dim,
        first_width=config.generator_width,
        where_add=config.where_add,
        upsample=config.upsample,
        dropout=config.dropout,
    ), EncoderSizes(
        kind=config.encoder,
        halvings=depth - (POOLED.bit_length() - 1),
        latent_dim=config.latent_dim,
        first_width=config.encoder_width,
    )


def _processes() -> int:
    """Processes that share a batch: gradients are averaged over them, the KL loss is a sum."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _xavier_init(module: nn.Module) -> None:
    """Xavier normal weights of gain 0.02 and zero bias on convolutions and linears (published)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.xavier_normal_(module.weight, gain=INIT_GAIN)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
