"""3 × 3 convolutions beside a change of size, computed at the small size.

To average two by two after a convolution, or to double by nearest neighbours before it, is as
linear as the convolution: both together are one of 4 × 4 and stride 2, or one transposed, whose
weights are sums of the 3 × 3 ones. That is 16 multiplications for 36, and the large features
between the two are never made, nor kept for the backward pass. The numbers are the plain ones
but for rounding.

    x_NCHW  features      weight_OI33  the convolution's own weight
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _merging(*rows: tuple[float, float, float]) -> Tensor:
    """(16, 9): what each of 3 × 3 weights adds to each of 4 × 4, from a row of each."""
    row = torch.tensor(rows, device="cpu")
    return torch.kron(row, row)


HALVING = _merging((0.5, 0, 0), (0.5, 0.5, 0), (0, 0.5, 0.5), (0, 0, 0.5))
DOUBLING = _merging((0, 0, 1.0), (0, 1, 1), (1, 1, 0), (1, 0, 0))


class HalvingConv(nn.Conv2d):
    """A 3 × 3 convolution with zeros around, then averages of 2 × 2."""

    def __init__(self, wide_in: int, wide_out: int, *, bias: bool = True) -> None:
        super().__init__(wide_in, wide_out, 3, padding=1, bias=bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, wide_in, H, W) → (N, wide_out, H / 2, W / 2); H and W are even."""
        if not _pays(x_NCHW, places=x_NCHW.shape[2] * x_NCHW.shape[3] // 4):
            return F.avg_pool2d(super().forward(x_NCHW), 2)
        return F.conv2d(x_NCHW, merged(self.weight, HALVING), self.bias, stride=2, padding=1)


class DoublingConv(nn.Conv2d):
    """Nearest doubling, then a 3 × 3 convolution with zeros, or a reflection, around."""

    def __init__(
        self, wide_in: int, wide_out: int, *, bias: bool = True, reflect: bool = False
    ) -> None:
        super().__init__(
            wide_in,
            wide_out,
            3,
            padding=1,
            bias=bias,
            padding_mode="reflect" if reflect else "zeros",
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, wide_in, H, W) → (N, wide_out, 2 · H, 2 · W)."""
        if not _pays(x_NCHW, places=x_NCHW.shape[2] * x_NCHW.shape[3]):
            return super().forward(doubled(x_NCHW))
        # A doubled picture reflected by one pixel repeats its border.
        reflect = self.padding_mode == "reflect"
        x = _border_repeated(x_NCHW) if reflect else x_NCHW
        weight_IO44 = merged(self.weight, DOUBLING).transpose(0, 1)
        return F.conv_transpose2d(x, weight_IO44, self.bias, stride=2, padding=3 if reflect else 1)


def doubled(x_NCHW: Tensor) -> Tensor:
    """Each pixel twice in both directions."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest")
    # On a CPU, inductor's backward pass of the line above takes 50 times as long as this.
    n, c, h, w = x_NCHW.shape
    x_NHWC = x_NCHW.permute(0, 2, 3, 1)[:, :, None, :, None].expand(n, h, 2, w, 2, c)
    return x_NHWC.reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def _border_repeated(x_NCHW: Tensor) -> Tensor:
    """One pixel more on every side. Inductor gets the strides of F.pad's own backward wrong."""
    x = torch.cat([x_NCHW[:, :, :1], x_NCHW, x_NCHW[:, :, -1:]], dim=2)
    return torch.cat([x[:, :, :, :1], x, x[:, :, :, -1:]], dim=3)


def merged(weight_OI33: Tensor, merging: Tensor) -> Tensor:
    """(O, I, 4, 4): each of the 16 weights a sum of the nine, in the memory layout of the nine.

    ``merging`` is (16, 9).
    """
    wide_out, wide_in = weight_OI33.shape[:2]
    merging = merging.to(weight_OI33)
    nine_O9I = weight_OI33.permute(0, 2, 3, 1).reshape(wide_out, 9, wide_in)
    # Autocast would round the weights before they are added.
    with torch.autocast(weight_OI33.device.type, enabled=False):
        sixteen = (merging @ nine_O9I).view(wide_out, 4, 4, wide_in).permute(0, 3, 1, 2)
    return sixteen.contiguous() if weight_OI33.is_contiguous() else sixteen


def _pays(x_NCHW: Tensor, places: int) -> bool:
    """Whether the convolution is long enough beside the sums of its weights.

    Exported, the sums are made once, when the file is opened. The rule was measured on a CPU: for
    512 channels they are even at 32 × 32 small places.
    """
    if torch.compiler.is_exporting():
        return True
    return x_NCHW.shape[0] * places >= 2 * x_NCHW.shape[1]
