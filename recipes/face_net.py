"""The face detector's network and loss (``face_detector``).

pictures_NCHW  RGB, 0 to 255      C  cells of all strides, row by row
boxes_NK4, points_NK52  a scene's faces, px; missing ones are NaN
"""

from __future__ import annotations

import torch
from face_scenes import SCENE
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (8, 16, 32)
FACE_RANGES = ((0, 44), (32, 96), (72, 1024))
"""Longer side in px of the faces that each stride learns; neighbours share some."""

CENTRE_RADIUS = 1.5
"""Cells within so many strides of a box's centre (and inside the box) answer for it."""


class FaceNet(nn.Module):
    """Pictures in, one candidate a cell out.

    Plain 3x3 convolutions of few channels: for the same time on a CPU they learn more than
    depthwise ones. One head serves all strides, since it measures in strides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 2), _conv(16, 24, 2))
        self.stages = nn.ModuleList(
            nn.Sequential(_conv(a, b, 2), *(Residual(b) for _ in range(depth)))
            for a, b, depth in ((24, 32, 1), (32, 48, 1), (48, 64, 1))
        )
        self.laterals = nn.ModuleList(_conv(width, 32, 1, kernel=1) for width in (32, 48, 64))
        self.smooth = nn.ModuleList(_conv(32, 32) for _ in STRIDES)
        self.face_tower, self.point_tower = _conv(32, 32), _conv(32, 32)
        self.face = nn.Conv2d(32, 5, 1)
        self.points = nn.Conv2d(32, 10, 1)
        assert self.face.bias is not None
        nn.init.zeros_(self.face.bias)
        nn.init.constant_(self.face.bias[:1], -4.0)  # Most cells hold no face.

    def forward(self, pictures_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RGB in 0..255, sides multiples of 32 → logits_NC, boxes_NC4, points_NC52 in px."""
        return self.read(self.look(pictures_NCHW))

    def look(self, pictures_NCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Features of each level, for the face and for its points."""
        x = self.stem((pictures_NCHW - 127.5) / 64.0)
        levels = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for fine in (1, 0):
            above = F.interpolate(levels[fine + 1], scale_factor=2.0, mode="nearest")
            levels[fine] = levels[fine] + above
        smooth = [layer(level) for layer, level in zip(self.smooth, levels, strict=True)]
        return [(self.face_tower(level), self.point_tower(level)) for level in smooth]

    def read(self, levels: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates of all cells. Apart, for bfloat16 is too coarse for a position."""
        found = [
            self._decode(self.face(face.float()), self.points(points.float()), stride)
            for (face, points), stride in zip(levels, STRIDES, strict=True)
        ]
        logits, boxes, points = zip(*found, strict=True)
        return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(points, 1)

    @staticmethod
    def _decode(face_N5HW: Tensor, points_NXHW: Tensor, stride: int) -> tuple[Tensor, ...]:
        cells_Q2 = cell_centres(face_N5HW.shape[2], face_N5HW.shape[3], stride)
        face_NQ5 = face_N5HW.flatten(2).transpose(1, 2)
        points_NQX = points_NXHW.flatten(2).transpose(1, 2)
        centre_NQ2 = cells_Q2 + face_NQ5[..., 1:3] * stride
        # 4 strides: the middle of the sizes a level learns.
        half_NQ2 = torch.exp(face_NQ5[..., 3:].clamp(-4, 4)) * (2 * stride)
        boxes_NQ4 = torch.cat([centre_NQ2 - half_NQ2, centre_NQ2 + half_NQ2], dim=-1)
        points_NQ52 = points_NQX.unflatten(2, (5, 2)) * stride + cells_Q2[:, None]
        return face_NQ5[..., 0], boxes_NQ4, points_NQ52


class Residual(nn.Module):
    """Two convolutions beside the identity (He et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.two(self.one(x))


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def cell_centres(rows: int, columns: int, stride: int) -> Tensor:
    """Centres of a level's cells in px, row by row: (rows * columns, 2)."""
    x_RQ = ((torch.arange(columns) + 0.5) * stride).expand(rows, columns)
    y_RQ = ((torch.arange(rows) + 0.5) * stride)[:, None].expand(rows, columns)
    return torch.stack([x_RQ, y_RQ], dim=-1).flatten(0, 1)


def assign(boxes_NK4: Tensor) -> tuple[Tensor, Tensor]:
    """Which face each cell of a scene answers for, and whether it answers for one."""
    sides = [SCENE // stride for stride in STRIDES]
    cells_C2 = torch.cat([cell_centres(n, n, s) for n, s in zip(sides, STRIDES, strict=True)])
    per_level = torch.tensor([n * n for n in sides])
    stride_C = torch.tensor(STRIDES, dtype=torch.float32).repeat_interleave(per_level)
    low_C, high_C = torch.tensor(FACE_RANGES).repeat_interleave(per_level, dim=0).unbind(1)

    centre_NK2 = (boxes_NK4[..., :2] + boxes_NK4[..., 2:]) / 2
    size_NK2 = boxes_NK4[..., 2:] - boxes_NK4[..., :2]
    away_NCK2 = (cells_C2[:, None] - centre_NK2[:, None]).abs()
    size_N1K = size_NK2.amax(-1)[:, None]
    answers_NCK = (
        (away_NCK2 < size_NK2[:, None] / 2).all(-1)
        & (away_NCK2.amax(-1) < CENTRE_RADIUS * stride_C[:, None])
        & (size_N1K >= low_C[:, None])
        & (size_N1K < high_C[:, None])
    )  # NaN, a face that is not there, compares false throughout.
    # Of several faces a cell answers for the nearest.
    cost_NCK = away_NCK2.amax(-1).masked_fill(~answers_NCK, torch.inf)
    return cost_NCK.argmin(-1), answers_NCK.any(-1)


def loss(
    found: tuple[Tensor, Tensor, Tensor], boxes_NK4: Tensor, points_NK52: Tensor
) -> dict[str, Tensor]:
    """Focal loss of the scores, GIoU of the boxes, L1 of the points in face sizes."""
    logits_NC, boxes_NC4, points_NC52 = found
    which_NC, is_face_NC = assign(boxes_NK4)
    count = is_face_NC.sum().clamp(min=1)

    # Focal loss (Lin et al. 2017), gamma 2; faces weigh as much as all the rest.
    target_NC = is_face_NC.float()
    wrong_NC = (logits_NC.sigmoid() - target_NC).abs()
    entropy_NC = F.binary_cross_entropy_with_logits(logits_NC, target_NC, reduction="none")
    score = (wrong_NC**2 * entropy_NC).sum() / count

    picture_F, cell_F = is_face_NC.nonzero(as_tuple=True)
    face_F = which_NC[picture_F, cell_F]
    true_F4, true_F52 = boxes_NK4[picture_F, face_F], points_NK52[picture_F, face_F]
    box = (1 - _giou(boxes_NC4[picture_F, cell_F], true_F4)).sum() / count
    size_F = (true_F4[:, 2:] - true_F4[:, :2]).amax(-1)
    error_F52 = (points_NC52[picture_F, cell_F] - true_F52) / size_F[:, None, None]
    point = F.smooth_l1_loss(error_F52, torch.zeros_like(error_F52), beta=0.01, reduction="none")
    return {"score": score, "box": box, "points": 10 * point.mean((1, 2)).sum() / count}


def _giou(one_F4: Tensor, two_F4: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019)."""
    inner_F2 = torch.minimum(one_F4[:, 2:], two_F4[:, 2:]) - torch.maximum(
        one_F4[:, :2], two_F4[:, :2]
    )
    outer_F2 = torch.maximum(one_F4[:, 2:], two_F4[:, 2:]) - torch.minimum(
        one_F4[:, :2], two_F4[:, :2]
    )
    area = (one_F4[:, 2:] - one_F4[:, :2]).prod(-1) + (two_F4[:, 2:] - two_F4[:, :2]).prod(-1)
    inner, outer = inner_F2.clamp(min=0).prod(-1), outer_F2.prod(-1)
    union = area - inner
    return inner / union - (outer - union) / outer
