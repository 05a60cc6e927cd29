"""StarGAN's networks (Choi et al., CVPR 2018, tables 4 and 5), with the published names.

Knows shapes and arithmetic; knows nothing of files, attributes' names or training.

    x_NCHW  float [-1, 1]     label_NL  label vector, 0 or 1 (a difference: -1 to 1);
                              a joint model's ends in the mask
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from facestyle.nn import norms
from facestyle.nn.painter import Painter, is_painter, painter_sizes

Shapes = Mapping[str, Sequence[int]]

SLOPE = 0.01  # of the discriminator's leaky ReLUs
BEFORE_BLOCKS, AFTER_BLOCKS = 9, 6  # the generator's steps around its residual blocks
COLOURS = 3


def generator_sizes(shapes: Shapes) -> dict[str, int]:
    """``built_generator``'s sizes from its tensors' shapes.

    Raises:
        KeyError, IndexError: a tensor that decides a size is missing or no convolution's.
        ValueError: the generator paints something else than pictures.
    """
    if is_painter(shapes):
        sizes = painter_sizes(shapes)
        return {"labels": sizes.pop("vector"), **sizes}
    first = shapes["main.0.weight"]
    blocks = _count(shapes, r"main\.\d+\.main\.0\.weight")
    channels = shapes[f"main.{BEFORE_BLOCKS + blocks + AFTER_BLOCKS}.weight"][0]
    if channels != COLOURS:
        raise ValueError(f"its last convolution gives {channels} channels")
    return {"labels": first[1] - COLOURS, "width": first[0], "blocks": blocks}


def built_generator(sizes: Mapping[str, int]) -> nn.Module:
    """The network of these sizes, the published one or a painter, which has a depth too."""
    if "depth" not in sizes:
        return Generator(**sizes)
    return Painter(
        vector=sizes["labels"], **{name: size for name, size in sizes.items() if name != "labels"}
    )


def discriminator_sizes(shapes: Shapes) -> dict[str, int]:
    """``Discriminator``'s arguments from its tensors' shapes; raises as above."""
    attributes, _, kernel, _ = shapes["conv2.weight"]
    return {
        "attributes": attributes,
        "width": shapes["main.0.weight"][0],
        "layers": _count(shapes, r"main\.\d+\.weight"),
        "kernel": kernel,
        "judgements": shapes["conv1.weight"][0],
    }


def _count(shapes: Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in shapes)


class InstanceNorm(norms.InstanceNorm):
    """Affine instance norm with the running statistics that the published files carry.

    The published program never uses them, for it never calls ``eval()``: they are kept so that
    files stay what they are, and never read.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))


class ResidualBlock(nn.Module):
    """x + two normalised 3 × 3 convolutions of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*_normed(_conv3(width)), _conv3(width), InstanceNorm(width))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The same shape."""
        return x_NCHW + self.main(x_NCHW)


class Generator(nn.Module):
    """Image and label vector → image; sides are multiples of 4.

    Padding is with zeros, by which alone the tiled labels survive the first norm: a label
    convolved without borders is a constant, and the norm takes constants away.
    """

    def __init__(self, *, labels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *_normed(nn.Conv2d(COLOURS + labels, width, 7, padding=3, bias=False)),
            *_normed(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False)),
            *_normed(nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False)),
            *(ResidualBlock(4 * width) for _ in range(blocks)),
            *_normed(nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False)),
            *_normed(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False)),
            nn.Conv2d(width, COLOURS, 7, padding=3, bias=False),
            nn.Tanh(),
        )

    def forward(self, x_NCHW: Tensor, label_NL: Tensor) -> Tensor:
        """(N, 3, H, W) faces and (N, L) target labels → (N, 3, H, W) in [-1, 1]."""
        tiled = label_NL[:, :, None, None].expand(-1, -1, *x_NCHW.shape[2:])
        painted: Tensor = self.main(torch.cat([x_NCHW, tiled.to(x_NCHW.dtype)], dim=1))
        return painted


class Discriminator(nn.Module):
    """Image → realness of each patch, and a logit for each attribute.

    The attributes' kernel covers the last map, so it fixes the side: kernel · 2^layers px.
    Published is one judgement of a patch; ours may give two an attribute, see ``Config.judge``.
    """

    def __init__(
        self, *, attributes: int, width: int, layers: int, kernel: int, judgements: int = 1
    ) -> None:
        super().__init__()
        widths = [3, *(width * 2**level for level in range(layers))]
        self.main = nn.Sequential()
        for level in range(layers):
            self.main.append(nn.Conv2d(widths[level], widths[level + 1], 4, 2, 1))
            self.main.append(nn.LeakyReLU(SLOPE))
        self.conv1 = nn.Conv2d(widths[-1], judgements, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(widths[-1], attributes, kernel, bias=False)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) images → (N, J, h, w) realness and (N, A) attribute logits."""
        features = self.main(x_NCHW)
        return self.conv1(features), self.conv2(features).flatten(1)


class Classifier(nn.Module):
    """The discriminator's attribute half: which attributes a face has."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, H, W) faces → (N, A) logits."""
        logits: Tensor = self.discriminator.conv2(self.discriminator.main(x_NCHW))
        return logits.flatten(1)


def _conv3(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1, bias=False)


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    """A convolution, its norm and its ReLU: three steps of a numbered sequence."""
    return convolution, InstanceNorm(convolution.out_channels), nn.ReLU(inplace=True)
