"""``prepare``: raw pictures in, aligned crops for training out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facestyle.cli import options
from facestyle.cli.report import Reporter, Terminated, reporting

if TYPE_CHECKING:
    from facestyle.training.prepare import Outcome, Plan, Settings


def prepare(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A folder or a zip: one folder a domain.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where train/ and val/ go.")],
    align: Annotated[
        str, typer.Option("--align", help="A template, or none: the central square as it is.")
    ] = "celeba-square",
    size: Annotated[int, typer.Option("--size", min=16, max=2048, help="Side in px.")] = 256,
    face: Annotated[str, typer.Option("--face", help="largest, or all.")] = "largest",
    detector: Annotated[
        str, typer.Option("--detector", help="auto, yunet, retinaface or builtin.")
    ] = "auto",
    max_upscale: Annotated[
        float, typer.Option("--max-upscale", min=0.1, help="Times a face may be enlarged.")
    ] = 2.0,
    min_sharpness: Annotated[
        float, typer.Option("--min-sharpness", min=0, help="0 takes blurred pictures too.")
    ] = 2.2,
    val: Annotated[
        float, typer.Option("--val", min=0, max=0.9, help="Share of the pictures held out.")
    ] = 0.05,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another one holds out others.")] = 0,
    attributes: Annotated[
        str,
        typer.Option(
            "--attributes", help="A list (CSV or CelebA's), on disk or in IN, not folders."
        ),
    ] = "",
    by: Annotated[
        str,
        typer.Option(
            "--by", help="Domains by an attribute: Male:male,female is male where it holds."
        ),
    ] = "",
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes; 0 is one a CPU core.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the pictures by domain, do nothing.")
    ] = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make raw pictures ready for training: aligned crops, split into train and val.

    Pictures that are unreadable, blurred, too small, cut off, duplicates or without a face are
    set aside: OUT/report.csv says why. Run the same command again to go on after a stop, or
    when pictures were added.

    Example: facestyle prepare photos crops --size 128
    """
    with reporting(as_json=as_json, quiet=quiet, debug=debug) as report:
        from facestyle.training import prepare as work

        settings = work.Settings(
            align=align,
            size=size,
            face=face,
            detector=detector,
            max_upscale=max_upscale,
            min_sharpness=min_sharpness,
            val=val,
            seed=seed,
            attributes=attributes,
            by=by,
        )
        settings = _with_detector(settings, report)
        plan = work.plan(source, out, settings)
        _tell_plan(plan, report)
        if dry_run:
            for domain, count in plan.counts().items():
                shown = f"{domain or 'without domain'}: {count} pictures"
                report.result({"domain": domain, "pictures": count}, shown)
            return
        _fetch_detector(settings, offline, report)
        try:
            with report.progress("reading", unit=" pictures") as update:
                work.measure(plan, workers or os.cpu_count() or 1, update)
            with report.progress("comparing", unit=" crops") as update:
                outcome = work.settle(plan, update)
        except (KeyboardInterrupt, Terminated):
            report.note("what is done is kept: the same command goes on from there")
            raise
        _tell_outcome(plan, outcome, report)


def _with_detector(settings: Settings, report: Reporter) -> Settings:
    """Settings that name the detector in use; says so where there is none."""
    from facestyle.faces.registry import detector_entry

    if settings.align != "none":
        return replace(settings, detector=detector_entry(settings.detector).partition("-")[0])
    given = {"--face": settings.face != "largest", "--detector": settings.detector != "auto"}
    if idle := [option for option, is_given in given.items() if is_given]:
        report.note(f"{', '.join(idle)}: no effect on ready crops (--align none)")
    return replace(settings, detector="", face="largest")


def _fetch_detector(settings: Settings, offline: bool, report: Reporter) -> None:
    """So that the processes find it on this machine."""
    from facestyle.faces.registry import open_detector

    if settings.detector:
        with report.progress(f"fetching {settings.detector}", unit=" bytes") as update:
            open_detector(settings.detector, offline=offline, progress=update)


def _tell_plan(plan: Plan, report: Reporter) -> None:
    collection = plan.collection
    if left_out := [name for name in collection.others if name != plan.settings.attributes]:
        report.note(f"left out {len(left_out)} files that are no pictures, such as {left_out[0]}")
    if unlisted := len(collection.names) - len(plan.domains):
        report.note(f"{unlisted} pictures are not in {plan.settings.attributes}")


def _tell_outcome(plan: Plan, outcome: Outcome, report: Reporter) -> None:
    for half, counts in outcome.kept.items():
        report.note(f"{half}: {_counted(counts)}")
        lacking = [domain for domain, count in counts.items() if not count]
        if lacking and (half == "train" or plan.settings.val):
            report.note(f"no picture of {', '.join(lacking)} is in {half}")
    if outcome.several:
        report.note(
            f"{outcome.several} pictures show several faces, the largest was taken "
            "(--face all takes every one)"
        )
    if outcome.set_aside:
        total = sum(outcome.set_aside.values())
        report.note(f"set aside {total}: {_counted(outcome.set_aside)}; see {outcome.report}")
        if outcome.remedy:
            report.note(f"most were {next(iter(outcome.set_aside))}: {outcome.remedy}")
    values = {
        "train": str(plan.out / "train"),
        "val": str(plan.out / "val"),
        "report": str(outcome.report),
        "kept": {half: dict(counts) for half, counts in outcome.kept.items()},
        "set_aside": dict(outcome.set_aside),
        "several_faces": outcome.several,
    }
    report.result(values, str(plan.out / "train"))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}".strip() for what, count in counts.items())
