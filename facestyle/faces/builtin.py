"""The detector that ships with facestyle: a 1 MB network of our own, run by onnxruntime.

Knows how to show it a picture and how to merge what it says. Knows nothing of its strides,
colours and decoding, which are inside the file, nor of how it was trained
(``recipes/face_detector.py``). Free of torch.

Rows are candidates: box (4), points (10), score (1), in px of the picture.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from facestyle.errors import CheckpointError
from facestyle.faces import Face

LOOKS = (192, 320, 640)
"""Longer sides in px at which a picture is shown, until it is shown at its full size. The
network learned from scenes of 256 px and places landmarks best on faces of 40 to 120 px:
large faces are found in a small look, small ones in a large look."""

SMALLEST_FACE = 48
"""Longer side in px of the smallest face that any look but the last may report."""

LARGEST_SCALE = 4.0
"""How far a thumbnail is magnified at most."""

MARGIN = 32
"""Grey around a look in px, so that a face filling the picture has a surrounding."""

GREY = (127, 127, 127)
"""The margin: what the network maps to zero, as its convolutions pad with."""

MULTIPLE = 32
"""Sides of what the network sees are multiples of its coarsest stride, in px."""

LOWEST_SCORE = 0.2
"""Where candidates begin, so that an error can name a near miss."""

OVERLAP = 0.35
"""Intersection over union from which two boxes are one face."""

AGREEMENT = 0.6
"""Intersection over union from which a suppressed box still has a say on the landmarks."""

INPUTS, OUTPUTS = ["picture_HWC"], ["scores_C", "boxes_C4", "points_C52"]


class BuiltinDetector:
    """A ``Detector`` on ``weights/face_detector.onnx``."""

    name = "builtin"
    threshold = 0.6
    """On 300 held-out scenes it finds 87 % of the faces from 11 px on, with one thing in a
    hundred that is none; at 0.5 that is one in thirty, for 3 % more. Portraits score 0.8."""

    def __init__(self, path: Path | str) -> None:
        """Read the file.

        Raises:
            CheckpointError: the file is not this detector's.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # 15 ms a picture: more threads would only wait for each other, and for other pictures'.
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # A broken file is told once, by our own error.
        found = "is no file"
        if Path(path).is_file():
            try:
                self._session = onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                # onnxruntime's exceptions share no class below this one.
                if not type(error).__module__.startswith("onnxruntime"):
                    raise
                found = "is no ONNX file that onnxruntime can read"
            else:
                inputs = [value.name for value in self._session.get_inputs()]
                outputs = [value.name for value in self._session.get_outputs()]
                if (inputs, outputs) == (INPUTS, OUTPUTS):
                    return
                found = f"maps {', '.join(inputs)} to {', '.join(outputs)}"
        raise CheckpointError(
            f"{path} {found}; expected the built-in face detector, which maps "
            f"{', '.join(INPUTS)} to {', '.join(OUTPUTS)}",
            "reinstall facestyle, or choose another detector",
        )

    def candidates(self, picture_HWC: np.ndarray) -> list[Face]:
        """See ``Detector``."""
        rows_N15 = np.empty((0, 15), np.float32)
        for longer_side in LOOKS:
            scale = min(longer_side / max(picture_HWC.shape[:2]), LARGEST_SCALE)
            is_last = scale >= 1 or longer_side == LOOKS[-1]
            finer_M15 = self._look(picture_HWC, scale, 0 if is_last else SMALLEST_FACE)
            rows_N15 = np.concatenate([rows_N15, _outside(finer_M15, rows_N15)])
            if is_last:
                break
        return _merged(rows_N15)

    def _look(self, picture_HWC: np.ndarray, scale: float, smallest_face: int) -> np.ndarray:
        """Rows of what the network sees at one scale."""
        height, width = picture_HWC.shape[:2]
        small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small_HWC = cv2.resize(picture_HWC, (small_width, small_height), interpolation=how)
        below = MARGIN + -(small_height + 2 * MARGIN) % MULTIPLE
        right = MARGIN + -(small_width + 2 * MARGIN) % MULTIPLE
        framed_HWC = cv2.copyMakeBorder(
            small_HWC, MARGIN, below, MARGIN, right, cv2.BORDER_CONSTANT, value=GREY
        )
        scores_C, boxes_C4, points_C52 = self._session.run(OUTPUTS, {INPUTS[0]: framed_HWC})
        side_C = (boxes_C4[:, 2:] - boxes_C4[:, :2]).max(axis=1)
        seen_C = (scores_C >= LOWEST_SCORE) & (side_C >= smallest_face)
        corners_N22 = boxes_C4[seen_C].reshape(-1, 2, 2)
        # Each axis by its own ratio: rounding a thin picture's short side is no small change.
        ratio_2 = np.array([width / small_width, height / small_height], np.float32)
        places_N72 = (np.concatenate([corners_N22, points_C52[seen_C]], axis=1) - MARGIN) * ratio_2
        rows_N15: np.ndarray = np.hstack([places_N72.reshape(-1, 14), scores_C[seen_C, None]])
        return rows_N15


def _outside(finer_M15: np.ndarray, rows_N15: np.ndarray) -> np.ndarray:
    """The rows of a finer look without the pieces of what coarser ones saw as a face."""
    sure_N15 = rows_N15[rows_N15[:, 14] >= BuiltinDetector.threshold]
    centre_M12 = ((finer_M15[:, :2] + finer_M15[:, 2:4]) / 2)[:, None]
    inside_MN = ((centre_M12 > sure_N15[:, :2]) & (centre_M12 < sure_N15[:, 2:4])).all(axis=2)
    return finer_M15[~inside_MN.any(axis=1)]


def _merged(rows_N15: np.ndarray) -> list[Face]:
    """One face for each group of boxes that overlap, best first."""
    sides_N4 = np.hstack([rows_N15[:, :2], rows_N15[:, 2:4] - rows_N15[:, :2]])
    kept = cv2.dnn.NMSBoxes(sides_N4.tolist(), rows_N15[:, 14].tolist(), LOWEST_SCORE, OVERLAP)
    faces = []
    for index in kept:
        # Neighbouring cells saw the same face: their mean is steadier than the best of them.
        weight_N = rows_N15[:, 14] * (_overlap(rows_N15[index], rows_N15) > AGREEMENT)
        mean_14 = weight_N @ rows_N15[:, :14] / weight_N.sum()
        left, top, right, bottom = mean_14[:4].tolist()
        faces.append(
            Face(
                box=(left, top, right, bottom),
                landmarks_52=mean_14[4:].reshape(5, 2).astype(np.float32),
                score=float(rows_N15[index, 14]),
            )
        )
    return faces


def _overlap(row_15: np.ndarray, rows_N15: np.ndarray) -> np.ndarray:
    """Intersection over union of one row's box with many."""
    low_N2 = np.maximum(row_15[:2], rows_N15[:, :2])
    high_N2 = np.minimum(row_15[2:4], rows_N15[:, 2:4])
    inner_N = np.maximum(high_N2 - low_N2, 0).prod(axis=1)
    area_N = (rows_N15[:, 2:4] - rows_N15[:, :2]).prod(axis=1)
    union_N: np.ndarray = (row_15[2:4] - row_15[:2]).prod() + area_N - inner_N
    return inner_N / union_N
