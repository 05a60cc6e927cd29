"""The picture at the top of the README: a photo between results of the model that ships.

    python recipes/readme_picture.py

Writes docs/example.jpg from examples/astronaut.jpg, with the built-in detector and fixed seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import facestyle
from facestyle.faces.registry import open_detector
from facestyle.images import read_picture

ROOT = Path(__file__).resolve().parents[1]
WINDOW = (slice(0, 256), slice(112, 368))  # rows and columns around the face
SEEDS = {"female": (1, 0), "male": (0, 3)}


def main() -> None:
    """Restyle, cut, put side by side, write."""
    photo_HWC = read_picture(ROOT / "examples" / "astronaut.jpg").pixels_HWC
    model, detector = facestyle.load("female-male"), open_detector("builtin")

    def results(domain: str) -> list[np.ndarray]:
        styles = [model.sample_style(domain, seed=seed) for seed in SEEDS[domain]]
        return [facestyle.restyle(photo_HWC, model, s, detector=detector) for s in styles]

    row = [*results("female"), photo_HWC, *results("male")]
    strip_HWC = np.concatenate([picture[WINDOW] for picture in row], axis=1)
    (ROOT / "docs").mkdir(exist_ok=True)
    Image.fromarray(strip_HWC).save(ROOT / "docs" / "example.jpg", quality=92)


if __name__ == "__main__":
    main()
