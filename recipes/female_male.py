"""The default model, from a zip of faces to a run folder: ``female``/``male``, StarGAN v2.

    python recipes/female_male.py cut --faces DIR_WITH_ZIPS --work work/female-male
    facestyle train --data work/female-male/train --preset compact \
        --config recipes/female_male.toml --name female-male
    python recipes/score.py --model runs/female-male-1/model.safetensors ... --work work/score
    python recipes/female_male.py ship --run runs/female-male-1 --scores work/score/scores.json

``cut`` makes CelebA's aligned crops into the ``celeba-square`` template (a square around the face
with hair and chin in it) and holds pictures out; ``ship`` halves the weights' size and writes the
scores into the card. Deterministic; pictures that are there are not cut again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

from facestyle.checkpoint import load_checkpoint, save_model

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


def ship(run: Path, scores: Path, target: Path) -> None:
    """A run's model → the file that ships: float16, named, its scores in the card."""
    checkpoint = load_checkpoint(run / "model.safetensors")
    assert checkpoint.card is not None, "facestyle train writes a card"
    measured = json.loads(scores.read_text(encoding="utf-8"))
    summary = {
        f"{way} {source} to {goal}: {name}": round(measured[way][f"{source} to {goal}"][name], 2)
        for way in ("latent", "reference")
        for source, goal in (("female", "male"), ("male", "female"))
        for name in ("identity", "domain")
    }
    card = replace(
        checkpoint.card,
        name="female-male",
        about="faces between female and male, by seed or by reference; a small CPU-trained model",
        scores=summary,
    )
    save_model(target, checkpoint.parts, card, half=True)
    content = target.read_bytes()
    print(f"{target}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    cutting = steps.add_parser("cut")
    cutting.add_argument("--faces", type=Path, required=True, help="folder with celeba10k.zip")
    cutting.add_argument("--work", type=Path, default=Path("work/female-male"))
    shipping = steps.add_parser("ship")
    shipping.add_argument("--run", type=Path, required=True, help="the finished run")
    shipping.add_argument("--scores", type=Path, required=True, help="recipes/score.py's JSON")
    shipping.add_argument("--target", type=Path, default=Path("weights/female_male.safetensors"))
    arguments = parser.parse_args()
    if arguments.step == "ship":
        ship(arguments.run, arguments.scores, arguments.target)
        return
    cut(arguments.faces, arguments.work)
    for folder in sorted(arguments.work.glob("*/*")):
        print(f"{folder}: {len(list(folder.iterdir()))} pictures")


if __name__ == "__main__":
    main()
