"""YuNet (Wu et al. 2023, doi:10.1007/s11633-023-1423-y) through OpenCV's FaceDetectorYN.

Knows at which sizes YuNet sees well. Knows nothing of where its file comes from, and
nothing of its decoding: priors, strides and suppression are OpenCV's. The file of
OpenCV 5 (2026may) and the older 2023mar one both work. Free of torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from facestyle.errors import CheckpointError
from facestyle.faces import Face

LONGER_SIDE = 1280
"""In px, what the picture's longer side is scaled down to. YuNet was trained on faces of 10
to some 300 px: small ones are found here, those of 800 px and more fall to pieces."""

SECOND_LOOK_SIDE = 320
LARGEST_SCALE = 4.0
SMALLEST_FACE = 128
"""A second look in px, how far it magnifies a thumbnail, and the smallest face that it may
report. It sees a face that fills the picture: score 0.9, where the first look says 0.5."""

ONE_LOOK_SIDES = (160, 640)
"""Longer sides in px between which the first look sees faces of every size well."""

LOWEST_SCORE = 0.3
"""Where candidates begin, so that an error can name a near miss."""

OVERLAP = 0.3
"""Intersection over union from which two boxes are one face; OpenCV's own default."""

MOST_CANDIDATES = 5000
"""Boxes kept before suppression; OpenCV's own default."""


class YuNetDetector:
    """A ``Detector`` on a YuNet ONNX file."""

    name = "yunet"
    threshold = 0.6
    """On photographs faces score above 0.85 and other things below 0.5; blurred or
    half-hidden faces lie between. 0.6 keeps those, like OpenCV's own demonstration."""

    def __init__(self, path: Path | str) -> None:
        """Read the file.

        Raises:
            CheckpointError: the file is no YuNet.
        """
        self._lock = threading.Lock()  # The network's input size is state of the object.
        refusal = CheckpointError(
            f"{path} is no YuNet face detector: expected an ONNX file that OpenCV's "
            f"FaceDetectorYN {cv2.__version__} can run",
            "fetch it again, or choose another detector",
        )
        try:
            # As bytes, for on Windows OpenCV opens no path beyond ASCII.
            content = np.frombuffer(Path(path).read_bytes(), np.uint8)
        except OSError as error:
            raise refusal from error
        try:
            with _quiet_opencv():
                self._network = cv2.FaceDetectorYN.create(
                    "onnx", content, np.empty(0, np.uint8), (320, 320),
                    LOWEST_SCORE, OVERLAP, MOST_CANDIDATES,
                )  # fmt: skip
                self._network.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error as error:
            raise refusal from error

    def candidates(self, picture_HWC: np.ndarray) -> list[Face]:
        """See ``Detector``."""
        rows_N15 = self._look(picture_HWC, LONGER_SIDE, 1.0)
        smallest, largest = ONE_LOOK_SIDES
        if not smallest <= max(picture_HWC.shape[:2]) <= largest:
            whole_M15 = self._look(picture_HWC, SECOND_LOOK_SIDE, LARGEST_SCALE, SMALLEST_FACE)
            rows_N15 = np.concatenate([whole_M15, _outside(rows_N15, whole_M15)])
        if not len(rows_N15):
            return []
        kept = cv2.dnn.NMSBoxes(
            rows_N15[:, :4].tolist(), rows_N15[:, 14].tolist(), LOWEST_SCORE, OVERLAP
        )
        return [_face(rows_N15[index]) for index in kept]

    def _look(
        self,
        picture_HWC: np.ndarray,
        longer_side: int,
        largest_scale: float,
        smallest_face: int = 0,
    ) -> np.ndarray:
        """YuNet's rows in px of the picture: left, top, width, height, 5 points, score."""
        height, width = picture_HWC.shape[:2]
        scale = min(longer_side / max(height, width), largest_scale)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small_HWC = cv2.resize(picture_HWC, size, interpolation=how)
        with self._lock:
            self._network.setInputSize(size)
            _, rows_N15 = self._network.detect(cv2.cvtColor(small_HWC, cv2.COLOR_RGB2BGR))
        if rows_N15 is None:
            return np.empty((0, 15), np.float32)
        rows_N15 = rows_N15[rows_N15[:, 2:4].max(axis=1) >= smallest_face]
        # Each axis by its own ratio: rounding a thin picture's short side is no small change.
        rows_N15[:, :14] *= np.tile(np.divide((width, height), size), 7)
        return rows_N15


def _outside(rows_N15: np.ndarray, whole_M15: np.ndarray) -> np.ndarray:
    """The rows without the pieces of what a second look saw as a whole face."""
    sure_M15 = whole_M15[whole_M15[:, 14] >= YuNetDetector.threshold]
    centre_N12 = (rows_N15[:, :2] + rows_N15[:, 2:4] / 2)[:, None]
    low_M2, high_M2 = sure_M15[:, :2], sure_M15[:, :2] + sure_M15[:, 2:4]
    inside_NM = ((centre_N12 > low_M2) & (centre_N12 < high_M2)).all(axis=2)
    return rows_N15[~inside_NM.any(axis=1)]


def _face(row_15: np.ndarray) -> Face:
    """A row as a ``Face``; YuNet's first eye is the person's right one, as ours is."""
    left, top, width, height = row_15[:4].tolist()
    return Face(
        box=(left, top, left + width, top + height),
        landmarks_52=row_15[4:14].reshape(5, 2).astype(np.float32),
        score=float(row_15[14]),
    )


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV's complaints belong into our one error, not on the user's terminal."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
