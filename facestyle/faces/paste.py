"""A restyled crop back into its picture, or as a picture of its own. Pure functions, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from facestyle.faces import guided
from facestyle.faces.align import (
    AlignedFace,
    Floats,
    Pixels,
    to_picture,
    warp,
    widened,
    window_of,
    with_larger_eyes,
    with_smaller_mouth,
)  # fmt: skip
from facestyle.faces.masks import (
    MASK_SIDE,
    crop_mask,
    goes_on,
    in_crop,
    long_hair,
    own_features,
    window_mask,
)  # fmt: skip

DETAIL = 0.65  # where style and person balance on portraits, by recipes/score.py
TONE_SIGMA = 0.12  # of the Gaussian that leaves skin tone and light, share of the crop's side
DRAWING_SIGMA = 0.08  # the same of a drawing alone: finer, for its hair and scarf are seen as well
TONE_COLOUR = 0.5  # of what is done to the colour of a feature on a face that keeps its skin tone
SKIN_COLOUR = 0.3  # of what is done to colour, where light is what a change is about
# Of grey glass: how much of the light it takes; what a model is to take of it, where there is none
# and where there is all; how far it is looked about, as a share of the side; and the light (of 0 to
# 2) below which nobody can tell.
SHADE, SHADE_FROM, SHADE_TO, SHADE_SIGMA, SHADE_DARKEST = 0.85, 0.1, 0.5, 0.0125, 0.15
# Of the map by which long hair is dyed: how far it looks, as a share of the side, the weight of all
# that was seen beside what is near, and the variance (of [0, 1]) below which hair is of one colour.
DYE_SIGMA, DYE_FAR, DYE_EPS = 0.06, 1e-3, 1e-3
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, Rec. 601
GUIDE_RADIUS = 2 / 64  # of the filter by which a change follows the photo, see ``guided``
GUIDE_EPS = 0.01**2
FINE_KEEP = 0.35  # change (share of full scale) at which the source's own detail is halved
FLAT_RANGE, FLAT_SIGMA, FLAT_TIMES = 0.06, 2.0, 2  # share of full scale, px of a drawing's own
# How large drawings are made, in the network's sides, and at what size they and their photos are
# put together.
DRAWN, DRAWN_FINE = 4, 2


def paste(
    picture_HWC: Pixels,
    aligned: AlignedFace,
    result_HWC: Pixels,
    *,
    detail: float = DETAIL,
    tone: float = 0.0,
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
            from the result only what is finer than ``TONE_SIGMA``, features and not their light,
            and of its colour ``TONE_COLOUR``.
    """
    height, width = picture_HWC.shape[:2]
    output = picture_HWC.copy()
    window, to_window = window_of(aligned, height, width)
    if window is None:
        return output
    mask = window_mask(aligned, to_window, output[window])
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return output
    # What is pasted is often half of what was cut.
    within = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask, pasted = mask[within][..., None], output[window][within]
    to_window = (to_window[0] + int(columns[0]), to_window[1] + int(rows[0]))
    shape = mask.shape[:2]
    source = pasted.astype(np.float32) / 255
    crop = aligned.crop_HWC.astype(np.float32) / 255
    result = _in_tone(result_HWC.astype(np.float32) / 255, crop, tone, TONE_SIGMA, TONE_COLOUR)

    def enlarge(values: Floats) -> Floats:
        return to_picture(values, aligned, to_window, shape, len(values))

    plain = enlarge(result)
    # A face no larger than the crop has no detail that the crop lacks; from twice as large on,
    # all of it counts.
    detail *= min(max(1 / aligned.scale - 1, 0.0), 1.0)
    if detail > 0:
        guide = _luminance(crop)[..., None]
        gain, offset = guided.coefficients(guide, result - crop, GUIDE_RADIUS, GUIDE_EPS)
        # What the guide cannot explain at the crop's own size is enlarged as it is: brought back
        # to the crop's size, the change is then the model's own again.
        rest = result - crop - guided.follow(guide, gain, offset)
        offset = offset + min(1.0, 2 - 2 * detail) * rest
        change = enlarge(gain[:, :, 0]) * _luminance(source)[..., None] + enlarge(offset)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnFeatures:
    """What a drawing is to have of its photo: the mouth, the forehead and brows, and the neck
    (``masks.own_features``). For a model that draws eyes and faces, but a mouth on few, and strands
    on a forehead that has none."""

    template_52: NDArray[np.float64]
    """Where the landmarks lie, as shares of the side."""
    mouth: float
    """How many times as large the photo's mouth is made, at most 1: drawings' are small."""
    eyes: float = 1.0
    """How many times as large its eyes were made for the model, which raises its brows."""


def with_own_features(drawing_HWC: Floats, photo_HWC: Floats, features: OwnFeatures) -> Floats:
    """A drawing in whose own colours the photo's detail shows where these features are.

    Args:
        drawing_HWC, photo_HWC: float32, of any range, the same size.
    """
    photo_HWC = with_larger_eyes(photo_HWC, features.template_52, features.eyes)
    photo_HWC = with_smaller_mouth(photo_HWC, features.template_52, features.mouth)
    strength = own_features(len(drawing_HWC), features.template_52)[..., None]
    sigma = DRAWING_SIGMA * len(drawing_HWC)
    drawing_fine, photo_fine = (
        x - cv2.GaussianBlur(x, (0, 0), sigma) for x in (drawing_HWC, photo_HWC)
    )
    own = drawing_HWC + strength * photo_fine - np.minimum(strength, 1) * drawing_fine
    return np.asarray(own, np.float32)


def drawn(
    photo: AlignedFace,
    drawing_HWC: Pixels,
    *,
    times: int = DRAWN,
    tone: float = 0.0,
    features: OwnFeatures | None = None,
) -> Pixels:
    """A drawing of a face as a picture of its own: ``times`` the side, areas flat, lines firm, and
    of the photo as much ``tone`` as in ``paste``, but with all the colour of features. Where skin
    alone goes back, all else is the photo, flat and with firm lines as well.

    Args:
        photo: the face cut at ``DRAWN_FINE`` times the drawing's side, or at ``times`` if that is
            less, see ``align.finer``: there both are put together, for a mouth of the drawing's few
            pixels has no teeth.
        drawing_HWC: (side, side, 3), what became of the face.
    """
    own, small = (x.astype(np.float32) / 255 for x in (photo.crop_HWC, drawing_HWC))
    fine = len(own) // len(small)
    drawing = firm_lines(small, fine)
    if features is not None:
        drawing = with_own_features(drawing, own, features)
    drawing = _in_tone(drawing, own, tone, DRAWING_SIGMA)
    if photo.pasted == ("skin",):
        drawing = np.asarray(own + in_crop(photo)[..., None] * (drawing - own), np.float32)
    lines = firm_lines(_flat(drawing, fine), times // fine)
    return np.rint(255 * np.clip(lines, 0, 1)).astype(np.uint8)


def _flat(drawing_HWC: Floats, times: int) -> Floats:
    """A drawing whose areas are of one colour, where a network's have hatches a few pixels apart: a
    bilateral filter (Tomasi and Manduchi, ICCV 1998), repeated, as of cartoons made of films
    (Winnemöller et al., SIGGRAPH 2006). What differs by more than ``FLAT_RANGE`` stays a line.

    Args:
        times: how large it is, in the network's sides.
    """
    for _ in range(FLAT_TIMES):
        drawing_HWC = np.asarray(
            cv2.bilateralFilter(drawing_HWC, -1, FLAT_RANGE, times * FLAT_SIGMA), np.float32
        )
    return drawing_HWC


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


def with_long_hair(
    picture_HWC: Pixels, aligned: AlignedFace, result_HWC: Pixels
) -> tuple[AlignedFace, Pixels] | None:
    """A face whose hair goes on beyond its crop, as a crop twice as wide, and the result there:
    beyond what the model saw hair takes on the colours that it took on within.

    How they follow from the photo's own is one affine map of colours at each place, fitted to what
    hair became about it. None of a face with short hair.

    Args:
        aligned: of which ``hair`` goes back.
    """
    if not goes_on(aligned):
        return None
    wide, inner = widened(aligned, picture_HWC)
    side, whole = len(wide.crop_HWC), np.ones(picture_HWC.shape[:2], np.float32)
    is_picture = warp(whole, wide.to_crop_23, (side, side), outside_is_zero=True)
    hair_HW = long_hair(aligned, wide, inner, is_picture)
    own = wide.crop_HWC.astype(np.float32) / 255
    became, seen_HW = own.copy(), np.zeros((side, side), np.float32)
    became[inner] = result_HWC.astype(np.float32) / 255
    within_HW = crop_mask(len(result_HWC), "crop")
    share_HW = cv2.resize(hair_HW.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    seen_HW[inner] = within_HW * share_HW[inner]
    dyed = _recoloured(own, became, seen_HW)
    dyed[inner] += within_HW[..., None] * (became[inner] - dyed[inner])
    wide, result = wide.only("hair", hair_HW=hair_HW), np.clip(dyed, 0, 1)
    return wide, np.rint(255 * result).astype(np.uint8)


def _recoloured(own_HWC: Floats, became_HWC: Floats, seen_HW: Floats) -> Floats:
    """Colours as they would have become by the affine map that best fits what others became, near
    each place and weighted by ``seen_HW``; far from all of these, by that which fits all of them.
    """
    own, became = own_HWC[..., None], became_HWC[..., None, :]
    sigma, total = DYE_SIGMA * len(own_HWC), float(seen_HW.sum())
    near = cv2.GaussianBlur(seen_HW, (0, 0), sigma)

    def mean(x: Floats) -> Floats:
        flat = (seen_HW[..., None] * x.reshape(*seen_HW.shape, -1)).astype(np.float32)
        blurred = cv2.GaussianBlur(flat, (0, 0), sigma).reshape(*seen_HW.shape, -1)
        overall = flat.sum(axis=(0, 1)) / total
        local = (blurred + DYE_FAR * overall) / (near + DYE_FAR)[..., None]
        return np.asarray(local, np.float32).reshape(x.shape)

    mean_own, mean_became = mean(own), mean(became)
    variance = mean(own * own.swapaxes(2, 3)) - mean_own * mean_own.swapaxes(2, 3)
    covariance = mean(own * became) - mean_own * mean_became
    gain = np.linalg.solve(variance + DYE_EPS * np.eye(3, dtype=np.float32), covariance)
    change = ((own - mean_own).swapaxes(2, 3) @ gain)[..., 0, :]
    return np.asarray(mean_became[..., 0, :] + change, np.float32)


def in_own_colour(result_HWC: Floats, crop_HWC: Floats, flow_HW2: Floats | None = None) -> Floats:
    """A result with the light that a model gave it, and of the change of colour ``SKIN_COLOUR``.

    For what a model does to skin to change an expression or an age: lines, teeth and shade are
    light, and what comes with them of colour is mostly stains.

    Args:
        result_HWC, crop_HWC: float32, of any range.
        flow_HW2: how the crop's shape was moved in the result, see ``reshape``.
    """
    crop_HWC = _moved(crop_HWC, flow_HW2)
    change = result_HWC - crop_HWC
    light = _luminance(change)[..., None]
    return np.asarray(crop_HWC + light + SKIN_COLOUR * (change - light), np.float32)


def as_shade(result_HWC: Floats, crop_HWC: Floats, flow_HW2: Floats | None = None) -> Floats:
    """A crop behind grey glass, where a model darkens it: for glasses, whose own colours were
    mostly stains, and which on a light face were hardly more than a veil.

    How much of the light a model takes, of what is about a place and not of a pupil that is dark
    already, says where glass is; what little it takes elsewhere is none.

    Args:
        result_HWC, crop_HWC: float32 in [-1, 1].
        flow_HW2: as for ``in_own_colour``.
    """
    crop_HWC = _moved(crop_HWC, flow_HW2)
    sigma = SHADE_SIGMA * len(crop_HWC)
    was, now = (cv2.GaussianBlur(_luminance(x) + 1, (0, 0), sigma) for x in (crop_HWC, result_HWC))
    taken = 1 - now / np.maximum(was, SHADE_DARKEST)
    t = np.clip((taken - SHADE_FROM) / (SHADE_TO - SHADE_FROM), 0, 1)[..., None]
    return np.asarray((crop_HWC + 1) * (1 - SHADE * t * t * (3 - 2 * t)) - 1, np.float32)


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
    crop_HWC = _displaced(aligned.crop_HWC, _in_crop(flow_HW2, side), cv2.INTER_LINEAR)
    moved = replace(aligned, crop_HWC=crop_HWC)
    window, to_window = window_of(aligned, height, width)
    if window is None:
        return output, moved
    to_picture_22 = cv2.invertAffineTransform(aligned.to_crop_23)[:, :2].astype(np.float32)
    fine = cv2.resize(
        side * flow_HW2 @ to_picture_22.T, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_CUBIC
    )
    in_picture = to_picture(
        crop_mask(MASK_SIDE, "crop")[..., None] * fine, aligned, to_window,
        output[window].shape[:2], MASK_SIDE, outside_is_zero=True,
    )  # fmt: skip
    output[window] = _displaced(output[window], in_picture, cv2.INTER_CUBIC)
    return output, moved


def overlay(picture_HWC: Pixels, aligned: AlignedFace, heat_HW: Floats) -> Pixels:
    """The picture with a heatmap (any size, any range) half and half over the face's mask, in
    the colours of U-GAT-IT's paper: blue the least, red the most."""
    height, width = picture_HWC.shape[:2]
    output = picture_HWC.copy()
    window, to_window = window_of(aligned, height, width)
    if window is None:
        return output
    least, most = float(heat_HW.min()), float(heat_HW.max())
    heat = (heat_HW - least) / (most - least or 1.0)
    # Cubic, as to_picture enlarges: a map of 16 px must not show its squares.
    fine = cv2.resize(
        heat.astype(np.float32), (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_CUBIC
    )
    shape = output[window].shape[:2]
    placed = to_picture(
        np.asarray(fine, np.float32), aligned, to_window, shape, MASK_SIDE, outside_is_zero=True
    )
    bgr = cv2.applyColorMap(np.rint(np.clip(placed, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET)
    share = 0.5 * window_mask(aligned, to_window, output[window])[..., None]
    mixed = output[window] + share * (bgr[..., ::-1].astype(np.float32) - output[window])
    output[window] = np.rint(mixed).astype(np.uint8)
    return output


def _in_tone(
    result: Floats, crop: Floats, tone: float, sigma: float, colour: float = 1.0
) -> Floats:
    """The result with as much of the crop's skin tone and light; at a tone of 1 with no more than
    ``colour`` of what is done to the colour of what is finer."""
    if tone == 0:
        return result
    sigma *= len(crop)
    change = result - crop
    coarse = cv2.GaussianBlur(change, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    fine = change - coarse
    light = _luminance(fine)[..., None]
    fine = light + (1 - tone * (1 - colour)) * (fine - light)
    return np.asarray(crop + (1 - tone) * coarse + fine, np.float32)


def _in_crop(flow_HW2: Floats, side: int) -> Floats:
    """Displacements in shares of a crop's side, of any size, as px at each of its pixels."""
    flow_HW2 = np.asarray(flow_HW2, np.float32)
    enlarged = cv2.resize(side * flow_HW2, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(enlarged, np.float32)


def _moved(crop_HWC: Floats, flow_HW2: Floats | None) -> Floats:
    """A crop whose shape has moved, see ``reshape``."""
    if flow_HW2 is None:
        return crop_HWC
    flow_HW2 = _in_crop(flow_HW2, len(crop_HWC))
    return np.asarray(_displaced(crop_HWC, flow_HW2, cv2.INTER_LINEAR), np.float32)


def _displaced(values_HWC: NDArray, flow_HW2: Floats, interpolation: int) -> NDArray:
    """At each pixel what was ``flow`` px further."""
    height, width = values_HWC.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(
        np.ascontiguousarray(values_HWC), x + flow_HW2[..., 0], y + flow_HW2[..., 1],
        interpolation, borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip


def _luminance(rgb_HWC: Floats) -> Floats:
    return rgb_HWC @ np.array(LUMA, np.float32)
