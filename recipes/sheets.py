"""How scores are shown: contact sheets of thumbnails with notes, and tables of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

Row = Sequence[np.ndarray]  # pictures of one size


def noted(picture_HWC: np.ndarray, note: str = "") -> np.ndarray:
    """A thumbnail with a line of text below."""
    return np.concatenate([picture_HWC, label(note, picture_HWC.shape[1])])


def label(text: str, width: int) -> np.ndarray:
    """A line of text, 16 px high."""
    line_HWC = np.full((16, width, 3), 255, np.uint8)
    return cv2.putText(line_HWC, text, (4, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, 16)


def write_sheet(path: Path, titles: Sequence[str], rows: Sequence[Row]) -> None:
    """Rows of thumbnails below a line of titles."""
    head = [label(title, rows[0][0].shape[1]) for title in titles]
    lines = [np.concatenate(row, axis=1) for row in [head, *rows]]
    cv2.imwrite(str(path), np.concatenate(lines)[..., ::-1])


def table(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Groups as lines, their keys as columns."""
    keys = list(next(iter(groups.values())))
    width = max(24, len(title), *(len(name) + 2 for name in groups))
    lines = [f"\n{title:{width}}" + "".join(f"{key:>12}" for key in keys)]
    for name, values in groups.items():
        lines.append(f"  {name:{width - 2}}" + "".join(f"{values[key]:>12.4g}" for key in keys))
    return "\n".join(lines)
