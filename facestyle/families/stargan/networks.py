"""StarGAN's networks (Choi et al., CVPR 2018, tables 4 and 5), with the published names.

Knows shapes and arithmetic; knows nothing of files, attributes' names or training.

    x_NCHW  float [-1, 1]     label_NL  label vector, 0 or 1; a joint model's ends in the mask
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.norms import instance_norm

Shapes = Mapping[str, Sequence[int]]

SLOPE = 0.01  # of the discriminator's leaky ReLUs
BEFORE_BLOCKS, AFTER_BLOCKS = 9, 6  # the generator's steps around its residual blocks
PAINTED, ATTENTIVE = 3, 4  # the generator's output channels
SMOOTH = 5  # px over which where to paint is averaged
BY_LABEL = "by_label.weight"  # a conditional norm's own tensor


def generator_sizes(shapes: Shapes) -> dict[str, int]:
    """``Generator``'s arguments from its tensors' shapes.

    Raises:
        KeyError, IndexError: a tensor that decides a size is missing or no convolution's.
        ValueError: the generator paints something else than pictures.
    """
    first = shapes["main.0.weight"]
    blocks = _count(shapes, r"main\.\d+\.main\.0\.weight")
    channels = shapes[f"main.{BEFORE_BLOCKS + blocks + AFTER_BLOCKS}.weight"][0]
    if channels not in (PAINTED, ATTENTIVE):
        raise ValueError(f"its last convolution gives {channels} channels")
    return {
        "labels": first[1] - 3,
        "width": first[0],
        "blocks": blocks,
        "channels": channels,
        "conditional": int(f"main.1.{BY_LABEL}" in shapes),
    }


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


class InstanceNorm(nn.Module):
    """Affine instance norm, always by the picture's own statistics.

    The published files carry running statistics, which the published program never uses, as it
    never calls ``eval()``: they are kept so that files stay what they are, and never read.

    With ``labels`` its scale and shift follow the labels (conditional instance norm, Dumoulin et
    al., ICLR 2017), which no published file has.
    """

    def __init__(self, width: int, labels: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.by_label = nn.Linear(labels, 2 * width, bias=False) if labels else None

    def forward(self, x_NCHW: Tensor, label_NL: Tensor) -> Tensor:
        """The same shape, each channel of each sample to its weight and bias."""
        scale, shift = self.weight[None], self.bias[None]
        if self.by_label is not None:
            more, up = self.by_label(label_NL).chunk(2, dim=1)
            scale, shift = scale + more, shift + up
        return instance_norm(x_NCHW, scale[:, :, None, None], shift[:, :, None, None])


class ResidualBlock(nn.Module):
    """x + two normalised 3 × 3 convolutions of x."""

    def __init__(self, width: int, labels: int = 0) -> None:
        super().__init__()
        second = _conv3(width), InstanceNorm(width, labels)
        self.main = nn.Sequential(*_normed(_conv3(width), labels), *second)

    def forward(self, x_NCHW: Tensor, label_NL: Tensor) -> Tensor:
        """The same shape."""
        return x_NCHW + _run(self.main, x_NCHW, label_NL)


class Generator(nn.Module):
    """Image and label vector → image; sides are multiples of 4.

    Padding is with zeros, by which alone the tiled labels survive the first norm: a label
    convolved without borders is a constant, and the norm takes constants away.

    With a fourth output channel, which no published file has, that channel is where to paint:
    the rest of the face stays as it is (GANimation, Pumarola et al., ECCV 2018, section 4.1).
    ``conditional``, which none has either, lets the labels into every norm.
    """

    def __init__(
        self,
        *,
        labels: int,
        width: int,
        blocks: int,
        channels: int = PAINTED,
        conditional: int = 0,
    ) -> None:
        super().__init__()
        inside = labels if conditional else 0
        self.main = nn.Sequential(
            *_normed(nn.Conv2d(3 + labels, width, 7, padding=3, bias=False), inside),
            *_normed(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), inside),
            *_normed(nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False), inside),
            *(ResidualBlock(4 * width, inside) for _ in range(blocks)),
            *_normed(nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False), inside),
            *_normed(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), inside),
            nn.Conv2d(width, channels, 7, padding=3, bias=False),
            nn.Tanh(),
        )

    def forward(self, x_NCHW: Tensor, label_NL: Tensor) -> Tensor:
        """(N, 3, H, W) faces and (N, L) target labels → (N, 3, H, W) in [-1, 1]."""
        tiled = label_NL[:, :, None, None].expand(-1, -1, *x_NCHW.shape[2:])
        x = _run(self.main, torch.cat([x_NCHW, tiled.to(x_NCHW.dtype)], dim=1), label_NL)
        painted, attention = x[:, :PAINTED], 0.5 + 0.5 * x[:, PAINTED:]
        if x.shape[1] == PAINTED:
            return painted
        # In the face's own type: what is kept keeps all its digits under autocast.
        painted, attention = painted.to(x_NCHW.dtype), attention.to(x_NCHW.dtype)
        # Not finer than this: a grid of single pixels fools a discriminator, and nobody else.
        attention = F.avg_pool2d(attention, SMOOTH, 1, SMOOTH // 2, count_include_pad=False)
        return torch.lerp(x_NCHW, painted, attention)


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


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d, labels: int = 0) -> tuple[nn.Module, ...]:
    """A convolution, its norm and its ReLU: three steps of a numbered sequence."""
    norm = InstanceNorm(convolution.out_channels, labels)
    return convolution, norm, nn.ReLU(inplace=True)


def _run(steps: nn.Sequential, x_NCHW: Tensor, label_NL: Tensor) -> Tensor:
    """A numbered sequence, the labels given to those steps that want them."""
    for step in steps:
        labelled = isinstance(step, InstanceNorm | ResidualBlock)
        x_NCHW = step(x_NCHW, label_NL) if labelled else step(x_NCHW)
    return x_NCHW
