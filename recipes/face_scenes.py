"""Face crops, a teacher's labels of them, and the scenes made up of both: what the face detector
learns from (``face_detector``).

    picture_HWC uint8 RGB      boxes_K4, points_K52  the faces of a scene, px; missing ones are NaN
"""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import IterableDataset

from facestyle.faces.yunet import YuNetDetector

SCENE = 256
"""Side of a training scene in px; ``builtin.py`` shows the network large faces no larger."""

SMALLEST_FACE, LARGEST_FACE = 11, 250
"""Longer side of a pasted face's box in px: one cell and a half, and all of a scene."""

MOST_FACES = 16
"""Faces in one scene at most; the length to which targets are padded."""

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
        return [decode(archive.read(name)) for name in names]


def decode(data: bytes) -> np.ndarray:
    """A picture file's content as RGB."""
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
        return decode(coded.tobytes())
    return canvas_HWC
