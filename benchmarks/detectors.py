"""The built-in face detector against another one: faces found, landmarks, time.

    python benchmarks/detectors.py --photos ../shared/photos \
        --other ../shared/weights/face_detection_yunet_2026may.onnx

Three questions, on portraits of one face each:

portraits  faces found in each picture as it is
montage    every portrait's head, so scaled that its face is as large as the column says, on a
           grid of 24; how many are found, and what else
landmarks  distance, over the distance of the eyes, to the other detector's landmarks: to its
           answer at the picture's own size, and to its mean over sizes and both mirrorings,
           because its single answers are that far from each other
time       a 640 px picture with six faces, on one thread, the two in turn
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from facestyle.faces import Detector, Face
from facestyle.faces.registry import open_detector
from facestyle.faces.yunet import YuNetDetector
from facestyle.images import read_picture

SIZES = (120, 96, 72, 48, 36, 30, 24)  # longer side of a face's box in px
COLUMNS = 6
HEAD = 1.9  # side of what is cut around a face, in longer sides of its box
GREY = 127
SCALES = (1, 0.75, 0.6, 0.5, 0.4, 0.3, 0.25)  # of a portrait, for a mean over sizes
MIRRORED = [1, 0, 2, 4, 3]  # the order of the five points in a mirrored picture


def found(picture_HWC: np.ndarray, detector: Detector) -> list[Face]:
    """The faces that count."""
    return [f for f in detector.candidates(picture_HWC) if f.score >= detector.threshold]


def head(picture_HWC: np.ndarray, face: Face, size: int) -> np.ndarray:
    """A square around a face whose box's longer side becomes ``size`` px."""
    left, top, right, bottom = face.box
    longer = max(right - left, bottom - top)
    side, scale = round(HEAD * size), size / longer
    x, y = (left + right) / 2, (top + bottom) / 2
    to_head_23 = np.array([[scale, 0, side / 2 - scale * x], [0, scale, side / 2 - scale * y]])
    # Reduced in steps of two at most, or thin lines would break.
    while scale < 0.5:
        picture_HWC = cv2.pyrDown(picture_HWC)
        scale, to_head_23[:, :2] = scale * 2, to_head_23[:, :2] * 2
    border = cv2.BORDER_REPLICATE
    return cv2.warpAffine(picture_HWC, to_head_23, (side, side), None, cv2.INTER_LINEAR, border)


def montage(heads: Sequence[np.ndarray]) -> np.ndarray:
    """Heads in rows."""
    blank_HWC = np.full_like(heads[0], GREY)
    padded = [*heads, *[blank_HWC] * (-len(heads) % COLUMNS)]
    rows = [np.concatenate(padded[i : i + COLUMNS], 1) for i in range(0, len(padded), COLUMNS)]
    return np.concatenate(rows)


def right_and_wrong(faces: Sequence[Face], count: int, side: int) -> tuple[int, int]:
    """Cells with a face at their centre, and faces that are in no such place."""
    cells: set[int] = set()
    wrong = 0
    for face in faces:
        x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
        column, row = int(x // side), int(y // side)
        off = max(abs(x - (column + 0.5) * side), abs(y - (row + 0.5) * side))
        cell = row * COLUMNS + column
        if off > side / 4 or cell >= count or cell in cells:
            wrong += 1
        else:
            cells.add(cell)
    return len(cells), wrong


def best_points(picture_HWC: np.ndarray, detector: Detector) -> np.ndarray:
    """Landmarks of the surest face, px."""
    return max(detector.candidates(picture_HWC), key=lambda face: face.score).landmarks_52


def mean_points(picture_HWC: np.ndarray, detector: Detector) -> np.ndarray:
    """Landmarks as the mean over sizes and both mirrorings, px."""
    answers = []
    for scale in SCALES:
        small_HWC = cv2.resize(picture_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        answers.append(best_points(small_HWC, detector) / scale)
        points_52 = best_points(np.ascontiguousarray(small_HWC[:, ::-1]), detector)[MIRRORED]
        answers.append(np.abs([small_HWC.shape[1], 0] - points_52) / scale)
    return np.mean(answers, axis=0)


def away(found_52: np.ndarray, true_52: np.ndarray) -> np.ndarray:
    """Distances of the five points, over the true distance of the eyes."""
    return np.hypot(*(found_52 - true_52).T) / np.hypot(*(true_52[0] - true_52[1]))


def told(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """One line on (found, true) landmarks."""
    away_N5 = np.array([away(found_52, true_52) for found_52, true_52 in pairs])
    print(f"{name}: {100 * np.median(away_N5):.1f} %, {100 * np.quantile(away_N5, 0.9):.1f} %")


def milliseconds(
    picture_HWC: np.ndarray, detectors: Mapping[str, Detector], rounds: int
) -> dict[str, float]:
    """Medians; the detectors alternate, the first round is left out."""
    took: dict[str, list[float]] = {name: [] for name in detectors}
    for number in range(rounds + 1):
        for name, detector in detectors.items():
            began = time.perf_counter()
            detector.candidates(picture_HWC)
            if number:
                took[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(times) for name, times in took.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="<domain>_* portraits")
    parser.add_argument("--other", type=Path, required=True, help="YuNet's file")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    other: Detector = YuNetDetector(options.other)
    detectors: dict[str, Detector] = {"builtin": open_detector("builtin"), other.name: other}
    paths = sorted(options.photos.glob("*male_*"))
    pictures = [read_picture(path).pixels_HWC for path in paths]
    truth = [max(found(picture, other), key=lambda face: face.area) for picture in pictures]
    print(f"{len(pictures)} portraits, {platform.machine()}, one thread")

    print(f"\n{'portraits':12}" + "".join(f"{name:>10}" for name in detectors))
    counts = {n: sum(len(found(p, d)) for p in pictures) for n, d in detectors.items()}
    print(f"{'faces':12}" + "".join(f"{count:>10}" for count in counts.values()))

    print(f"\n{'montage':12}" + "".join(f"{size:>10} px" for size in SIZES))
    for name, detector in detectors.items():
        cells = []
        for size in SIZES:
            heads = [head(p, face, size) for p, face in zip(pictures, truth, strict=True)]
            faces = found(montage(heads), detector)
            right, wrong = right_and_wrong(faces, len(heads), len(heads[0]))
            cells.append(f"{right}" + (f" (+{wrong})" if wrong else ""))
        print(f"{name:12}" + "".join(f"{cell:>13}" for cell in cells))

    print("\nlandmarks: of the eye distance, median and nine of ten within")
    means = [mean_points(picture, other) for picture in pictures]
    for name, detector in detectors.items():
        pairs = [(best_points(p, detector), m) for p, m in zip(pictures, means, strict=True)]
        told(f"{name} from {other.name}'s mean", pairs)
    pairs = [(best_points(p, detectors["builtin"]), best_points(p, other)) for p in pictures]
    told(f"builtin from {other.name}", pairs)
    halves = [cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for p in pictures]
    pairs = [
        (2 * best_points(h, other), best_points(p, other))
        for h, p in zip(halves, pictures, strict=True)
    ]
    told(f"{other.name} at half the size from itself", pairs)

    heads = [head(p, face, 110) for p, face in zip(pictures[:6], truth, strict=False)]
    scene_HWC = np.full((640, 640, 3), GREY, np.uint8)
    for number, picture in enumerate(heads):
        top, left = 215 * (number // 3) + 5, 212 * (number % 3) + 2
        scene_HWC[top : top + len(picture), left : left + len(picture)] = picture
    for name, value in milliseconds(scene_HWC, detectors, options.rounds).items():
        print(f"time, 640 px, {name}: {value:.1f} ms")


if __name__ == "__main__":
    main()
