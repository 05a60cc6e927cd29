"""StarGAN v2's networks (Choi et al., CVPR 2020, appendix A), with the published parameter names.

Knows shapes and arithmetic; knows nothing of files, domains' names or training.
Norms are ``facestyle.nn.norms``: fast in channels_last memory, and exact under autocast because
the statistics stay in float32.

    faces_NCHW  float [-1, 1]      z_NL  latent code      s_NS  style code
    y_N         domain index       heatmaps_NLHW  98 landmark heatmaps in [0, 1]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.nn.norms import InstanceNorm, instance_norm
from facestyle.nn.painter import SHAPER, Painter, is_painter, painter_sizes
from facestyle.nn.resampling import DoublingConv, HalvingConv, doubled

Shapes = Mapping[str, Sequence[int]]

SLOPE = 0.2  # of every leaky ReLU
HIGH_PASS_SIDES = (32, 64, 128)  # feature sides (px) whose encoder input is kept for the decoder


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything about the networks' shapes; the defaults are the paper's."""

    image_size: int = 256
    """Side of the square picture in px, a power of two."""
    domains: int = 2
    """Number of domains."""
    latent_dim: int = 16
    """Width of the latent code."""
    style_dim: int = 64
    """Width of the style code."""
    first_width: int = 64
    """Channels of the first convolution; the published rule is 2^14 / image_size."""
    max_width: int = 512
    """Widest convolution."""
    mapping_width: int = 512
    """Hidden width of the mapping network."""
    w_hpf: float = 0.0
    """Weight of the high-pass skip connections; 0 has none."""
    painter_blocks: int = 0
    """Above 0 the generator is a ``painter.Painter`` with so many blocks. Not published."""
    shaper: int = 0
    """Channels of the painter's ``Shaper``; 0 has none."""
    plain_encoder: bool = False
    """The style encoder is of strided convolutions, without residual blocks. Not published."""

    @property
    def levels(self) -> int:
        """Halvings from the picture to 4 × 4."""
        return int(math.log2(self.image_size)) - 2

    def width(self, level: int) -> int:
        """Channels after ``level`` halvings."""
        return min(self.first_width * 2**level, self.max_width)


def sizes_from_shapes(shapes: Mapping[str, Shapes]) -> Sizes:
    """Read every size from the shapes of a published or own state dict.

    ``shapes`` maps part (``generator``, ``mapping_network``, ...) to its tensors' shapes.
    Raises KeyError where a tensor that decides a size is missing.
    """
    generator, mapping = shapes["generator"], shapes["mapping_network"]
    painter = painter_sizes(generator) if is_painter(generator) else None
    first_width = painter["width"] if painter else generator["from_rgb.weight"][0]
    encode_blocks = _count(generator, "encode.")
    encoder = shapes.get("style_encoder") or shapes.get("discriminator") or {}
    plain = "shared.2.weight" in encoder
    halvings = [
        key
        for key, shape in encoder.items()
        if key.endswith(".conv1.weight") or (plain and len(shape) == 4)
    ]
    # The style encoder halves to 4 px, one block or (but for the last) convolution a halving;
    # without it, the published rule.
    image_size = 2 ** (len(halvings) - plain + 2) if halvings else 2**14 // first_width
    extra = encode_blocks - (int(math.log2(image_size)) - 2)
    return Sizes(
        image_size=image_size,
        domains=_count(mapping, "unshared."),
        latent_dim=mapping["shared.0.weight"][1],
        style_dim=mapping["unshared.0.6.weight"][0],
        first_width=first_width,
        # The widest may be in the encoder alone: the generator stops halving at 16 px.
        max_width=max(
            shape[0]
            for part in (generator, encoder)
            for key, shape in part.items()
            if (key.endswith("conv2.weight") and not key.startswith(SHAPER))
            or (plain and part is encoder and len(shape) == 4)
        ),
        mapping_width=mapping["shared.0.weight"][0],
        w_hpf=1.0 if extra == 1 else 0.0,
        painter_blocks=painter["blocks"] if painter else 0,
        shaper=painter["shaper"] if painter else 0,
        plain_encoder=plain,
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered children stand below ``prefix``."""
    return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})


class AdaIN(nn.Module):
    """(1 + gamma(s)) · norm(x) + beta(s) (paper, appendix A; Huang & Belongie 2017)."""

    def __init__(self, style_dim: int, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style_dim, 2 * width)

    def forward(self, x_NCHW: Tensor, s_NS: Tensor) -> Tensor:
        """Features in the style; the same shape."""
        gamma, beta = self.fc(s_NS)[:, :, None, None].chunk(2, dim=1)
        return instance_norm(x_NCHW, 1 + gamma, beta)


class ResBlock(nn.Module):
    """Pre-activation residual block, optionally normalised and halving; divided by sqrt(2)."""

    def __init__(self, wide_in: int, wide_out: int, *, normalize: bool, halve: bool) -> None:
        super().__init__()
        self.halves = halve
        # With the halving after it.
        self.conv1 = (
            HalvingConv(wide_in, wide_in) if halve else nn.Conv2d(wide_in, wide_in, 3, padding=1)
        )
        self.conv2 = nn.Conv2d(wide_in, wide_out, 3, padding=1)
        self.norm1 = InstanceNorm(wide_in) if normalize else nn.Identity()
        self.norm2 = InstanceNorm(wide_in) if normalize else nn.Identity()
        if wide_in != wide_out:
            self.conv1x1 = nn.Conv2d(wide_in, wide_out, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, wide_in, H, W) → (N, wide_out, H, W), or half the side."""
        # A 1 × 1 convolution and an average commute: convolve the small one.
        skip = F.avg_pool2d(x_NCHW, 2) if self.halves else x_NCHW
        if hasattr(self, "conv1x1"):
            skip = self.conv1x1(skip)
        x = self.conv1(F.leaky_relu(self.norm1(x_NCHW), SLOPE))
        x = self.conv2(F.leaky_relu(self.norm2(x), SLOPE))
        return (x + skip) / math.sqrt(2)


class AdainResBlock(nn.Module):
    """Residual block styled by AdaIN, optionally doubling.

    With the high-pass there is no shortcut at all (the published program drops it, though
    its ``conv1x1`` stays in the file), because the kept edges take its place.
    """

    def __init__(
        self, wide_in: int, wide_out: int, style_dim: int, *, double: bool, shortcut: bool
    ) -> None:
        super().__init__()
        self.doubles = double
        self.shortcut = shortcut
        # With the doubling before it.
        self.conv1 = (
            DoublingConv(wide_in, wide_out)
            if double
            else nn.Conv2d(wide_in, wide_out, 3, padding=1)
        )
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, padding=1)
        self.norm1 = AdaIN(style_dim, wide_in)
        self.norm2 = AdaIN(style_dim, wide_out)
        if wide_in != wide_out:
            self.conv1x1 = nn.Conv2d(wide_in, wide_out, 1, bias=False)

    def forward(self, x_NCHW: Tensor, s_NS: Tensor) -> Tensor:
        """(N, wide_in, H, W) → (N, wide_out, H, W), or twice the side."""
        x = self.conv1(F.leaky_relu(self.norm1(x_NCHW, s_NS), SLOPE))
        x = self.conv2(F.leaky_relu(self.norm2(x, s_NS), SLOPE))
        if not self.shortcut:
            return x
        # A 1 × 1 convolution and a nearest doubling commute: convolve the small one.
        skip = self.conv1x1(x_NCHW) if hasattr(self, "conv1x1") else x_NCHW
        if self.doubles:
            skip = doubled(skip)
        return (x + skip) / math.sqrt(2)


class HighPass(nn.Module):
    """Laplacian on each channel, divided by ``w_hpf``: edges that the decoder gets back."""

    def __init__(self, w_hpf: float) -> None:
        super().__init__()
        laplacian = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])
        self.register_buffer("filter", laplacian / w_hpf)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The edges of each channel; the same shape."""
        width = x_NCHW.shape[1]
        kernel = self.get_buffer("filter").to(x_NCHW.dtype).expand(width, 1, 3, 3)
        return F.conv2d(x_NCHW, kernel, padding=1, groups=width)


class Generator(nn.Module):
    """Image and style code → image."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        high_pass = sizes.w_hpf > 0
        # Down to 16 px, with the high-pass to 8 px; then two blocks a side that keep the side.
        halvings = sizes.levels - 2 + high_pass
        self.from_rgb = nn.Conv2d(3, sizes.first_width, 3, padding=1)
        self.encode = nn.ModuleList()
        decode = []
        for level in range(halvings + 2):
            wide, wider = sizes.width(level), sizes.width(level + 1)
            halve = level < halvings
            if not halve:
                wide = wider = sizes.width(halvings)
            self.encode.append(ResBlock(wide, wider, normalize=True, halve=halve))
            decode.append(
                AdainResBlock(wider, wide, sizes.style_dim, double=halve, shortcut=not high_pass)
            )
        self.decode = nn.ModuleList(reversed(decode))
        self.to_rgb = nn.Sequential(
            InstanceNorm(sizes.first_width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(sizes.first_width, 3, 1),
        )
        if high_pass:
            self.hpf = HighPass(sizes.w_hpf)

    def forward(self, x: Tensor, s: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Restyle faces.

        Args:
            x: (N, 3, H, W) faces in [-1, 1].
            s: (N, S) style codes.
            masks: the two (N, 1, h, w) masks of ``high_pass_masks``; without them a network
                with the high-pass runs without it, as the published program does.

        Returns:
            (N, 3, H, W); not clipped.
        """
        x = self.from_rgb(x)
        kept: dict[int, Tensor] = {}
        for block in self.encode:
            if masks is not None and x.shape[2] in HIGH_PASS_SIDES:
                kept[x.shape[2]] = x
            x = block(x)
        for block in self.decode:
            x = block(x, s)
            side = x.shape[2]
            if masks is not None and side in kept:
                mask = masks[0] if side == 32 else masks[1]
                mask = F.interpolate(mask, size=(side, side), mode="bilinear")
                x = x + self.hpf((mask * kept[side]).to(x.dtype))
        return self.to_rgb(x)


def built_generator(sizes: Sizes) -> nn.Module:
    """The generator of these sizes, the paper's or a painter, which halves to 8 px."""
    if not sizes.painter_blocks:
        return Generator(sizes)
    return Painter(
        vector=sizes.style_dim,
        width=sizes.first_width,
        widest=sizes.max_width,
        blocks=sizes.painter_blocks,
        depth=sizes.levels - 1,
        shaper=sizes.shaper,
    )


class MappingNetwork(nn.Module):
    """Latent code and domain → style code."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        wide = sizes.mapping_width
        self.shared = _mlp([sizes.latent_dim, wide, wide, wide, wide], end_relu=True)
        self.unshared = nn.ModuleList(
            _mlp([wide, wide, wide, wide, sizes.style_dim], end_relu=False)
            for _ in range(sizes.domains)
        )

    def forward(self, z_NL: Tensor, y_N: Tensor) -> Tensor:
        """(N, L) latent codes and (N,) domain indices → (N, S) style codes."""
        h = self.shared(z_NL)
        return _pick(torch.stack([head(h) for head in self.unshared], dim=1), y_N)


class StyleEncoder(nn.Module):
    """Reference image and domain → style code."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.shared = _plain_trunk(sizes) if sizes.plain_encoder else _trunk(sizes)
        self.unshared = nn.ModuleList(
            nn.Linear(sizes.width(sizes.levels), sizes.style_dim) for _ in range(sizes.domains)
        )

    def forward(self, x_NCHW: Tensor, y_N: Tensor) -> Tensor:
        """(N, 3, H, W) references and (N,) domain indices → (N, S) style codes."""
        h = self.shared(x_NCHW).flatten(1)
        return _pick(torch.stack([head(h) for head in self.unshared], dim=1), y_N)


class Discriminator(nn.Module):
    """Image and domain → realness logit, one output branch a domain."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.main = _trunk(sizes)
        self.main.append(nn.Conv2d(sizes.width(sizes.levels), sizes.domains, 1))

    def forward(self, x_NCHW: Tensor, y_N: Tensor) -> Tensor:
        """(N, 3, H, W) images and (N,) domain indices → (N,) logits."""
        return _pick(self.main(x_NCHW).flatten(1), y_N)


def _mlp(widths: Sequence[int], *, end_relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide_in, wide_out in pairwise(widths):
        layers += [nn.Linear(wide_in, wide_out), nn.ReLU()]
    return nn.Sequential(*(layers if end_relu else layers[:-1]))


def _trunk(sizes: Sizes) -> nn.Sequential:
    """Picture → (N, width, 1, 1), shared by style encoder and discriminator."""
    last = sizes.width(sizes.levels)
    return nn.Sequential(
        nn.Conv2d(3, sizes.first_width, 3, padding=1),
        *(
            ResBlock(sizes.width(level), sizes.width(level + 1), normalize=False, halve=True)
            for level in range(sizes.levels)
        ),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(last, last, 4),
        nn.LeakyReLU(SLOPE),
    )


def _plain_trunk(sizes: Sizes) -> nn.Sequential:
    """Picture → (N, width, 1, 1), as ``adversarial.Judge`` has it."""
    wide, last = 3, sizes.width(sizes.levels)
    trunk = nn.Sequential()
    for level in range(sizes.levels):
        trunk.append(nn.Conv2d(wide, sizes.width(level), 4, 2, 1))
        trunk.append(nn.LeakyReLU(SLOPE))
        wide = sizes.width(level)
    trunk.append(nn.Conv2d(wide, last, 4))
    trunk.append(nn.LeakyReLU(SLOPE))
    return trunk


def _pick(per_domain_ND: Tensor, y_N: Tensor) -> Tensor:
    """Each sample's own domain out of (N, domains, ...)."""
    return per_domain_ND[torch.arange(y_N.shape[0], device=y_N.device), y_N]


def high_pass_masks(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Landmark heatmaps → the two masks that say where edges of the source survive.

    Args:
        heatmaps: (N, 98, H, W) in [0, 1], WFLW landmarks.

    Returns:
        (mask0, mask1), each (N, 1, H, W) in [0, 1]: mask0 (for 32 px features) the whole
        face, mask1 (for 64 and 128 px) without brows' lower row, nose wings and lips.
    """
    height = heatmaps.shape[2]

    def shift(x: Tensor, rows: int) -> Tensor:
        """Move the picture up by ``rows`` given for 256 px."""
        return torch.roll(x, -rows * (height // 256), dims=2)

    x = torch.where(heatmaps < 0.1, 0.0, heatmaps)
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    x = (x - low) / (high - low + 1e-6)

    # Sharpen each group of landmarks and move it over the part of the face it stands for.
    for first, last, rows, power in (
        (8, 25, 0, 3),
        (33, 51, -7, 2),
        (55, 60, 8, 4),
        (77, 82, -8, 4),
        (83, 88, 8, 4),
        (88, 96, -2, 3),
    ):
        x[:, first:last] = shift(x[:, first:last], rows) ** power
    # Drop the upper jaw and the corners.
    x[:, [*range(0, 8), *range(25, 33), 33, 46, 76, 82]] = 0
    x[:, 52:55] = shift(x[:, 52:55], 4)
    # Widen the eyes; these two shifts are in rows of the picture itself.
    eyes = x[:, 60:76]
    x[:, 60:76] = torch.roll(eyes, 8, dims=2) ** 3 + torch.roll(eyes, 24, dims=2)

    def total(channels: Tensor) -> Tensor:
        return torch.nan_to_num(channels.sum(dim=1, keepdim=True)).clamp(0, 1)

    mask0 = total(x)
    x[:, 8:25] = x[:, 33:51] = x[:, 76:96] = 0
    return mask0, total(x)


class MaskedGenerator(nn.Module):
    """Generator and the landmark network that feeds its high-pass masks, as one (x, s) → x."""

    def __init__(self, generator: nn.Module, fan: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.fan = fan

    def masks(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """High-pass masks of faces in [-1, 1]."""
        return high_pass_masks(landmark_heatmaps(self.fan, x_NCHW))

    def forward(self, x_NCHW: Tensor, s_NS: Tensor) -> Tensor:
        """Masks of x, then the generator."""
        return self.generator(x_NCHW, s_NS, self.masks(x_NCHW))


def landmark_heatmaps(fan: nn.Module, x_NCHW: Tensor) -> Tensor:
    """(N, 98, 256, 256) heatmaps of faces in [-1, 1]; no gradient, float32."""
    with torch.no_grad(), torch.autocast(x_NCHW.device.type, enabled=False):
        x = F.interpolate(x_NCHW.float(), size=256, mode="bilinear")
        outputs, _ = fan(x * 0.5 + 0.5)
        landmarks = outputs[-1][:, :-1]  # the last channel is the face's boundary
        return F.interpolate(landmarks, size=256, mode="bilinear", align_corners=True)
