"""What of an aligned crop goes back into the picture: masks, by shape and by colour. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from facestyle.faces import guided
from facestyle.faces.align import WIDER, AlignedFace, Floats, Pixels, to_picture, window_of

MASK_SIDE = 256  # px; finer than any feather needs
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
SKIN_SIDE = 112  # px; more finds the same, slower
# Ellipses of a face: how far below the eyes' middle, and their radii, in distances from eyes to
# mouth. One of nothing but face, and one of mostly face, where the search begins: not up to the
# hair, which would join the face.
SKIN_SURE = (0.37, (0.70, 1.06))
SKIN_PRIOR = (0.43, (1.06, 1.22))
SKIN_FEATHER = 0.02  # share of the side
# Of a drawing that has its photo's features: how strong the mouth is, for it is drawn; and in
# distances from eyes to mouth the radii of what is about it; how far outside of the photo's the
# drawn eyes lie, and their radius; how far below the mouth the neck begins; and how soft is what is
# about the eyes, at their height, and at the neck.
OWN_MOUTH_STRENGTH, OWN_MOUTH = 1.25, (0.55, 0.28)
DRAWN_EYES = (0.1, 0.38)
OWN_NECK = 0.6
OWN_SOFT = (0.05, 0.2, 0.25)
# How far results in two colours of hair differ, as a share of where they differ most: surely hair,
# perhaps hair, hair though it looks like skin, none.
HAIR_MOST = 0.97  # quantile
HAIR_SURE, HAIR_PRIOR, HAIR_ON_SKIN, HAIR_NONE = 0.5, 0.25, 0.35, 0.08
HAIR_NEVER = (0.37, (0.62, 0.80))  # an ellipse up to the brows: a fringe is above it
HAIR_ON_SKULL = (-0.35, (1.10, 1.25))  # an ellipse about the upper head
HAIR_TONES = 15  # CIELAB distance within which hair beside the skull is as that on it
# Hair is long where it covers the crop's rim, so many px of SKIN_SIDE wide, along this share of it.
RIM, LONG, LONG_STEPS = 3, 0.1, 3
LONG_TONES = 10  # CIELAB distance within which what is beyond begins as hair
LONG_NEAR = 0.1  # of the crop: about what was found beyond it, the mask does not end at its border
HAIR_SMOOTH = 0.015  # share of the side
# Of the guided filters by which what differs, and what was cut, follow the picture's edges.
DIFFERS_RADIUS, DIFFERS_EPS = 0.054, 1e-3
STRANDS_RADIUS, STRANDS_EPS = 0.036, 3e-4
STRANDS_FROM, STRANDS_TO = 0.1, 0.9  # of a soft edge what is none, and what is whole
JUST_TOLD = 2.3  # CIELAB distance of colours that an eye can just tell apart (Mahy et al., 1994)
SAME_AS_WALL = 0.75  # share of what should be hair and cannot be told from the wall: a bald head
WALL_SAMPLES = 500


def paste_mask(aligned: AlignedFace, picture_HWC: Pixels) -> Floats:
    """(H, W) mask of what ``paste`` may change of a picture; exactly 0 elsewhere."""
    height, width = picture_HWC.shape[:2]
    mask = np.zeros((height, width), np.float32)
    window, to_window = window_of(aligned, height, width)
    if window is not None:
        mask[window] = window_mask(aligned, to_window, picture_HWC[window])
    return mask


def window_mask(aligned: AlignedFace, corner: tuple[int, int], picture_HWC: Pixels) -> Floats:
    """The same in a window of the picture, whose left and top are ``corner``."""
    if aligned.template_52 is None:
        return np.ones(picture_HWC.shape[:2], np.float32)
    template_52 = aligned.template_52

    def place(values: Floats) -> Floats:
        shape = picture_HWC.shape[:2]
        return to_picture(values, aligned, corner, shape, len(values), outside_is_zero=True)

    def placed(part: str) -> Floats:
        if part == "skin":
            return place(crop_mask(SKIN_SIDE, part) * skin(aligned.crop_HWC, template_52))
        if part == "hair":
            assert aligned.hair_HW is not None, "hair has been looked for"
            side = len(aligned.hair_HW)
            within = (
                _as_far_as_it_goes_on(aligned.hair_HW) if aligned.wide else crop_mask(side, "crop")
            )
            small_HWC = _resized(aligned.crop_HWC, side)
            return place(within) * _strands(small_HWC, aligned.hair_HW, picture_HWC, place)
        return place(crop_mask(MASK_SIDE, part))

    return np.asarray(np.maximum.reduce([placed(part) for part in aligned.pasted]), np.float32)


def crop_mask(side: int, pasted: str = "face") -> Floats:
    """(side, side) feathered mask in crop coordinates: 1 over what is pasted, 0 at the border."""
    centre, radii, power, core = MASKS[pasted]
    t = np.clip((1 - _away(side, centre, radii, power)) / (1 - core), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


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
    return _feathered(_coloured_alike(_small(crop_HWC), labels))


def hair(
    crop_HWC: Pixels, colours_HW: Floats, template_52: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(SKIN_SIDE, SKIN_SIDE) what has the colours of where hair is.

    Where that is, the model knows: asked for one colour of hair and for another, it makes results
    that differ there, within some pixels. They are held to the photo's edges (``guided``), and
    GrabCut takes it from there, as for ``skin``. What is beside the skull and of no colour on it is
    not sure to be hair. Where it is mostly wall, for the head is bald, none of it is sure but what
    lies on the skin, and what remains is the scalp. What does not touch the head is none of it.

    Args:
        colours_HW: how far the results differ, at any size.
        template_52: where the landmarks lie, as shares of the side.
    """
    size, small_HWC = (SKIN_SIDE, SKIN_SIDE), _small(crop_HWC)
    skin_HW = skin(crop_HWC, template_52)
    face, may_be_skin = _within(HAIR_NEVER, template_52), skin_HW > 0.1
    smooth = cv2.GaussianBlur(colours_HW, (0, 0), HAIR_SMOOTH * len(colours_HW))
    apart_HW = np.asarray(cv2.resize(smooth, size, interpolation=cv2.INTER_CUBIC), np.float32)
    guide_HWC = small_HWC.astype(np.float32) / 255
    gain, offset = guided.coefficients(guide_HWC, apart_HW[..., None], DIFFERS_RADIUS, DIFFERS_EPS)
    apart_HW = guided.follow(guide_HWC, gain, offset)[..., 0]
    differs = apart_HW / max(float(np.quantile(apart_HW[~face], HAIR_MOST)), 1e-6)
    labels = np.full(size, cv2.GC_PR_BGD, np.uint8)
    labels[differs > HAIR_PRIOR] = cv2.GC_PR_FGD
    labels[differs > HAIR_SURE] = cv2.GC_FGD
    # What is as grey as skin is hair where it would differ by much.
    labels[(skin_HW > 0.9) & (differs < HAIR_ON_SKIN)] = cv2.GC_BGD
    labels[(differs < HAIR_NONE) | face] = cv2.GC_BGD
    above = np.arange(SKIN_SIDE)[:, None] < SKIN_SIDE * template_52[:2, 1].mean()
    wall = (labels == cv2.GC_BGD) & ~may_be_skin & above
    supposed = (labels == cv2.GC_FGD) & ~may_be_skin
    as_wall = _alike(small_HWC, supposed, wall)
    if as_wall.sum() > SAME_AS_WALL * supposed.sum():
        labels[supposed] = cv2.GC_PR_FGD
        labels[as_wall] = cv2.GC_BGD
    else:
        skull = _within(HAIR_ON_SKULL, template_52)
        beside = (labels == cv2.GC_FGD) & ~skull
        as_skull = _alike(small_HWC, beside, supposed & skull, HAIR_TONES)
        labels[beside & ~as_skull] = cv2.GC_PR_BGD
    found = _coloured_alike(small_HWC, labels)
    return found & _joined(found | face | (skin_HW > 0.5), face)


def own_features(side: int, template_52: NDArray[np.float64]) -> Floats:
    """(side, side) how strongly a drawing is to have the photo's own features: the mouth, the
    forehead and brows but the drawn eyes, and the neck; 0 elsewhere.

    Args:
        template_52: where the landmarks lie, as shares of the side.
    """
    eyes_22, mouth = template_52[:2], template_52[3:].mean(axis=0)
    middle = eyes_22.mean(axis=0)
    unit = float(np.hypot(*(mouth - middle)))
    down = ((np.arange(side, dtype=np.float32) + 0.5) / side)[:, None]

    def away(centre: NDArray[np.float64], across: float, along: float, power: float) -> Floats:
        at = (float(centre[0]), float(centre[1]))
        return _away(side, at, (across * unit, along * unit), power)

    outside, radius = DRAWN_EYES
    about_eyes, at_eyes, at_neck = (unit * share for share in OWN_SOFT)
    discs = [
        away(eye + outside * unit * np.sign(eye - middle) * (1, 0), radius, radius, 2)
        for eye in eyes_22
    ]
    beyond = np.clip((np.minimum(*discs) - 1) * radius * unit / about_eyes, 0, 1)
    above = np.clip((middle[1] - down) / at_eyes + 0.5, 0, 1)
    below = np.clip((down - mouth[1] - OWN_NECK * unit) / at_neck, 0, 1)
    about_mouth = OWN_MOUTH_STRENGTH * np.exp(-(away(mouth, *OWN_MOUTH, 4) ** 4))
    return np.maximum(np.maximum(about_mouth, beyond * above), below).astype(np.float32)


def in_crop(aligned: AlignedFace) -> Floats:
    """(side, side) the mask of what goes back, on the crop itself."""
    itself = replace(aligned, to_crop_23=np.eye(2, 3))
    return window_mask(itself, (0, 0), aligned.crop_HWC)


def soft(crop_HWC: Pixels, cut_HW: NDArray[np.bool_]) -> Floats:
    """(SKIN_SIDE, SKIN_SIDE) a cut of a crop with an edge as soft as the crop's own."""
    small_HWC = _small(crop_HWC)
    return _strands(small_HWC, cut_HW, small_HWC, lambda values: values)


def goes_on(aligned: AlignedFace) -> bool:
    """Whether hair covers enough of the crop's rim, below the eyes, to be longer than the crop."""
    assert aligned.hair_HW is not None
    assert aligned.template_52 is not None
    rim = np.ones_like(aligned.hair_HW)
    rim[:-RIM, RIM:-RIM] = False
    rim[: int(len(rim) * aligned.template_52[:2, 1].mean())] = False
    return bool(aligned.hair_HW[rim].sum() >= RIM * LONG * len(rim))


def long_hair(
    aligned: AlignedFace, wide: AlignedFace, inner: tuple[slice, slice], is_picture: Floats
) -> NDArray[np.bool_]:
    """(2 · SKIN_SIDE, 2 · SKIN_SIDE) hair of a widened crop.

    Within the crop it is what ``hair`` is; GrabCut takes it on from there, all else of the crop as
    what is none. Above it there is none, nor beyond the picture.

    Args:
        inner: where in the widened crop the crop lies.
        is_picture: 1 where the widened crop shows the picture, 0 beyond it; of its size.
    """
    cut_HW = aligned.hair_HW
    assert cut_HW is not None
    # At half of the size, for GrabCut takes its time.
    ratio = SKIN_SIDE / len(wide.crop_HWC)
    rows, columns = (slice(round(s.start * ratio), round(s.stop * ratio)) for s in inner)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    known = cv2.resize(cut_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    labels = np.full((SKIN_SIDE, SKIN_SIDE), cv2.GC_PR_BGD, np.uint8)
    labels[: rows.start] = cv2.GC_BGD
    labels[cv2.resize(is_picture, labels.shape, interpolation=cv2.INTER_AREA) < 0.5] = cv2.GC_BGD
    labels[rows, columns] = np.where(known, cv2.GC_FGD, cv2.GC_BGD)
    begun = labels == cv2.GC_FGD
    small_HWC = _small(wide.crop_HWC)
    labels[_alike(small_HWC, labels == cv2.GC_PR_BGD, begun, LONG_TONES)] = cv2.GC_PR_FGD
    found = _coloured_alike(small_HWC, labels, LONG_STEPS)
    double = (2 * SKIN_SIDE, 2 * SKIN_SIDE)
    found_HW = cv2.resize(
        _joined(found, begun).astype(np.float32), double, interpolation=cv2.INTER_LINEAR
    ) > 0.5  # fmt: skip
    ratio = 2 * SKIN_SIDE / len(wide.crop_HWC)
    top, left = (round(s.start * ratio) for s in inner)
    found_HW[top : top + SKIN_SIDE, left : left + SKIN_SIDE] = cut_HW
    return np.asarray(found_HW)


def _as_far_as_it_goes_on(found_HW: NDArray[np.bool_]) -> Floats:
    """The mask of a widened crop, that of the crop within it where nothing beyond was found."""
    half = len(found_HW) // 2
    left, top = (round(share * half) for share in WIDER)
    inner = slice(top, top + half), slice(left, left + half)
    mask, beyond = np.zeros(found_HW.shape, np.float32), found_HW.astype(np.float32)
    mask[inner] = crop_mask(half, "crop")
    beyond[inner] = 0
    near = np.minimum(4 * cv2.GaussianBlur(beyond, (0, 0), LONG_NEAR * half), 1)
    return np.asarray(np.maximum(mask, near) * crop_mask(2 * half, "crop"), np.float32)


def _strands(
    small_HWC: Pixels,
    cut_HW: NDArray[np.bool_],
    picture_HWC: Pixels,
    place: Callable[[Floats], Floats],
) -> Floats:
    """A cut of a small picture over a larger one, ending as softly as that does: strand by strand.

    Args:
        place: enlarges values on the small picture to those over the larger one.
    """
    gain, offset = guided.coefficients(
        small_HWC.astype(np.float32) / 255, cut_HW[..., None].astype(np.float32),
        STRANDS_RADIUS, STRANDS_EPS,
    )  # fmt: skip
    guide_HWC = picture_HWC.astype(np.float32) / 255
    gain, offset = place(gain[..., 0])[..., None], place(offset[..., 0])[..., None]
    share = guided.follow(guide_HWC, gain, offset)[..., 0]
    t = np.clip((share - STRANDS_FROM) / (STRANDS_TO - STRANDS_FROM), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _away(
    side: int, centre: tuple[float, float], radii: tuple[float, float], power: float
) -> Floats:
    """(side, side) distances from a superellipse's centre; 1 on it."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = (np.abs(axis - centre[i]) / radii[i] for i in (0, 1))
    return np.asarray((x[None] ** power + y[:, None] ** power) ** (1 / power), np.float32)


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
    rgb_HWC: Pixels,
    these_HW: NDArray[np.bool_],
    those_HW: NDArray[np.bool_],
    within: float = JUST_TOLD,
) -> NDArray[np.bool_]:
    """(H, W) those of some pixels whose colour is among others' too, within a CIELAB distance."""
    lab_HWC = cv2.cvtColor(rgb_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    these_N3, those_M3 = lab_HWC[these_HW], lab_HWC[those_HW]
    alike_HW = np.zeros_like(these_HW)
    if len(those_M3):
        some_M3 = those_M3[:: -(-len(those_M3) // WALL_SAMPLES)]
        apart_NM = np.linalg.norm(these_N3[:, None] - some_M3, axis=2)
        alike_HW[these_HW] = apart_NM.min(axis=1) < within
    return alike_HW


def _small(crop_HWC: Pixels) -> Pixels:
    """At SKIN_SIDE."""
    return _resized(crop_HWC, SKIN_SIDE)


def _resized(crop_HWC: Pixels, side: int) -> Pixels:
    reduces = len(crop_HWC) > side
    interpolation = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(crop_HWC, (side, side), interpolation=interpolation), np.uint8)


def _coloured_alike(small_HWC: Pixels, labels_HW: Pixels, steps: int = 1) -> NDArray[np.bool_]:
    """GrabCut's cut; ``labels_HW`` say where it begins."""
    bgr = small_HWC[..., ::-1]
    if np.isin(labels_HW, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
        cv2.setRNGSeed(0)  # of this thread: the mixtures begin with k-means, and that with a draw
        rest, inside = np.zeros((1, 65)), np.zeros((1, 65))
        everywhere = (0, 0, SKIN_SIDE, SKIN_SIDE)  # not looked at where there are labels
        cv2.grabCut(
            np.ascontiguousarray(bgr),
            labels_HW,
            everywhere,
            rest,
            inside,
            steps,
            cv2.GC_INIT_WITH_MASK,
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
