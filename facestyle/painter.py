"""A generator that makes the change alone, for few pictures and few iterations. Not published.

x_NCHW  faces in [-1, 1]      wanted_NV  what is wanted of each: attribute labels or their
                                         differences (StarGAN), or a style code (StarGAN v2)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.initialisation import he_init
from facestyle.resampling import DoublingConv

COLOURS = 3
SMALLEST = 8  # px, to which a painter halves
AMOUNT = 0.25  # of the change, beside its roughness: a smooth cloud beside the hair is not rough


class Painter(nn.Module):
    """Image and what is wanted → image; sides are multiples of 2^depth.

    The change, which begins as none, comes from features of every size (U-Net), which
    what is wanted scales and shifts (FiLM, Perez et al., AAAI 2018). No norms: with instance norm
    it paints specks, each of which makes all other features of its channel small (StyleGAN2,
    section 2, "droplets"). No attention: where that closes, nothing opens it again.
    """

    def __init__(self, *, vector: int, width: int, widest: int, blocks: int, depth: int) -> None:
        """Fresh, from torch's global random state.

        Args:
            vector: numbers that say what is wanted.
            width: channels of the first convolution; every halving doubles them.
            widest: channels at most.
            blocks: residual blocks at the smallest side.
            depth: halvings.
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

    def forward(self, x_NCHW: Tensor, wanted_NV: Tensor) -> Tensor:
        """(N, 3, H, W) faces and (N, V) wishes → (N, 3, H, W) in [-1, 1]."""
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
    }


def cost(change_NCHW: Tensor) -> Tensor:
    """What a change costs: its roughness, and a quarter of its mean size."""
    return roughness(change_NCHW) + AMOUNT * change_NCHW.abs().mean()


def roughness(change_NCHW: Tensor) -> Tensor:
    """Mean step from pixel to pixel, down and right: total variation (GANimation, Pumarola et
    al., ECCV 2018, equation 4). Of the change, so that hair and skin keep their own grain."""
    down = change_NCHW.diff(dim=2).abs().mean()
    return down + change_NCHW.diff(dim=3).abs().mean()
