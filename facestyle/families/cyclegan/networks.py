"""CycleGAN's networks (Zhu et al., ICCV 2017, appendix 7.2), with the published parameter names.

Knows shapes and arithmetic; knows nothing of files, domains or training. The instance norm is
one ``addcmul`` over statistics of H and W: the same numbers as ``nn.InstanceNorm2d``, several
times as fast in channels_last memory, and its statistics stay in float32 under autocast.

    faces_NCHW  float [-1, 1]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from facestyle.nn.norms import InstanceNorm

SLOPE = 0.2  # of the discriminator's leaky ReLU
FIRST_BLOCK = 10  # number of the first residual block in the generator's Sequential


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything about a generator's shape; the defaults are the paper's at 256 px."""

    width: int = 64
    """Channels of the first convolution (``ngf``)."""
    blocks: int = 9
    """Residual blocks."""
    batch_norm: bool = False
    """Batch norm in place of instance norm; its convolutions have no bias."""
    dropout: bool = False
    """Dropout inside the residual blocks: their second convolution moves on by one name."""


def sizes_from_shapes(shapes: Mapping[str, Sequence[int]]) -> Sizes:
    """Read every size from a generator's tensors.

    Raises KeyError or IndexError where a tensor that decides one is missing or misshapen.
    """
    block = f"model.{FIRST_BLOCK}.conv_block"
    blocks = {name.split(".")[1] for name in shapes if name.split(".")[2:3] == ["conv_block"]}
    return Sizes(
        width=shapes["model.1.weight"][0],
        blocks=len(blocks),
        # An instance norm here has no weights; the norm follows the first convolution.
        batch_norm="model.2.weight" in shapes,
        # Without dropout this name is the second norm's, whose weight is a vector.
        dropout=len(shapes.get(f"{block}.6.weight", ())) == 4,
    )


class ResBlock(nn.Module):
    """Two 3 × 3 convolutions under reflection padding, added to their input."""

    def __init__(self, width: int, sizes: Sizes) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_conv_norm(nn.Conv2d(width, width, 3, bias=not sizes.batch_norm), sizes.batch_norm),
            nn.ReLU(),
            *([nn.Dropout(0.5)] if sizes.dropout else []),
            nn.ReflectionPad2d(1),
            *_conv_norm(nn.Conv2d(width, width, 3, bias=not sizes.batch_norm), sizes.batch_norm),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The same shape."""
        return x_NCHW + self.conv_block(x_NCHW)


class Generator(nn.Module):
    """Image → image of the other domain: two halvings, residual blocks, two doublings."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        wide, batch_norm = sizes.width, sizes.batch_norm
        halve = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1, bias=not batch_norm)
        double = partial(
            nn.ConvTranspose2d,
            kernel_size=3,
            stride=2,
            padding=1,
            output_padding=1,
            bias=not batch_norm,
        )

        def layer(convolution: nn.Module) -> list[nn.Module]:
            return [*_conv_norm(convolution, batch_norm), nn.ReLU()]

        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            *layer(nn.Conv2d(3, wide, 7, bias=not batch_norm)),
            *layer(halve(wide, 2 * wide)),
            *layer(halve(2 * wide, 4 * wide)),
            *(ResBlock(4 * wide, sizes) for _ in range(sizes.blocks)),
            *layer(double(4 * wide, 2 * wide)),
            *layer(double(2 * wide, wide)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(wide, 3, 7),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1], sides multiples of 4 → the same, float32 at least."""
        x = self.model(x_NCHW)
        return torch.tanh(x.to(torch.promote_types(x.dtype, torch.float32)))


class Discriminator(nn.Module):
    """Image → one realness value for each overlapping patch of 70 × 70 px (PatchGAN)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()

        def layer(wide_in: int, wide_out: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(wide_in, wide_out, 4, stride, padding=1)
            return [*_conv_norm(convolution, batch_norm=False), nn.LeakyReLU(SLOPE)]

        self.model = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, padding=1),
            nn.LeakyReLU(SLOPE),
            *layer(width, 2 * width, 2),
            *layer(2 * width, 4 * width, 2),
            *layer(4 * width, 8 * width, 1),
            nn.Conv2d(8 * width, 1, 4, padding=1),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, 1, H/8 - 2, W/8 - 2), float32 at least."""
        x = self.model(x_NCHW)
        return x.to(torch.promote_types(x.dtype, torch.float32))


def _conv_norm(convolution: nn.Module, batch_norm: bool) -> list[nn.Module]:
    width = convolution.out_channels
    assert isinstance(width, int), "only convolutions come before a norm"
    return [convolution, nn.BatchNorm2d(width) if batch_norm else InstanceNorm()]
