"""What ``translate`` and ``reference`` share: plan, open, restyle one after the other, account.

Order of work: what is cheap and can be wrong (names, paths, a single picture) comes before
what is dear (torch, the model). How a style comes about is the caller's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from facestyle import __version__
from facestyle.cli import options
from facestyle.cli.plan import STDIO, Job, Source, expand, plan
from facestyle.cli.report import Reporter
from facestyle.errors import FacestyleError, InputError, PartialBatchError, UsageError

if TYPE_CHECKING:
    from facestyle.faces import Detector
    from facestyle.faces.align import AlignedFace
    from facestyle.images import Picture
    from facestyle.translator import Style, Translator


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked for, apart from the style."""

    inputs: Sequence[str]
    output: str | None
    model: str
    domains: str | None
    face: str
    detector: str
    min_score: float | None
    align: str | None
    crop_only: bool
    detail: float | None
    overwrite: bool
    recursive: bool
    fail_fast: bool
    dry_run: bool
    mark: bool
    keep_metadata: bool
    format: str | None
    device: str
    precision: str
    offline: bool
    cam: bool


StyleMaker = Callable[["Translator", Callable[[], "Detector"]], "list[Style]"]


def restyle_all(
    wish: Wish, make_styles: StyleMaker, suffixes: Sequence[str], report: Reporter
) -> None:
    """Plan, open the model once, restyle each picture, and account for what failed."""
    from facestyle import weights

    jobs = _jobs(wish, suffixes, report)
    if wish.dry_run:
        _tell_plan(wish, jobs, report)
        return
    pending = [job for job in jobs if not _done_before(job, wish, report)]
    if not pending:
        return
    # A single picture is read first: if it is bad, that is said before torch is imported.
    alone = len({job.source.path for job in jobs}) == 1
    first = _read(pending[0].source) if alone else None

    from facestyle.translator import open_translator

    with report.progress(f"fetching {wish.model}", unit=" bytes") as update:
        path = weights.resolve(wish.model, offline=wish.offline, progress=update)
        translator = open_translator(
            path,
            domains=options.domain_names(wish.domains),
            device=wish.device,
            precision=wish.precision,
            offline=wish.offline,
            progress=update,
        )
    detector = _lazy_detector(wish, report)
    styles = make_styles(translator, detector)
    if wish.cam:
        translator.needs_attention(styles[0])
    report.detail(f"{path} by {translator.backend.about}")
    _tell_without_effect(wish, translator, report)
    if template_of(wish, translator) != "none":
        detector()  # once for all pictures, and so is what may be wrong with it
    session = _Session(wish, translator, detector, styles, weights.sha256_of(path), report)

    failed = 0
    by_source = [(source, list(group)) for source, group in groupby(pending, _source_of)]
    with report.progress("restyling", unit=" pictures") as update:
        for number, (source, group) in enumerate(by_source):
            if len(by_source) > 1:
                update(number, len(by_source))
            try:
                with naming(source.name):
                    session.restyle(first or _read(source), group)
            except FacestyleError as error:
                if alone or wish.fail_fast:
                    raise
                failed += 1
                report.error(error, input=source.name)
    if failed:
        raise PartialBatchError(
            f"{failed} of {len(by_source)} pictures failed"
            + (", the others are written" if failed < len(by_source) else ""),
            "mend or remove them and run again: what exists is skipped",
        )


def _jobs(wish: Wish, suffixes: Sequence[str], report: Reporter) -> list[Job]:
    """What is to be read and written; raises for all that the words alone show to be wrong."""
    from facestyle.faces import check_choice
    from facestyle.faces.align import template_points
    from facestyle.faces.registry import detector_entry
    from facestyle.images import READABLE_EXTENSIONS, output_extension
    from facestyle.marks import is_marked

    check_choice(wish.face)
    detector_entry(wish.detector)
    if wish.align not in (None, "none"):
        template_points(wish.align)
    extension = output_extension("", wish.format or "png")
    if wish.crop_only and wish.face == "all":
        raise UsageError("--crop-only writes one crop", "choose it with --face largest or --face N")
    if wish.cam and wish.output == STDIO:
        raise UsageError("--cam writes a second picture, stdout takes one", "give a file: -o FILE")
    if wish.output == STDIO and report.as_json:
        raise UsageError("--json and -o - both write to stdout", "give a file: -o FILE")

    def is_result(path: Path) -> bool:
        return path.stem.endswith(tuple(f".{suffix}" for suffix in suffixes)) or is_marked(path)

    sources, results = expand(
        wish.inputs,
        wish.output,
        recursive=wish.recursive,
        extensions=READABLE_EXTENSIONS,
        is_result=is_result,
    )
    if results:
        report.note(f"left out {len(results)} earlier results, such as {results[0]}")
    jobs = plan(sources, wish.output, suffixes, extension)
    for job in jobs:
        named = output_extension(job.target) if job.target else extension
        if wish.format and named != extension:
            raise UsageError(f"-o {wish.output} and --format {wish.format} disagree", "drop one")
    return jobs


class _Session:
    """An opened model, its detector and styles, applied to one picture after the other."""

    def __init__(
        self,
        wish: Wish,
        translator: Translator,
        detector: Callable[[], Detector],
        styles: Sequence[Style],
        sha256: str,
        report: Reporter,
    ) -> None:
        from facestyle.pipeline import usual_detail

        self.wish = wish
        template = template_of(wish, translator)
        self.detail = usual_detail(template) if wish.detail is None else wish.detail
        self.translator = translator
        self.detector = detector
        self.styles = styles
        self.sha256 = sha256
        self.report = report

    def restyle(self, picture: Picture, jobs: Sequence[Job]) -> None:
        """Every variant of one picture: detected and aligned once."""
        from facestyle.images import write_picture
        from facestyle.pipeline import aligned_faces, paste_all, translate_crops

        wish, source = self.wish, jobs[0].source
        if picture.note:
            self.report.note(f"{source.name}: {picture.note}")
        needs_detector = template_of(wish, self.translator) != "none"
        aligned = aligned_faces(
            picture.pixels_HWC,
            self.translator,
            wish.face,
            detector=self.detector() if needs_detector else None,
            min_score=wish.min_score,
            template=wish.align,
        )
        for job in jobs:
            style = self.styles[job.variant]
            results_NHWC = translate_crops(aligned, self.translator, style)
            pixels_HWC = (
                results_NHWC[0]
                if wish.crop_only
                else paste_all(picture.pixels_HWC, aligned, results_NHWC, detail=self.detail)
            )
            target = job.target or _binary(sys.stdout, "stdout")
            if job.target is not None and wish.output is not None:
                _make_folder(job.target.parent)
            lost = write_picture(
                target,
                picture.with_pixels(pixels_HWC),
                format=None if job.target else wish.format or "png",
                recipe=self.recipe(style),
                mark=wish.mark,
                keep_metadata=wish.keep_metadata,
            )
            if lost:
                self.report.note(f"{job.target or 'stdout'}: {lost}")
            if wish.cam and job.target is not None:
                self.write_attention(picture, aligned, style, job.target)
            self.tell(job, style, len(aligned))

    def write_attention(
        self, picture: Picture, aligned: Sequence[AlignedFace], style: Style, target: Path
    ) -> None:
        """The heatmap over the photo, beside the result."""
        from facestyle.images import write_picture
        from facestyle.pipeline import attention_overlay

        overlay_HWC = attention_overlay(picture.pixels_HWC, aligned, self.translator, style)
        beside = target.with_name(f"{target.stem}.cam{target.suffix}")
        write_picture(
            beside, picture.with_pixels(overlay_HWC), recipe=self.recipe(style), mark=self.wish.mark
        )
        self.report.result({"output": str(beside), "status": "attention"}, str(beside))

    def recipe(self, style: Style) -> dict[str, object]:
        """All that is needed to make the same picture again."""
        card, wish = self.translator.card, self.wish
        return {
            "version": __version__,
            "model": card.name or card.family,
            "model_sha256": self.sha256,
            "domain": style.domain,
            "style": style.origin,
            "align": template_of(wish, self.translator),
            "face": wish.face,
            "detail": self.detail,
            "precision": wish.precision,
        }

    def tell(self, job: Job, style: Style, faces: int) -> None:
        """One result; nothing on stdout where the picture itself went there."""
        finder = (
            "ready crop"
            if template_of(self.wish, self.translator) == "none"
            else (f"{faces} face{'s' if faces > 1 else ''} by {self.detector().name}")
        )
        values = {
            "input": job.source.name,
            "output": str(job.target),
            "status": "written",
            "domain": style.domain,
            "style": style.origin,
            "faces": faces,
        }
        self.report.note(f"{job.source.name}: {style.domain}, {style.origin}, {finder}")
        if job.target is not None:
            self.report.result(values, str(job.target))


def _source_of(job: Job) -> Source:
    return job.source


def template_of(wish: Wish, translator: Translator) -> str:
    """The alignment in force: what was asked for, else what the model's card names."""
    return wish.align or translator.card.alignment


def _read(source: Source) -> Picture:
    from facestyle.images import read_picture

    if source.path is not None:
        return read_picture(source.path)
    return read_picture(_binary(sys.stdin, "stdin"), name="stdin")


def _binary(stream: Any, name: str) -> BinaryIO:
    if stream is None:
        raise InputError(f"{name} is closed", "give a file in place of -")
    binary: BinaryIO = stream.buffer
    return binary


def _lazy_detector(wish: Wish, report: Reporter) -> Callable[[], Detector]:
    """Opens the detector when the first picture needs one, and then keeps it."""
    from functools import cache

    @cache
    def open_once() -> Detector:
        from facestyle.faces.registry import open_detector

        with report.progress(f"fetching {wish.detector}", unit=" bytes") as update:
            return open_detector(wish.detector, offline=wish.offline, progress=update)

    return open_once


@contextmanager
def naming(name: object, kind: type[FacestyleError] = FacestyleError) -> Iterator[None]:
    """Puts the picture's name before an error that does not know it."""
    try:
        yield
    except kind as error:
        if str(name) in error.message:
            raise
        raise type(error)(f"{name}: {error.message}", error.hint) from error


def _tell_without_effect(wish: Wish, translator: Translator, report: Reporter) -> None:
    """No option is ignored in silence."""
    options_of = {
        "a ready crop (--align none)": {
            "--face": wish.face != "largest",
            "--detector": wish.detector != "auto",
            "--min-score": wish.min_score is not None,
        }
        if template_of(wish, translator) == "none"
        else {},
        "--crop-only": {"--detail": wish.detail is not None} if wish.crop_only else {},
    }
    for what, given in options_of.items():
        if idle := [option for option, is_given in given.items() if is_given]:
            report.note(f"{', '.join(idle)}: no effect on {what}")


def _done_before(job: Job, wish: Wish, report: Reporter) -> bool:
    if job.target is None or not job.target.exists():
        return False
    if not job.target.is_file():
        raise FacestyleError(
            f"{job.target} exists and is not a regular file",
            "name another output, or -o - for stdout",
        )
    if wish.overwrite:
        return False
    values = {"input": job.source.name, "output": str(job.target), "status": "skipped"}
    report.note(f"{job.target} exists, skipped (--overwrite redoes it)")
    report.result(values, str(job.target))
    return True


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FacestyleError(f"cannot make the folder {folder}: {error.strerror}") from None


def _tell_plan(wish: Wish, jobs: Sequence[Job], report: Reporter) -> None:
    """What a run would read, write, load and fetch."""
    from facestyle import weights
    from facestyle.backend_torch import best_device
    from facestyle.faces.registry import detector_entry

    entries = weights.index()
    if wish.model in entries:
        model = [wish.model, *entries[wish.model].needs]
    else:
        model = [str(weights.resolve(wish.model, offline=True))]  # or says that there is none
    detector = [] if wish.align == "none" else [detector_entry(wish.detector)]
    device = best_device(wish.device)
    files = {name: weights.locate(name) for name in model + detector}
    fetched = {name: entries[name].url for name, place in files.items() if place is None}
    report.result(
        {
            "model": wish.model,
            "device": device,
            "detector": detector[0] if detector else None,
            "weights": {name: str(place) for name, place in files.items() if place},
            "would_fetch": fetched,
        },
        "\n".join(
            [f"device {device}"]
            + [f"{name}: {place}" for name, place in files.items() if place]
            + [f"{name}: missing, would fetch {url}" for name, url in fetched.items()]
        ),
    )
    for job in jobs:
        target = STDIO if job.target is None else str(job.target)
        status = "would be written"
        if job.source.path is not None and not job.source.path.exists():
            status = "fails, no such file"
        elif job.target is not None and job.target.exists():
            status = "would be redone" if wish.overwrite else "exists, would be skipped"
        report.result(
            {"input": job.source.name, "output": target, "status": status},
            f"{job.source.name} -> {target} ({status})",
        )
