"""U-GAT-IT's networks (Kim et al., ICLR 2020, section 2), with the published PyTorch names.

Knows shapes and arithmetic; knows nothing of files, domains' names or training. Norms are one
``addcmul`` over float32 statistics of H and W, and the two halves of the attention are folded
into one 1 × 1 convolution: the same numbers, several times as fast in channels_last memory.

    x_NCHW  pictures in [-1, 1], or features      logits_NM  one realness logit a place, flat
    cam_N2  logits of the average- and of the max-pooled features
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.nn.norms import EPS, InstanceNorm, statistics, wide
from facestyle.nn.resampling import DoublingConv

Shapes = Mapping[str, Sequence[int]]

SLOPE = 0.2  # of the discriminators' leaky ReLU
FEATURES = 4  # the generator's widest convolution, in multiples of the first


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything about the generator's shape; the defaults are the paper's."""

    width: int = 64
    """Channels of the first convolution."""
    blocks: int = 4
    """Residual blocks in the encoder, and as many AdaLIN blocks in the decoder."""
    image_size: int | None = 256
    """Side of the picture in px in full mode; None is light mode, which takes any."""

    @property
    def style_inputs(self) -> int:
        """Inputs of the perceptron that makes gamma and beta: the flat map, or its mean."""
        places = 1 if self.image_size is None else (self.image_size // 4) ** 2
        return places * FEATURES * self.width


def sizes_from_shapes(shapes: Shapes) -> Sizes:
    """Read every size from the shapes of one generator's state dict.

    Raises KeyError, IndexError or ValueError where they are no U-GAT-IT generator's.
    """
    width, wide = shapes["DownBlock.1.weight"][0], shapes["conv1x1.bias"][0]
    inputs = shapes["FC.0.weight"][1]
    if width < 1 or wide != FEATURES * width:
        raise ValueError(f"widths {width} and {wide}")
    # The flat map has (side / 4)² places of `wide` channels.
    side = 4 * math.isqrt(inputs // wide)
    sizes = Sizes(
        width=width,
        blocks=len({key.split(".")[0] for key in shapes if key.startswith("UpBlock1_")}),
        image_size=None if inputs == wide else side,
    )
    if sizes.style_inputs != inputs or (sizes.image_size is not None and side < 8):
        raise ValueError(f"FC.0 takes {inputs} inputs")
    return sizes


def layer_instance_norm(x_NCHW: Tensor, rho_1C11: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """gamma · (rho · IN(x) + (1 - rho) · LN(x)) + beta (paper, equation 1), as one multiply-add.

    Variances are unbiased, as in the published PyTorch program. The layer's statistics come
    from the channels': its variance is the mean of theirs and the variance of their means.
    ``gamma`` and ``beta`` are (N or 1, C, 1, 1).
    """
    x = wide(x_NCHW)
    places, values = x.shape[2] * x.shape[3], x[0].numel()
    mean, variance = statistics(x)
    layer_mean = mean.mean(dim=1, keepdim=True)
    layer_variance = (variance + (mean - layer_mean).square()).mean(dim=1, keepdim=True)
    # Biased variances so far.
    gain = rho_1C11 * torch.rsqrt(variance * (places / (places - 1)) + EPS)
    layer_gain = (1 - rho_1C11) * torch.rsqrt(layer_variance * (values / (values - 1)) + EPS)
    gamma, beta = gamma.to(x.dtype), beta.to(x.dtype)
    shift = beta - gamma * (gain * mean + layer_gain * layer_mean)
    return torch.addcmul(shift, x, gamma * (gain + layer_gain)).to(x_NCHW.dtype)


class AdaLIN(nn.Module):
    """Adaptive layer-instance norm: gamma and beta are given, rho is learnt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.full((1, width, 1, 1), 0.9))

    def forward(self, x_NCHW: Tensor, gamma_NC11: Tensor, beta_NC11: Tensor) -> Tensor:
        """The same shape."""
        return layer_instance_norm(x_NCHW, self.rho, gamma_NC11, beta_NC11)


class ILN(nn.Module):
    """Layer-instance norm with its own gamma and beta; starts as a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.gamma = nn.Parameter(torch.ones(1, width, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The same shape."""
        return layer_instance_norm(x_NCHW, self.rho, self.gamma, self.beta)


def _conv(wide_in: int, wide_out: int, kernel: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """Reflection padding and a convolution without bias."""
    return (
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(wide_in, wide_out, kernel, stride, bias=False),
    )


def _doubling(wide_in: int, wide_out: int) -> tuple[nn.Module, ...]:
    """Nearest upsampling, reflection padding and a convolution, each at its published number."""
    conv = DoublingConv(wide_in, wide_out, bias=False, reflect=True)
    return nn.Identity(), nn.Identity(), conv


class ResBlock(nn.Module):
    """x + two normalised convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *_conv(width, width, 3),
            InstanceNorm(),
            nn.ReLU(),
            *_conv(width, width, 3),
            InstanceNorm(),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The same shape."""
        return x_NCHW + self.conv_block(x_NCHW)


class AdaLINBlock(nn.Module):
    """x + two convolutions normalised by AdaLIN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pad, self.conv1 = _conv(width, width, 3)
        self.norm1 = AdaLIN(width)
        _, self.conv2 = _conv(width, width, 3)
        self.norm2 = AdaLIN(width)

    def forward(self, x_NCHW: Tensor, gamma_NC11: Tensor, beta_NC11: Tensor) -> Tensor:
        """The same shape."""
        x = F.relu(self.norm1(self.conv1(self.pad(x_NCHW)), gamma_NC11, beta_NC11))
        return x_NCHW + self.norm2(self.conv2(self.pad(x)), gamma_NC11, beta_NC11)


def _pooled(x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) averages and maxima over H and W."""
    return x_NCHW.mean(dim=(2, 3)), F.adaptive_max_pool2d(x_NCHW, 1).flatten(1)


def attend(x_NCHW: Tensor, gap_1C: Tensor, gmp_1C: Tensor, mix: nn.Conv2d) -> Tensor:
    """The class activation maps, mixed: conv1x1(cat(x · gap, x · gmp)) (paper, section 2.1.1).

    The weights of the two auxiliary classifiers scale channels, and so can scale the columns of
    the convolution instead: one on C channels rather than on 2 · C.
    """
    by_average, by_maximum = mix.weight.chunk(2, dim=1)
    gap_1C11, gmp_1C11 = gap_1C[:, :, None, None], gmp_1C[:, :, None, None]
    return F.conv2d(x_NCHW, by_average * gap_1C11 + by_maximum * gmp_1C11, mix.bias)


class Generator(nn.Module):
    """Picture of one domain → picture of the other."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        first, wide = sizes.width, FEATURES * sizes.width
        self.blocks = sizes.blocks
        self.image_size = sizes.image_size
        self.DownBlock = nn.Sequential(
            *_conv(3, first, 7), InstanceNorm(), nn.ReLU(),
            *_conv(first, 2 * first, 3, stride=2), InstanceNorm(), nn.ReLU(),
            *_conv(2 * first, wide, 3, stride=2), InstanceNorm(), nn.ReLU(),
            *(ResBlock(wide) for _ in range(sizes.blocks)),
        )  # fmt: skip
        self.gap_fc = nn.Linear(wide, 1, bias=False)
        self.gmp_fc = nn.Linear(wide, 1, bias=False)
        self.conv1x1 = nn.Conv2d(2 * wide, wide, 1)
        self.FC = nn.Sequential(
            nn.Linear(sizes.style_inputs, wide, bias=False),
            nn.ReLU(),
            nn.Linear(wide, wide, bias=False),
            nn.ReLU(),
        )
        self.gamma = nn.Linear(wide, wide, bias=False)
        self.beta = nn.Linear(wide, wide, bias=False)
        for number in range(1, sizes.blocks + 1):
            self.add_module(f"UpBlock1_{number}", AdaLINBlock(wide))
        self.UpBlock2 = nn.Sequential(
            *_doubling(wide, 2 * first), ILN(2 * first), nn.ReLU(),
            *_doubling(2 * first, first), ILN(first), nn.ReLU(),
            *_conv(first, 3, 7),
        )  # fmt: skip

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] → the same; in light mode H and W are any multiples of 4."""
        return self.decode(self.attend(self.encode(x_NCHW)))

    def encode(self, x_NCHW: Tensor) -> Tensor:
        """Features at a quarter of the side."""
        return self.DownBlock(x_NCHW)

    def attend(self, features_NCHW: Tensor) -> Tensor:
        """Features weighted by where the two domains differ; the same shape."""
        weights = self.gap_fc.weight, self.gmp_fc.weight
        return F.relu(attend(features_NCHW, *weights, self.conv1x1))

    def decode(self, x_NCHW: Tensor) -> Tensor:
        """Attended features → picture."""
        pooled = x_NCHW.mean(dim=(2, 3)) if self.image_size is None else x_NCHW.flatten(1)
        style = self.FC(pooled)
        gamma, beta = self.gamma(style)[:, :, None, None], self.beta(style)[:, :, None, None]
        for number in range(1, self.blocks + 1):
            x_NCHW = getattr(self, f"UpBlock1_{number}")(x_NCHW, gamma, beta)
        return torch.tanh(wide(self.UpBlock2(x_NCHW)))

    def cam(self, features_NCHW: Tensor) -> Tensor:
        """(N, 2) logits of the auxiliary classifiers: is the source of the other domain?"""
        average, maximum = _pooled(features_NCHW)
        return torch.cat([self.gap_fc(average), self.gmp_fc(maximum)], dim=1)


class Attention(nn.Module):
    """A generator's heatmap: encoder and attention alone, no picture."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, 3, H, W) pictures → (N, 1, H/4, W/4), larger where the generator looks more."""
        attended = self.generator.attend(self.generator.encode(x_NCHW))
        return attended.sum(dim=1, keepdim=True)


class Trainee(nn.Module):
    """A generator as its training sees it: the picture and the auxiliary logits."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) pictures → pictures and (N, 2) logits."""
        features = self.generator.encode(x_NCHW)
        return self.generator.decode(self.generator.attend(features)), self.generator.cam(features)


class _Spectral(nn.Module):
    """A layer whose weight is divided by its largest singular value (Miyato et al., ICLR 2018).

    ``weight_u`` and ``weight_v`` estimate the singular vectors; every forward pass in training
    mode refines them by one power iteration, as the published program does.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.weight_orig = layer.weight
        self.bias = layer.bias
        rows = layer.weight.shape[0]
        columns = layer.weight[0].numel()
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(columns), dim=0))

    def singular_value(self) -> Tensor:
        """The largest singular value of the weight as a matrix (outputs, all else)."""
        weight, v = self.weight_orig, self.weight_v
        kernel = weight.shape[1:]
        if weight.ndim == 4:
            # In channels_last memory this order of columns is a view; weight_v has the other one.
            weight = weight.permute(0, 2, 3, 1)
            v = v.view(kernel).permute(1, 2, 0).reshape(-1)
        # A singular value in bfloat16 is off by up to 0.4 %.
        with torch.autocast(weight.device.type, enabled=False):
            matrix, u = weight.flatten(1), self.weight_u
            if self.training:
                v = F.normalize(torch.mv(matrix.detach().t(), u), dim=0)
            image = torch.mv(matrix, v)
            if self.training:
                u = F.normalize(image.detach(), dim=0)
                plain = v.view(weight.shape[1:])
                plain = plain.permute(2, 0, 1) if weight.ndim == 4 else plain
                # New tensors, not new contents: backward may still need the old ones.
                self.weight_u, self.weight_v = u, plain.reshape(-1)
            return torch.dot(u, image)

    def scaled(self, y: Tensor) -> Tensor:
        """What the plain weight gave, over the singular value, plus the bias.

        Dividing the output is the same as dividing the weight; in the deep layers, where weights
        are a hundred times as large as features, it is much faster.
        """
        gain = 1 / self.singular_value()
        if self.bias is None:
            return wide(y) * gain
        return torch.addcmul(self.bias.view(-1, *[1] * (y.ndim - 2)), wide(y), gain)


class SpectralConv(_Spectral):
    """4 × 4 convolution after a reflection padding of 1, with spectral norm."""

    def __init__(self, wide_in: int, wide_out: int, *, stride: int, bias: bool = True) -> None:
        super().__init__(nn.Conv2d(wide_in, wide_out, 4, stride, bias=bias))
        self.stride = stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, wide_in, H, W), padded already → (N, wide_out, h, w)."""
        y = F.conv2d(x_NCHW, self.weight_orig, stride=self.stride)
        return self.scaled(y).to(y.dtype)


class SpectralLinear(_Spectral):
    """Linear layer without bias, with spectral norm."""

    def __init__(self, wide_in: int, wide_out: int) -> None:
        super().__init__(nn.Linear(wide_in, wide_out, bias=False))

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, wide_in) → (N, wide_out)."""
        return self.scaled(F.linear(x_ND, self.weight_orig))


class Discriminator(nn.Module):
    """Picture → realness of its patches, and of the whole by the auxiliary classifiers.

    ``layers`` as the paper counts them: 7 see most of the picture (global), 5 small patches
    (local). Two of them keep the side, the others halve it.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        halvings = layers - 2
        widths = [3, *(width * 2**level for level in range(halvings + 1))]
        model: list[nn.Module] = []
        for level in range(halvings + 1):
            stride = 2 if level < halvings else 1
            model += [
                nn.ReflectionPad2d(1),
                SpectralConv(widths[level], widths[level + 1], stride=stride),
                nn.LeakyReLU(SLOPE),
            ]
        wide = widths[-1]
        self.model = nn.Sequential(*model)
        self.gap_fc = SpectralLinear(wide, 1)
        self.gmp_fc = SpectralLinear(wide, 1)
        self.conv1x1 = nn.Conv2d(2 * wide, wide, 1)
        self.pad = nn.ReflectionPad2d(1)
        self.conv = SpectralConv(wide, 1, stride=1, bias=False)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) pictures → (N, 1, h, w) logits of patches, (N, 2) auxiliary logits."""
        x = self.model(x_NCHW)
        average, maximum = _pooled(x)
        cam_N2 = torch.cat([self.gap_fc(average), self.gmp_fc(maximum)], dim=1)
        # Published: the attention takes these weights as they are, without spectral norm.
        weights = self.gap_fc.weight_orig, self.gmp_fc.weight_orig
        x = F.leaky_relu(attend(x, *weights, self.conv1x1), SLOPE)
        return self.conv(self.pad(x)), cam_N2
