"""What a discriminator may be shown instead of the pictures themselves, so that it cannot learn
few pictures by heart (DiffAugment, Zhao et al., NeurIPS 2020).

Real and made pictures are changed alike and the change has a gradient, so the generator learns
the pictures and not the changes. Random numbers are torch's global ones, which the training loop
seeds for each iteration.

    x_NCHW  pictures in [-1, 1]
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 1 / 8  # of the side, at most
BRIGHTNESS, SATURATION = 0.2, 0.4  # of ``moved``, at most
LIGHTER, RICHER = 0.3, 0.5  # of ``recoloured``, at most
FROM_MIDDLE, EDGE = 0.33, 0.07  # of ``bare``: how far it reaches, and fades, shares of the side
FOREIGN = 0.5  # of ``spoilt``: the other picture's share, at most
CELLS = (0.16, 0.6)  # of ``spoilt``: cells a side, in shares of the pixels


def diff_augment(x_NCHW: Tensor) -> Tensor:
    """Each picture brighter or darker, more or less colourful and contrasted, and shifted with
    black around; the same shape. Colour and translation, with the published strengths."""

    def drawn() -> Tensor:
        return torch.rand(len(x_NCHW), 1, 1, 1, device=x_NCHW.device, dtype=x_NCHW.dtype)

    x = x_NCHW + (drawn() - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (2 * drawn())
    middle = x.mean(dim=(1, 2, 3), keepdim=True)
    x = middle + (x - middle) * (0.5 + drawn())
    return shifted(x, _drawn_shifts(x, dim=2), _drawn_shifts(x, dim=3))


def shifted(x_NCHW: Tensor, down_N: Tensor, right_N: Tensor) -> Tensor:
    """Each picture moved by whole pixels, with zeros where nothing was."""
    samples, _, height, width = x_NCHW.shape
    margin = round(max(height, width) * SHIFT)
    x_NHWC = F.pad(x_NCHW, (margin,) * 4).permute(0, 2, 3, 1)
    device = x_NCHW.device
    rows_NH = torch.arange(height, device=device) + margin - down_N[:, None]
    columns_NW = torch.arange(width, device=device) + margin - right_N[:, None]
    which_N = torch.arange(samples, device=device)
    moved_NHWC = x_NHWC[which_N[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :]]
    return moved_NHWC.permute(0, 3, 1, 2)


def _drawn_shifts(x_NCHW: Tensor, dim: int) -> Tensor:
    most = round(x_NCHW.shape[dim] * SHIFT)
    return torch.randint(-most, most + 1, (len(x_NCHW),), device=x_NCHW.device)


def moved(x_NCHW: Tensor) -> Tensor:
    """Each picture a little brighter or darker, more or less colourful, and shifted with its
    border drawn out; the same shape. Mild, for a discriminator to which colour matters."""
    samples, _, height, width = x_NCHW.shape

    def drawn(most: float) -> Tensor:
        random_N111 = torch.rand(samples, 1, 1, 1, device=x_NCHW.device, dtype=x_NCHW.dtype)
        return most * (2 * random_N111 - 1)

    x = x_NCHW + drawn(BRIGHTNESS)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (1 + drawn(SATURATION))
    margin = round(max(height, width) * SHIFT)
    wide = F.pad(x, (margin,) * 4, mode="replicate")
    # Slices, not one gather: its gradient takes as long as a convolution's on a CPU.
    corners = torch.randint(0, 2 * margin + 1, (samples, 2)).tolist()
    return torch.stack(
        [wide[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(corners)]
    )


def recoloured(x_NCHW: Tensor) -> Tensor:
    """Each picture with every hue turned by one angle, anywhere on the circle, brighter or darker
    and paler or richer; the same shape. For a discriminator that is to judge shapes alone."""

    def drawn() -> Tensor:
        return torch.rand(len(x_NCHW), 1, 1, device=x_NCHW.device, dtype=x_NCHW.dtype)

    angle_N11 = 2 * math.pi * drawn()
    # About the axis of greys (Rodrigues): all that is not grey turns, by a saturation more or less.
    grey_33 = torch.full((3, 3), 1 / 3, device=x_NCHW.device, dtype=x_NCHW.dtype)
    one_33 = torch.eye(3, device=x_NCHW.device, dtype=x_NCHW.dtype)
    across_33 = (one_33.roll(1, 0) - one_33.roll(-1, 0)) / math.sqrt(3)
    turned_N33 = torch.cos(angle_N11) * (one_33 - grey_33) + torch.sin(angle_N11) * across_33
    colours_N33 = grey_33 + (1 + RICHER * (2 * drawn() - 1)) * turned_N33
    lighter_N111 = LIGHTER * (2 * drawn() - 1)[..., None]
    return torch.einsum("nij,njhw->nihw", colours_N33, x_NCHW) + lighter_N111


def bare(x_NCHW: Tensor, down: float) -> Tensor:
    """Each picture grey above a line, as a share of the side, but left and right of the middle; the
    same shape. For a discriminator that is not to judge who has a fringe, or a high forehead."""
    height, width = x_NCHW.shape[2:]

    def inside(far_N: Tensor, border: float) -> Tensor:
        t_N = ((border - far_N) / EDGE).clamp(0, 1)
        return t_N * t_N * (3 - 2 * t_N)

    def centres(number: int) -> Tensor:
        return (torch.arange(number, device=x_NCHW.device, dtype=x_NCHW.dtype) + 0.5) / number

    above_H1 = inside(centres(height), down)[:, None]
    middle_W = inside((centres(width) - 0.5).abs(), FROM_MIDDLE)
    return x_NCHW * (1 - above_H1 * middle_W)


def spoilt(x_NCHW: Tensor, other_NCHW: Tensor) -> Tensor:
    """Each picture mixed with up to half of another, then as coarse as cells of 2 to 6 px make it;
    the same shape. For a generator that is to restore it."""
    share_N111 = FOREIGN * torch.rand(len(x_NCHW), 1, 1, 1, device=x_NCHW.device)
    mixed_NCHW = torch.lerp(x_NCHW, other_NCHW, share_N111.to(x_NCHW.dtype))
    fewest, most = (round(share * x_NCHW.shape[2]) for share in CELLS)
    cells = torch.randint(fewest, most + 1, (len(x_NCHW),)).tolist()
    coarse = [
        F.interpolate(
            F.adaptive_avg_pool2d(one, count), one.shape[2:], mode="bilinear", align_corners=False
        )
        for one, count in zip(mixed_NCHW.split(1), cells, strict=True)
    ]
    return torch.cat(coarse).contiguous(memory_format=torch.channels_last)
