"""A small example of each family of which no model ships, from the zip of faces to a run folder.

    python recipes/examples.py pix2pix --faces DIR_WITH_ZIPS --steps 4000

| family     | learns                           | from                       |
|------------|----------------------------------|----------------------------|
| cyclegan   | female ↔ male                    | CelebA                     |
| pix2pix    | edges → face                     | CelebA and its Canny edges |
| bicyclegan | edges → face, with a latent code | the same pairs             |

They show that losses fall and that pictures change as asked. The data is that of
``recipes/models.py``, made where it is not there; the run is ``facestyle train --preset compact``
with the learning rate's fall fitted to ``--steps``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np
from models import LICENCE, Printed, data_of

from facestyle import training

FACES = "female-male-celeba"
EDGES = (80, 160)  # Canny's thresholds on the crop, chosen by eye: features, little skin


def edges_of(crop_HWC: np.ndarray) -> np.ndarray:
    """Black lines on white."""
    grey_HW = cv2.cvtColor(crop_HWC, cv2.COLOR_BGR2GRAY)
    return cv2.cvtColor(255 - cv2.Canny(grey_HW, *EDGES), cv2.COLOR_GRAY2BGR)


def pairs(faces: Path, out: Path) -> Path:
    """Edges and face side by side, of every crop in ``faces``, halves kept; or what is there."""
    if not out.is_dir():
        half_made = out.with_name(f".{out.name}")
        shutil.rmtree(half_made, ignore_errors=True)
        for path in sorted(faces.glob("*/*/*.png")):
            crop_HWC = cv2.imread(str(path))
            assert crop_HWC is not None, path
            target = half_made / path.relative_to(faces).parts[0] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), np.concatenate([edges_of(crop_HWC), crop_HWC], axis=1))
        half_made.rename(out)
    return out


def main() -> None:
    """Parse, prepare, train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=("cyclegan", "pix2pix", "bicyclegan"))
    parser.add_argument("--faces", type=Path, required=True, help="folder with the zips")
    parser.add_argument("--work", type=Path, default=Path("work/models"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    data = data_of(FACES, options.faces, options.work)
    domains, alignment = "female,male", "celeba-square"
    if options.family != "cyclegan":
        data = pairs(data, options.work / "data" / "edges")
        domains, alignment = "", "none"  # their input is a drawing
    falls = options.steps // 2
    training.start(
        data,
        family=options.family,
        preset="compact",
        tables={
            "run": {
                "steps": options.steps,
                "threads": options.threads,
                "sample_every": max(1, options.steps // 5),
                "save_every": max(1, options.steps // 5),
                "alignment": alignment,
                "licence": LICENCE,
                "domains": domains,
            },
            options.family: {"constant_steps": options.steps - falls, "decay_steps": falls},
        },
        runs=options.work / "runs",
        name=options.family,
        command=f"python recipes/examples.py {options.family} --steps {options.steps}",
        watcher=Printed(),
    )


if __name__ == "__main__":
    main()
