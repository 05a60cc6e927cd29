"""From landmarks to an aligned crop, and back into the picture. Pure functions, no torch.

Coordinates are continuous: pixel i covers [i, i + 1), so that a resize is one multiplication.
OpenCV counts pixel centres from 0; ``_warp`` converts, nobody else has to know.

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
MASK_SIDE = 256  # px; finer than any feather needs
SKIN_SIDE = 112  # px; more finds the same, slower
# Ellipses of a face: how far below the eyes' middle, and their radii, in distances from eyes to
# mouth. One of nothing but face, and one of mostly face, where the search begins: not up to the
# hair, which would join the face.
SKIN_SURE = (0.37, (0.70, 1.06))
SKIN_PRIOR = (0.43, (1.06, 1.22))
SKIN_FEATHER = 0.02  # share of the side
# Of what hair's colours differ by where they differ most: where it is hair, where it may be, where
# it may be though it looks like skin, where it is none.
HAIR_MOST = 0.97  # quantile
HAIR_SURE, HAIR_PRIOR, HAIR_ON_SKIN, HAIR_NONE = 0.5, 0.25, 0.35, 0.08
HAIR_NEVER = (0.37, (0.62, 0.80))  # an ellipse up to the brows: a fringe is above it
HAIR_SMOOTH = 0.015  # share of the side
JUST_TOLD = 2.3  # CIELAB distance of colours that an eye can just tell apart (Mahy et al., 1994)
SAME_AS_WALL = 0.75  # share of what should be hair and cannot be told from the wall: a bald head
WALL_SAMPLES = 500
MASKS: dict[str, tuple[tuple[float, float], tuple[float, float], float, float]] = {
    # What of a crop goes back into the picture: centre and radii (shares of the side), the power
    # of a superellipse, and the share of it within which the mask is 1; at its edge it is 0.
    # An ellipse about the face, for models that repaint the background in a crop's corners too.
    # The eyes lie at 0.44 to 0.52, the chin at 0.9; the wide feather hides what is about them.
    "face": ((0.50, 0.53), (0.43, 0.47), 2, 0.60),
    # As much as there may be of the face's skin, see ``skin``: what a model makes of hair and
    # background is worse than the photo's own.
    "skin": ((0.50, 0.52), (0.47, 0.48), 2.5, 0.60),
    # The crop up to its border, corners rounded: for models whose work is hair as well, and who
    # leave the background alone, or repaint everything in another manner.
    "crop": ((0.50, 0.50), (0.50, 0.50), 6, 0.68),
}
DETAIL = 0.65  # where style and person balance on portraits, by recipes/score.py
EYE_REACH = 0.75  # of the eyes' distance: how far about an eye that is enlarged anything moves
INVERSE_STEPS = 12  # of a fixed point; enough where eyes are three times as large
TONE_SIGMA = 0.12  # of the Gaussian that leaves skin tone and light, share of the crop's side
DRAWING_SIGMA = 0.08  # the same of a drawing, which has no features as wide as a cheek
GUIDE_RADIUS = 2 / 64  # guided filter's window radius, share of the crop's side
GUIDE_EPS = 0.01**2  # variance (of [0, 1] luminance) below which the guide counts as flat
FINE_KEEP = 0.35  # change (share of full scale) at which the source's own detail is halved
MAX_FIRM = 4  # times; larger drawings are enlarged on from there, their lines firm already


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
    """What of the crop goes back, of ``MASKS`` or ``hair``, all of these together."""
    colours_HW: Floats | None = None
    """Where hair would differ by its colours, any size and range, where ``hair`` goes back."""

    @property
    def scale(self) -> float:
        """Crop px per picture px; below 1 the face is larger than the crop."""
        return float(math.hypot(self.to_crop_23[0, 0], self.to_crop_23[1, 0]))

    def only(self, *parts: str, colours_HW: Floats | None = None) -> AlignedFace:
        """The same, of which no more than these parts go back."""
        return replace(self, pasted=parts, colours_HW=colours_HW)


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
        pasted: what of it will go back, of ``MASKS``.
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


def with_larger_eyes(face_HWC: Floats, template_52: NDArray[np.float64], times: float) -> Floats:
    """A crop with each eye ``times`` as large about its middle, smoothly less away from it; of
    less than 1 the reverse of what 1 / ``times`` does.

    For a generator that learns drawings: a small or narrow eye it takes for a crease, and draws
    none.

    Args:
        face_HWC: float32, of any range.
        template_52: where the landmarks lie, as shares of the side.
    """
    side = len(face_HWC)
    eyes_22 = side * template_52[:2] - 0.5
    reach = EYE_REACH * np.hypot(*(eyes_22[1] - eyes_22[0]))
    at_HW2 = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=2).astype(np.float64)

    def outward(points_HW2: NDArray[np.float64]) -> NDArray[np.float64]:
        moved_HW2 = np.zeros_like(points_HW2)
        for eye_2 in eyes_22:
            away_HW2 = points_HW2 - eye_2
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
    fine = _warp(picture_HWC, times * to_crop_23, (times * side, times * side))
    if times > 1:
        fine = cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(fine, np.uint8)


def crop_mask(side: int, pasted: str = "face") -> Floats:
    """(side, side) feathered mask in crop coordinates: 1 over what is pasted, 0 at the border."""
    centre, radii, power, core = MASKS[pasted]
    t = np.clip((1 - _away(side, centre, radii, power)) / (1 - core), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _away(
    side: int, centre: tuple[float, float], radii: tuple[float, float], power: float
) -> Floats:
    """(side, side) distances from a superellipse's centre; 1 on it."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = (np.abs(axis - centre[i]) / radii[i] for i in (0, 1))
    return np.asarray((x[None] ** power + y[:, None] ** power) ** (1 / power), np.float32)


def paste_mask(aligned: AlignedFace, height: int, width: int) -> Floats:
    """(height, width) mask of what ``paste`` may change; exactly 0 elsewhere."""
    mask = np.zeros((height, width), np.float32)
    window, to_window = _window(aligned, height, width)
    if window is not None:
        mask[window] = _window_mask(aligned, to_window, mask[window].shape)
    return mask


def _window_mask(aligned: AlignedFace, corner: tuple[int, int], shape: tuple[int, ...]) -> Floats:
    if aligned.template_52 is None:
        return np.ones(shape, np.float32)
    masks = [_part_mask(aligned, aligned.template_52, part) for part in aligned.pasted]
    placed = [
        _to_picture(mask, aligned, corner, shape, len(mask), outside_is_zero=True) for mask in masks
    ]
    return np.asarray(np.maximum.reduce(placed), np.float32)


def _part_mask(aligned: AlignedFace, template_52: NDArray[np.float64], part: str) -> Floats:
    if part == "skin":
        return crop_mask(SKIN_SIDE, part) * skin(aligned.crop_HWC, template_52)
    if part == "hair":
        assert aligned.colours_HW is not None, "hair is found by where its colours differ"
        found = hair(aligned.crop_HWC, aligned.colours_HW, template_52)
        return crop_mask(SKIN_SIDE, "crop") * found
    return crop_mask(MASK_SIDE, part)


def skin(crop_HWC: Pixels, template_52: NDArray[np.float64]) -> Floats:
    """(SKIN_SIDE, SKIN_SIDE) feathered mask, 1 on what has the colours of the face's middle: the
    face up to hair, headscarf and wall, ears and neck with it.

    GrabCut (Rother, Kolmogorov, Blake, SIGGRAPH 2004): two mixtures of colours, face and rest,
    and the shortest border along edges. The same bytes for the same crop.

    Args:
        template_52: where the landmarks lie, as shares of the side.
    """
    labels = np.full((SKIN_SIDE, SKIN_SIDE), cv2.GC_PR_BGD, np.uint8)
    labels[_within(SKIN_PRIOR, template_52)] = cv2.GC_PR_FGD
    labels[_within(SKIN_SURE, template_52)] = cv2.GC_FGD
    return _feathered(_coloured_alike(crop_HWC, labels))


def hair(crop_HWC: Pixels, colours_HW: Floats, template_52: NDArray[np.float64]) -> Floats:
    """(SKIN_SIDE, SKIN_SIDE) feathered mask, 1 on what has the colours of where hair is.

    Where that is, the model knows: asked for one colour of hair and for another, it makes results
    that differ there. GrabCut takes it from there to the photo's edges, as for ``skin``. Where that
    is mostly wall, for the head is bald, none of it is sure but what lies on the skin, and what
    remains is the scalp. What does not touch the head is none of it.

    Args:
        colours_HW: how far the results differ, at any size.
        template_52: where the landmarks lie, as shares of the side.
    """
    size = (SKIN_SIDE, SKIN_SIDE)
    skin_HW = skin(crop_HWC, template_52)
    face, may_be_skin = _within(HAIR_NEVER, template_52), skin_HW > 0.1
    smooth = cv2.GaussianBlur(colours_HW, (0, 0), HAIR_SMOOTH * len(colours_HW))
    apart = cv2.resize(smooth, size, interpolation=cv2.INTER_CUBIC)
    differs = apart / max(float(np.quantile(apart[~face], HAIR_MOST)), 1e-6)
    labels = np.full(size, cv2.GC_PR_BGD, np.uint8)
    labels[differs > HAIR_PRIOR] = cv2.GC_PR_FGD
    labels[differs > HAIR_SURE] = cv2.GC_FGD
    # What is as grey as skin is hair where it would differ by much.
    labels[(skin_HW > 0.9) & (differs < HAIR_ON_SKIN)] = cv2.GC_BGD
    labels[(differs < HAIR_NONE) | face] = cv2.GC_BGD
    above = np.arange(SKIN_SIDE)[:, None] < SKIN_SIDE * template_52[:2, 1].mean()
    wall = (labels == cv2.GC_BGD) & ~may_be_skin & above
    supposed = (labels == cv2.GC_FGD) & ~may_be_skin
    as_wall = _alike(_small(crop_HWC), supposed, wall)
    if as_wall.sum() > SAME_AS_WALL * supposed.sum():
        labels[supposed] = cv2.GC_PR_FGD
        labels[as_wall] = cv2.GC_BGD
    found = _coloured_alike(crop_HWC, labels)
    return _feathered(found & _joined(found | face | (skin_HW > 0.5), face))


def _within(
    ellipse: tuple[float, tuple[float, float]], template_52: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(SKIN_SIDE, SKIN_SIDE) inside one of a face's ellipses."""
    eyes, mouth = template_52[:2].mean(axis=0), template_52[3:].mean(axis=0)
    unit = float(np.hypot(*(mouth - eyes)))
    below, (across, along) = ellipse
    centre = (float(eyes[0]), float(eyes[1]) + below * unit)
    return np.asarray(_away(SKIN_SIDE, centre, (across * unit, along * unit), 2) < 1)


def _alike(
    rgb_HWC: Pixels, these_HW: NDArray[np.bool_], those_HW: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(H, W) those of some pixels whose colour an eye finds among others too."""
    lab_HWC = cv2.cvtColor(rgb_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    these_N3, those_M3 = lab_HWC[these_HW], lab_HWC[those_HW]
    alike_HW = np.zeros_like(these_HW)
    if len(those_M3):
        some_M3 = those_M3[:: -(-len(those_M3) // WALL_SAMPLES)]
        apart_NM = np.linalg.norm(these_N3[:, None] - some_M3, axis=2)
        alike_HW[these_HW] = apart_NM.min(axis=1) < JUST_TOLD
    return alike_HW


def _small(crop_HWC: Pixels) -> Pixels:
    """At SKIN_SIDE."""
    reduces = len(crop_HWC) > SKIN_SIDE
    interpolation = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC
    resized = cv2.resize(crop_HWC, (SKIN_SIDE, SKIN_SIDE), interpolation=interpolation)
    return np.asarray(resized, np.uint8)


def _coloured_alike(crop_HWC: Pixels, labels_HW: Pixels) -> NDArray[np.bool_]:
    """GrabCut's cut; ``labels_HW``, SKIN_SIDE square, say where it begins."""
    bgr = _small(crop_HWC)[..., ::-1]
    if np.isin(labels_HW, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
        cv2.setRNGSeed(0)  # of this thread: the mixtures begin with k-means, and that with a draw
        rest, inside = np.zeros((1, 65)), np.zeros((1, 65))
        everywhere = (0, 0, SKIN_SIDE, SKIN_SIDE)  # not looked at where there are labels
        cv2.grabCut(
            np.ascontiguousarray(bgr), labels_HW, everywhere, rest, inside, 1, cv2.GC_INIT_WITH_MASK
        )
    return np.isin(labels_HW, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _joined(these_HW: NDArray[np.bool_], to_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W) the connected parts of some pixels that hold any of others."""
    _, parts_HW = cv2.connectedComponents(these_HW.astype(np.uint8))
    return np.isin(parts_HW, np.unique(parts_HW[these_HW & to_HW]))


def _feathered(mask_HW: NDArray[np.bool_]) -> Floats:
    """A cut as a mask with a soft edge."""
    sigma = SKIN_FEATHER * SKIN_SIDE
    return np.asarray(cv2.GaussianBlur(mask_HW.astype(np.float32), (0, 0), sigma), np.float32)


def paste(
    picture_HWC: Pixels,
    aligned: AlignedFace,
    result_HWC: Pixels,
    *,
    detail: float = DETAIL,
    tone: float = 0.0,
    drawing: bool = False,
) -> Pixels:
    """The picture with the face's restyled crop put back; pixels outside the mask are untouched.

    A face larger than the crop keeps its own fine detail: not the crop but the model's
    *change* is enlarged, by a guided filter (He et al., PAMI 2013; fast variant 2015) whose
    guide is the photo, so that the change ends where the photo's edges are.

    Blending is in perceptual (sRGB) values: over the wide feather the two sides differ
    little, and linear light would widen the darker side's edge.

    Args:
        result_HWC: (side, side, 3), the restyled ``aligned.crop_HWC``.
        detail: 0 takes the enlarged crop alone; 0.5 lays all of the model's change over all of
            the photo's fine detail; 1 lets through only the change that follows the photo's own
            edges, which keeps most of the person and least of the style.
        tone: how much of the photo's skin tone and light stays: 0 takes the result's, 1 takes
            from the result only what is finer than ``TONE_SIGMA``, features and not their light.
        drawing: whether the result is one, and its lines are to be firm, see ``firm_lines``.
    """
    height, width = picture_HWC.shape[:2]
    output = picture_HWC.copy()
    window, to_window = _window(aligned, height, width)
    if window is None:
        return output
    mask = _window_mask(aligned, to_window, output[window].shape[:2])
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return output
    # What is pasted is often half of what was cut.
    within = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask, pasted = mask[within][..., None], output[window][within]
    to_window = (to_window[0] + int(columns[0]), to_window[1] + int(rows[0]))
    side, shape = len(result_HWC), mask.shape[:2]
    source = pasted.astype(np.float32) / 255
    crop = aligned.crop_HWC.astype(np.float32) / 255
    result = _in_tone(result_HWC.astype(np.float32) / 255, crop, tone, drawing)

    def enlarge(values: Floats) -> Floats:
        return _to_picture(values, aligned, to_window, shape, len(values))

    times = min(round(1 / aligned.scale), MAX_FIRM)
    plain = enlarge(firm_lines(result, times) if drawing else result)
    # A face no larger than the crop has no detail that the crop lacks; from twice as large on,
    # all of it counts.
    detail *= min(max(1 / aligned.scale - 1, 0.0), 1.0)
    if detail > 0:
        gain, offset = _guided_coefficients(_luminance(crop), result - crop, side)
        # What the guide cannot explain at the crop's own size is enlarged as it is: brought back
        # to the crop's size, the change is then the model's own again.
        rest = result - crop - (gain * _luminance(crop)[..., None] + offset)
        offset = offset + min(1.0, 2 - 2 * detail) * rest
        change = enlarge(gain) * _luminance(source)[..., None] + enlarge(offset)
        kept = source + change
        # Where the model changes much, the photo's detail (a beard's stubble, a brow) is no
        # longer that of the result: let it fade.
        mean = np.asarray(cv2.transform(np.abs(change), np.full((1, 3), 1 / 3)), np.float32)
        share = min(1.0, 2 * detail) / (1 + (mean[..., None] / FINE_KEEP) ** 2)
        plain = plain + share * (kept - plain)
    blended = source + mask * (np.clip(plain, 0, 1) - source)
    # Where the mask is 0, a byte over 255 comes back as that byte.
    pasted[:] = np.rint(255 * blended)
    return output


def drawn(aligned: AlignedFace, drawing_HWC: Pixels, *, tone: float = 0.0) -> Pixels:
    """A drawing of a face as a picture of its own: ``MAX_FIRM`` times the crop's side, its lines
    firm, and of the photo as much ``tone`` as in ``paste``.

    Args:
        drawing_HWC: (side, side, 3), what became of ``aligned.crop_HWC``.
    """
    crop, drawing = (x.astype(np.float32) / 255 for x in (aligned.crop_HWC, drawing_HWC))
    lines = firm_lines(_in_tone(drawing, crop, tone, drawing=True), MAX_FIRM)
    return np.rint(255 * np.clip(lines, 0, 1)).astype(np.uint8)


def firm_lines(drawing_HWC: Floats, times: int) -> Floats:
    """A drawing enlarged to ``times`` its side as a drawing is: flat areas, and lines with ends and
    edges, where an interpolation has blurs.

    A coherence-enhancing shock filter (Weickert, DAGM 2003): across a line, along the structure
    tensor's larger eigenvector, what curves like a ridge grows and what curves like a valley
    shrinks, until both meet at the edge between them. Lengths follow the drawing's own pixel.
    """
    if times <= 1:
        return drawing_HWC
    side = times * len(drawing_HWC)
    drawing = np.asarray(
        cv2.resize(drawing_HWC, (side, side), interpolation=cv2.INTER_CUBIC), np.float32
    )

    def smooth(x: Floats, pixels: float) -> Floats:
        return np.asarray(cv2.GaussianBlur(x, (0, 0), pixels * times), np.float32)

    def derived(x: Floats, by_x: int, by_y: int, size: int) -> Floats:
        return np.asarray(cv2.Sobel(x, cv2.CV_32F, by_x, by_y, ksize=size), np.float32)

    kernel = np.ones((3, 3), np.uint8)
    for _ in range(times + 1):  # each moves an edge by a pixel of the large drawing at most
        grey = smooth(_luminance(drawing), 0.5)
        x, y = derived(grey, 1, 0, 3), derived(grey, 0, 1, 3)
        # Cosine and sine of twice the eigenvector's angle, times the tensor's anisotropy.
        cosine, sine = smooth(x * x - y * y, 0.9), smooth(2 * x * y, 0.9)
        anisotropy = np.maximum(np.hypot(cosine, sine), np.finfo(np.float32).tiny)
        xx, yy, xy = derived(grey, 2, 0, 5), derived(grey, 0, 2, 5), derived(grey, 1, 1, 5)
        curvature = xx + yy + (cosine * (xx - yy) + 2 * sine * xy) / anisotropy
        grown, shrunk = cv2.dilate(drawing, kernel), cv2.erode(drawing, kernel)
        drawing += 0.4 * (np.where(curvature[..., None] < 0, grown, shrunk) - drawing)
    # Edges that moved by whole pixels are stairs.
    return smooth(drawing, 0.18)


def reshape(
    picture_HWC: Pixels, aligned: AlignedFace, flow_HW2: Floats
) -> tuple[Pixels, AlignedFace]:
    """Picture and crop with the face's shape moved, each at its own resolution: what is displaced
    stays as sharp as the photo. Nothing moves at the crop's border or beyond.

    Args:
        flow_HW2: (x, y) displacements over the crop, any size, in shares of the crop's side; at p
            comes what was at p + flow.
    """
    height, width = picture_HWC.shape[:2]
    output, side = picture_HWC.copy(), len(aligned.crop_HWC)
    flow_HW2 = np.asarray(flow_HW2, np.float32)
    in_crop = cv2.resize(side * flow_HW2, (side, side), interpolation=cv2.INTER_CUBIC)
    crop_HWC = _displaced(aligned.crop_HWC, np.asarray(in_crop, np.float32), cv2.INTER_LINEAR)
    moved = replace(aligned, crop_HWC=crop_HWC)
    window, to_window = _window(aligned, height, width)
    if window is None:
        return output, moved
    to_picture_22 = cv2.invertAffineTransform(aligned.to_crop_23)[:, :2].astype(np.float32)
    fine = cv2.resize(
        side * flow_HW2 @ to_picture_22.T, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_CUBIC
    )
    in_picture = _to_picture(
        crop_mask(MASK_SIDE, "crop")[..., None] * fine, aligned, to_window,
        output[window].shape[:2], MASK_SIDE, outside_is_zero=True,
    )  # fmt: skip
    output[window] = _displaced(output[window], in_picture, cv2.INTER_CUBIC)
    return output, moved


def _displaced(values_HWC: Pixels, flow_HW2: Floats, interpolation: int) -> Pixels:
    """At each pixel what was ``flow`` px further."""
    height, width = values_HWC.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(
        cv2.remap(
            values_HWC, x + flow_HW2[..., 0], y + flow_HW2[..., 1], interpolation,
            borderMode=cv2.BORDER_REFLECT_101,
        ),
        np.uint8,
    )  # fmt: skip


def overlay(picture_HWC: Pixels, aligned: AlignedFace, heat_HW: Floats) -> Pixels:
    """The picture with a heatmap (any size, any range) half and half over the face's mask, in
    the colours of U-GAT-IT's paper: blue the least, red the most."""
    height, width = picture_HWC.shape[:2]
    output = picture_HWC.copy()
    window, to_window = _window(aligned, height, width)
    if window is None:
        return output
    least, most = float(heat_HW.min()), float(heat_HW.max())
    heat = (heat_HW - least) / (most - least or 1.0)
    # Cubic, as _to_picture enlarges: a map of 16 px must not show its squares.
    fine = cv2.resize(
        heat.astype(np.float32), (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_CUBIC
    )
    shape = output[window].shape[:2]
    placed = _to_picture(
        np.asarray(fine, np.float32), aligned, to_window, shape, MASK_SIDE, outside_is_zero=True
    )
    bgr = cv2.applyColorMap(np.rint(np.clip(placed, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET)
    share = 0.5 * _window_mask(aligned, to_window, shape)[..., None]
    mixed = output[window] + share * (bgr[..., ::-1].astype(np.float32) - output[window])
    output[window] = np.rint(mixed).astype(np.uint8)
    return output


def _guided_coefficients(guide_HW: Floats, change_HWC: Floats, side: int) -> tuple[Floats, Floats]:
    """gain, offset (H, W, 3) with change ≈ gain · guide + offset in every window."""
    size = 2 * max(1, round(GUIDE_RADIUS * side)) + 1

    def mean(x: Floats) -> Floats:
        return np.asarray(cv2.blur(x, (size, size), borderType=cv2.BORDER_REFLECT_101), np.float32)

    guide = guide_HW[..., None]
    mean_guide = mean(guide_HW)[..., None]
    mean_change = mean(change_HWC)
    variance = mean(guide_HW * guide_HW)[..., None] - mean_guide**2
    covariance = mean(guide * change_HWC) - mean_guide * mean_change
    gain = covariance / (variance + GUIDE_EPS)
    return mean(gain), mean(mean_change - gain * mean_guide)


def _in_tone(result: Floats, crop: Floats, tone: float, drawing: bool = False) -> Floats:
    """The result with as much of the crop's skin tone and light."""
    if tone == 0:
        return result
    sigma = (DRAWING_SIGMA if drawing else TONE_SIGMA) * len(crop)
    apart = cv2.GaussianBlur(crop - result, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(result + tone * apart, np.float32)


def _luminance(rgb_HWC: Floats) -> Floats:
    return rgb_HWC @ np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601 luma


def _window(
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


def _to_picture(
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
    return _warp(values, inverse, (shape[1], shape[0]), outside_is_zero=outside_is_zero)


def _warp(
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
