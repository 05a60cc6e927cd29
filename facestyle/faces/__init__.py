"""Faces in a picture: what a detector returns, and how the tool picks one.

Knows nothing of how a face is found (one file a detector beside this one) nor of
what is done with it (``align``). Imports numpy alone, so it is free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from facestyle.errors import NoFaceError, UsageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """One face, in pixels of the picture it was found in (x to the right, y down)."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom; may reach beyond the picture."""
    landmarks_52: np.ndarray
    """float32 (5, 2): eye centre, eye centre, nose tip, mouth corner, mouth corner; the
    eye and the corner on the picture's left come first (the person's own right)."""
    score: float
    """The detector's confidence in [0, 1]."""

    @property
    def area(self) -> float:
        """Box area in square pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class Detector(Protocol):
    """Finds faces of any size in a picture of any size."""

    name: str
    """Short name for messages: ``yunet``, ``retinaface``, ``builtin``."""
    threshold: float
    """The score from which a candidate counts as a face, unless the user says otherwise."""

    def candidates(self, picture_HWC: np.ndarray) -> list[Face]:
        """All candidates of an RGB uint8 picture after non-maximum suppression, best first.

        Goes well below ``threshold``, so that an error can say how close the best one came.
        """
        ...


def find_faces(
    picture_HWC: np.ndarray, detector: Detector, min_score: float | None = None
) -> list[Face]:
    """The faces of a picture, largest first.

    Raises:
        NoFaceError: no candidate reaches ``min_score`` (default: the detector's threshold).
    """
    threshold = detector.threshold if min_score is None else min_score
    candidates = detector.candidates(picture_HWC)
    faces = [face for face in candidates if face.score >= threshold]
    if not faces:
        best = max((face.score for face in candidates), default=0.0)
        found = f"best score {best:.2f}, threshold {threshold:.2f}, detector {detector.name}"
        lower = int(best * 10) / 10
        hint = (
            f"try --min-score {lower:.1f}"
            if lower >= 0.2
            else "try a larger or more frontal face, or --align none for a ready crop"
        )
        raise NoFaceError(f"no face found ({found})", hint)
    return sorted(faces, key=lambda face: face.area, reverse=True)


def check_choice(which: str) -> None:
    """Raises UsageError unless ``which`` is ``largest``, ``all``, or a number from 1."""
    if which not in ("largest", "all") and not (which.isdecimal() and int(which) > 0):
        raise UsageError(
            f"unknown face choice '{which}'", "use largest, all, or a number from 1 (largest first)"
        )


def choose_faces(faces: Sequence[Face], which: str) -> list[Face]:
    """``faces`` (largest first) narrowed to ``largest``, ``all``, or the N-th largest, from 1.

    Raises:
        UsageError: ``which`` is none of these, or there are fewer than N faces.
    """
    check_choice(which)
    if which == "all":
        return list(faces)
    number = 1 if which == "largest" else int(which)
    if number > len(faces):
        raise UsageError(
            f"face {number} was asked for, found {len(faces)}",
            "faces are numbered from 1, the largest first; --face all takes every one",
        )
    return [faces[number - 1]]
