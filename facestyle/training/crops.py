"""One picture → its crops, and what is known of each: where the thresholds come from.

Knows neither domains nor other pictures; runs in processes of its own, so it imports no torch.

    pixels_HWC  uint8 RGB
    look_HW     luma of the crop at LOOK_SIDE px, from which it is judged
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from facestyle.errors import InputError, NoFaceError
from facestyle.faces import Detector, choose_faces, find_faces
from facestyle.faces.align import align, similarity, template_points, whole
from facestyle.faces.registry import open_detector
from facestyle.images import Picture, Pixels, read_picture, write_picture

LOOK_SIDE = 96
"""Side in px at which a crop is judged, whatever size is asked for: small enough that a sharp
picture of little resolution is not taken for a blurred one."""

LOOK_TEMPLATE = "celeba-square"  # in which it is judged, so that one threshold fits all

MIN_SHARPNESS = 2.2
"""How many times weaker the variance of a crop's Laplacian must get when it is blurred by 1 px.
Of copies blurred by a Gaussian of 1.5 % of the side all fall below, of 1 % a few; as they are,
none of 996 CelebA crops, 26 portraits, 1,000 anime faces, and 0.4 % of UTKFace's soft ones."""

MAX_UPSCALE = 2.0
"""Crop px per picture px: above, three quarters of a crop's pixels are made up."""

MAX_OUTSIDE = 0.25
"""Share of a crop beyond its picture, where there is but a mirror image of the rest. Up to 0.21
on portraits and CelebA in any template, 0.25 to 0.68 on UTKFace, which is cut close already."""

HASH_SIDE = 16
"""A difference hash of 16 × 16 bits. With 8 × 8, aligned faces are too much alike: at 4 bits it
takes 800 pairs of people among 10,000 of CelebA for one person each."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the crops depend on, apart from the pictures; a folder keeps one of these."""

    align: str = LOOK_TEMPLATE
    """Template of ``faces.align``, or ``none``: the central square, without a detector."""
    size: int = 256
    """Side of a crop in px."""
    face: str = "largest"
    """Which faces of a picture: ``largest`` or ``all``."""
    detector: str = "auto"
    """Who finds them."""
    max_upscale: float = MAX_UPSCALE
    """Crop px per picture px above which a face is too small."""
    min_sharpness: float = MIN_SHARPNESS
    """Sharpness below which a crop is blurred; 0 takes all."""
    val: float = 0.05
    """Share of the pictures held out."""
    seed: int = 0
    """Another seed holds out others."""
    attributes: str = ""
    """A list of attributes, not folders, says what is what: a path, or where there is no such
    file, its name in the collection."""
    by: str = ""
    """``ATTRIBUTE:DOMAIN,DOMAIN``: domains by one of them; else all of them become labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """One face of a picture, or why there is none."""

    name: str = ""
    """Its file, "" if it was set aside."""
    reason: str = ""
    """Why it was set aside."""
    detail: str = ""
    """What was found and what is allowed."""
    upscale: float | None = None
    """Crop px per picture px."""
    sharpness: float | None = None
    """See ``MIN_SHARPNESS``."""
    bits: str = ""
    """Difference hash, in hexadecimal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a picture gave: a line of the journal."""

    file: str
    """Its name in the collection."""
    stamp: str
    """Of the file that was read."""
    domain: str
    """Its domain then."""
    pixels: str = ""
    """sha256 of its pixels."""
    faces: int = 0
    """How many were found."""
    crops: tuple[Crop, ...] = ()
    """At least one."""


@cache
def _detector(name: str) -> Detector:
    return open_detector(name, offline=True)


def cut_picture(
    content: Path | bytes | InputError, blank: Record, settings: Settings, folder: Path
) -> Record:
    """Read a picture, write its crops into ``folder``, and say what it gave.

    Args:
        content: the picture's file, its bytes, or why there are none.
        blank: the record to fill in.

    Raises:
        FacestyleError: a crop cannot be written.
    """
    try:
        if isinstance(content, InputError):
            raise content
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        pixels_HWC = _opaque(read_picture(file, name=blank.file))
    except InputError as error:
        return replace(blank, crops=(Crop(reason="unreadable", detail=error.message),))
    digest = hashlib.sha256(f"{pixels_HWC.shape}".encode())
    digest.update(np.ascontiguousarray(pixels_HWC).data)
    blank = replace(blank, pixels=digest.hexdigest())
    places: list[np.ndarray | None] = [None]
    number = 0
    if settings.align != "none":
        try:
            faces = find_faces(pixels_HWC, _detector(settings.detector))
        except NoFaceError as error:
            return replace(blank, crops=(Crop(reason="no face", detail=error.message),))
        number = len(faces)
        places = [face.landmarks_52 for face in choose_faces(faces, settings.face)]
    crops = []
    for index, landmarks_52 in enumerate(places):
        crop, crop_HWC = _judged(pixels_HWC, landmarks_52, settings)
        if crop_HWC is not None:
            crop = replace(crop, name=_name(blank.file, index))
            write_picture(folder / crop.name, Picture(pixels_HWC=crop_HWC), mark=False)
        crops.append(crop)
    return replace(blank, faces=number, crops=tuple(crops))


def _opaque(picture: Picture) -> Pixels:
    """Laid over white: what colour a transparent pixel has is chance."""
    if picture.alpha_HW is None:
        return picture.pixels_HWC
    opacity_HW1 = picture.alpha_HW[..., None] / np.float32(255)
    over_white_HWC = 255 + opacity_HW1 * (picture.pixels_HWC - np.float32(255))
    return np.rint(over_white_HWC).astype(np.uint8)


def _name(file: str, index: int) -> str:
    """A crop's file name: readable, fit for any disk, and no other picture's."""
    stem = re.sub(r"[^\w.-]", "_", PurePosixPath(file).stem)[:50]
    digest = hashlib.sha256(f"{index} {file}".encode(errors="surrogateescape"))
    return f"{stem}-{digest.hexdigest()[:8]}.png"


def _judged(
    pixels_HWC: Pixels, landmarks_52: np.ndarray | None, settings: Settings
) -> tuple[Crop, Pixels | None]:
    """A crop and what is known of it, cheapest first; no pixels where it is set aside."""
    if landmarks_52 is None:
        upscale, outside = settings.size / min(pixels_HWC.shape[:2]), 0.0
    else:
        points_52 = template_points(settings.align) * settings.size
        to_crop_23 = similarity(landmarks_52, points_52)
        upscale = math.hypot(to_crop_23[0, 0], to_crop_23[1, 0])
        outside = _outside(to_crop_23, settings.size, pixels_HWC.shape)
    crop = Crop(upscale=round(upscale, 2))
    if upscale > settings.max_upscale:
        found = f"enlarged {upscale:.2f} times, at most {settings.max_upscale:g}"
        return replace(crop, reason="too small", detail=found), None
    if outside > MAX_OUTSIDE:
        found = f"{outside:.0%} of the crop is beyond the picture, at most {MAX_OUTSIDE:.0%}"
        return replace(crop, reason="cut off", detail=found), None

    def cut(template: str, side: int) -> Pixels:
        if landmarks_52 is None:
            return whole(pixels_HWC, side).crop_HWC
        return align(pixels_HWC, landmarks_52, template, side).crop_HWC

    look_HW = cv2.cvtColor(cut(LOOK_TEMPLATE, LOOK_SIDE), cv2.COLOR_RGB2GRAY).astype(np.float32)
    sharpness = _sharpness(look_HW)
    crop = replace(crop, sharpness=round(sharpness, 2), bits=_bits(look_HW).hex())
    if sharpness < settings.min_sharpness:
        found = f"sharpness {sharpness:.2f}, at least {settings.min_sharpness:g}"
        return replace(crop, reason="blurred", detail=found), None
    return crop, cut(settings.align, settings.size)


def _outside(to_crop_23: np.ndarray, size: int, shape: tuple[int, ...]) -> float:
    """Share of a crop that lies beyond its picture, on a grid of 32 × 32 points."""
    axis = (np.arange(32) + 0.5) * (size / 32)
    grid_N2 = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    inverse = cv2.invertAffineTransform(to_crop_23)
    points_N2 = grid_N2 @ inverse[:, :2].T + inverse[:, 2]
    inside_N = ((points_N2 >= 0) & (points_N2 <= (shape[1], shape[0]))).all(axis=1)
    return float(1 - inside_N.mean())


def _sharpness(look_HW: np.ndarray) -> float:
    """How much of its fine detail a crop loses when it is blurred by 1 px: what is blurred
    already loses little (the idea of Crete et al. 2007, doi:10.1117/12.702790)."""
    again_HW = cv2.GaussianBlur(look_HW, (0, 0), 1)
    inner = np.s_[4:-4, 4:-4]  # at the border an edge is seen where the mirror image begins
    before, after = (cv2.Laplacian(x, cv2.CV_32F)[inner].var() for x in (look_HW, again_HW))
    return float(before / (after + 1))  # 1: noise of less than a grey level is no detail


def _bits(look_HW: np.ndarray) -> bytes:
    """Difference hash: whether each of 16 × 16 patches is darker than the one on its right."""
    small_HW = cv2.resize(look_HW, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(small_HW[:, 1:] > small_HW[:, :-1]).tobytes()
