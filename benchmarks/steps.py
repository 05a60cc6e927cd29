"""Where the time of one photo goes, on one thread: detect, translate, paste.

    python benchmarks/steps.py                    # the models that ship, the sample photo
    python benchmarks/steps.py --photo a.jpg --rounds 50

Pasting once with each mask, whichever the model has: an ellipse, what ``masks.skin`` finds, or
all of the crop. Everything alternates in one process, and the ratios of the medians count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import facestyle
from facestyle.batch import side_by_side
from facestyle.card import PASTED
from facestyle.edits import Edit
from facestyle.faces.registry import open_detector
from facestyle.images import read_picture
from facestyle.pipeline import (
    aligned_faces,
    finish_for,
    finished,
    translate_crops,
)
from facestyle.translator import Style, Translator

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("female-male", "portrait-anime", "attributes")


def some_style(model: Translator) -> Style:
    """One that the model has, all the same which."""
    if "latent" in model.card.styles:
        return model.sample_style(model.card.domains[-1], seed=0)
    if "attributes" in model.card.styles:
        return model.edited(Edit(flip=(model.card.domains[-1],)))
    return model.style(model.card.domains[-1])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path, default=ROOT / "examples" / "astronaut.jpg")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-joined")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    photo_HWC = read_picture(options.photo).pixels_HWC
    detector = open_detector("builtin")
    print(f"{options.photo.name}, {photo_HWC.shape[1]} x {photo_HWC.shape[0]} px; ms")
    for name in options.models.split(","):
        model = facestyle.load(name)
        style, card = some_style(model), model.card
        aligned = aligned_faces(photo_HWC, model, detector=detector)
        faces = translate_crops(aligned, model, style)
        finish = finish_for(card, card.alignment, style, crop_only=False)
        steps: dict[str, Callable[[], object]] = {
            "detect": lambda model=model: aligned_faces(photo_HWC, model, detector=detector),
            "translate": lambda a=aligned, m=model, s=style: translate_crops(a, m, s),
        }
        for pasted in PASTED:
            masked = [
                replace(face, aligned=replace(face.aligned, pasted=(pasted,))) for face in faces
            ]
            steps[f"paste, {pasted}"] = lambda f=masked, how=finish: finished(photo_HWC, f, how)
        times: dict[str, list[float]] = {step: [] for step in steps}
        with side_by_side():  # on one thread, as in a folder
            for _ in range(options.rounds):
                for step, do in steps.items():
                    began = time.perf_counter()
                    do()
                    times[step].append(1e3 * (time.perf_counter() - began))
        told = "  ".join(f"{step} {statistics.median(ms):.1f}" for step, ms in times.items())
        print(f"{name} (its own mask: {card.pasted}): {told}", flush=True)


if __name__ == "__main__":
    main()
