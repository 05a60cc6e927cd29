"""A small example of every other family, from the zips of faces to run folders.

    python recipes/examples.py cut --faces DIR_WITH_ZIPS --work work/examples
    python recipes/examples.py train --work work/examples --only ugatit --steps 4000

| family     | learns                                             | from                          |
|------------|----------------------------------------------------|-------------------------------|
| ugatit     | portrait ↔ anime (light)                           | CelebA, anime faces           |
| cyclegan   | female ↔ male                                      | CelebA                        |
| stargan    | hair colours, age, gender                          | CelebA's attributes           |
| pix2pix    | edges → face                                       | CelebA and its Canny edges    |
| bicyclegan | edges → face, with a latent code                   | the same pairs                |

They show that losses fall and that pictures change as asked; nothing of them ships. ``cut`` is
deterministic and leaves pictures that are there; ``train`` is ``facestyle train --preset compact``
with the learning rate's fall fitted to ``--steps``.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from models import Printed
from PIL import Image

from facestyle import training

SQUARE = (8, 24, 72)  # left, top, side in CelebA's crop of 89 × 109 px: the template celeba-square
HELD_OUT = 200  # pictures of each kind at the end, for previews and scores
ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
EDGES = (80, 160)  # Canny's thresholds on the crop, chosen by eye: features, little skin

DATA = {
    "ugatit": "portrait-anime",
    "cyclegan": "female-male",
    "stargan": "attributes",
    "pix2pix": "edges",
    "bicyclegan": "edges",
}


def celeba(faces: Path, number: int) -> Iterator[tuple[Image.Image, dict[str, str], bool]]:
    """Square face crops with their attributes, and whether each is held out."""
    with zipfile.ZipFile(faces / "celeba10k.zip") as archive:
        with archive.open("attributes.csv") as file:
            rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
        # Hats and blurred pictures teach a generator artefacts.
        rows = [row for row in rows if row["Wearing_Hat"] != "1" and row["Blurry"] != "1"]
        left, top, side = SQUARE
        for place, row in enumerate(rows[:number]):
            with Image.open(io.BytesIO(archive.read(f"images/{row['image_id']}"))) as picture:
                crop = picture.convert("RGB").crop((left, top, left + side, top + side))
            yield crop, row, place >= number - HELD_OUT


def save(picture: Image.Image, path: Path) -> None:
    """Write once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def edges_of(crop: Image.Image) -> Image.Image:
    """Black lines on white."""
    grey = cv2.cvtColor(np.asarray(crop), cv2.COLOR_RGB2GRAY)
    return Image.fromarray(255 - cv2.Canny(grey, *EDGES)).convert("RGB")


def cut(faces: Path, work: Path, number: int) -> None:
    """All data sets, each with ``train`` and ``val``."""
    rows: dict[str, list[list[str]]] = {"train": [], "val": []}
    for place, (crop, row, held_out) in enumerate(celeba(faces, number)):
        half, name = "val" if held_out else "train", f"{place:05d}.png"
        gender = "male" if row["Male"] == "1" else "female"
        save(crop, work / "female-male" / half / gender / name)
        save(crop, work / "portrait-anime" / half / "portrait" / name)
        save(crop, work / "attributes" / half / name)
        rows[half].append([name, *("1" if row[a] == "1" else "0" for a in ATTRIBUTES)])
        pair = Image.new("RGB", (2 * crop.width, crop.height))
        pair.paste(edges_of(crop), (0, 0))
        pair.paste(crop, (crop.width, 0))
        save(pair, work / "edges" / half / name)
    for half, lines in rows.items():
        with (work / "attributes" / half / "attributes.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file", *ATTRIBUTES], *lines])
    with zipfile.ZipFile(faces / "anime4k.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:number]
        for place, name in enumerate(names):
            half = "val" if place >= len(names) - HELD_OUT else "train"
            with Image.open(io.BytesIO(archive.read(name))) as picture:
                save(picture.convert("RGB"), work / "portrait-anime" / half / "anime" / name)


def train(work: Path, family: str, steps: int, threads: int) -> None:
    """One run in ``work/runs/<family>-N``."""
    fall = {"ugatit": {"lr_fall_from": steps // 2, "lr_fall_to": steps}}
    halves = {"constant_steps": steps // 2, "decay_steps": steps - steps // 2}
    domains = {
        "ugatit": "portrait,anime",
        "cyclegan": "female,male",
        "stargan": ",".join(ATTRIBUTES),
    }
    run = {
        "steps": steps,
        "threads": threads,
        "sample_every": max(1, steps // 5),
        "save_every": max(1, steps // 5),
        "alignment": "celeba-square",
        "licence": "research only (trained on CelebA)",
        "domains": domains.get(family, ""),
    }
    if family in ("pix2pix", "bicyclegan"):
        run["alignment"] = "none"  # their input is a drawing
    training.start(
        work / DATA[family],
        family=family,
        preset="compact",
        tables={"run": run, family: fall.get(family, halves)},
        runs=work / "runs",
        name=family,
        command=f"python recipes/examples.py train --only {family} --steps {steps}",
        watcher=Printed(),
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    cutting = steps.add_parser("cut")
    cutting.add_argument("--faces", type=Path, required=True, help="folder with the zips")
    cutting.add_argument("--number", type=int, default=4000, help="pictures of each data set")
    fitting = steps.add_parser("train")
    fitting.add_argument("--only", choices=sorted(DATA), required=True)
    fitting.add_argument("--steps", type=int, default=4000)
    fitting.add_argument("--threads", type=int, default=0)
    for parsed in (cutting, fitting):
        parsed.add_argument("--work", type=Path, default=Path("work/examples"))
    arguments = parser.parse_args()
    if arguments.step == "cut":
        cut(arguments.faces, arguments.work, arguments.number)
    else:
        train(arguments.work, arguments.only, arguments.steps, arguments.threads)


if __name__ == "__main__":
    main()
