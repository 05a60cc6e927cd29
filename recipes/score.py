"""Score a model on faces that it has not seen, and draw contact sheets.

    python recipes/score.py --model weights/female_male.safetensors --faces ../shared/faces \
        --photos ../shared/photos --weights ../shared/weights --work work/score

What is measured follows from the model's card. On whole photos, through ``facestyle.restyle``,
the path that users take (drawings pasted, as by ``--paste``):

identity   cosine of a face embedding (MobileFaceNet) between photo and result
change     mean colour distance between the faces of photo and result, CIE76
seam       gradient across the edge of what was pasted, over that in the same place of the photo
           that it was pasted into (of a model that moves shapes, the photo with its shape moved)

**Female and male, latent styles and references (StarGAN v2)**

domain     share of results in which a classifier sees the domain that was asked for; it is
           trained here, on UTKFace, apart from the model, which may have seen the same pictures
diversity  mean distance between ten latent styles of a photo, embedding and pixels (0 to 255)
following  whether the face's colour follows the reference's

**Attributes (StarGAN)**: each hair colour put on where it is not, all else reversed

asked      share in which a classifier, not the model's own, sees what was asked for. It says
           as well what the photo has, and so what there is to ask for. It learns from CelebA's
           labels, as the model did, and shares their mistakes: ``classifier`` says how often it
           is right about faces ``without`` and ``with`` an attribute, and how often answering
           always the same would be (``majority``). Hair outside what is pasted stays as it was
softened   the same share of the photos themselves at a 64 px model's resolution: what a
           result owes to blur and to the classifier's doubt
kept       share of the attributes not asked for (nor of its exclusive group) that it sees unmoved

**Portrait and anime (U-GAT-IT)**, on the model's own crops, nothing pasted; ``--held-out`` has
``portrait/`` and ``anime/``, pictures that were never trained on (``val`` of recipes/models.py),
the portraits cut once more as tight as a photo's face is

kid        KID on MobileFaceNet features between results and held-out pictures of the other kind,
           all at the model's resolution; the features are made for photos, so it compares
           models on this data, and no published KID. Beside it that of the sources themselves
           (``untouched``: doing nothing) and of one half of the real ones against the other
           (``halves``: perfect; of 195 drawings a draw's deviation is 0.02, of 24 photos 0.04)
domain     share in which a classifier sees the other kind; trained on the archives without the
           held-out pictures. Telling photo from drawing is easy: a necessary thing, not much
cycle      there and back again: identity, and the mean difference of pixels (0 to 255)
mirrored   mean difference between the mirrored picture's result and the result, mirrored (0 to
           255): whether both sides of a face are drawn alike

What is not measured: realism (look at the sheets). Read the numbers together: a model that does
nothing has identity 1 and seam 1, and fails at domain. The embedding also tells women from men
and young from old, so both at once have a price: ``strangers`` is the identity of two people,
``softened`` that of a photo and its copy at a 64 px model's resolution. ``--detail`` moves along
that price: 0 shows what the network does, the default what users get. The portraits
(``female_*``, ``male_*``) are few: a share of 36 results from 12 photos is good to some 10 points.

On one machine the same arguments give the same scores. Training a classifier takes some
5 minutes on a CPU core and is not repeated while its file is in ``--work``.
``scores.json`` has all numbers, and as ``card`` those for the model's card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import judges
import reports
import torch
from sheets import table, write_sheet

import facestyle
from facestyle.backends.on_torch import computes_bf16
from facestyle.faces.yunet import YuNetDetector
from facestyle.opening import model_file

KINDS: Mapping[str, tuple[Callable[[reports.Bench], reports.Report], Mapping[str, Any]]] = {
    # How styles can be had, by the card: what is reported, its own options and their defaults.
    "latent": (
        reports.of_latent,
        {"held_out": None, "seeds": 3, "references": 3, "psi": 1.0},
    ),
    "attributes": (reports.of_attributes, {}),
    "fixed": (reports.of_fixed, {"held_out": None}),
}


def parse(
    arguments: Sequence[str] | None,
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The arguments; options of one kind of model are None where they were not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, help="a checkpoint, or a name that facestyle knows")
    add("--faces", type=Path, required=True, help="folder with the zips of faces")
    add("--photos", type=Path, required=True, help="folder with female_* and male_* portraits")
    add("--weights", type=Path, required=True, help="folder with YuNet and MobileFaceNet")
    add("--held-out", type=Path, help="<domain>/ folders of more faces: see the docstring")
    add("--work", type=Path, default=Path("work/score"))
    add("--seeds", type=int, help="latent styles a photo and domain (default: 3)")
    add("--references", type=int, help="references a photo and domain (default: 3)")
    add("--psi", type=float, help="truncation of latent styles (default: 1)")
    add(
        "--detail",
        type=float,
        help="of the photo that stays, see facestyle.restyle (default: what users get)",
    )
    add(
        "--tone",
        type=float,
        help="of the photo's skin tone that stays, see facestyle.restyle (default: as users get)",
    )
    add("--seed", type=int, default=0, help="of the classifier's training")
    add(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="of the classifier's training (default: bf16 where it is fast)",
    )
    add("--threads", type=int, default=1)
    add("--thumbnail", type=int, default=160, help="px")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, choose, measure, write; by default what the command line asks for."""
    parser, options = parse(arguments)
    model = facestyle.load(options.model)
    kind = next(kind for kind in KINDS if kind in model.card.styles)
    report_of, own = KINDS[kind]
    for name in sorted({name for _, owned in KINDS.values() for name in owned}):
        if name not in own and getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} means nothing to a model of {kind} styles")
        if getattr(options, name) is None:
            setattr(options, name, own.get(name))
    if kind == "latent":
        model = facestyle.load(options.model, domains=judges.GENDERS)
        if options.references < 2:
            parser.error("--references 2 or more: following compares a photo's references")
    if kind == "fixed" and (set(model.card.domains) != set(judges.KINDS) or not options.held_out):
        parser.error(
            f"a model of {', '.join(model.card.domains)}: only {' and '.join(judges.KINDS)} have "
            "judges, and they want --held-out"
        )

    if options.precision == "auto":
        options.precision = "bf16" if computes_bf16("cpu") else "fp32"
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    files = {
        "model": model_file(options.model),
        "detector": options.weights / "face_detection_yunet_2026may.onnx",
        "embedding": options.weights / "mobilefacenet.onnx",
    }
    detector = YuNetDetector(files["detector"])
    bench = reports.Bench(
        model=model,
        people=judges.portraits(options.photos, detector),
        detector=detector,
        embed=judges.open_embedding(files["embedding"]),
        options=options,
    )
    report = report_of(bench)

    print("\n".join(table(title, groups) for title, groups in report.scores.items() if groups))
    files |= report.files
    document = {
        "settings": {
            name: getattr(options, name)
            for name in ("detail", "tone", "seed", "precision", *own)
            if name != "held_out"
        },
        "portraits": len(bench.people),
        "sha256": {name: judges.sha256(path.read_bytes()) for name, path in files.items()},
        **report.scores,
        "card": report.card,
    }
    (work / "scores.json").write_text(json.dumps(document, indent=2) + "\n")
    for name, (titles, rows) in report.sheets.items():
        write_sheet(work / f"{name}.png", titles, rows)


if __name__ == "__main__":
    main()
