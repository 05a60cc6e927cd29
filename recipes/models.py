"""The models that ship, each from zips of faces to a run folder, scores and sheets of portraits.

    python recipes/models.py portrait-anime --faces ZIPS --photos PORTRAITS --weights JUDGES
    python recipes/models.py female-male --faces ZIPS --scale gpu --device cuda

| model          | family     | learns                                 | from                     |
|----------------|------------|----------------------------------------|--------------------------|
| female-male    | StarGAN v2 | female ↔ male, by seed or by reference | CelebA's and UTKFace's   |
| portrait-anime | U-GAT-IT   | portrait ↔ anime (light)               | the same, anime faces    |
| attributes     | StarGAN    | hair, age, gender, glasses, smile      | the same, CelebA's list  |

The data is made by ``facestyle prepare``'s code and the run by ``facestyle train``'s. Whatever is
done is not done again: killed or stopped (Ctrl-C and SIGTERM save first), the same command goes
on, so ``timeout -s TERM 9m python recipes/models.py ...`` again and again is a long run too.
``--scale gpu`` is 128 px and large batches, for half an hour of a data-centre GPU, or for as long
as ``--minutes`` says; ``cpu`` is 48 to 128 px, for hours on two cores. With ``--photos`` and
``--weights`` the end is ``work/<model>-scores/``: what ``score.py`` measures, and every portrait
with what becomes of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import judges
import numpy as np
import score

from facestyle import training
from facestyle.backends.on_torch import computes_bf16
from facestyle.training import prepare
from facestyle.training.loop import Progress, Sheet, saved_checkpoints

CELEBA = "Aligned CelebA crops, a 72 px square around the face"
WITH_ANIME = (
    "Aligned CelebA crops, an 80 px square with the hair; anime faces, 96 px, of no stated licence"
)
LICENCE = "research only (trained on CelebA, whose pictures are for non-commercial research)"
BOTH = "research only (trained on CelebA and UTKFace, for non-commercial research both)"
MARGIN = 1 / 4  # of a UTKFace crop's side, by which its border is drawn out
ATTRIBUTES = "Black_Hair,Blond_Hair,Brown_Hair,Eyeglasses,Male,Smiling,Young"
HALVES = ("train", "val")
TRAINED = 0.75  # of the minutes; penalties, sheets, checkpoints and waiting take the rest
SCHEDULES = (  # settings that count iterations, and follow a run that is made longer or shorter
    "lr_fall_from", "lr_fall_to", "diversity_steps", "constant_steps", "decay_steps",
    "warmup_steps", "warp_steps", "roughness_steps",
)  # fmt: skip


Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run. A later one begins with the networks of the one before."""

    tables: Tables
    """Settings beside the compact preset's, by table."""
    data: str = ""
    """Of ``data_of``; empty: the recipe's name."""
    fresh: bool = False
    """Whether its discriminators begin anew, as they must where they are of other sizes."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one model is made of and how."""

    family: str
    about: str
    """For the card."""
    domains: str = ""
    licence: str = LICENCE
    """Of what is learned."""
    alignment: str = "celeba-square"
    """Of the pictures, see ``facestyle.faces.align``."""
    pasted: str = ""
    """What of a crop goes back into a photo, where not what suits the family."""
    on_skin: str = ""
    """Domains of which only what they do to the skin goes back."""
    as_shade: str = ""
    """Domains of which only where they darken is kept."""
    on_hair: str = ""
    """Domains that are colours of hair, of which only what they do to it goes back."""
    drawings: str = ""
    """Domains that are."""
    eyes: float = 1.0
    """How many times as large a photo's are made before it becomes a drawing."""
    mouth: float = 0.0
    """How many times as large a photo's mouth is in a drawing, where it is to be the photo's."""
    both_ways: bool = False
    """Whether a result is to be the mean with that of the mirrored face."""
    held_out: bool = False
    """Whether ``score.py`` is to see what of the data was not trained on."""
    cpu: Sequence[Stage]
    gpu: Sequence[Stage]


def _female_male(steps: int, batch_size: int, **settings: Any) -> Tables:
    """Tables of female-male: a painter that first learns to move and treats both sides of a face
    alike, a judge that is kept knowing women from men, a style encoder that is kept reading
    colours, and drawn styles like those that it reads."""
    return {
        "run": {"steps": steps, "batch_size": batch_size},
        "stargan-v2": {
            "image_size": 128,
            "first_width": 16,
            "roughness": 1.5,
            "roughness_steps": steps // 2,
            "judge": "plain",
            "warmup_steps": 600,
            "warp": 40.0,
            "warp_steps": 900,
            "other_domain": 0.6,
            "mismatch": 1.0,
            "colour": 2.5,
            "codes": 1.0,
            "mirror": 3.0,
            "tone": 1.0,
            "style": 0.1,
            "diversity": 0.6,
            "diversity_steps": steps,
            "lr": 3e-4,
            "mapping_lr": 3e-4,
            "r1": 0.2,
            "r1_every": 4,
            "ema": 0.995,
            **settings,
        },
    }


def _anime(side: int, steps: int, batch_size: int, warmup: int, **settings: Any) -> Tables:
    """Tables of a stage of portrait-anime: generators that restore what is spoilt and treat both
    sides of a face alike, and a judge that leads. It sees no colours, for they are the photo's,
    which a loss holds; no forehead, for it would have a fringe drawn on each; patches beside the
    whole; what was made earlier too; and it is kept knowing drawings from photos. In the first
    ``warmup`` steps it learns alone."""
    return {
        "run": {"steps": steps, "batch_size": batch_size, "ema": 0.997},
        "ugatit": {
            "image_size": side,
            "load_size": round(1.104 * side),
            "width": 24,
            "blocks": 3,
            "judge": "domains",
            "judge_width": 56,
            "judge_levels": 3,
            "recolour": True,
            "unseen": 0.34,
            "mismatch": 1.0,
            "pool": 400,
            "warmup_steps": warmup,
            "adversarial": 1.5,
            "cycle": 1.0,
            "cycle_noise": 0.1,
            "identity": 3.0,
            "restore": True,
            "colour": 5.0,
            "mirror": 3.0,
            "cam": 1.0,
            "lr": 1.5e-4,
            "d_lr_factor": 4.0,
            "lr_fall_from": steps,
            "lr_fall_to": steps + 1,
            **settings,
        },
    }


RECIPES = {
    "female-male": Recipe(
        family="stargan-v2",
        about=f"{CELEBA}; aligned UTKFace crops, the middle 93 of 128 px, their border drawn out",
        domains="female,male",
        licence=BOTH,
        pasted="skin",  # what is painted of hair and wall is haze
        cpu=(Stage(tables=_female_male(12_000, 8)),),
        gpu=(
            Stage(
                data="female-male-celeba",  # three archives are more than 60 MB
                tables=_female_male(
                    20_000, 32, first_width=24, max_width=128, judge_width=24, r1=0.1
                ),
            ),
        ),
    ),
    "portrait-anime": Recipe(
        family="ugatit",
        about=WITH_ANIME,
        domains="portrait,anime",
        alignment="anime",
        pasted="skin",  # the photo's own hair and background are better than what is drawn of them
        drawings="anime",
        eyes=1.8,  # drawings' are so much larger; narrow ones were taken for creases
        mouth=0.85,  # few are drawn, and strands on foreheads that have none
        held_out=True,
        cpu=(
            # A light network takes any size, so what is where is learned where pictures are cheap.
            Stage(tables=_anime(48, 1_800, 8, 200, lr=2e-4, r1=0.06)),
            Stage(tables=_anime(72, 1_850, 6, 300, r1=0.17), fresh=True),
            Stage(
                tables=_anime(
                    96, 5_400, 4, 120, lr=1.3e-4, r1=0.25, lr_fall_from=4_300, lr_fall_to=5_600
                )
            ),
        ),
        gpu=(
            Stage(tables=_anime(64, 8_000, 32, 400, width=32, lr=2e-4, r1=0.05)),
            Stage(
                tables=_anime(
                    128,
                    14_000,
                    16,
                    400,
                    width=32,
                    lr=1e-4,
                    r1=0.2,
                    lr_fall_from=8_000,
                    lr_fall_to=14_000,
                ),
                fresh=True,
            ),
        ),
    ),
    "attributes": Recipe(
        family="stargan",
        about="Aligned CelebA crops, an 89 px square with the hair",
        domains=ATTRIBUTES,
        alignment="celeba",
        on_skin="Male,Smiling,Young",  # what is done for them to hair and walls is stains
        as_shade="Eyeglasses",  # its colours are stains too
        on_hair="Black_Hair,Blond_Hair,Brown_Hair",  # and for these to faces, paleness
        both_ways=True,
        cpu=(
            Stage(
                tables={
                    "run": {"steps": 7_500},
                    "stargan": {
                        "image_size": 96,  # as much as 89 px can use
                        "g_width": 24,
                        "d_width": 24,
                        "roughness": 1.0,  # rims are rough
                        "penalty": 0.1,
                        "mirror": 3.0,
                        "warmup_steps": 600,
                        "warp": 500.0,
                        "warp_steps": 900,
                        "constant_steps": 4_800,
                        "decay_steps": 2_700,
                    },
                },
            ),
        ),
        gpu=(
            Stage(
                tables={
                    "run": {"steps": 20_000, "batch_size": 32, "ema": 0.999},
                    "stargan": {
                        "image_size": 128,
                        "g_width": 18,
                        "d_width": 24,
                        "roughness": 1.0,
                        "penalty": 0.1,
                        "mirror": 3.0,
                        "reconstruct_every": 1,
                        "warmup_steps": 1_000,
                        "warp": 500.0,
                        "warp_steps": 900,
                        "constant_steps": 12_000,
                        "decay_steps": 8_000,
                    },
                },
            ),
        ),
    ),
}


# --- Data -------------------------------------------------------------------------------------


def crops(source: Path, out: Path, **settings: Any) -> Path:
    """``facestyle prepare source out``, or what it made before."""
    if not (out / prepare.REPORT).is_file():
        plan = prepare.plan(source, out, prepare.Settings(**settings))
        prepare.measure(plan, os.cpu_count() or 1)
        outcome = prepare.settle(plan)
        print(f"{out}: {outcome.kept}, set aside {dict(outcome.set_aside)}", flush=True)
    return out


def side_by_side(out: Path, domains: Mapping[str, Path]) -> Path:
    """Prepared folders of one domain each → one folder of all."""
    for domain, folder in domains.items():
        for half in HALVES:
            target = out / half / domain
            if not target.is_dir():
                half_made = target.with_name(f".{domain}")
                shutil.rmtree(half_made, ignore_errors=True)
                shutil.copytree(folder / half, half_made, ignore=shutil.ignore_patterns("*.csv"))
                half_made.rename(target)
    return out


def together(out: Path, folders: Mapping[str, Path]) -> Path:
    """Prepared folders of the same domains → one folder; a name tells where a crop is from."""
    if not out.is_dir():
        half_made = out.with_name(f".{out.name}")
        shutil.rmtree(half_made, ignore_errors=True)
        for origin, folder in folders.items():
            for crop in folder.glob("*/*/*.png"):
                target = half_made / crop.relative_to(folder).parent / f"{origin}-{crop.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(crop, target)
        half_made.rename(out)
    return out


def drawn_out(archive: Path, out: Path) -> Path:
    """Tight crops with their border drawn out: a template with hair in it reaches beyond them.

    Not mirrored, which would put eyes on foreheads.
    """
    if not out.is_dir():
        half_made = out.with_name(f".{out.name}")
        shutil.rmtree(half_made, ignore_errors=True)
        with zipfile.ZipFile(archive) as pictures:
            for name in sorted(name for name in pictures.namelist() if name.endswith(".jpg")):
                data = np.frombuffer(pictures.read(name), np.uint8)
                picture_HWC = cv2.imdecode(data, cv2.IMREAD_COLOR)
                assert picture_HWC is not None, name
                margin = round(MARGIN * len(picture_HWC))
                wide_HWC = cv2.copyMakeBorder(picture_HWC, *[margin] * 4, cv2.BORDER_REPLICATE)
                target = half_made / name
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), wide_HWC, [cv2.IMWRITE_JPEG_QUALITY, 97])
        half_made.rename(out)
    return out


def data_of(name: str, faces: Path, work: Path) -> Path:
    """The training data of a recipe, made where it is not there."""
    celeba: dict[str, Any] = {
        "align": "celeba-square",
        "detector": "builtin",
        "size": 128,
        "attributes": "attributes.csv",
    }
    if name in ("female-male", "female-male-celeba"):
        by = {**celeba, "by": "Male:male,female"}
        wide = crops(faces / "celeba10k.zip", work / "data" / "female-male-celeba", **by)
        if name == "female-male-celeba":
            return wide
        source = drawn_out(faces / "utk8k.zip", work / "data" / "utkface-wide")
        settings = {key: celeba[key] for key in ("align", "detector", "size")}
        tight = crops(source, work / "data" / "utkface", **settings)
        return together(work / "data" / name, {"celeba": wide, "utkface": tight})
    if name == "attributes":
        celeba |= {"align": RECIPES[name].alignment}
        return crops(faces / "celeba10k.zip", work / "data" / name, **celeba)
    folders = {kind: work / "data" / kind for kind in ("portrait", "anime")}
    celeba |= {"align": RECIPES[name].alignment}
    crops(faces / "celeba10k.zip", folders["portrait"], **celeba)
    crops(faces / "anime4k.zip", folders["anime"], align="none", detector="", size=96)
    return side_by_side(work / "data" / name, folders)


# --- Training ---------------------------------------------------------------------------------


def stretched(stage: Stage, factor: float) -> Stage:
    """The same stage with its iterations, and all that is counted in them, times ``factor``."""
    tables = {
        table: {
            name: max(1, round(value * factor))
            if name in ("steps", *SCHEDULES) and value
            else value
            for name, value in settings.items()
        }
        for table, settings in stage.tables.items()
    }
    return replace(stage, tables=tables)


def in_time(
    name: str, recipe: Recipe, stages: Sequence[Stage], options: argparse.Namespace
) -> list[Stage]:
    """The stages as long as ``--minutes`` allows, each with its share of the whole.

    How long an iteration takes is measured here and now: run what is to run beside it at once.
    What was measured is written down, for a run that goes on has to have the same lengths.
    """
    path = options.work / f"{name}-minutes.json"
    if not path.is_file():
        seconds = []
        for stage in stages:
            estimate = training.estimate(
                data_of(stage.data or name, options.faces, options.work),
                family=recipe.family,
                preset="compact",
                tables={**stage.tables, "run": _run_settings(recipe, stage, options)},
                device=options.device,
            )
            seconds.append(estimate.seconds * stage.tables["run"]["steps"])
        factor = TRAINED * 60 * options.minutes / sum(seconds)
        path.write_text(json.dumps({"minutes": options.minutes, "factor": factor}) + "\n")
    factor = json.loads(path.read_text(encoding="utf-8"))["factor"]
    print(f"{name}: lengths times {factor:.3f}", flush=True)
    return [stretched(stage, factor) for stage in stages]


class Printed:
    """Tells a run on stdout."""

    def announce(self, text: str) -> None:
        """One line."""
        print(text, flush=True)

    def tick(self, step: int, steps: int) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Time and losses."""
        losses = "  ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
        print(f"{progress.step}  {progress.seconds:.3f} s/it  {losses}", flush=True)

    def sheet(self, sheet: Sheet) -> None:
        """Where it is."""
        print(f"{sheet.path}  swd {sheet.score}", flush=True)


def trained(name: str, options: argparse.Namespace) -> Path:
    """The folder of the recipe's last run, or of one that a signal stopped."""
    recipe = RECIPES[name]
    stages = recipe.gpu if options.scale == "gpu" else recipe.cpu
    if options.minutes:
        stages = in_time(name, recipe, stages, options)
    folder = None
    for number, stage in enumerate(stages, 1):
        data = data_of(stage.data or name, options.faces, options.work)
        origin = folder / "model.safetensors" if folder is not None and stage.fresh else folder
        folder = run(f"{name}-stage{number}", recipe, stage, options, data, origin)
        if not finished(folder):
            return folder
    assert folder is not None, "every recipe has a stage"
    return folder


def run(
    name: str,
    recipe: Recipe,
    stage: Stage,
    options: argparse.Namespace,
    data: Path,
    origin: Path | None,
) -> Path:
    """Begin a stage's run, go on with it, or leave it as it is where it is finished."""
    runs = options.work / "runs"
    if (folder := runs / f"{name}-1").is_dir():
        if not finished(folder):
            training.proceed(folder, watcher=Printed())
        return folder
    training.start(
        data,
        family=recipe.family,
        preset="compact",
        tables={**stage.tables, "run": _run_settings(recipe, stage, options)},
        runs=runs,
        name=name,
        device=options.device,
        origin=origin,
        command=f"python recipes/models.py {options.model} --scale {options.scale}",
        watcher=Printed(),
    )
    return folder


def _run_settings(recipe: Recipe, stage: Stage, options: argparse.Namespace) -> dict[str, Any]:
    steps = stage.tables["run"]["steps"]
    return {
        "precision": "auto",
        # All but useless without; and it takes minutes itself.
        "compile": computes_bf16(options.device) and not options.minutes,
        "workers": max(1, min(8, (os.cpu_count() or 1) - 1)),
        "sample_every": max(1, steps // 20, min(steps, 100)),  # a sheet takes as long as ten
        "save_every": max(1, steps // 40),
        "licence": recipe.licence,
        "about": recipe.about,
        "alignment": recipe.alignment,
        "pasted": recipe.pasted,
        "on_skin": recipe.on_skin,
        "as_shade": recipe.as_shade,
        "on_hair": recipe.on_hair,
        "drawings": recipe.drawings,
        "eyes": recipe.eyes,
        "mouth": recipe.mouth,
        "both_ways": recipe.both_ways,
        **stage.tables["run"],
        "steps": steps,
        "domains": recipe.domains,
        "seed": options.seed,
        "threads": options.threads,
    }


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    steps = json.loads((folder / "run.json").read_text(encoding="utf-8"))["run"]["steps"]
    saved = saved_checkpoints(folder)
    return bool(saved) and int(saved[-1].stem) >= steps


# --- Scores -----------------------------------------------------------------------------------


def scored(name: str, folder: Path, options: argparse.Namespace) -> Path:
    """A finished run's scores and sheets, by ``score.py``; once for each model."""
    model = next(
        path
        for path in (folder / "best.safetensors", folder / "model.safetensors")
        if path.is_file()
    )
    work = options.work / f"{name}-scores"
    if (written := work / "scores.json").is_file():
        of = json.loads(written.read_text(encoding="utf-8"))["sha256"]["model"]
        if of == judges.sha256(model.read_bytes()):
            return work
    arguments = {
        "model": model,
        "faces": options.faces,
        "photos": options.photos,
        "weights": options.weights,
        "work": work,
        "threads": options.threads or os.cpu_count() or 1,
    }
    if RECIPES[name].held_out:
        arguments["held-out"] = data_of(name, options.faces, options.work) / "val"
    score.main([text for key, value in arguments.items() for text in (f"--{key}", str(value))])
    return work


def main() -> None:
    """Prepare, train, score, draw; whatever is done already is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--faces", type=Path, required=True, help="folder with the zips")
    parser.add_argument("--photos", type=Path, help="folder of <domain>_* portraits to be scored")
    parser.add_argument(
        "--weights", type=Path, help="folder with YuNet and MobileFaceNet, for that"
    )
    parser.add_argument("--work", type=Path, default=Path("work/models"))
    parser.add_argument("--scale", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, help="make the runs as long as fits into them")
    parser.add_argument("--seed", type=int, default=777)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if (options.photos is None) != (options.weights is None):
        parser.error("--photos and --weights go together: both are needed for scores")
    folder = trained(options.model, options)
    if options.photos and finished(folder):
        print(scored(options.model, folder, options), flush=True)


if __name__ == "__main__":
    main()
