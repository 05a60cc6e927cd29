"""Detectors by name, opened with the files that ``weights`` finds.

``auto`` takes YuNet where its file is on this machine, else the built-in detector, which
ships with facestyle; it never downloads. A detector that is named is fetched when missing.
"""

from __future__ import annotations

from facestyle import weights
from facestyle.errors import UsageError
from facestyle.faces import Detector

DETECTORS = ("auto", "yunet", "retinaface", "builtin")
YUNET_ENTRIES = ("yunet-2026may", "yunet")  # either file will do, the newer one first
RETINAFACE_ENTRIES = ("retinaface-resnet50", "retinaface-mobile0.25")


def detector_entry(name: str = "auto") -> str:
    """Which entry of the index a detector of this name is read from.

    Raises:
        UsageError: no detector of that name.
    """
    if name not in DETECTORS:
        raise UsageError(f"unknown detector '{name}'", f"known: {', '.join(DETECTORS)}")
    if name == "retinaface":
        return _present(RETINAFACE_ENTRIES) or "retinaface-mobile0.25"
    if name == "yunet":
        return _present(YUNET_ENTRIES) or "yunet"
    return (_present(YUNET_ENTRIES) if name == "auto" else None) or "builtin"


def open_detector(
    name: str = "auto", *, offline: bool = False, progress: weights.Progress | None = None
) -> Detector:
    """Open a detector.

    Raises:
        UsageError: no detector of that name.
        WeightsError: its file is not here and could not be fetched.
        CheckpointError: its file is damaged.
    """
    entry = detector_entry(name)
    path = weights.resolve(entry, offline=offline, progress=progress)
    if entry in YUNET_ENTRIES:
        from facestyle.faces.yunet import YuNetDetector

        return YuNetDetector(path)
    if entry in RETINAFACE_ENTRIES:
        from facestyle.faces.retinaface import RetinaFaceDetector

        return RetinaFaceDetector(path)
    from facestyle.faces.builtin import BuiltinDetector

    return BuiltinDetector(path)


def _present(names: tuple[str, ...]) -> str | None:
    """The first of these entries whose file is on this machine."""
    return next((name for name in names if weights.locate(name) is not None), None)
