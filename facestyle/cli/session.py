"""An opened model applied to pictures: reads, restyles, pastes, writes and reports each, one after
the other or side by side. ``restyling`` chooses the pictures and keeps the account; the command
supplies the styles.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from facestyle import __version__
from facestyle.cli import options
from facestyle.cli.plan import Job, Source
from facestyle.cli.report import Reporter
from facestyle.errors import FacestyleError, InputError

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


StyleMaker = Callable[["Translator", Callable[[], "Detector"]], "list[Style]"]


class Lines:
    """What is said on a picture's way, kept until its turn; in place of a ``Reporter``."""

    def __init__(self) -> None:
        self.said: list[tuple[str, tuple[Any, ...]]] = []

    def taken(self) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        """What was said until now; it is not kept."""
        said, self.said = tuple(self.said), []
        return said

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


def open_session(
    wish: Wish, make_styles: StyleMaker, crew: Crew, alone: bool, report: Reporter | Lines
) -> Session:
    """Open the model, its styles and its detector: once for all pictures, and so is what may
    be wrong with them."""
    from facestyle import weights
    from facestyle.opening import reasons

    path = fetched(wish, report)
    translator, detector, styles = opened(wish, path, make_styles, report)
    report.detail(f"{path} by {translator.backend.about}")
    for reason in reasons(path, translator.backend, wish.runtime, wish.device, wish.precision):
        report.detail(reason)
    session = Session(wish, translator, detector, styles, weights.sha256_of(path), crew)
    _tell_without_effect(session, alone, report)
    if session.template != "none":
        detector()
    return session


def opened(
    wish: Wish, path: Path, make_styles: StyleMaker, report: Reporter | Lines
) -> tuple[Translator, Callable[[], Detector], list[Style]]:
    """The model, what finds its faces, and the styles asked for; raises for a style that this model
    has not."""
    from facestyle.opening import open_translator

    translator = open_translator(
        path,
        domains=options.domain_names(wish.domains),
        runtime=wish.runtime,
        device=wish.device,
        precision=wish.precision,
        offline=wish.offline,
        warn=report.note,
    )
    detector = lazy_detector(wish, report)
    styles = make_styles(translator, detector)
    if wish.cam:
        translator.needs_attention(styles[0])
    return translator, detector, styles


def fetched(wish: Wish, report: Reporter | Lines) -> Path:
    """The model's file, fetched where it is not here."""
    from facestyle.opening import model_file

    with report.progress(f"fetching {wish.model}", unit=" bytes") as update:
        return model_file(
            wish.model,
            runtime=wish.runtime,
            device=wish.device,
            precision=wish.precision,
            offline=wish.offline,
            progress=update,
        )


class Session:
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
        from facestyle.pipeline import finish_for

        self.wish = wish
        self.template = template_of(wish, translator)
        self.finishes = [
            finish_for(
                translator.card, self.template, style, wish.face,
                detail=wish.detail, tone=wish.tone, crop_only=wish.crop_only,
            )
            for style in styles
        ]  # fmt: skip
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
            work.picture = picture or read_source(group[0].source)
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
        from facestyle.pipeline import finished

        wish, picture = self.wish, work.picture
        assert picture is not None, "it has been read"
        if job.cam and job.target and job.target.exists() and not wish.overwrite:
            # It is here for its heatmap alone.
            work.report.note(f"{job.target} exists, skipped (--overwrite redoes it)")
            self.write_attention(work, picture, job.variant, job.cam)
            return
        pixels_HWC = finished(picture.pixels_HWC, faces, self.finishes[job.variant])
        target = job.target or _binary(sys.stdout, "stdout")
        if job.target is not None and wish.output is not None:
            _make_folder(job.target.parent)
        if np.array_equal(pixels_HWC, picture.pixels_HWC):
            work.report.note(f"{job.source.name}: nothing changed, there was nothing to change")
        lost = write_picture(
            target,
            picture.with_pixels(pixels_HWC),
            format=None if job.target else wish.format or "png",
            recipe=self.recipe(job.variant),
            mark=wish.mark,
            keep_metadata=wish.keep_metadata,
        )
        if lost:
            work.report.note(f"{job.target or 'stdout'}: {lost}")
        if job.cam is not None:
            self.write_attention(work, picture, job.variant, job.cam)
        self.tell(work, job)

    def write_attention(self, work: _Work, picture: Picture, variant: int, target: Path) -> None:
        """The heatmap over the photo, beside the result."""
        from facestyle.images import write_picture
        from facestyle.pipeline import attention_overlay

        if target.exists() and not self.wish.overwrite:
            work.report.note(f"{target} exists, skipped (--overwrite redoes it)")
            return

        with self.attending:
            overlay_HWC = attention_overlay(
                picture.pixels_HWC, work.aligned, self.translator, self.styles[variant]
            )
        lost = write_picture(
            target,
            picture.with_pixels(overlay_HWC),
            recipe=self.recipe(variant),
            mark=self.wish.mark,
            keep_metadata=self.wish.keep_metadata,
        )
        if lost:
            work.report.note(f"{target}: {lost}")
        work.report.result({"output": str(target), "status": "attention"}, str(target))

    def recipe(self, variant: int) -> dict[str, object]:
        """All that is needed to make the same picture again."""
        card, wish = self.translator.card, self.wish
        style, finish = self.styles[variant], self.finishes[variant]
        return {
            "version": __version__,
            "model": card.name or card.family,
            "model_sha256": self.sha256,
            "domain": style.domain,
            "style": style.origin,
            "align": self.template,
            "face": wish.face,
            "crop_only": finish.crop_only,
            "detail": finish.detail,
            "tone": finish.tone,
            "precision": self.translator.backend.precision,
        }

    def tell(self, work: _Work, job: Job) -> None:
        """One result; nothing on stdout where the picture itself went there."""
        style, faces = self.styles[job.variant], len(work.aligned)
        finder = (
            "ready crop"
            if self.template == "none"
            else f"{faces} face{'s' if faces > 1 else ''} by {self.detector().name}"
        )
        if self.wish.crop_only is None and self.finishes[job.variant].crop_only:
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


def _tell_without_effect(session: Session, alone: bool, report: Reporter | Lines) -> None:
    """No option is ignored in silence."""
    wish, style = session.wish, session.styles[0]
    drawing = style.domain in session.translator.card.drawings
    cropped = session.finishes[0].crop_only
    without = [
        (session.template == "none", "a ready crop (--align none)", {
            "--face": wish.face != "largest",
            "--detector": wish.detector != "auto",
            "--min-score": wish.min_score is not None,
        }),
        (cropped, "a crop alone", {
            "--detail": wish.detail is not None,
            "--tone": wish.tone is not None and not drawing,
        }),
        (drawing and not cropped, "a drawing", {"--detail": wish.detail is not None}),
        (alone, "a single picture", {"--workers": wish.workers is not None}),
    ]  # fmt: skip
    for is_so, what, given in without:
        if idle := [option for option, is_given in given.items() if is_given and is_so]:
            report.note(f"{', '.join(idle)}: no effect on {what}")


def lazy_detector(wish: Wish, report: Reporter | Lines) -> Callable[[], Detector]:
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


def template_of(wish: Wish, translator: Translator) -> str:
    """The alignment in force: what was asked for, else what the model's card names."""
    return wish.align or translator.card.alignment


def read_source(source: Source) -> Picture:
    """The picture of a file, or of stdin."""
    from facestyle.images import read_picture

    if source.path is not None:
        return read_picture(source.path)
    return read_picture(_binary(sys.stdin, "stdin"), name="stdin")


def _binary(stream: Any, name: str) -> BinaryIO:
    if stream is None:
        raise InputError(f"{name} is closed", "give a file in place of -")
    binary: BinaryIO = stream.buffer
    return binary


@contextmanager
def naming(name: object, kind: type[FacestyleError] = FacestyleError) -> Iterator[None]:
    """Puts the picture's name before an error that does not know it."""
    try:
        yield
    except kind as error:
        if str(name) in error.message:
            raise
        raise type(error)(f"{name}: {error.message}", error.hint) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FacestyleError(f"cannot make the folder {folder}: {error.strerror}") from None
