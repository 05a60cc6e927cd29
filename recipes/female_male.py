"""The default model, from a zip of faces to a run folder: ``female``/``male``, StarGAN v2.

    python recipes/female_male.py --faces DIR_WITH_ZIPS --work DIR

Cuts CelebA's aligned crops to the ``celeba-square`` template (a square around the face with
hair and chin in it), holds pictures out for scoring, and prints the ``facestyle train``
command that does the rest. Deterministic; done steps are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from pathlib import Path

from PIL import Image

# CelebA's aligned pictures are 178 × 218; the zip holds them at half that size. This square
# (left, top, side, in px of the half-size picture) is the template ``celeba-square``.
SQUARE = (8, 24, 72)
HELD_OUT = 1000  # pictures at the end of the list that the model never sees


def cut(faces: Path, work: Path) -> None:
    """celeba10k.zip → work/train/<domain>/*.png and work/held-out/<domain>/*.png."""
    with zipfile.ZipFile(faces / "celeba10k.zip") as archive:
        with archive.open("attributes.csv") as file:
            rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
        for number, row in enumerate(rows):
            split = "held-out" if number >= len(rows) - HELD_OUT else "train"
            # Hats and blurred pictures teach the generator artefacts.
            if split == "train" and (row["Wearing_Hat"] == "1" or row["Blurry"] == "1"):
                continue
            folder = work / split / ("male" if row["Male"] == "1" else "female")
            target = folder / f"{Path(row['image_id']).stem}.png"
            if target.exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            left, top, side = SQUARE
            with Image.open(io.BytesIO(archive.read(f"images/{row['image_id']}"))) as picture:
                picture.crop((left, top, left + side, top + side)).save(target)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=Path, required=True, help="folder with celeba10k.zip")
    parser.add_argument("--work", type=Path, default=Path("work/female-male"))
    arguments = parser.parse_args()
    cut(arguments.faces, arguments.work)
    for folder in sorted(arguments.work.glob("*/*")):
        print(f"{folder}: {len(list(folder.iterdir()))} pictures")
    config = Path(__file__).with_suffix(".toml")
    print(f"facestyle train --data {arguments.work / 'train'} --preset compact --config {config}")


if __name__ == "__main__":
    main()
