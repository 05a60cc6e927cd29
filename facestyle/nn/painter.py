"""A generator that makes the change alone, for few pictures and few iterations. Not published.

It may move what is there before it paints (``Shaper``): a jaw becomes narrower by a displacement,
not by a wall's colour on a cheek.

x_NCHW  faces in [-1, 1]      wanted_NV  what is wanted of each: attribute labels or their
                                         differences (StarGAN), or a style code (StarGAN v2)
flow_NHW2  displacements, (x, y) in shares of the side: a picture at p shows what was at p + flow
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.errors import UsageError
from facestyle.nn.initialisation import he_init
from facestyle.nn.resampling import DoublingConv

COLOURS = 3
SMALLEST = 8  # px, to which a painter halves
AMOUNT = 0.25  # of the change, beside its roughness: a smooth cloud beside the hair is not rough
SHAPED_SIDE = 32  # px of what a shaper looks at; its flow has half
FARTHEST = 1 / 16  # of the side, that anything moves; a face is some 0.6 of it wide
SHAPER = "shaper."  # begins its tensors' names in a painter
SHAPER_WIDTH = 64
SHAPER_BLOCKS = 3


class Painter(nn.Module):
    """Image and what is wanted → image; sides are multiples of 2^depth.

    The change, which begins as none, comes from features of every size (U-Net), which
    what is wanted scales and shifts (FiLM, Perez et al., AAAI 2018). No norms: with instance norm
    it paints specks, each of which makes all other features of its channel small (StyleGAN2,
    section 2, "droplets"). No attention: where that closes, nothing opens it again.
    """

    def __init__(
        self,
        *,
        vector: int,
        width: int,
        widest: int,
        blocks: int,
        depth: int,
        shaper: int = 0,
    ) -> None:
        """Fresh, from torch's global random state.

        Args:
            vector: numbers that say what is wanted.
            width: channels of the first convolution; every halving doubles them.
            widest: channels at most.
            blocks: residual blocks at the smallest side.
            depth: halvings.
            shaper: channels of the network that moves what is there; 0 leaves all in its place.
        """
        super().__init__()
        widths = [min(width * 2**level, widest) for level in range(depth + 1)]
        self.stem = nn.Conv2d(COLOURS, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(above, below, 4, 2, 1) for above, below in pairwise(widths)
        )
        self.blocks = nn.ModuleList(FilmBlock(widths[-1], vector) for _ in range(blocks))
        self.up = nn.ModuleList(
            DoublingConv(below, above) for above, below in reversed(list(pairwise(widths)))
        )
        self.joined = nn.ModuleList(FilmBlock(above, vector) for above in reversed(widths[:-1]))
        self.painted = nn.Conv2d(width, COLOURS, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                he_init(module)
        for block in (*self.blocks, *self.joined):
            block.conv2.weight.data.mul_(0.2)  # type: ignore[union-attr]
        # Any noise, however faint, is all that a discriminator would learn from first.
        nn.init.zeros_(self.painted.weight)
        nn.init.zeros_(self.painted.bias)  # type: ignore[arg-type]
        self.shaper = Shaper(vector, shaper) if shaper else None

    def forward(self, x_NCHW: Tensor, wanted_NV: Tensor) -> Tensor:
        """(N, 3, H, W) faces and (N, V) wishes → (N, 3, H, W) in [-1, 1]."""
        if self.shaper is not None:
            x_NCHW = warped(x_NCHW, self.shaper(x_NCHW, wanted_NV))
        x = self.stem(x_NCHW)
        above = []
        for down in self.down:
            above.append(x)
            x = down(F.relu(x))
        for block in self.blocks:
            x = block(x, wanted_NV)
        for up, joined in zip(self.up, self.joined, strict=True):
            x = joined(up(F.relu(x)) + above.pop(), wanted_NV)
        # In the face's own type: what is kept keeps all its digits under autocast.
        return (x_NCHW + self.painted(F.relu(x)).to(x_NCHW.dtype)).clamp(-1, 1)


class FilmBlock(nn.Module):
    """x + two 3 × 3 convolutions of x, the wish's scale and shift between them."""

    def __init__(self, width: int, vector: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(vector, 2 * width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_NCHW: Tensor, wanted_NV: Tensor) -> Tensor:
        """The same shape."""
        scale, shift = self.film(wanted_NV)[:, :, None, None].chunk(2, dim=1)
        x = torch.addcmul(shift, self.conv1(F.relu(x_NCHW)), 1 + scale)
        return x_NCHW + self.conv2(F.relu(x))


class Shaper(nn.Module):
    """Image and what is wanted → flow (Dorta et al., The GAN that Warped, CVPR 2020).

    Coarse, so that neighbours move together; none at the crop's border, which the photo goes on
    beyond. A mirrored face moves as the face does, mirrored: looked at both ways, for otherwise
    one eye narrows and the other does not.
    """

    def __init__(self, vector: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(COLOURS, width // 2, 3, padding=1)
        self.down = nn.Conv2d(width // 2, width, 4, 2, 1)
        self.blocks = nn.ModuleList(FilmBlock(width, vector) for _ in range(SHAPER_BLOCKS))
        self.flow = nn.Conv2d(width, 2, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                he_init(module)
        for block in self.blocks:
            block.conv2.weight.data.mul_(0.2)  # type: ignore[union-attr, operator]
        nn.init.zeros_(self.flow.weight)
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor, wanted_NV: Tensor) -> Tensor:
        """(N, 3, H, W) faces and (N, V) wishes → (N, h, w, 2), float32; h and w are 16 to 31, and
        half of a face below 64 px."""
        x = F.avg_pool2d(x_NCHW, max(1, x_NCHW.shape[2] // SHAPED_SIDE))
        other_NHW2 = self._one_way(x.flip(3), wanted_NV).flip(2)
        mirrored_NHW2 = torch.stack([-other_NHW2[..., 0], other_NHW2[..., 1]], dim=3)
        even_NHW2 = (self._one_way(x, wanted_NV) + mirrored_NHW2) / 2
        return FARTHEST * even_NHW2 * _inside(even_NHW2.shape[1], x.device)[..., None]

    def _one_way(self, x_NCHW: Tensor, wanted_NV: Tensor) -> Tensor:
        x = self.down(F.relu(self.stem(x_NCHW)))
        for block in self.blocks:
            x = block(x, wanted_NV)
        return torch.tanh(self.flow(F.relu(x)).float()).permute(0, 2, 3, 1)


def warped(x_NCHW: Tensor, flow_Nhw2: Tensor) -> Tensor:
    """Pictures displaced by a coarser flow, float32."""
    height, width = x_NCHW.shape[2:]
    flow_N2HW = F.interpolate(flow_Nhw2.permute(0, 3, 1, 2), size=(height, width), mode="bicubic")
    y, x = (
        torch.linspace(1 / side - 1, 1 - 1 / side, side, device=x_NCHW.device)
        for side in (height, width)
    )
    still_HW2 = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2)
    at_NHW2 = still_HW2 + 2 * flow_N2HW.permute(0, 2, 3, 1)
    with torch.autocast(x_NCHW.device.type, enabled=False):
        return F.grid_sample(
            x_NCHW.float(), at_NHW2.float(), padding_mode="border", align_corners=False
        )


def _inside(side: int, device: torch.device) -> Tensor:
    """(side, side) window: 1 inside, 0 at the border, as ``masks.MASKS["crop"]`` has it."""
    along = torch.linspace(1 / side - 1, 1 - 1 / side, side, device=device).abs()
    away_HW = (along[:, None] ** 6 + along[None] ** 6) ** (1 / 6)
    t_HW = ((1 - away_HW) / 0.32).clamp(0, 1)
    return t_HW * t_HW * (3 - 2 * t_HW)


def strain(flow_NHW2: Tensor) -> Tensor:
    """How much a flow stretches and shears: mean square of its steps, in cells a cell."""
    cells_NHW2 = flow_NHW2 * flow_NHW2.shape[1]
    down = cells_NHW2.diff(dim=1).square().mean()
    return down + cells_NHW2.diff(dim=2).square().mean()


def halvings(side: int) -> int:
    """A painter's depth for pictures of this side in px: down to 8 px, or what is left of it
    where it cannot be halved further."""
    depth = 0
    while side % 2 == 0 and side >= 2 * SMALLEST:
        side, depth = side // 2, depth + 1
    return depth


def is_painter(shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether these are a painter's tensors."""
    return {"stem.weight", "joined.0.film.weight", "painted.weight"} <= set(shapes)


def painter_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """``Painter``'s arguments from its tensors' shapes.

    Raises:
        KeyError, IndexError: a tensor that decides a size is missing or no convolution's.
    """

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in shapes)

    depth = count(r"down\.\d+\.weight")
    return {
        "vector": shapes["joined.0.film.weight"][1],
        "width": shapes["stem.weight"][0],
        "widest": shapes[f"down.{depth - 1}.weight"][0],
        "blocks": count(r"blocks\.\d+\.conv1\.weight"),
        "depth": depth,
        "shaper": shapes.get(f"{SHAPER}flow.weight", (0, 0))[1],
    }


def check_moving(roughness: float, warp: float, warp_steps: int) -> None:
    """Raises UsageError where settings ask a generator to move that has no shaper."""
    if warp and not roughness:
        raise UsageError(
            f"warp is {warp}, and only a painter moves before it paints",
            "roughness above 0, or warp = 0",
        )
    if warp_steps and not warp:
        raise UsageError(
            f"warp_steps is {warp_steps}, and this generator moves nothing",
            "warp above 0, or warp_steps = 0",
        )


def shaping_left(first: int, steps: int, step: int) -> float:
    """Of the ``steps`` iterations from ``first`` on in which a painter learns to move, the share
    that is left: 1 to 0."""
    return min(1.0, max(0.0, (first + steps - step) / steps)) if steps else 0.0


def train_half(painter: Painter, *, shaping: bool) -> None:
    """Gradients for the shaper alone, or for all else."""
    for name, parameter in painter.named_parameters():
        parameter.requires_grad_(name.startswith(SHAPER) is shaping)


def costs(
    painter: Painter, x_NCHW: Tensor, wanted_NV: Tensor, made_NCHW: Tensor
) -> dict[str, Tensor]:
    """What the painter's work costs, by name: ``rough`` what it painted, ``warp`` what it moved,
    where it moves anything."""
    if painter.shaper is None:
        return {"rough": cost(made_NCHW - x_NCHW)}
    flow_NHW2 = painter.shaper(x_NCHW, wanted_NV)
    painted_NCHW = made_NCHW - warped(x_NCHW, flow_NHW2)
    return {"rough": cost(painted_NCHW), "warp": strain(flow_NHW2)}


def grown(tensors: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A painter that moves nothing as the painter with a shaper that it equals: a fresh one."""
    moves = any(name.startswith(SHAPER) for name in tensors)
    missing = {} if moves else {name: t for name, t in fresh.items() if name.startswith(SHAPER)}
    return {**tensors, **missing}


def cost(change_NCHW: Tensor) -> Tensor:
    """What a change costs: its roughness, and a quarter of its mean size."""
    return roughness(change_NCHW) + AMOUNT * change_NCHW.abs().mean()


def roughness(change_NCHW: Tensor) -> Tensor:
    """Mean step from pixel to pixel, down and right: total variation (GANimation, Pumarola et
    al., ECCV 2018, equation 4). Of the change, so that hair and skin keep their own grain."""
    down = change_NCHW.diff(dim=2).abs().mean()
    return down + change_NCHW.diff(dim=3).abs().mean()
