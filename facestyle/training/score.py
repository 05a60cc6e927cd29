"""Sliced Wasserstein distance: how near one set of pictures is to another, patch by patch.

After Karras et al., "Progressive Growing of GANs" (ICLR 2018), section 5: random patches of
each level of a Laplacian pyramid, projected on random directions, sorted, compared. It needs
no pretrained network, so a run can keep its best model anywhere; it judges texture and colour
at each scale, not whether a face is whole, and differs from FID and KID.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 16  # px, the last level of the pyramid, as published
PATCH = 7  # px
PATCHES = 128  # a picture and level
DIRECTIONS = 512


def sliced_wasserstein(a_NCHW: np.ndarray, b_NCHW: np.ndarray, seed: int = 0) -> float:
    """The distance of two sets of pictures in [-1, 1], mean over the levels; 0 for equal sets.

    The smaller set's size is taken from both; the published numbers are 1000 times this.
    """
    number = min(len(a_NCHW), len(b_NCHW))
    generator = torch.Generator().manual_seed(seed)
    sets = [_pyramid(torch.from_numpy(x[:number]).float()) for x in (a_NCHW, b_NCHW)]
    distances = []
    for a, b in zip(*sets, strict=True):
        directions = torch.randn(a.shape[1] * PATCH * PATCH, DIRECTIONS, generator=generator)
        directions /= directions.norm(dim=0)
        places = torch.randint(0, a.shape[2] - PATCH + 1, (PATCHES, 2), generator=generator)
        flat_a, flat_b = (_descriptors(x, places) @ directions for x in (a, b))
        distances.append((flat_a.sort(dim=0).values - flat_b.sort(dim=0).values).abs().mean())
    return float(torch.stack(distances).mean())


def _pyramid(x_NCHW: Tensor) -> Iterator[Tensor]:
    """Laplacian pyramid from the full size down to ``SMALLEST``."""
    while x_NCHW.shape[-1] // 2 >= SMALLEST:
        small = F.avg_pool2d(x_NCHW, 2)
        large = F.interpolate(small, size=x_NCHW.shape[-2:], mode="bilinear", align_corners=False)
        yield x_NCHW - large
        x_NCHW = small
    yield x_NCHW


def _descriptors(x_NCHW: Tensor, places: Tensor) -> Tensor:
    """(N · PATCHES, C · PATCH²) patches, each channel with mean 0 and deviation 1 over the set."""
    patches = torch.stack(
        [x_NCHW[:, :, top : top + PATCH, left : left + PATCH] for top, left in places.tolist()],
        dim=1,
    ).flatten(0, 1)
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True)
    return ((patches - mean) / deviation.clamp_min(1e-8)).flatten(1)
