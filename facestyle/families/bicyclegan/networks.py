"""BicycleGAN's networks (Zhu et al., NeurIPS 2017, section 4), with the published parameter names.

Knows shapes and arithmetic; knows nothing of files, domains' names or training.
Instance norms are one multiply-add over statistics of H and W: the numbers of
``nn.InstanceNorm2d``, faster in channels_last memory, with float32 statistics under autocast.

    x_NCHW  float [-1, 1]     z_NL  latent code     mu_NL, logvar_NL  what a picture's code may be
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.nn.norms import InstanceNorm
from facestyle.nn.resampling import HalvingConv

Shapes = Mapping[str, Sequence[int]]

SLOPE = 0.2  # of every leaky ReLU
WIDEST = 8  # the U-Net's and discriminators' widest convolution, in first widths
ENCODER_WIDEST = 4  # the same of the encoder
POOLED = 8  # side (px) of the encoder's last features, which are averaged into one
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, what the published program makes of RGB


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The generator's shapes; the defaults are the paper's."""

    depth: int = 8
    """Halvings: pictures of 2^depth px become one point."""
    latent_dim: int = 8
    """Width of the latent code."""
    first_width: int = 64
    """Channels of the first convolution."""
    input_channels: int = 3
    """Channels of the input picture; of 1 the network makes RGB grey itself."""
    where_add: str = "all"
    """Where the code enters: ``all`` levels, or at the ``input`` alone."""
    norm: str = "instance"
    """``instance`` (without parameters) or ``batch``."""
    upsample: str = "basic"
    """``basic`` (transposed convolution) or ``bilinear`` (resize, then convolution)."""
    dropout: bool = False
    """Drop half of the features of the inner levels while training."""

    def width(self, level: int) -> int:
        """Channels after ``level`` + 1 halvings."""
        return self.first_width * min(2**level, WIDEST)


@dataclass(frozen=True, kw_only=True)
class EncoderSizes:
    """The encoder's shapes; the defaults are the paper's."""

    kind: str = "resnet"
    """``resnet`` (residual blocks) or ``conv`` (plain convolutions)."""
    halvings: int = 5
    """From the picture to ``POOLED`` px."""
    latent_dim: int = 8
    """Width of the latent code."""
    first_width: int = 64
    """Channels of the first convolution."""
    norm: str = "instance"
    """``instance`` (without parameters) or ``batch``."""

    @property
    def image_size(self) -> int:
        """The one side that it takes, px."""
        return POOLED * 2**self.halvings


def sizes_from_shapes(shapes: Shapes, latent_dim: int | None = None) -> Sizes:
    """Read the generator's sizes from the shapes of its tensors.

    Args:
        latent_dim: the encoder's, where there is one. A code that enters at the input alone
            cannot be told from the picture's channels: without this they are taken for 3.

    Raises KeyError where a tensor that decides a size is missing.
    """
    if "model.down.0.weight" in shapes:
        first = shapes["model.down.0.weight"]
        latent_dim = shapes["model.submodule.down.1.weight"][1] - first[0]
        where, batch, bilinear = "all", "model.submodule.down.2.weight", "model.up.3.weight"
        depth = 1 + max(key.count("submodule.") for key in shapes)
    else:
        first = shapes["model.model.0.weight"]
        latent_dim = first[1] - 3 if latent_dim is None else latent_dim
        where, batch, bilinear = "input", "model.model.1.model.2.weight", "model.model.5.weight"
        depth = max(key.count(".model.") for key in shapes)
    return Sizes(
        depth=depth,
        latent_dim=latent_dim,
        first_width=first[0],
        input_channels=first[1] - latent_dim,
        where_add=where,
        norm="batch" if batch in shapes else "instance",
        upsample="bilinear" if bilinear in shapes else "basic",
    )


def encoder_sizes_from_shapes(shapes: Shapes) -> EncoderSizes:
    """Read the encoder's sizes from the shapes of its tensors.

    Raises KeyError where a tensor that decides a size is missing.
    """
    resnet = "conv.1.shortcut.1.weight" in shapes
    kernel = re.compile(r"conv\.\d+\.shortcut\.1\.weight" if resnet else r"conv\.\d+\.weight")
    kernels = sum(1 for key in shapes if kernel.fullmatch(key) and len(shapes[key]) == 4)
    return EncoderSizes(
        kind="resnet" if resnet else "conv",
        halvings=kernels + resnet,
        latent_dim=shapes["fc.0.weight"][0],
        first_width=shapes["conv.0.weight"][0],
        norm="batch"
        if ("conv.1.conv.0.weight" if resnet else "conv.3.weight") in shapes
        else "instance",
    )


def _norm(kind: str, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if kind == "batch" else InstanceNorm()


class Generator(nn.Module):
    """Image and latent code → image: a U-Net."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input_channels = sizes.input_channels
        self.coded_levels = sizes.where_add == "all"
        self.model = _level(sizes, 0)

    def forward(self, x_NCHW: Tensor, z_NL: Tensor) -> Tensor:
        """Restyle pictures.

        Args:
            x_NCHW: (N, 3, H, W) in [-1, 1], a multiple of 2^depth on each side.
            z_NL: (N, L) latent codes.

        Returns:
            (N, 3, H, W) in [-1, 1].
        """
        x = x_NCHW
        if self.input_channels == 1 and x.shape[1] == 3:
            x = (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
        arrays = (x, z_NL) if self.coded_levels else (_with_code(x, z_NL),)
        y_NCHW: Tensor = self.model(*arrays)
        return y_NCHW


class _CodedLevel(nn.Module):
    """A level of the U-Net and all below it; the code enters at each of them."""

    def __init__(
        self,
        down: list[nn.Module],
        up: list[nn.Module],
        submodule: nn.Module | None,
        *,
        outermost: bool,
    ) -> None:
        super().__init__()
        self.outermost = outermost
        self.down = nn.Sequential(*down)
        self.submodule = submodule
        self.up = nn.Sequential(*up)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """The picture, or within the U-Net the features with the level's input beside them."""
        y = self.down(_with_code(x, z))
        y = self.up(y if self.submodule is None else self.submodule(y, z))
        return y if self.outermost else torch.cat([y, x], dim=1)


class _Level(nn.Module):
    """A level of the U-Net and all below it; the code came in with the picture."""

    def __init__(
        self,
        down: list[nn.Module],
        up: list[nn.Module],
        submodule: nn.Module | None,
        *,
        outermost: bool,
    ) -> None:
        super().__init__()
        self.outermost = outermost
        self.model = nn.Sequential(*down, *([submodule] if submodule else []), *up)

    def forward(self, x: Tensor) -> Tensor:
        """The picture, or within the U-Net the features with the level's input beside them."""
        y = self.model(x)
        return y if self.outermost else torch.cat([y, x], dim=1)


def _level(sizes: Sizes, level: int) -> nn.Module:
    """A level and all below it; level 0 sees the picture."""
    outermost, innermost = level == 0, level == sizes.depth - 1
    inner, outer = sizes.width(level), 3 if outermost else sizes.width(level - 1)
    wide_in = sizes.input_channels if outermost else outer
    if outermost or sizes.where_add == "all":
        wide_in += sizes.latent_dim

    down: list[nn.Module] = [] if outermost else [nn.LeakyReLU(SLOPE)]
    down.append(nn.Conv2d(wide_in, inner, 4, stride=2, padding=1))
    if not (outermost or innermost):
        down.append(_norm(sizes.norm, inner))

    # All levels but the innermost get their own features from below beside the new ones.
    below = inner if innermost else 2 * inner
    up: list[nn.Module] = [nn.ReLU()]
    if sizes.upsample == "bilinear":
        up += [
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.ReflectionPad2d(1),
            nn.Conv2d(below, outer, 3),
        ]
    else:
        up.append(nn.ConvTranspose2d(below, outer, 4, stride=2, padding=1))
    up.append(nn.Tanh() if outermost else _norm(sizes.norm, outer))
    if sizes.dropout and not (outermost or innermost) and inner == outer:
        up.append(nn.Dropout(0.5))
    kind = _CodedLevel if sizes.where_add == "all" else _Level
    submodule = None if innermost else _level(sizes, level + 1)
    return kind(down, up, submodule, outermost=outermost)


def _with_code(x_NCHW: Tensor, z_NL: Tensor) -> Tensor:
    """The code as channels that are the same everywhere, behind the features' own."""
    z_NL11 = z_NL.to(x_NCHW.dtype)[:, :, None, None]
    return torch.cat([x_NCHW, z_NL11.expand(-1, -1, *x_NCHW.shape[2:])], dim=1)


class Encoder(nn.Module):
    """Image → mean and log variance of its latent code."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, sizes.first_width, 4, stride=2, padding=1)]
        wide = sizes.first_width
        if sizes.kind == "resnet":
            for block in range(2, sizes.halvings + 1):
                wider = sizes.first_width * min(block, ENCODER_WIDEST)
                layers.append(_ResBlock(wide, wider, sizes.norm))
                wide = wider
        else:
            for halving in range(1, sizes.halvings):
                wider = sizes.first_width * min(2**halving, ENCODER_WIDEST)
                layers += [nn.LeakyReLU(SLOPE), nn.Conv2d(wide, wider, 4, stride=2, padding=1)]
                layers.append(_norm(sizes.norm, wider))
                wide = wider
        self.conv = nn.Sequential(*layers, nn.LeakyReLU(SLOPE), nn.AvgPool2d(POOLED))
        self.fc = nn.Sequential(nn.Linear(wide, sizes.latent_dim))
        self.fcVar = nn.Sequential(nn.Linear(wide, sizes.latent_dim))

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) images of the encoder's one side S → (N, L) means and log variances."""
        h = self.conv(x_NCHW).flatten(1)
        return self.fc(h), self.fcVar(h)


class MeanEncoder(nn.Module):
    """An encoder as a role: image → the code that it most likely has."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, S, S) images → (N, L) latent codes."""
        mu_NL: Tensor = self.encoder(x_NCHW)[0]
        return mu_NL


class _ResBlock(nn.Module):
    """Pre-activation residual block that halves by averaging."""

    def __init__(self, wide_in: int, wide_out: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _norm(norm, wide_in),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(wide_in, wide_in, 3, padding=1),
            _norm(norm, wide_in),
            nn.LeakyReLU(SLOPE),
            nn.Sequential(HalvingConv(wide_in, wide_out)),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(wide_in, wide_out, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, wide_in, H, W) → (N, wide_out, H/2, W/2)."""
        return self.conv(x_NCHW) + self.shortcut(x_NCHW)


class Discriminator(nn.Module):
    """Image → realness of its patches at full and at half size, a network a size."""

    def __init__(self, first_width: int, layers: int, norm: str = "instance") -> None:
        super().__init__()
        self.model_0 = _patch_layers(first_width, layers, norm)
        self.model_1 = _patch_layers(first_width // 2, layers, norm)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) images → logits (N, 1, h, w), finer then coarser."""
        half = F.avg_pool2d(x_NCHW, 3, stride=2, padding=1, count_include_pad=False)
        return self.model_0(x_NCHW), self.model_1(half)


def _patch_layers(first_width: int, layers: int, norm: str) -> nn.Sequential:
    """PatchGAN (Isola et al., CVPR 2017): ``layers`` halvings, then two that keep the side."""
    found: list[nn.Module] = [nn.Conv2d(3, first_width, 4, stride=2, padding=1)]
    wide = first_width
    for layer in range(1, layers + 1):
        wider = first_width * min(2**layer, WIDEST)
        stride = 2 if layer < layers else 1
        found += [nn.LeakyReLU(SLOPE), nn.Conv2d(wide, wider, 4, stride=stride, padding=1)]
        found.append(_norm(norm, wider))
        wide = wider
    return nn.Sequential(*found, nn.LeakyReLU(SLOPE), nn.Conv2d(wide, 1, 4, padding=1))
