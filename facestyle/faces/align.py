"""From landmarks to an aligned crop, and where its pixels lie in the picture. No torch.

Coordinates are continuous: pixel i covers [i, i + 1), so that a resize is one multiplication.
OpenCV counts pixel centres from 0; ``warp`` converts, nobody else has to know.

    picture_HWC, crop_HWC  uint8 RGB       to_crop_23  affine, picture → crop coordinates
    landmarks_52           picture px      template_52  the same points as shares of a crop's side
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from facestyle.errors import UsageError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]
# Where the five landmarks lie in a square crop, as shares of its side.
# fmt: off
TEMPLATES: dict[str, tuple[tuple[float, float], ...]] = {
    # CelebA's aligned 178 × 218 pictures cut to the central 178 px square (StarGAN, 2018): mean
    # of YuNet's landmarks over 1,482 of them.
    "celeba":
        ((0.3896, 0.5173), (0.6080, 0.5160), (0.4974, 0.6510), (0.4081, 0.7472), (0.5953, 0.7453)),
    # The same pictures cut to a tighter 144 px square with left, top at (16, 48).
    "celeba-square":
        ((0.3705, 0.4450), (0.6404, 0.4433), (0.5037, 0.6102), (0.3933, 0.7292), (0.6248, 0.7268)),
    # The same pictures cut to 160 px, the eyes as high as a drawn face has them: where anime
    # pictures, cut around hair and chin, have eyes, mouth and chin on the mean of 4,000.
    "anime":
        ((0.3785, 0.4130), (0.6215, 0.4115), (0.4984, 0.5617), (0.3991, 0.6688), (0.6074, 0.6666)),
    # FFHQ at 512 px: the five points in common use for restoration (GFPGAN, facexlib).
    "ffhq-512":
        ((0.3769, 0.4686), (0.6229, 0.4691), (0.5013, 0.6133), (0.3931, 0.7254), (0.6115, 0.7249)),
    # CelebA-HQ, which StarGAN v2's face model and its mean landmarks come from. Its alignment
    # (Karras et al. 2018, appendix C) puts the eyes' middle 0.1 eye-to-mouth distances above the
    # centre and makes the side 4 eye distances (or 3.6 eye-to-mouth distances, if more). These
    # are YuNet's mean landmarks of CelebA under that rule; the published file of mean landmarks
    # is not part of facestyle.
    "stargan-v2":
        ((0.3750, 0.4745), (0.6250, 0.4730), (0.4985, 0.6275), (0.3962, 0.7377), (0.6105, 0.7355)),
}
# fmt: on
MAX_FINE_SIDE = 4096  # px; a face this large is reduced in two steps instead of one
# Of the eyes' distance: how far about an eye that is enlarged, or a mouth, anything moves.
EYE_REACH, MOUTH_REACH = 0.75, 1.0
WIDER = (1 / 2, 1 / 8)  # of ``widened``: how far to the left and above, shares of the side
INVERSE_STEPS = 12  # of a fixed point; enough where eyes are three times as large


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignedFace:
    """A face cut from a picture so that its landmarks lie on a template."""

    crop_HWC: Pixels
    """(side, side, 3) uint8 RGB."""
    to_crop_23: NDArray[np.float64]
    """Similarity from picture to crop coordinates; its inverse pastes back."""
    template_52: NDArray[np.float64] | None = None
    """Where its landmarks are to lie, as shares of the crop's side; None of a picture that is
    itself a crop: all of that goes back, for no border has to be hidden."""
    pasted: tuple[str, ...] = ("face",)
    """What of the crop goes back, of ``masks.MASKS`` or ``hair``, all of these together."""
    hair_HW: NDArray[np.bool_] | None = None
    """Where its hair is, any size, where ``hair`` goes back."""
    wide: bool = False
    """Whether it is a crop with what is about it, see ``widened``."""

    @property
    def scale(self) -> float:
        """Crop px per picture px; below 1 the face is larger than the crop."""
        return float(math.hypot(self.to_crop_23[0, 0], self.to_crop_23[1, 0]))

    def only(self, *parts: str, hair_HW: NDArray[np.bool_] | None = None) -> AlignedFace:
        """The same, of which no more than these parts go back."""
        return replace(self, pasted=parts, hair_HW=hair_HW)


def template_points(name: str, zoom: float = 1.0) -> NDArray[np.float64]:
    """(5, 2) shares of the side, of a face ``zoom`` times as large about the middle.

    Raises:
        UsageError: unknown template.
    """
    if name not in TEMPLATES:
        raise UsageError(f"unknown alignment '{name}'", f"known: none, {', '.join(TEMPLATES)}")
    return zoom * (np.array(TEMPLATES[name]) - 0.5) + 0.5


def similarity(
    source_N2: NDArray[np.floating], target_N2: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Least-squares rotation, uniform scale and shift, source → target (Umeyama, PAMI 1991).

    Never mirrors. In the plane a similarity is one complex factor and one complex shift,
    which makes the solution a division.
    """
    source = np.asarray(source_N2, np.float64) @ (1, 1j)
    target = np.asarray(target_N2, np.float64) @ (1, 1j)
    centred = source - source.mean()
    factor = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred).real
    shift = target.mean() - factor * source.mean()
    return np.array(
        [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
    )


def align(
    picture_HWC: Pixels,
    landmarks_52: NDArray[np.floating],
    template: str,
    side: int,
    pasted: str = "face",
    zoom: float = 1.0,
) -> AlignedFace:
    """Cut the face with these landmarks to a template.

    The crop is averaged from all the picture's pixels that it covers, so a large face does
    not alias. What lies beyond the picture is mirrored.

    Args:
        pasted: what of it will go back, of ``masks.MASKS``.
        zoom: how many times as large as on the template the face shall be.

    Raises:
        UsageError: unknown template.
    """
    template_52 = template_points(template, zoom)
    to_crop = similarity(landmarks_52, template_52 * side)
    crop = _cut(picture_HWC, to_crop, side)
    return AlignedFace(crop_HWC=crop, to_crop_23=to_crop, template_52=template_52, pasted=(pasted,))


def whole(picture_HWC: Pixels, side: int) -> AlignedFace:
    """A picture that is a ready crop: its central square, resized."""
    height, width = picture_HWC.shape[:2]
    scale = side / min(height, width)
    to_crop = np.array(
        [[scale, 0, (side - scale * width) / 2], [0, scale, (side - scale * height) / 2]]
    )
    return AlignedFace(crop_HWC=_cut(picture_HWC, to_crop, side), to_crop_23=to_crop)


def widened(aligned: AlignedFace, picture_HWC: Pixels) -> tuple[AlignedFace, tuple[slice, slice]]:
    """The same face with what is about it, most of it below: a crop of twice the side, as large;
    and where in it the former crop lies."""
    side = len(aligned.crop_HWC)
    right, down = (round(share * side) for share in WIDER)
    to_crop = aligned.to_crop_23.copy()
    to_crop[:, 2] += (right, down)
    template_52 = aligned.template_52
    if template_52 is not None:
        template_52 = (side * template_52 + (right, down)) / (2 * side)
    wide = AlignedFace(
        crop_HWC=_cut(picture_HWC, to_crop, 2 * side),
        to_crop_23=to_crop,
        template_52=template_52,
        wide=True,
    )
    return wide, (slice(down, down + side), slice(right, right + side))


def finer(aligned: AlignedFace, picture_HWC: Pixels, times: int) -> AlignedFace:
    """The same face cut at ``times`` the side."""
    to_crop, side = times * aligned.to_crop_23, times * len(aligned.crop_HWC)
    return replace(aligned, crop_HWC=_cut(picture_HWC, to_crop, side), to_crop_23=to_crop)


def with_larger_eyes(face_HWC: Floats, template_52: NDArray[np.float64], times: float) -> Floats:
    """A crop with each eye ``times`` as large about its middle, smoothly less away from it; of
    less than 1 the reverse of what 1 / ``times`` does.

    For a generator that learns drawings: a small or narrow eye it takes for a crease, and draws
    none.

    Args:
        face_HWC: float32, of any range.
        template_52: where the landmarks lie, as shares of the side.
    """
    return _resized_about(face_HWC, template_52[:2], EYE_REACH * _apart(template_52), times)


def with_smaller_mouth(face_HWC: Floats, template_52: NDArray[np.float64], times: float) -> Floats:
    """A crop with the mouth ``times`` as large about its middle, of at most 1, as for the eyes."""
    middle_12 = template_52[3:].mean(axis=0, keepdims=True)
    return _resized_about(face_HWC, middle_12, MOUTH_REACH * _apart(template_52), times)


def _apart(template_52: NDArray[np.float64]) -> float:
    """The eyes' distance."""
    return float(np.hypot(*(template_52[1] - template_52[0])))


def _resized_about(
    face_HWC: Floats, middles_N2: NDArray[np.float64], reach: float, times: float
) -> Floats:
    """A crop with what is about some points ``times`` as large, smoothly less away from them.

    Args:
        middles_N2, reach: where, and how far from there nothing moves, as shares of the side.
    """
    side = len(face_HWC)
    middles_N2, reach = side * middles_N2 - 0.5, side * reach
    at_HW2 = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=2).astype(np.float64)

    def outward(points_HW2: NDArray[np.float64]) -> NDArray[np.float64]:
        moved_HW2 = np.zeros_like(points_HW2)
        for middle_2 in middles_N2:
            away_HW2 = points_HW2 - middle_2
            near_HW = (1 - (away_HW2**2).sum(axis=2) / reach**2).clip(min=0) ** 2
            moved_HW2 += near_HW[..., None] * away_HW2
        return moved_HW2

    if times >= 1:
        from_HW2 = at_HW2 - (1 - 1 / times) * outward(at_HW2)
    else:
        from_HW2 = at_HW2
        for _ in range(INVERSE_STEPS):
            from_HW2 = at_HW2 + (1 - times) * outward(from_HW2)
    from_HW2 = from_HW2.astype(np.float32)
    moved = cv2.remap(
        face_HWC, from_HW2[..., 0], from_HW2[..., 1], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.asarray(moved, np.float32)


def _cut(picture_HWC: Pixels, to_crop_23: NDArray[np.float64], side: int) -> Pixels:
    """Cut at the face's own resolution, then average down to the crop."""
    times = max(1, min(math.ceil(1 / math.hypot(*to_crop_23[:, 0])), MAX_FINE_SIDE // side))
    fine = warp(picture_HWC, times * to_crop_23, (times * side, times * side))
    if times > 1:
        fine = cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(fine, np.uint8)


def window_of(
    aligned: AlignedFace, height: int, width: int
) -> tuple[tuple[slice, slice] | None, tuple[int, int]]:
    """The part of the picture that the crop covers, as slices, and its left and top."""
    side = len(aligned.crop_HWC)
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]], np.float64)
    inverse = cv2.invertAffineTransform(aligned.to_crop_23)
    points = corners @ inverse[:, :2].T + inverse[:, 2]
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int), (width, height))
    if left >= right or top >= bottom:
        return None, (0, 0)
    return (slice(top, bottom), slice(left, right)), (int(left), int(top))


def to_picture(
    values: Floats,
    aligned: AlignedFace,
    corner: tuple[int, int],
    shape: tuple[int, ...],
    side: int,
    *,
    outside_is_zero: bool = False,
) -> Floats:
    """Resample values on a crop of ``side`` px into a window of the picture."""
    ratio = side / len(aligned.crop_HWC)
    inverse = np.array(cv2.invertAffineTransform(ratio * aligned.to_crop_23), np.float64)
    inverse[:, 2] -= corner
    # A crop larger than the face is smoothed first, or it would alias.
    shrink = ratio * aligned.scale
    if shrink > 1:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), 0.4 * shrink), np.float32)
    return warp(values, inverse, (shape[1], shape[0]), outside_is_zero=outside_is_zero)


def warp(
    values: NDArray,
    matrix_23: NDArray[np.float64],
    size: tuple[int, int],
    *,
    outside_is_zero: bool = False,
) -> NDArray:
    """Resample by a matrix between continuous coordinates; ``size`` is (width, height)."""
    centred = matrix_23.copy()
    centred[:, 2] += 0.5 * (matrix_23[:, 0] + matrix_23[:, 1]) - 0.5
    if outside_is_zero:
        border = cv2.BORDER_CONSTANT
    elif min(values.shape[:2]) > 1:
        border = cv2.BORDER_REFLECT_101
    else:
        border = cv2.BORDER_REPLICATE  # OpenCV 5.0 never returns from mirroring a single pixel
    return cv2.warpAffine(
        np.ascontiguousarray(values),
        centred,
        size,
        flags=cv2.INTER_LINEAR if outside_is_zero else cv2.INTER_CUBIC,
        borderMode=border,
    )
