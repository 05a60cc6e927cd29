"""pix2pix's networks (Isola et al., CVPR 2017, section 3.2 and appendix 6.1), with the published
parameter names.

Knows shapes and arithmetic; knows nothing of files, domains' names or training. Where
``noise`` is given, a generator in evaluation mode works as the published test does: batch
norm by the statistics of the batch at hand, dropout drawn from ``noise``, nothing remembered.

    x_NCHW  picture, float [-1, 1]      y_NCHW  features, then the picture of the other side
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.nn.norms import EPS, InstanceNorm

Shapes = Mapping[str, Sequence[int]]
Noise = torch.Generator | None

LEVELS = range(5, 11)  # halvings down to one pixel, of pictures of 32 to 1024 px
NORMS = ("batch", "instance", "none")
SLOPE = 0.2  # of every leaky ReLU
DROPOUT = 0.5  # share of features that a dropout drops
WIDEST = 8  # times the first width
DROPOUT_FROM = 5  # the first level that is no wider than the one around it
LUMA = (0.299, 0.587, 0.114)  # Rec. 601, how the published program makes a picture grey


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything about the generator's shapes; the defaults are the paper's."""

    image_size: int = 256
    """Side of the square picture in px, a power of two; the innermost features are one pixel."""
    width: int = 64
    """Channels of the first convolution (``ngf``)."""
    norm: str = "batch"
    """``batch``, ``instance`` or ``none``."""
    dropout: bool = True
    """Whether the inner levels of one width, but the innermost, have dropout; no tensor tells."""
    channels_in: int = 3
    """Channels of the picture that is given: 3, or 1 for a grey one."""
    channels_out: int = 3
    """Channels of the picture that is made."""

    @property
    def levels(self) -> int:
        """Halvings from the picture to one pixel."""
        return int(math.log2(self.image_size))

    def width_at(self, level: int) -> int:
        """Channels after ``level`` halvings."""
        return self.width * min(2 ** (level - 1), WIDEST)

    def drops_at(self, level: int) -> bool:
        """Whether what ``level`` gives back goes through dropout."""
        return self.dropout and DROPOUT_FROM <= level < self.levels


def sizes_from_shapes(shapes: Shapes) -> Sizes:
    """Read every size from the shapes of a published or own state dict.

    Raises KeyError, IndexError or ValueError where they tell none.
    """
    levels, stem = 1, "model.model.1."
    while f"{stem}model.1.weight" in shapes and levels < LEVELS.stop:
        levels, stem = levels + 1, f"{stem}model.3."
    width, channels_in = shapes["model.model.0.weight"][:2]
    norm = "instance" if "model.model.0.bias" in shapes else "none"
    if "model.model.1.model.2.weight" in shapes:
        norm = "batch"
    return Sizes(
        image_size=2**levels,
        width=width,
        norm=norm,
        channels_in=channels_in,
        channels_out=shapes["model.model.3.weight"][1],
    )


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that, given noise, takes the batch's own statistics and remembers nothing."""

    def forward(self, x_NCHW: Tensor, noise: Noise = None) -> Tensor:
        """The same shape."""
        if noise is None:
            return super().forward(x_NCHW)
        return F.batch_norm(x_NCHW, None, None, self.weight, self.bias, training=True, eps=self.eps)


class Dropout(nn.Module):
    """Dropout in training, and wherever noise is given."""

    def forward(self, x_NCHW: Tensor, noise: Noise = None) -> Tensor:
        """The same shape."""
        if noise is None:
            return F.dropout(x_NCHW, DROPOUT, self.training)
        # Drawn on the CPU: a seed means the same on every device.
        kept = torch.rand(x_NCHW.shape, generator=noise) >= DROPOUT
        return x_NCHW * kept.to(x_NCHW) / (1 - DROPOUT)


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(width, eps=EPS)
    return InstanceNorm() if kind == "instance" else nn.Identity()


class Level(nn.Module):
    """One level of the U-Net: halve, go through the levels inside, double.

    ``model`` is numbered as published: ``[activation] convolution [norm], inside, activation,
    transposed convolution, norm [dropout]``; the outermost ends in tanh, the innermost has
    neither a norm before nor a level inside.
    """

    def __init__(self, sizes: Sizes, level: int) -> None:
        super().__init__()
        biased = sizes.norm == "instance"
        outermost, innermost = level == 1, level == sizes.levels
        outer = sizes.channels_in if outermost else sizes.width_at(level - 1)
        inner = sizes.width_at(level)
        back = sizes.channels_out if outermost else outer
        layers: list[nn.Module] = [nn.Conv2d(outer, inner, 4, 2, 1, bias=biased)]
        if not outermost:
            layers.insert(0, nn.LeakyReLU(SLOPE))
        if not innermost:
            layers += [] if outermost else [_norm(sizes.norm, inner)]
            layers.append(Level(sizes, level + 1))
        joined = inner if innermost else 2 * inner
        layers.append(nn.ReLU())
        layers.append(nn.ConvTranspose2d(joined, back, 4, 2, 1, bias=biased or outermost))
        layers.append(nn.Tanh() if outermost else _norm(sizes.norm, back))
        if sizes.drops_at(level):
            layers.append(Dropout())
        self.outermost = outermost
        self.model = nn.Sequential(*layers)

    def forward(self, x_NCHW: Tensor, noise: Noise = None) -> Tensor:
        """The input and beside it what the level makes of it; of the outermost the latter alone."""
        y_NCHW = x_NCHW
        for layer in self.model:
            noisy = isinstance(layer, Level | BatchNorm | Dropout)
            y_NCHW = layer(y_NCHW, noise) if noisy else layer(y_NCHW)
        return y_NCHW if self.outermost else torch.cat([x_NCHW, y_NCHW], dim=1)


class Generator(nn.Module):
    """The U-Net: RGB in, RGB out; a grey side is made of, or shown as, equal colours."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.model = Level(sizes, 1)

    def forward(self, x_NCHW: Tensor, noise: Noise = None) -> Tensor:
        """The picture of the other side, (N, 3, H, W) in [-1, 1]."""
        if self.sizes.channels_in == 1:
            x_NCHW = (x_NCHW * x_NCHW.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        y_NCHW: Tensor = self.model(x_NCHW, noise)
        return y_NCHW.repeat(1, 3, 1, 1) if self.sizes.channels_out == 1 else y_NCHW


class Sampler(nn.Module):
    """The generator as the published test runs it, its noise a seed away."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x_NCHW: Tensor, seed_1: Tensor) -> Tensor:
        """As ``Generator``, by the statistics of this batch and the dropout of this seed."""
        noise = torch.Generator().manual_seed(int(seed_1[0]))
        y_NCHW: Tensor = self.generator(x_NCHW, noise)
        return y_NCHW


def most_layers(image_size: int) -> int:
    """How often a discriminator can halve: its last two convolutions take a pixel each."""
    return int(math.log2(image_size)) - 2


class Discriminator(nn.Module):
    """PatchGAN: a logit for every overlapping patch, 70 × 70 px with three layers."""

    def __init__(self, *, width: int = 64, layers: int = 3, norm: str = "batch") -> None:
        super().__init__()
        biased = norm == "instance"
        # Input and output beside each other: the discriminator is conditional.
        model: list[nn.Module] = [nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        wide = width
        for layer in range(1, layers + 1):
            stride, before = 2 if layer < layers else 1, wide
            wide = width * min(2**layer, WIDEST)
            model.append(nn.Conv2d(before, wide, 4, stride, 1, bias=biased))
            model += [_norm(norm, wide), nn.LeakyReLU(SLOPE)]
        model.append(nn.Conv2d(wide, 1, 4, 1, 1))
        self.model = nn.Sequential(*model)

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """(N, 1, h, w) logits: is y the true other side of x?"""
        logits_N1hw: Tensor = self.model(torch.cat([x_NCHW, y_NCHW], dim=1))
        return logits_N1hw
