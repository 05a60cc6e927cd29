r"""Train the face detector that ships with facestyle (``weights/face_detector.onnx``).

    python recipes/face_detector.py --faces ../shared/faces \
        --teacher ../shared/weights/face_detection_yunet_2026may.onnx \
        --photos ../shared/photos --out weights/face_detector.onnx

Aligned face crops are all we have, and no photograph with small faces in it. So:

1. A teacher (YuNet) labels each crop once: a box and five points, the mean over three
   sizes and both mirrorings, because its answers differ by some 5 % of the eye distance
   from one size to the next. Crops on which it does not agree with itself are dropped.
2. Scenes are made up on the fly: crops pasted at all sizes and some angles into patchworks
   of other crops without their faces, drawn textures, skin-coloured blobs and shapes.
3. A small anchor-free network learns them: per cell of strides 8, 16 and 32 a score, a box
   and five points, as in YuNet, SCRFD and FCOS, all in px of the picture.
4. It is exported as one ONNX file from a uint8 picture to decoded candidates, so that who
   runs it (``facestyle/faces/builtin.py``) knows neither strides nor normalisation.

The same seed and arguments give the same scenes in the same order. On two idle CPU cores the
labels take 8 minutes (once: ``--labels``) and 1000 steps take 3. Knows nothing of
``facestyle.training``: a detector is no translator.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from facestyle.faces import Face
from facestyle.faces.builtin import BuiltinDetector
from facestyle.faces.yunet import YuNetDetector

SCENE = 256
"""Side of a training scene in px; ``builtin.py`` shows the network large faces no larger."""

SMALLEST_FACE, LARGEST_FACE = 11, 250
"""Longer side of a pasted face's box in px: one cell and a half, and all of a scene."""

MOST_FACES = 16
"""Faces in one scene at most; the length to which targets are padded."""

STRIDES = (8, 16, 32)
FACE_RANGES = ((0, 44), (32, 96), (72, 1024))
"""Longer side in px of the faces that each stride learns; neighbours share some."""

CENTRE_RADIUS = 1.5
"""Cells within so many strides of a box's centre (and inside the box) answer for it."""

HEADS, SOFT = 0.5, 0.8
"""Shares of the faces pasted as a head alone, and with a soft edge (heads included)."""

MIRRORED_POINTS = [1, 0, 2, 4, 3]
"""The order of the five points after mirroring: the left one of a pair stays first."""

HELD_OUT = 20
"""Every so-manyth crop is kept for validation."""


# --- Crops and their labels ------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Crops:
    """Face crops with what the teacher said about each, in px of the crop."""

    pictures: list[np.ndarray]
    boxes_N4: np.ndarray
    points_N52: np.ndarray

    def split(self) -> tuple[Crops, Crops]:
        """Crops to train on, and held-out ones."""
        index_N = np.arange(len(self.pictures))
        held_N = index_N % HELD_OUT == 0
        return self._at(index_N[~held_N]), self._at(index_N[held_N])

    def _at(self, index_N: np.ndarray) -> Crops:
        return Crops(
            [self.pictures[i] for i in index_N], self.boxes_N4[index_N], self.points_N52[index_N]
        )


def read_zip(path: Path) -> list[np.ndarray]:
    """Every JPEG of an archive as RGB, in the order of names."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        return [_decode(archive.read(name)) for name in names]


def _decode(data: bytes) -> np.ndarray:
    picture_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture_HWC is not None
    return picture_HWC


def label(picture_HWC: np.ndarray, teacher: YuNetDetector) -> np.ndarray | None:
    """Box and points (14 numbers) by the teacher's mean over sizes and mirrorings."""
    margin = max(picture_HWC.shape[:2]) // 5
    padded_HWC = cv2.copyMakeBorder(
        picture_HWC, margin, margin, margin, margin, cv2.BORDER_REPLICATE
    )
    width = padded_HWC.shape[1]
    answers = []
    for side in (192, 288, 400):
        scale = side / width
        view_HWC = cv2.resize(padded_HWC, None, fx=scale, fy=scale)
        for mirrored in (False, True):
            faces = teacher.candidates(view_HWC[:, ::-1].copy() if mirrored else view_HWC)
            if not faces or faces[0].score < 0.75:
                return None
            points_72 = np.vstack([np.reshape(faces[0].box, (2, 2)), faces[0].landmarks_52]) / scale
            if mirrored:
                points_72[:, 0] = width - points_72[:, 0]
                points_72 = points_72[[0, 1, 3, 2, 4, 6, 5]]
                points_72[:2, 0] = points_72[1::-1, 0]
            answers.append(points_72 - margin)
    answers_A72 = np.stack(answers)
    eyes = np.linalg.norm(answers_A72[:, 3] - answers_A72[:, 2], axis=1).mean()
    if answers_A72[:, 2:4].std(axis=0).max() > 0.12 * eyes:
        return None
    return answers_A72.mean(axis=0).ravel()


def labelled(pictures: list[np.ndarray], teacher: YuNetDetector, cache: Path | None) -> Crops:
    """The pictures on which the teacher is sure; ``cache`` keeps its answers."""
    if cache is not None and cache.is_file():
        answers_N14 = np.load(cache)
    else:
        unsure_14 = np.full(14, np.nan)
        answers = (label(picture, teacher) for picture in pictures)
        answers_N14 = np.stack([unsure_14 if answer is None else answer for answer in answers])
        if cache is not None:
            np.save(cache, answers_N14)
    sure = np.flatnonzero(~np.isnan(answers_N14[:, 0]))
    found_S72 = answers_N14[sure].reshape(-1, 7, 2).astype(np.float32)
    return Crops([pictures[i] for i in sure], found_S72[:, :2].reshape(-1, 4), found_S72[:, 2:])


# --- Scenes ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Materials:
    """What scenes are made of."""

    crops: Crops
    drawings: list[np.ndarray]
    """Anime faces, used in shreds alone: a whole drawn face is neither a face nor none."""
    photographs: list[np.ndarray]
    """Pictures without a face; may be empty."""


class Scenes(IterableDataset[tuple[np.ndarray, ...]]):
    """An endless stream of batches: pictures_NHWC uint8, boxes_NK4, points_NK52 (px).

    Missing faces are NaN. A pure function of ``seed``.
    """

    def __init__(self, materials: Materials, batch: int, seed: int) -> None:
        self.materials, self.batch, self.seed = materials, batch, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        cv2.setNumThreads(0)
        rng = np.random.default_rng(self.seed)
        while True:
            scenes = [scene(self.materials, rng) for _ in range(self.batch)]
            yield tuple(np.stack(column) for column in zip(*scenes, strict=True))


def scene(materials: Materials, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """One made-up picture (SCENE x SCENE) with its boxes and points."""
    canvas_HWC = background(materials, rng)
    boxes_K4 = np.full((MOST_FACES, 4), np.nan, np.float32)
    points_K52 = np.full((MOST_FACES, 5, 2), np.nan, np.float32)
    found = 0
    for size in face_sizes(rng):
        pasted = paste_face(canvas_HWC, boxes_K4[:found], size, materials.crops, rng)
        if pasted is not None:
            boxes_K4[found], points_K52[found] = pasted
            found += 1
    return spoil(canvas_HWC, rng), boxes_K4, points_K52


def face_sizes(rng: np.random.Generator) -> list[float]:
    """Longer sides of the faces to paste, largest first."""
    kind = rng.random()
    if kind < 0.08:
        return []
    if kind < 0.25:  # A group portrait.
        size = math.exp(rng.uniform(math.log(SMALLEST_FACE), math.log(50)))
        return sorted(size * rng.uniform(0.8, 1.25, rng.integers(5, MOST_FACES + 1)))[::-1]
    if kind < 0.55:  # A portrait.
        return [rng.uniform(50, LARGEST_FACE)]
    low, high = math.log(SMALLEST_FACE), math.log(LARGEST_FACE * 0.8)
    return sorted(np.exp(rng.uniform(low, high, rng.integers(1, 5))))[::-1]


def paste_face(
    canvas_HWC: np.ndarray,
    taken_K4: np.ndarray,
    size: float,
    crops: Crops,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw one face of about ``size`` px into the canvas; None where there is no room."""
    # Choose a place of which most is visible and that hides no earlier face.
    place_2 = rng.uniform(0.15 * size, SCENE - 0.15 * size, (8, 2))
    room_2 = (size / 2 - 0.22 * size, SCENE - size / 2 + 0.22 * size)
    place_2 = np.clip(place_2, min(room_2), max(room_2))
    kind = rng.random()
    reach = 0.65 * size if kind < HEADS else size  # Of what is pasted around the face.
    clear = [p for p in place_2 if not _crowded(p - reach, p + reach, taken_K4)]
    if not clear:
        return None
    centre_2 = clear[0]

    # Choose a face, mirror it, and shrink it first where it would alias.
    index = rng.integers(len(crops.pictures))
    crop_HWC, box_22 = crops.pictures[index], crops.boxes_N4[index].reshape(2, 2)
    points_52 = crops.points_N52[index]
    width = crop_HWC.shape[1]
    if rng.random() < 0.5:
        crop_HWC = crop_HWC[:, ::-1]
        box_22 = np.stack(
            [[width - box_22[1, 0], box_22[0, 1]], [width - box_22[0, 0], box_22[1, 1]]]
        )
        points_52 = (points_52 * [-1, 1] + [width, 0])[MIRRORED_POINTS]
    scale = size / (box_22[1] - box_22[0]).max()
    if scale < 0.75:
        crop_HWC = cv2.resize(crop_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ratio_2 = np.divide(crop_HWC.shape[1::-1], (width, crops.pictures[index].shape[0]))
        box_22, points_52, scale = box_22 * ratio_2, points_52 * ratio_2, 1.0
    crop_HWC = recolour(crop_HWC, rng, strength=0.7)

    # The similarity that puts the box's centre at the place, turned a little.
    angle = np.clip(rng.normal(0, 14), -40, 40)
    to_canvas_23 = cv2.getRotationMatrix2D(box_22.mean(axis=0).tolist(), angle, scale)
    to_canvas_23[:, 2] += centre_2 - box_22.mean(axis=0)
    mask_HW = _paste_mask(crop_HWC.shape[:2], box_22, kind, rng)
    body_low_2 = centre_2 + size * np.array([-1, 0.3])
    body_high_2 = centre_2 + size * np.array([1, 3])
    if kind < HEADS and rng.random() < 0.7 and not _crowded(body_low_2, body_high_2, taken_K4):
        _draw_body(canvas_HWC, crop_HWC, box_22, centre_2, size, rng)
    _blend(canvas_HWC, crop_HWC, mask_HW, to_canvas_23)

    turned_52 = points_52 @ to_canvas_23[:, :2].T + to_canvas_23[:, 2]
    box_4 = _turned_box(box_22, to_canvas_23)
    if rng.random() < 0.18:
        _occlude(canvas_HWC, box_4, rng)
    return box_4, turned_52.astype(np.float32)


def _crowded(low_2: np.ndarray, high_2: np.ndarray, taken_K4: np.ndarray) -> bool:
    """Whether something drawn there would hide a tenth of an earlier face."""
    if not len(taken_K4):
        return False
    overlap_K2 = np.minimum(taken_K4[:, 2:], high_2) - np.maximum(taken_K4[:, :2], low_2)
    hidden_K = np.maximum(overlap_K2, 0).prod(axis=1)
    return bool((hidden_K > 0.1 * (taken_K4[:, 2:] - taken_K4[:, :2]).prod(axis=1)).any())


def _turned_box(box_22: np.ndarray, to_canvas_23: np.ndarray) -> np.ndarray:
    """The upright box of a turned face: its ellipse's bounds, tighter than its corners'."""
    centre_2 = to_canvas_23[:, :2] @ box_22.mean(axis=0) + to_canvas_23[:, 2]
    half_2 = np.sqrt((to_canvas_23[:, :2] ** 2) @ ((box_22[1] - box_22[0]) / 2) ** 2)
    return np.concatenate([centre_2 - half_2, centre_2 + half_2]).astype(np.float32)


def _paste_mask(
    shape_HW: tuple[int, int], box_22: np.ndarray, kind: float, rng: np.random.Generator
) -> np.ndarray:
    """How much of each crop pixel is pasted: a head, a soft crop, or a hard rectangle."""
    height, width = shape_HW
    mask_HW: np.ndarray = np.zeros(shape_HW, np.float32)
    centre_2, half_2 = box_22.mean(axis=0), (box_22[1] - box_22[0]) / 2
    if kind < HEADS:
        axes_2 = half_2 * rng.uniform(1.1, 1.7) * (1, 1.1)
        cv2.ellipse(mask_HW, (centre_2.tolist(), (2 * axes_2).tolist(), 0.0), 1.0, -1)
    else:
        mask_HW[1:-1, 1:-1] = 1
    if kind < SOFT:
        soft = max(0.5, min(shape_HW) * rng.uniform(0.01, 0.08))
        mask_HW[0], mask_HW[-1], mask_HW[:, 0], mask_HW[:, -1] = 0, 0, 0, 0
        mask_HW = cv2.GaussianBlur(mask_HW, (0, 0), soft)
        # Fade to nothing at the crop's own edge.
        ramp_H = np.minimum(np.arange(height), np.arange(height)[::-1]) / (2 * soft)
        ramp_W = np.minimum(np.arange(width), np.arange(width)[::-1]) / (2 * soft)
        mask_HW *= np.minimum(np.minimum.outer(ramp_H, ramp_W), 1).astype(np.float32)
    return mask_HW


def _blend(
    canvas_HWC: np.ndarray, crop_HWC: np.ndarray, mask_HW: np.ndarray, to_canvas_23: np.ndarray
) -> None:
    """Warp the crop into the part of the canvas that it covers, through its mask."""
    height, width = crop_HWC.shape[:2]
    corners_42 = np.array([(0, 0), (width, 0), (0, height), (width, height)])
    corners_42 = corners_42 @ to_canvas_23[:, :2].T + to_canvas_23[:, 2]
    left, top = np.clip(np.floor(corners_42.min(axis=0)), 0, SCENE - 1).astype(int)
    right, bottom = np.clip(np.ceil(corners_42.max(axis=0)), 1, SCENE).astype(int)
    shifted_23 = to_canvas_23.copy()
    # OpenCV warps indices of pixels; our coordinates have their centres at a half.
    shifted_23[:, 2] += to_canvas_23[:, :2].sum(axis=1) / 2 - 0.5 - (left, top)
    size = (int(right - left), int(bottom - top))
    face_HWC = cv2.warpAffine(crop_HWC, shifted_23, size, borderMode=cv2.BORDER_REPLICATE)
    alpha_HW1 = cv2.warpAffine(mask_HW, shifted_23, size)[..., None]
    region_HWC = canvas_HWC[top:bottom, left:right]
    region_HWC[:] = region_HWC + alpha_HW1 * (face_HWC.astype(np.float32) - region_HWC)


def _draw_body(
    canvas_HWC: np.ndarray,
    crop_HWC: np.ndarray,
    box_22: np.ndarray,
    centre_2: np.ndarray,
    size: float,
    rng: np.random.Generator,
) -> None:
    """A neck in the face's colour and shoulders in any, below where a face will be."""
    x, y = (box_22.mean(axis=0) + (0, 0.3) * (box_22[1] - box_22[0])).astype(int)
    skin = crop_HWC[min(y, len(crop_HWC) - 1), min(x, crop_HWC.shape[1] - 1)].tolist()
    x, y = centre_2
    cloth = rng.integers(0, 256, 3).tolist()
    wide, low = size * rng.uniform(0.9, 1.5), y + size * rng.uniform(1.1, 1.5)
    cv2.ellipse(canvas_HWC, ((x, low + size), (2 * wide, 2.6 * size), 0.0), cloth, -1)
    neck = (size * rng.uniform(0.35, 0.5), size * rng.uniform(1.2, 1.6))
    cv2.ellipse(canvas_HWC, ((x, y + size * 0.5), neck, 0.0), skin, -1)


def _occlude(canvas_HWC: np.ndarray, box_4: np.ndarray, rng: np.random.Generator) -> None:
    """Hide some of a face: a bar, a blob, or a piece of the picture from elsewhere."""
    size_2 = box_4[2:] - box_4[:2]
    low_2 = box_4[:2] + size_2 * rng.uniform(-0.1, 0.8, 2)
    high_2 = low_2 + size_2 * rng.uniform(0.15, 0.5, 2)
    left, top = np.clip(low_2, 0, SCENE - 2).astype(int)
    right, bottom = np.clip(high_2, 2, SCENE).astype(int)
    if right <= left or bottom <= top:
        return
    if rng.random() < 0.5:
        x, y = (
            rng.integers(0, SCENE - (right - left) + 1),
            rng.integers(0, SCENE - (bottom - top) + 1),
        )
        canvas_HWC[top:bottom, left:right] = canvas_HWC[y : y + bottom - top, x : x + right - left]
    else:
        middle, extent = ((low_2 + high_2) / 2).tolist(), (high_2 - low_2).tolist()
        colour = rng.integers(0, 256, 3).tolist()
        cv2.ellipse(canvas_HWC, (middle, extent, rng.uniform(0, 90)), colour, -1)


def background(materials: Materials, rng: np.random.Generator) -> np.ndarray:
    """A picture (SCENE x SCENE) without a face."""
    kind = rng.random()
    if kind < 0.2:
        canvas_HWC = _texture(rng)
    elif kind < 0.4 and materials.photographs:
        photograph_HWC = materials.photographs[rng.integers(len(materials.photographs))]
        piece_HWC = _piece(photograph_HWC, rng, smallest=0.15)
        canvas_HWC = cv2.resize(piece_HWC, (SCENE, SCENE))
    else:
        # A patchwork, from one magnified piece to 6 x 6.
        cells = int(rng.integers(1, 7)) if rng.random() < 0.6 else 1
        edges = np.linspace(0, SCENE, cells + 1).astype(int)
        canvas_HWC = np.empty((SCENE, SCENE, 3), np.uint8)
        for top, bottom in itertools.pairwise(edges):
            for left, right in itertools.pairwise(edges):
                patch_HWC = _patch(materials, rng)
                canvas_HWC[top:bottom, left:right] = cv2.resize(
                    patch_HWC,
                    (int(right - left), int(bottom - top)),
                    interpolation=cv2.INTER_LINEAR,
                )
    canvas_HWC = recolour(canvas_HWC, rng, strength=1.0)
    _clutter(canvas_HWC, materials.crops, rng)
    for _ in range(rng.integers(0, 6)):
        _paste_decoy(canvas_HWC, materials, rng)
    return canvas_HWC


def _paste_decoy(canvas_HWC: np.ndarray, materials: Materials, rng: np.random.Generator) -> None:
    """Something pasted as faces are, or the edge around a face would give it away."""
    patch_HWC = recolour(_patch(materials, rng), rng, strength=0.7)
    scale = math.exp(rng.uniform(math.log(8), math.log(120))) / max(patch_HWC.shape[:2])
    if scale < 0.75:
        size = [max(3, round(side * scale)) for side in patch_HWC.shape[1::-1]]
        patch_HWC, scale = cv2.resize(patch_HWC, size, interpolation=cv2.INTER_AREA), 1.0
    half_2 = np.array(patch_HWC.shape[1::-1]) / 2
    to_canvas_23 = cv2.getRotationMatrix2D(half_2.tolist(), rng.normal(0, 14), scale)
    to_canvas_23[:, 2] = to_canvas_23[:, 2] + rng.uniform(0, SCENE, 2) - half_2
    box_22 = half_2 * np.array([[0.4], [1.6]])
    mask_HW = _paste_mask(patch_HWC.shape[:2], box_22, rng.random(), rng)
    _blend(canvas_HWC, patch_HWC, mask_HW, to_canvas_23)


def _patch(materials: Materials, rng: np.random.Generator) -> np.ndarray:
    """Something that may look like part of a person or of a drawing, but is no face."""
    kind = rng.random()
    if kind < 0.05:  # A flag, a badge, a window.
        colours_P3 = rng.integers(0, 256, (3, 3), np.uint8)
        blocks_HWC = colours_P3[rng.integers(0, 3, rng.integers(1, 9, 2))]
        return cv2.resize(blocks_HWC, (48, 48), interpolation=cv2.INTER_NEAREST)
    if kind < 0.1 and materials.photographs:
        photograph_HWC = materials.photographs[rng.integers(len(materials.photographs))]
        return _piece(photograph_HWC, rng, smallest=0.03, largest=0.3)
    if kind < 0.18:
        drawing_HWC = materials.drawings[rng.integers(len(materials.drawings))]
        return _piece(drawing_HWC, rng, smallest=0.2, largest=0.4)
    index = rng.integers(len(materials.crops.pictures))
    crop_HWC, box_4 = materials.crops.pictures[index], materials.crops.boxes_N4[index]
    height, width = crop_HWC.shape[:2]
    left, top = np.clip(box_4[:2], 1, None).astype(int)
    right, bottom = np.minimum(box_4[2:].astype(int), (width - 1, height - 1))
    if kind < 0.33:  # A shred of a face, too small a part to be one: an eye, a mouth.
        face_HWC = crop_HWC[top:bottom, left:right]
        return _piece(face_HWC, rng, smallest=0.2, largest=0.45)
    if kind < 0.6:  # The head with hair, skin or a wall where the face was.
        hidden_HWC = crop_HWC.copy()
        side = int(rng.integers(3, 12))
        x, y = rng.integers(0, width - side), rng.integers(0, max(1, min(top, height - side)))
        cover_HWC = cv2.resize(crop_HWC[y : y + side, x : x + side], (width, height))
        if rng.random() < 0.3:
            cover_HWC = np.full_like(hidden_HWC, crop_HWC[bottom - 2, (left + right) // 2])
        mask_HW = np.zeros((height, width), np.float32)
        middle, extent = ((box_4[:2] + box_4[2:]) / 2).tolist(), (box_4[2:] - box_4[:2]) * 1.12
        cv2.ellipse(mask_HW, (middle, extent.tolist(), 0.0), 1.0, -1)
        mask_HW1 = cv2.GaussianBlur(mask_HW, (0, 0), rng.uniform(0.8, 4))[..., None]
        return (hidden_HWC + mask_HW1 * (cover_HWC.astype(np.float32) - hidden_HWC)).astype(
            np.uint8
        )
    # A strip beside the face: above, below, left or right of it, the widest two likelier.
    strips = [crop_HWC[:top], crop_HWC[bottom:], crop_HWC[:, :left], crop_HWC[:, right:]]
    shares_4 = np.array([min(strip.shape[:2]) for strip in strips], np.float64)
    strip_HWC = strips[rng.choice(4, p=shares_4 / shares_4.sum())]
    return _piece(strip_HWC, rng, smallest=0.5)


def _piece(
    picture_HWC: np.ndarray, rng: np.random.Generator, smallest: float, largest: float = 1.0
) -> np.ndarray:
    """A random rectangle of a picture, mirrored and turned by quarters, SCENE px at most."""
    height, width = picture_HWC.shape[:2]
    tall = max(1, int(height * rng.uniform(smallest, largest)))
    wide = max(1, int(width * rng.uniform(smallest, largest)))
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    piece_HWC = picture_HWC[top : top + tall, left : left + wide]
    piece_HWC = np.rot90(piece_HWC, rng.choice([0, 0, 0, 0, 1, 2, 3]))
    if rng.random() < 0.5:
        piece_HWC = piece_HWC[:, ::-1]
    if max(tall, wide) > SCENE:
        how = cv2.INTER_AREA if min(tall, wide) > SCENE else cv2.INTER_LINEAR
        return cv2.resize(piece_HWC, (SCENE, SCENE), interpolation=how)
    return piece_HWC.copy()


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Clouds of a few scales between two colours, sometimes striped."""
    field_HW = np.zeros((SCENE, SCENE), np.float32)
    for cells in (2, 5, 16, 64):
        noise = rng.random((cells, cells), np.float32) * rng.uniform(0, 1)
        field_HW += cv2.resize(noise, (SCENE, SCENE), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.3:
        y_HW, x_HW = np.mgrid[:SCENE, :SCENE].astype(np.float32)
        turn, period = rng.uniform(0, math.pi), rng.uniform(3, 60)
        wave_HW = (x_HW * math.cos(turn) + y_HW * math.sin(turn)) * (2 * math.pi / period)
        field_HW += np.sin(wave_HW + field_HW * rng.uniform(0, 4)) * rng.uniform(0.2, 1)
    field_HW1 = ((field_HW - field_HW.min()) / np.ptp(field_HW))[..., None]
    one_3, two_3 = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    return (one_3 + field_HW1 * (two_3 - one_3)).astype(np.uint8)


def _clutter(canvas_HWC: np.ndarray, crops: Crops, rng: np.random.Generator) -> None:
    """Shapes: blobs in the colour of someone's skin (hands, shoulders), discs, strokes, text."""
    for _ in range(rng.integers(0, 7)):
        x, y = rng.uniform(0, SCENE, 2)
        size = math.exp(rng.uniform(math.log(6), math.log(120)))
        colour = rng.integers(0, 256, 3).tolist()
        kind = rng.integers(0, 5)
        if kind <= 1:
            index = rng.integers(len(crops.pictures))
            nose = crops.points_N52[index, 2].astype(int)
            picture_HWC = crops.pictures[index]
            height, width = picture_HWC.shape[:2]
            colour = picture_HWC[min(nose[1], height - 1), min(max(nose[0], 0), width - 1)].tolist()
            extent = (size, size * rng.uniform(0.3, 1.5))
            cv2.ellipse(canvas_HWC, ((x, y), extent, rng.uniform(0, 180)), colour, -1)
            if kind == 1:  # Dots on it, but not where eyes and a mouth would be.
                for dot in rng.uniform(-0.3, 0.3, (rng.integers(1, 4), 2)) * size:
                    middle = (int(x + dot[0]), int(y + dot[1]))
                    cv2.circle(canvas_HWC, middle, max(1, int(size / 16)), (0, 0, 0), -1)
        elif kind == 2:
            cv2.circle(
                canvas_HWC, (int(x), int(y)), int(size / 2), colour, int(rng.integers(-1, 6)) or 1
            )
        elif kind == 3:
            end = (int(x + rng.normal(0, size)), int(y + rng.normal(0, size)))
            cv2.line(canvas_HWC, (int(x), int(y)), end, colour, int(rng.integers(1, 9)))
        else:
            text = "".join(chr(c) for c in rng.integers(33, 122, rng.integers(2, 9)))
            place = (int(x) - 20, int(y))
            cv2.putText(canvas_HWC, text, place, int(rng.integers(0, 7)), size / 40, colour, 2)


def recolour(picture_HWC: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and colour cast, through one lookup table a channel."""
    gain_3 = np.exp(rng.normal(0, 0.22 * strength) + rng.normal(0, 0.08 * strength, 3))
    gamma = math.exp(rng.normal(0, 0.25 * strength))
    shift = rng.normal(0, 18 * strength)
    ramp_V = np.linspace(0, 1, 256) ** gamma * 255
    table_V3 = np.clip(ramp_V[:, None] * gain_3 + shift, 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(picture_HWC), table_V3[None])


def spoil(canvas_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What cameras and files do: blur, sharpening, low resolution, grain, JPEG, no colour."""
    kind = rng.random()
    if kind < 0.15:
        canvas_HWC = cv2.GaussianBlur(canvas_HWC, (0, 0), rng.uniform(0.4, 1.6))
    elif kind < 0.5:  # Magnified crops are soft and photographs are not.
        soft_HWC = cv2.GaussianBlur(canvas_HWC, (0, 0), rng.uniform(0.8, 3))
        amount = rng.uniform(0.3, 2)
        canvas_HWC = cv2.addWeighted(canvas_HWC, 1 + amount, soft_HWC, -amount, 0)
    elif kind < 0.6:
        side = int(SCENE * rng.uniform(0.4, 0.9))
        how = int(rng.choice([cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA]))
        canvas_HWC = cv2.resize(
            cv2.resize(canvas_HWC, (side, side), interpolation=cv2.INTER_AREA),
            (SCENE, SCENE),
            interpolation=how,
        )
    if rng.random() < 0.3:
        grain_HWC = np.empty(canvas_HWC.shape, np.int16)
        cv2.setRNGSeed(int(rng.integers(1 << 31)))
        cv2.randn(grain_HWC, np.zeros(3), np.full(3, rng.uniform(1, 16)))
        canvas_HWC = cv2.add(canvas_HWC, grain_HWC, dtype=cv2.CV_8U)
    canvas_HWC = recolour(canvas_HWC, rng, strength=0.7)
    if rng.random() < 0.15:
        canvas_HWC = cv2.cvtColor(cv2.cvtColor(canvas_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 90))]
        coded = cv2.imencode(".jpg", canvas_HWC[..., ::-1], quality)[1]
        return _decode(coded.tobytes())
    return canvas_HWC


# --- Network and loss ------------------------------------------------------------------


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


# --- Training, export, evaluation ------------------------------------------------------


def train(
    materials: Materials, steps: int, batch: int, rate: float, seed: int, start: Path | None
) -> FaceNet:
    """The network's moving average after ``steps`` batches of made-up scenes."""
    torch.manual_seed(seed)
    net = FaceNet().to(memory_format=torch.channels_last).train()
    if start is not None:
        net.load_state_dict(torch.load(start, weights_only=True))
    average = FaceNet().requires_grad_(False)
    average.load_state_dict(net.state_dict())
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters")
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
    )
    scenes = DataLoader(
        Scenes(materials, batch, seed), batch_size=None, num_workers=1, prefetch_factor=8
    )
    started, sums = time.monotonic(), {"score": 0.0, "box": 0.0, "points": 0.0}
    for step, (pictures_NHWC, boxes_NK4, points_NK52) in zip(
        range(1, steps + 1), scenes, strict=False
    ):
        warm_up = min(1.0, step / 300)
        for group in optimiser.param_groups:
            group["lr"] = rate * warm_up * (0.01 + 0.495 * (1 + math.cos(math.pi * step / steps)))
        pictures_NCHW = pictures_NHWC.permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", torch.bfloat16):
            levels = net.look(pictures_NCHW)
        losses = loss(net.read(levels), boxes_NK4, points_NK52)
        optimiser.zero_grad(set_to_none=True)
        (losses["score"] + losses["box"] + losses["points"]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()

        # Update the moving average, of the normalisation's statistics too.
        decay = min(0.998, step / (step + 20))
        for mean, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            mean.lerp_(new, 1 - decay) if mean.is_floating_point() else mean.copy_(new)
        sums = {name: sums[name] + value.item() for name, value in losses.items()}
        if step % 200 == 0 or step == steps:
            means = "  ".join(f"{name} {value / 200:.4f}" for name, value in sums.items())
            print(f"step {step}/{steps}  {time.monotonic() - started:.0f} s  {means}", flush=True)
            sums = dict.fromkeys(sums, 0.0)
    return average.eval()


class Exported(nn.Module):
    """What the file holds: a uint8 picture in, scores, boxes and points in its px out."""

    def __init__(self, net: FaceNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, picture_HWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sides are multiples of 32."""
        logits_1C, boxes_1C4, points_1C52 = self.net(picture_HWC.permute(2, 0, 1)[None].float())
        return logits_1C[0].sigmoid(), boxes_1C4[0], points_1C52[0]


def export(net: FaceNet, path: Path, notes: dict[str, str]) -> None:
    """One ONNX file with ``notes`` in its metadata."""
    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")
    program = torch.onnx.export(
        Exported(net).eval(),
        (torch.zeros(96, 128, 3, dtype=torch.uint8),),
        input_names=["picture_HWC"],
        output_names=["scores_C", "boxes_C4", "points_C52"],
        dynamic_shapes={"picture_HWC": {0: 32 * rows, 1: 32 * columns}},
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, notes)
    model.doc_string = ""
    for node in model.graph.node:  # Traces of this machine's paths, and a third of the file.
        del node.metadata_props[:]
        node.doc_string = ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def overlap(one: Face, two: Face) -> float:
    """Intersection over union of two faces' boxes."""
    one_22, two_22 = np.reshape(one.box, (2, 2)), np.reshape(two.box, (2, 2))
    inner_2 = np.minimum(one_22[1], two_22[1]) - np.maximum(one_22[0], two_22[0])
    inner = float(np.maximum(inner_2, 0).prod())
    return inner / (one.area + two.area - inner)


def eye_errors(found: Face, true: Face) -> np.ndarray:
    """Distance of each eye from the true one, in % of the true distance of the eyes."""
    left_2, right_2 = true.landmarks_52[:2]
    away_2 = np.linalg.norm(found.landmarks_52[:2] - true.landmarks_52[:2], axis=1)
    return 100 * away_2 / np.linalg.norm(right_2 - left_2)


def compare(pairs: list[tuple[list[Face], list[Face]]], threshold: float) -> str:
    """One line on (candidates, true faces) of several pictures."""
    hits, faces, false, errors = 0, 0, 0, [np.empty(0)]
    for candidates, true in pairs:
        found = [face for face in candidates if face.score >= threshold]
        for face in true:
            best = max(found, key=lambda one: overlap(one, face), default=None)
            if best is not None and overlap(best, face) > 0.35:
                hits += 1
                errors.append(eye_errors(best, face))
        faces += len(true)
        false += sum(all(overlap(one, face) <= 0.35 for face in true) for one in found)
    errors_E = np.concatenate(errors)
    middle, high = np.percentile(errors_E, (50, 90)) if len(errors_E) else (math.nan, math.nan)
    return (
        f"score {threshold:.1f}: {hits} of {faces} faces, {false} false, "
        f"eye error {middle:.1f} % median, {high:.1f} % 90th percentile"
    )


def evaluate(
    path: Path, held_out: Materials, photos: Path | None, teacher: YuNetDetector, seed: int
) -> None:
    """Print how the exported file does on held-out scenes and on photographs."""
    detector = BuiltinDetector(path)
    rng = np.random.default_rng(seed + 1)
    pairs = []
    for _ in range(300):
        picture_HWC, boxes_K4, points_K52 = scene(held_out, rng)
        true = [
            Face(box=tuple(box.tolist()), landmarks_52=points, score=1.0)
            for box, points in zip(boxes_K4, points_K52, strict=True)
            if not np.isnan(box[0])
        ]
        pairs.append((detector.candidates(picture_HWC), true))
    for low, high in ((11, 20), (20, 40), (40, 80), (80, 160), (160, 260)):
        of_size = [
            (found, [face for face in true if low**2 <= face.area / 0.8 < high**2])
            for found, true in pairs
        ]
        line = compare(of_size, detector.threshold).split(", ")
        print(f"made-up scenes, faces of {low}-{high} px: {line[0]}, {', '.join(line[2:])}")
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7):
        print(f"made-up scenes, all: {compare(pairs, threshold)}")
    if photos is None:
        return
    pairs = []
    for photo in sorted(photos.glob("*.*")):
        picture_HWC = _decode(photo.read_bytes())
        true = [face for face in teacher.candidates(picture_HWC) if face.score >= teacher.threshold]
        pairs.append((detector.candidates(picture_HWC), true))
        print(f"{photo.name}: {compare(pairs[-1:], detector.threshold)}")
    portraits = [pair for pair in pairs if len(pair[1]) < 3]
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7):
        print(f"portraits: {compare(portraits, threshold)}")


def main() -> None:
    """Label, train, export, evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--faces", type=Path, required=True, help="folder of celeba10k.zip, utk8k.zip, anime4k.zip")
    add("--teacher", type=Path, required=True, help="YuNet's ONNX file")
    add("--photos", type=Path, help="photographs to evaluate on, never trained on")
    add("--backgrounds", type=Path, help="photographs without faces, for backgrounds")
    add("--labels", type=Path, help="where the teacher's answers are kept (.npy)")
    add("--out", type=Path, default=Path("weights/face_detector.onnx"))
    add("--start", type=Path, help="an earlier run's --state (.pt), to go on from")
    add("--state", type=Path, help="where the trained network is kept for a later --start (.pt)")
    add("--steps", type=int, default=8000)
    add("--batch", type=int, default=32)
    add("--rate", type=float, default=4e-3, help="AdamW's largest learning rate")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1, help="for the network; scenes take one more process")
    add("--only-evaluate", action="store_true", help="leave --out as it is and measure it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)

    teacher = YuNetDetector(options.teacher)
    pictures = [
        p for name in ("celeba10k", "utk8k") for p in read_zip(options.faces / f"{name}.zip")
    ]
    crops = labelled(pictures, teacher, options.labels)
    print(f"{len(crops.pictures)} of {len(pictures)} crops labelled")
    learned, held_out = crops.split()
    drawings = read_zip(options.faces / "anime4k.zip")
    backgrounds = sorted(options.backgrounds.iterdir()) if options.backgrounds else []
    photographs = [_decode(path.read_bytes()) for path in backgrounds]

    if not options.only_evaluate:
        materials = Materials(learned, drawings, photographs)
        net = train(
            materials, options.steps, options.batch, options.rate, options.seed, options.start
        )
        if options.state is not None:
            torch.save(net.state_dict(), options.state)
        notes = card(options, len(learned.pictures), [path.stem for path in backgrounds])
        export(net, options.out, notes)
        print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    evaluate(options.out, Materials(held_out, drawings, []), options.photos, teacher, options.seed)


def card(options: argparse.Namespace, crops: int, photographs: list[str]) -> dict[str, str]:
    """What the file says about itself."""
    return {
        "name": "facestyle built-in face detector",
        "licence": "research only, as its training data (CelebA, UTKFace) is",
        "trained_on": json.dumps(
            {
                "face crops of celeba10k and utk8k": crops,
                "labels": "YuNet 2026may, mean over three sizes and mirroring",
                "shreds of anime4k drawings": "as background",
                "pictures without faces as background": photographs,
            }
        ),
        "seed": str(options.seed),
        "steps": f"{options.steps} of {options.batch} scenes",
        "command": (
            "python recipes/face_detector.py --faces FACES --teacher YUNET "
            + ("--backgrounds FOLDER " if photographs else "")
            + ("--start STATE " if options.start else "")
            + f"--steps {options.steps} --batch {options.batch} --rate {options.rate:g} "
            f"--seed {options.seed} --threads {options.threads}"
        ),
        "input": "picture_HWC: uint8 RGB, height and width multiples of 32",
        "output": (
            "a candidate a cell, in px of the input: scores_C in [0, 1]; boxes_C4 left, top, "
            "right, bottom; points_C52 eye, eye, nose, mouth corner, mouth corner, "
            "the picture's left first"
        ),
    }


if __name__ == "__main__":
    main()
