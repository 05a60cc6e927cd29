"""What ``translate`` and ``reference`` share: plan, hand each picture to a session, account.

Order of work: what is cheap and can be wrong (names, paths, a single picture) comes before
what is dear (torch, the model).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from facestyle.cli.plan import STDIO, Job, Source, expand, plan
from facestyle.cli.report import Reporter
from facestyle.cli.session import (
    Lines,
    Outcome,
    StyleMaker,
    Wish,
    fetched,
    open_session,
    opened,
    read_source,
)
from facestyle.errors import FacestyleError, PartialBatchError, UsageError

ENGINES = ("local", "ray")


def restyle_all(
    wish: Wish, make_styles: StyleMaker, suffixes: Sequence[str], report: Reporter
) -> None:
    """Plan, open the model once, restyle each picture, and account for what failed."""
    from facestyle import batch

    jobs = _jobs(wish, suffixes, report)
    if wish.dry_run:
        _tell_plan(wish, make_styles, jobs, report)
        return
    pending = [job for job in jobs if not _done_before(job, wish, report)]
    if not pending:
        return
    groups = [list(group) for _, group in groupby(pending, _source_of)]
    pictures = len({job.source.path for job in jobs})
    alone, existing = pictures == 1, pictures - len(groups)
    if wish.engine == "ray":
        outcomes = _over_machines(wish, make_styles, groups, report)
        _account(groups, outcomes, alone, existing, wish, report)
        return
    # A single picture is read first: if it is bad, that is said before torch is imported.
    first = read_source(pending[0].source) if alone else None
    serial = alone or wish.fail_fast
    with batch.Crew(1 if serial else wish.workers or batch.usual_workers()) as crew:
        session = open_session(wish, make_styles, crew, alone, report)
        if alone:
            outcomes = (session.whole(group, report, first) for group in groups)
        else:
            outcomes = session.outcomes(groups, report)
        _account(groups, outcomes, alone, existing, wish, report)


def _account(
    groups: Sequence[Sequence[Job]],
    outcomes: Generator[Outcome, None, None],
    alone: bool,
    existing: int,
    wish: Wish,
    report: Reporter,
) -> None:
    """Say what became of each picture, in their order; raises for those that failed.

    Args:
        existing: how many more there are, whose results an earlier run wrote.
    """
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
        counts = {"written": len(groups) - failed, "existing": existing}
        rest = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        raise PartialBatchError(
            f"{failed} of {len(groups) + existing} pictures failed" + (rest and f"; {rest}"),
            "mend or remove them and run again: what exists is skipped",
        )


def _over_machines(
    wish: Wish, make_styles: StyleMaker, groups: Sequence[Sequence[Job]], report: Reporter
) -> Generator[Outcome, None, None]:
    """The same by ``Session`` in other processes; what they say comes back with the results."""
    from facestyle import engine_ray

    fetched(wish, report)  # missing: said at once

    def open_work(cores: int) -> Callable[[Sequence[Sequence[Job]]], list[Outcome]]:
        from facestyle.batch import Crew

        lines = Lines()
        session = open_session(wish, make_styles, Crew(cores), False, lines)
        opening = lines.taken()

        def work(part: Sequence[Sequence[Job]]) -> list[Outcome]:
            done = [replace(outcome, opening=opening) for outcome in session.outcomes(part)]
            if late := lines.taken():  # what the networks stumbled over, of any of these
                done[-1] = replace(done[-1], said=[*done[-1].said, *late])
            return done

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


def _jobs(wish: Wish, suffixes: Sequence[str], report: Reporter) -> list[Job]:
    """What is to be read and written; raises for all that the words alone show to be wrong."""
    from facestyle.faces import check_choice
    from facestyle.faces.align import template_points
    from facestyle.faces.registry import detector_entry
    from facestyle.images import is_picture, output_extension
    from facestyle.marks import is_marked
    from facestyle.pipeline import one_crop

    for what, text in (*(("a picture", text) for text in wish.inputs), ("-o", wish.output)):
        if text == "":
            raise UsageError(f"{what} without a name was given", "an empty shell variable?")
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
        stem = path.stem.removesuffix(".cam")
        return stem.endswith(tuple(f".{suffix}" for suffix in suffixes)) or is_marked(path)

    if strange := sorted(_unread(wish.inputs, recursive=wish.recursive)):
        report.note(
            f"left out {len(strange)} pictures of kinds that are not read, such as {strange[0]}: "
            "convert them to JPEG or PNG"
        )
    sources, results = expand(
        wish.inputs,
        wish.output,
        recursive=wish.recursive,
        is_picture=is_picture,
        is_result=is_result,
    )
    if results:
        report.note(f"left out {len(results)} earlier results, such as {results[0]}")
    jobs = plan(sources, wish.output, suffixes, extension, cam=wish.cam)
    for job in jobs:
        named = output_extension(job.target) if job.target else extension
        if wish.format and named != extension:
            raise UsageError(f"-o {wish.output} and --format {wish.format} disagree", "drop one")
    return jobs


def _unread(inputs: Sequence[str], *, recursive: bool) -> Iterator[Path]:
    """Pictures in the folders given that nobody will look at."""
    from facestyle.images import UNREAD_EXTENSIONS

    for folder in map(Path, inputs):
        if str(folder) != STDIO and folder.is_dir():
            for path in folder.rglob("*") if recursive else folder.iterdir():
                if path.suffix.lower() in UNREAD_EXTENSIONS:
                    yield path


def _source_of(job: Job) -> Source:
    return job.source


def _done_before(job: Job, wish: Wish, report: Reporter) -> bool:
    try:
        if job.target is None or not job.target.exists():
            return False
    except OSError:  # such as too long a name: its own error, when it is written
        return False
    if not job.target.is_file():
        raise FacestyleError(
            f"{job.target} exists and is not a regular file",
            "name another output, or -o - for stdout",
        )
    if wish.overwrite or (job.cam is not None and not job.cam.exists()):
        return False
    values = {"input": job.source.name, "output": str(job.target), "status": "skipped"}
    report.note(f"{job.target} exists, skipped (--overwrite redoes it)")
    report.result(values, str(job.target))
    return True


def _tell_plan(wish: Wish, make_styles: StyleMaker, jobs: Sequence[Job], report: Reporter) -> None:
    """What a run would read, write, load and fetch. Where all is here the model is opened: what it
    would refuse is part of what would be done."""
    from facestyle import weights
    from facestyle.faces.registry import detector_entry
    from facestyle.opening import device_for, file_of

    entries = weights.index()
    if wish.model in entries:
        name = file_of(wish.model, wish.runtime, wish.device, wish.precision)
        model = [str(name), *entries[wish.model].needs]
    else:
        model = [str(weights.resolve(wish.model, offline=True))]  # or says that there is none
    detector = [] if wish.align == "none" else [detector_entry(wish.detector)]
    device = device_for(weights.locate(model[0]), wish.device, wish.runtime)
    files = {name: weights.locate(name) for name in model + detector}
    would_fetch = {name: entries[name].url for name, place in files.items() if place is None}
    if not would_fetch:
        opened(wish, fetched(wish, report), make_styles, report)
    report.result(
        {
            "model": wish.model,
            "device": device,
            "detector": detector[0] if detector else None,
            "weights": {name: str(place) for name, place in files.items() if place},
            "would_fetch": would_fetch,
        },
        "\n".join(
            [f"device {device}"]
            + [f"{name}: {place}" for name, place in files.items() if place]
            + [f"{name}: missing, would fetch {url}" for name, url in would_fetch.items()]
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
