"""The picture at the top of the README: a photo and results of the models that ship.

    python recipes/readme_picture.py

Writes docs/example.jpg from examples/astronaut.jpg, with the built-in detector and fixed seeds:
above the photo between both domains of ``female-male``, below four edits by ``attributes``, and
the drawing by ``portrait-anime``.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import facestyle
from facestyle.edits import Edit
from facestyle.faces.registry import open_detector
from facestyle.images import read_picture

ROOT = Path(__file__).resolve().parents[1]
SIDE = 256  # px
WINDOW = (slice(0, SIDE), slice(112, 112 + SIDE))  # rows and columns around the face
SEEDS = {"female": (1, 0), "male": (0, 3)}
EDITS = (
    Edit(on=("Black_Hair",)),
    Edit(on=("Blond_Hair",)),
    Edit(on=("Brown_Hair",)),
    Edit(on=("Eyeglasses",)),
)


def main() -> None:
    """Restyle, cut, put side by side, write."""
    photo_HWC = read_picture(ROOT / "examples" / "astronaut.jpg").pixels_HWC
    model, detector = facestyle.load("female-male"), open_detector("builtin")

    def results(domain: str) -> list[np.ndarray]:
        styles = [model.sample_style(domain, seed=seed) for seed in SEEDS[domain]]
        return [facestyle.restyle(photo_HWC, model, s, detector=detector) for s in styles]

    above = [*results("female"), photo_HWC, *results("male")]
    attributes, anime = facestyle.load("attributes"), facestyle.load("portrait-anime")
    below = [
        facestyle.restyle(photo_HWC, attributes, attributes.edited(edit), detector=detector)
        for edit in EDITS
    ]
    drawing_HWC = facestyle.restyle(photo_HWC, anime, anime.style("anime"), detector=detector)
    drawing_HWC = cv2.resize(drawing_HWC, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    rows = [
        np.concatenate([picture[WINDOW] for picture in above], axis=1),
        np.concatenate([*(picture[WINDOW] for picture in below), drawing_HWC], axis=1),
    ]
    (ROOT / "docs").mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(ROOT / "docs" / "example.jpg", quality=92)


if __name__ == "__main__":
    main()
