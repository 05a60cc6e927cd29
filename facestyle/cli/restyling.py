"""What ``translate`` and ``reference`` share: plan, open, restyle side by side, account.

Order of work: what is cheap and can be wrong (names, paths, a single picture) comes before
what is dear (torch, the model). How a style comes about is the caller's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from facestyle import __version__
from facestyle.cli import options
from facestyle.cli.plan import STDIO, Job, Source, expand, plan
from facestyle.cli.report import Reporter
from facestyle.errors import FacestyleError, InputError, PartialBatchError, UsageError

if TYPE_CHECKING:
    from facestyle.batch import Crew
    from facestyle.faces import Detector
    from facestyle.faces.align import AlignedFace
    from facestyle.images import Picture
    from facestyle.pipeline import Restyled
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
    crop_only: bool | None
    detail: float | None
    tone: float | None
    overwrite: bool
    recursive: bool
    fail_fast: bool
    dry_run: bool
    mark: bool
    keep_metadata: bool
    format: str | None
    device: str
    runtime: str
    precision: str
    offline: bool
    cam: bool
    workers: int | None
    engine: str


ENGINES = ("local", "ray")

StyleMaker = Callable[["Translator", Callable[[], "Detector"]], "list[Style]"]


def restyle_all(
    wish: Wish, make_styles: StyleMaker, suffixes: Sequence[str], report: Reporter
) -> None:
    """Plan, open the model once, restyle each picture, and account for what failed."""
    from facestyle import batch

    jobs = _jobs(wish, suffixes, report)
    if wish.dry_run:
        _tell_plan(wish, jobs, report)
        return
    pending = [job for job in jobs if not _done_before(job, wish, report)]
    if not pending:
        return
    groups = [list(group) for _, group in groupby(pending, _source_of)]
    alone = len({job.source.path for job in jobs}) == 1
    if wish.engine == "ray":
        _account(groups, _over_machines(wish, make_styles, groups, report), alone, wish, report)
        return
    # A single picture is read first: if it is bad, that is said before torch is imported.
    first = _read(pending[0].source) if alone else None
    serial = alone or wish.fail_fast
    with batch.Crew(1 if serial else wish.workers or batch.usual_workers()) as crew:
        session = _open_session(wish, make_styles, crew, alone, report)
        if alone:
            outcomes = (session.whole(group, report, first) for group in groups)
        else:
            outcomes = session.outcomes(groups, report)
        _account(groups, outcomes, alone, wish, report)


def _account(
    groups: Sequence[Sequence[Job]],
    outcomes: Generator[Outcome, None, None],
    alone: bool,
    wish: Wish,
    report: Reporter,
) -> None:
    """Say what became of each picture, in their order; raises for those that failed."""
    failed = 0
    with closing(outcomes), report.progress("restyling", unit=" pictures") as update:
        if len(groups) > 1:
            update(0, len(groups))
        for number, (group, outcome) in enumerate(zip(groups, outcomes, strict=True), 1):
            for how, what in outcome.said:
                getattr(report, how)(*what)
            if outcome.error is not None:
                if alone or wish.fail_fast:
                    raise outcome.error
                failed += 1
                report.error(outcome.error, input=group[0].source.name)
            if len(groups) > 1:
                update(number, len(groups))
    if failed:
        raise PartialBatchError(
            f"{failed} of {len(groups)} pictures failed"
            + (", the others are written" if failed < len(groups) else ""),
            "mend or remove them and run again: what exists is skipped",
        )


def _over_machines(
    wish: Wish, make_styles: StyleMaker, groups: Sequence[Sequence[Job]], report: Reporter
) -> Generator[Outcome, None, None]:
    """The same by ``_Session`` in other processes; what they say comes back with the results."""
    from facestyle import engine_ray, weights

    with report.progress(f"fetching {wish.model}", unit=" bytes") as update:
        weights.resolve(wish.model, offline=wish.offline, progress=update)  # missing: said at once

    def open_work(cores: int) -> Callable[[Sequence[Sequence[Job]]], list[Outcome]]:
        from facestyle.batch import Crew

        lines = Lines()
        session = _open_session(wish, make_styles, Crew(cores), False, lines)
        opening = tuple(lines.said)

        def work(part: Sequence[Sequence[Job]]) -> list[Outcome]:
            done = list(session.outcomes(part))
            return [replace(outcome, opening=opening) for outcome in done]

        return work

    def failed(group: Sequence[Job], error: FacestyleError) -> Outcome:
        return Outcome(error=type(error)(f"{group[0].source.name}: {error.message}", error.hint))

    outcomes = engine_ray.across(
        open_work, groups, failed, workers=wish.workers, use_gpu=wish.device != "cpu"
    )
    told = False
    for outcome in outcomes:
        if outcome.opening and not told:  # every process says it, once is enough
            told = True
            outcome = replace(outcome, said=[*outcome.opening, *outcome.said])
        yield outcome


class Lines:
    """What is said on a picture's way, kept until its turn; in place of a ``Reporter``."""

    def __init__(self) -> None:
        self.said: list[tuple[str, tuple[Any, ...]]] = []

    def note(self, text: str) -> None:
        """As ``Reporter.note``."""
        self.said.append(("note", (text,)))

    def detail(self, text: str) -> None:
        """As ``Reporter.detail``."""
        self.said.append(("detail", (text,)))

    def result(self, values: Mapping[str, Any], text: str) -> None:
        """As ``Reporter.result``."""
        self.said.append(("result", (values, text)))

    @contextmanager
    def progress(self, title: str, *, unit: str = "") -> Iterator[Any]:
        """Nobody looks."""
        yield lambda done, total: None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one picture; plain data, it may come from another machine."""

    said: Sequence[tuple[str, tuple[Any, ...]]] = ()
    """Method of ``Reporter`` and its arguments; empty where it was said at once."""
    error: FacestyleError | None = None
    opening: Sequence[tuple[str, tuple[Any, ...]]] = ()
    """What opening the model said, in a process of its own."""


def _jobs(wish: Wish, suffixes: Sequence[str], report: Reporter) -> list[Job]:
    """What is to be read and written; raises for all that the words alone show to be wrong."""
    from facestyle.faces import check_choice
    from facestyle.faces.align import template_points
    from facestyle.faces.registry import detector_entry
    from facestyle.images import READABLE_EXTENSIONS, output_extension
    from facestyle.marks import is_marked
    from facestyle.pipeline import one_crop

    check_choice(wish.face)
    detector_entry(wish.detector)
    if wish.align not in (None, "none"):
        template_points(wish.align)
    extension = output_extension("", wish.format or "png")
    if wish.crop_only:
        one_crop(wish.face)
    if wish.cam and wish.output == STDIO:
        raise UsageError("--cam writes a second picture, stdout takes one", "give a file: -o FILE")
    if wish.engine not in ENGINES:
        raise UsageError(f"unknown engine '{wish.engine}'", f"known: {', '.join(ENGINES)}")
    if wish.engine == "ray" and (STDIO in (wish.output, *wish.inputs) or wish.fail_fast):
        together = "--fail-fast" if wish.fail_fast else "-"
        raise UsageError(f"--engine ray and {together} do not go together", "drop one of them")
    if wish.workers is not None and wish.workers > 1 and wish.fail_fast:
        raise UsageError("--fail-fast goes from one picture to the next", "drop --workers")
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


@dataclass(kw_only=True)
class _Work:
    """One picture on its way from file to file."""

    jobs: Sequence[Job]
    report: Reporter | Lines
    picture: Picture | None = None
    aligned: Sequence[AlignedFace] = ()
    results: Iterable[Sequence[Restyled] | FacestyleError] = ()
    """The faces of each job, or why there are none."""
    error: FacestyleError | None = None

    def wants(self, variant: int) -> bool:
        """Whether that style is to be made: some may exist."""
        return any(job.variant == variant for job in self.jobs)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """An expected error within is this picture's."""
        try:
            with naming(self.jobs[0].source.name):
                yield
        except FacestyleError as error:
            self.error = error


def _open_session(
    wish: Wish, make_styles: StyleMaker, crew: Crew, alone: bool, report: Reporter | Lines
) -> _Session:
    """Open the model, its styles and its detector: once for all pictures, and so is what may
    be wrong with them."""
    from facestyle import weights
    from facestyle.translator import model_file, open_translator, reasons

    with report.progress(f"fetching {wish.model}", unit=" bytes") as update:
        path = model_file(
            wish.model,
            runtime=wish.runtime,
            device=wish.device,
            precision=wish.precision,
            offline=wish.offline,
            progress=update,
        )
        translator = open_translator(
            path,
            domains=options.domain_names(wish.domains),
            runtime=wish.runtime,
            device=wish.device,
            precision=wish.precision,
            offline=wish.offline,
            progress=update,
            warn=report.note,
        )
    detector = _lazy_detector(wish, report)
    styles = make_styles(translator, detector)
    if wish.cam:
        translator.needs_attention(styles[0])
    report.detail(f"{path} by {translator.backend.about}")
    for reason in reasons(path, translator.backend, wish.runtime, wish.device, wish.precision):
        report.detail(reason)
    session = _Session(wish, translator, detector, styles, weights.sha256_of(path), crew)
    _tell_without_effect(session, alone, report)
    if session.template != "none":
        detector()
    return session


class _Session:
    """An opened model, its detector and styles, applied to pictures by a crew."""

    def __init__(
        self,
        wish: Wish,
        translator: Translator,
        detector: Callable[[], Detector],
        styles: Sequence[Style],
        sha256: str,
        crew: Crew,
    ) -> None:
        from facestyle.batch import runs_side_by_side
        from facestyle.pipeline import usual_detail

        self.wish = wish
        self.template = template_of(wish, translator)
        usual = usual_detail(translator.card, self.template)
        self.detail = usual if wish.detail is None else wish.detail
        self.translator = translator
        self.detector = detector
        self.styles = styles
        self.sha256 = sha256
        self.crew = crew
        # Where one network is not to be run twice at a time; the results' own have one caller.
        self.attending = nullcontext() if runs_side_by_side(translator) else threading.Lock()

    def outcomes(
        self, groups: Sequence[Sequence[Job]], report: Reporter | None = None
    ) -> Generator[Outcome, None, None]:
        """Each picture's outcome in their order. ``report`` is told at once where one comes
        after the other; else what was said is in the outcomes."""
        from facestyle import batch

        crew = self.crew
        with batch.side_by_side():
            if batch.runs_side_by_side(self.translator):
                told = report if crew.workers == 1 else None
                yield from crew.ordered(
                    lambda group: self.whole(group, told or Lines()), groups, ahead=crew.workers
                )
                return
            begun = crew.ordered(
                lambda group: self.read(group, Lines()), groups, ahead=batch.TOGETHER
            )
            yield from crew.ordered(self.written, self.translated(begun))

    def whole(
        self, group: Sequence[Job], report: Reporter | Lines, picture: Picture | None = None
    ) -> Outcome:
        """Every variant of one picture: detected and aligned once."""
        from facestyle.pipeline import translate_crops

        work = self.read(group, report, picture)
        styles = (self.styles[job.variant] for job in group)
        work.results = (translate_crops(work.aligned, self.translator, style) for style in styles)
        return self.written(work)

    def read(
        self, group: Sequence[Job], report: Reporter | Lines, picture: Picture | None = None
    ) -> _Work:
        """Decode, detect, align."""
        from facestyle.pipeline import aligned_faces

        work = _Work(jobs=group, report=report)
        with work.blamed():
            self.crew.checkpoint()
            work.picture = picture or _read(group[0].source)
            if work.picture.note:
                report.note(f"{group[0].source.name}: {work.picture.note}")
            self.crew.checkpoint()
            work.aligned = aligned_faces(
                work.picture.pixels_HWC,
                self.translator,
                self.wish.face,
                detector=self.detector() if self.template != "none" else None,
                min_score=self.wish.min_score,
                template=self.wish.align,
            )
        return work

    def translated(self, works: Iterator[_Work]) -> Iterator[_Work]:
        """The same, their crops gone through the networks some pictures at a time."""
        from facestyle import batch

        for chunk in batch.chunks(works, batch.TOGETHER):
            self.translate(chunk)
            while chunk:
                yield chunk.pop(0)  # else the pictures would stay until the chunk is written

    def translate(self, works: Sequence[_Work]) -> None:
        """Give each of them its results."""
        from facestyle.batch import translate_together

        for variant, style in enumerate(self.styles):
            takers = [work for work in works if work.error is None and work.wants(variant)]
            made = translate_together([work.aligned for work in takers], self.translator, style)
            for work, results in zip(takers, made, strict=True):
                work.results = [*work.results, results]

    def written(self, work: _Work) -> Outcome:
        """Paste, encode, tell."""
        if work.error is None:
            with work.blamed():
                self.crew.checkpoint()
                for job, faces in zip(work.jobs, work.results, strict=True):
                    self.crew.checkpoint()
                    if isinstance(faces, FacestyleError):
                        raise faces
                    self.write(work, job, faces)
        said = work.report.said if isinstance(work.report, Lines) else ()
        return Outcome(said=said, error=work.error)

    def write(self, work: _Work, job: Job, faces: Sequence[Restyled]) -> None:
        """One result into its file."""
        import numpy as np

        from facestyle.images import write_picture
        from facestyle.pipeline import alone, paste_all

        wish, picture, style = self.wish, work.picture, self.styles[job.variant]
        assert picture is not None, "it has been read"
        tone = self.tone(style)
        pixels_HWC = (
            alone(faces[0], tone=tone)
            if self.crop_only(style)
            else paste_all(picture.pixels_HWC, faces, detail=self.detail, tone=tone)
        )
        target = job.target or _binary(sys.stdout, "stdout")
        if job.target is not None and wish.output is not None:
            _make_folder(job.target.parent)
        if np.array_equal(pixels_HWC, picture.pixels_HWC):
            work.report.note(f"{job.source.name}: nothing changed, there was nothing to change")
        lost = write_picture(
            target,
            picture.with_pixels(pixels_HWC),
            format=None if job.target else wish.format or "png",
            recipe=self.recipe(style),
            mark=wish.mark,
            keep_metadata=wish.keep_metadata,
        )
        if lost:
            work.report.note(f"{job.target or 'stdout'}: {lost}")
        if wish.cam and job.target is not None:
            self.write_attention(work, picture, style, job.target)
        self.tell(work, job, style)

    def write_attention(self, work: _Work, picture: Picture, style: Style, target: Path) -> None:
        """The heatmap over the photo, beside the result."""
        from facestyle.images import write_picture
        from facestyle.pipeline import attention_overlay

        with self.attending:
            overlay_HWC = attention_overlay(
                picture.pixels_HWC, work.aligned, self.translator, style
            )
        beside = target.with_name(f"{target.stem}.cam{target.suffix}")
        write_picture(
            beside, picture.with_pixels(overlay_HWC), recipe=self.recipe(style), mark=self.wish.mark
        )
        work.report.result({"output": str(beside), "status": "attention"}, str(beside))

    def tone(self, style: Style) -> float:
        """What stays of the photo's, in this style."""
        from facestyle.pipeline import usual_tone

        if self.wish.tone is not None:
            return self.wish.tone
        return usual_tone(self.translator.card, self.template, style)

    def crop_only(self, style: Style) -> bool:
        """Whether nothing is put back, in this style."""
        from facestyle.pipeline import usual_crop_only

        wish = self.wish
        if wish.crop_only is not None:
            return wish.crop_only
        return usual_crop_only(self.translator.card, self.template, style, wish.face)

    def recipe(self, style: Style) -> dict[str, object]:
        """All that is needed to make the same picture again."""
        card, wish = self.translator.card, self.wish
        return {
            "version": __version__,
            "model": card.name or card.family,
            "model_sha256": self.sha256,
            "domain": style.domain,
            "style": style.origin,
            "align": self.template,
            "face": wish.face,
            "crop_only": self.crop_only(style),
            "detail": self.detail,
            "tone": self.tone(style),
            "precision": self.translator.backend.precision,
        }

    def tell(self, work: _Work, job: Job, style: Style) -> None:
        """One result; nothing on stdout where the picture itself went there."""
        faces = len(work.aligned)
        finder = (
            "ready crop"
            if self.template == "none"
            else f"{faces} face{'s' if faces > 1 else ''} by {self.detector().name}"
        )
        if self.wish.crop_only is None and self.crop_only(style):
            finder += "; the drawing alone, --paste puts it into the photo"
        values = {
            "input": job.source.name,
            "output": str(job.target),
            "status": "written",
            "domain": style.domain,
            "style": style.origin,
            "faces": faces,
        }
        # An edit's own words name its attributes.
        wanted = style.origin if style.edit else f"{style.domain}, {style.origin}"
        work.report.note(f"{job.source.name}: {wanted}, {finder}")
        if job.target is not None:
            work.report.result(values, str(job.target))


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


def _lazy_detector(wish: Wish, report: Reporter | Lines) -> Callable[[], Detector]:
    """Opens the detector when the first picture needs one, and then keeps it."""
    from functools import cache

    own = threading.local()

    @cache
    def first() -> Detector:
        from facestyle.faces.registry import open_detector

        with report.progress(f"fetching {wish.detector}", unit=" bytes") as update:
            return open_detector(wish.detector, offline=wish.offline, progress=update)

    def here() -> Detector:
        from facestyle.faces.registry import open_detector

        shared = first()
        if shared.name != "yunet" or threading.current_thread() is threading.main_thread():
            return shared
        # OpenCV's holds the size of its picture: the threads would wait for each other.
        if not hasattr(own, "detector"):
            own.detector = open_detector(wish.detector, offline=wish.offline)
        detector: Detector = own.detector
        return detector

    return here


@contextmanager
def naming(name: object, kind: type[FacestyleError] = FacestyleError) -> Iterator[None]:
    """Puts the picture's name before an error that does not know it."""
    try:
        yield
    except kind as error:
        if str(name) in error.message:
            raise
        raise type(error)(f"{name}: {error.message}", error.hint) from error


def _tell_without_effect(session: _Session, alone: bool, report: Reporter | Lines) -> None:
    """No option is ignored in silence."""
    wish, style = session.wish, session.styles[0]
    drawing = style.domain in session.translator.card.drawings
    options_of = {
        "a ready crop (--align none)": {
            "--face": wish.face != "largest",
            "--detector": wish.detector != "auto",
            "--min-score": wish.min_score is not None,
        }
        if session.template == "none"
        else {},
        "a crop alone": {
            "--detail": wish.detail is not None,
            "--tone": wish.tone is not None and not drawing,
        }
        if session.crop_only(style)
        else {},
        "a single picture": {"--workers": wish.workers is not None} if alone else {},
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
    from facestyle.faces.registry import detector_entry
    from facestyle.translator import device_for, file_of

    entries = weights.index()
    if wish.model in entries:
        name = file_of(wish.model, wish.runtime, wish.device, wish.precision)
        model = [str(name), *entries[wish.model].needs]
    else:
        model = [str(weights.resolve(wish.model, offline=True))]  # or says that there is none
    detector = [] if wish.align == "none" else [detector_entry(wish.detector)]
    device = device_for(weights.locate(model[0]), wish.device)
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
