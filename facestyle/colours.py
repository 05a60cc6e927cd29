"""What more than one family has a picture's colours compared by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def colour_difference(x_NCHW: Tensor, other_NCHW: Tensor, cells: int = 8) -> Tensor:
    """Mean absolute difference of local mean colours, in so many cells a side that overlap by
    half. Corners do not count: what is there is background.

    The makeup loss of BeautyGAN (Li et al., ACM MM 2018) for crops that are aligned: places
    instead of parsed regions, means instead of histograms.
    """
    cell = x_NCHW.shape[2] // cells
    apart = (x_NCHW - other_NCHW).float()
    cells_NCHW = F.avg_pool2d(apart, cell, cell // 2).abs()
    along = torch.linspace(-1, 1, cells_NCHW.shape[2], device=apart.device)
    radius_HW = torch.hypot(along[:, None], along[None])
    weight_HW = ((0.9 - radius_HW) / 0.4).clamp(0, 1)
    return (weight_HW * cells_NCHW).mean() / weight_HW.mean()
