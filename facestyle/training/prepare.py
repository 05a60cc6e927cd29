"""Raw pictures → aligned crops for training, in ``OUT/train`` and ``OUT/val``, and a report.

    plan      list the collection and each picture's domain; nothing is written
    measure   read, find the face, judge, cut: each picture by itself, in processes
    settle    set duplicates aside, split, put every crop in its place, report: all at once

What a picture gave becomes a line of ``OUT/.prepare/journal.jsonl`` once its crops are written,
so whoever was killed goes on from there. A crop's name follows from its picture's path alone and
its half from its picture's pixels, so nothing depends on the order of work, and pictures that
are added later move no others. What a good crop is, ``crops`` knows. Imports no torch, because
every process would.

    bits_WK  uint64 difference hashes: WORDS words, a column a crop
"""

from __future__ import annotations

import csv
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import secrets
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import TextIO

import cv2
import numpy as np

from facestyle.errors import FacestyleError, InputError, UsageError
from facestyle.faces.align import template_points
from facestyle.training.attributes import parse_attributes, write_attributes
from facestyle.training.collection import (
    Collection,
    domains_by_folder,
    open_collection,
    parse_by,
    rows_by_picture,
)
from facestyle.training.crops import HASH_SIDE, Crop, Record, Settings, cut_picture

MAX_BITS = 24
"""Of the 256, in which two crops of one picture may differ. There are 92 such pairs among 8,000
of UTKFace, 6 among 10,000 of CelebA, 2 among 4,000 anime faces, each of them one picture twice;
two people begin at 28. Compressed, resized, brighter or grey copies are found: 97 % of
UTKFace's, 95 % of portraits', 90 % of CelebA's, which are 72 px."""

WORDS = HASH_SIDE**2 // 64
WINDOW = 4  # pictures under way for each worker

TRAIN, VAL = SPLITS = ("train", "val")
SETTINGS, REPORT, WORK, JOURNAL = "prepare.json", "report.csv", ".prepare", "journal.jsonl"
HALF_WRITTEN = ".facestyle-"  # how a file's name begins until it is whole, in images.py as well
REMEDIES = {
    "unreadable": "give other pictures",
    "no face": "try --align none for ready crops",
    "too small": "try a smaller --size, or a larger --max-upscale",
    "cut off": "these seem to be ready crops: try --align none",
    "blurred": "try a smaller --min-sharpness",
}
METHOD = 1  # to be raised when the same settings give other crops

Update = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to do."""

    collection: Collection
    """The pictures."""
    out: Path
    """Where everything goes."""
    settings: Settings
    """How."""
    domains: Mapping[str, str]
    """Domain by picture, "" without domains; pictures that a list does not name are missing."""
    attributes: tuple[str, ...] = ()
    """Names, where attributes are labels and not domains."""
    labels: Mapping[str, np.ndarray] | None = None
    """Attributes 0 or 1 by picture, then."""

    def counts(self) -> dict[str, int]:
        """Pictures by domain."""
        return dict(sorted(Counter(self.domains.values()).items()))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a picture or a face in it: a row of the report."""

    file: str
    """The picture's name in the collection."""
    domain: str = ""
    """Its domain."""
    status: str = "set aside"
    """``train`` or ``val``, else ``set aside``."""
    reason: str = ""
    """Why it was set aside."""
    detail: str = ""
    """What was found, and what is allowed."""
    faces: int = 0
    """Faces in the picture."""
    upscale: float | None = None
    """See ``Crop``."""
    sharpness: float | None = None
    """See ``Crop``."""
    output: str = ""
    """The crop, below the output folder."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of all pictures."""

    kept: Mapping[str, Mapping[str, int]]
    """Crops by half and domain."""
    set_aside: Mapping[str, int]
    """Pictures and faces by reason, the most frequent first."""
    several: int
    """Kept pictures of which one face of several was taken."""
    report: Path
    """A row for every picture or face."""

    @property
    def total(self) -> int:
        """Crops kept."""
        return sum(count for counts in self.kept.values() for count in counts.values())

    @property
    def remedy(self) -> str | None:
        """What to try where the most frequent reason took more than was kept."""
        reason, count = next(iter(self.set_aside.items()), ("", 0))
        return REMEDIES.get(reason) if count > self.total else None


# --- plan -------------------------------------------------------------------------------------


def plan(source: Path, out: Path, settings: Settings) -> Plan:
    """List what there is to do; writes nothing.

    Raises:
        InputError: no pictures, or no use of the list of attributes.
        UsageError: settings that do not go together, or not with those that ``out`` has.
    """
    _check(source, out, settings)
    collection = open_collection(source)
    if not settings.attributes:
        domains = domains_by_folder(collection.names)
        return Plan(collection=collection, out=out, settings=settings, domains=domains)
    attribute, ends = parse_by(settings.by) if settings.by else ("", ("", ""))
    names, rows = parse_attributes(
        _list_of(settings.attributes, collection),
        settings.attributes,
        only=(attribute,) if attribute else (),
    )
    labels = rows_by_picture(collection.names, rows)
    return Plan(
        collection=collection,
        out=out,
        settings=settings,
        domains={file: ends[0] if row[0] else ends[1] for file, row in labels.items()},
        attributes=() if attribute else names,
        labels=None if attribute else labels,
    )


def _check(source: Path, out: Path, settings: Settings) -> None:
    if settings.align != "none":
        template_points(settings.align)
    if settings.face not in ("largest", "all"):
        raise UsageError(f"unknown face choice '{settings.face}'", "use largest or all")
    if settings.by and not settings.attributes:
        raise UsageError("--by needs the list that has the attribute", "give --attributes FILE")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(f"{out} lies in {source}", "choose a folder outside of it for the crops")
    if not out.exists():
        return
    if out.is_dir() and all(path.name.startswith(HALF_WRITTEN) for path in out.iterdir()):
        return
    try:
        before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "is not empty, and no work of facestyle prepare"
        raise UsageError(f"{out} {found}", "choose a new folder for the crops") from None
    for key, value in _header(settings).items():
        if before.get(key) != value:
            option = f"--{key.replace('_', '-')}"
            raise UsageError(
                f"{out} was made with {option} {before.get(key) or 'none'}, not {value or 'none'}",
                "give the same options again, or another folder",
            )


def _header(settings: Settings) -> dict[str, object]:
    """What must not change while a folder is being filled."""
    return {**asdict(settings), "attributes": Path(settings.attributes).name, "method": METHOD}


def _list_of(attributes: str, collection: Collection) -> bytes:
    try:
        if not Path(attributes).is_file() and attributes in collection.others:
            content = collection.content(attributes)
            return content if isinstance(content, bytes) else content.read_bytes()
        return Path(attributes).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the attributes {attributes}: {error.strerror}") from None


# --- measure ----------------------------------------------------------------------------------


def measure(plan: Plan, workers: int, update: Update = lambda done, total: None) -> None:
    """Cut and judge every picture that the journal does not have yet.

    Raises:
        FacestyleError: ``plan.out`` cannot be written, or a process died.
    """
    with _writing_into(plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
        with _replacing(plan.out / SETTINGS) as file:
            json.dump(_header(plan.settings), file, indent=2)
        work = plan.out / WORK
        for folder in (plan.out, work, *(plan.out / half for half in SPLITS)):
            folder.mkdir(exist_ok=True)
            for half_written in folder.glob(f"{HALF_WRITTEN}*"):
                half_written.unlink(missing_ok=True)
        pending = _forget_stale(plan)
        total = len(plan.domains)
        with (
            (work / JOURNAL).open("a", encoding="utf-8") as journal,
            closing(_measured(plan, pending, workers)) as records,
        ):
            journal.write("\n" if journal.tell() else "")  # ends a line that a kill cut short
            for number, record in enumerate(records, total - len(pending) + 1):
                journal.write(json.dumps(asdict(record)) + "\n")
                journal.flush()
                update(number, total)


def _forget_stale(plan: Plan) -> list[str]:
    """Delete the crops of pictures that have gone or changed; returns the pictures to measure."""
    pending = dict.fromkeys(plan.domains)
    for record in _journal(plan.out).values():
        named = [crop for crop in record.crops if crop.name]
        if _is_current(plan, record) and all(
            any(place.exists() for place in _places(plan.out, record, crop)) for crop in named
        ):
            del pending[record.file]
            continue
        for crop in named:
            for place in _places(plan.out, record, crop):
                place.unlink(missing_ok=True)
    return list(pending)


def _is_current(plan: Plan, record: Record) -> bool:
    """Whether the picture is still there, in the same domain, and the file that was read."""
    domain = plan.domains.get(record.file)
    return domain == record.domain and plan.collection.stamp(record.file) == record.stamp


def _journal(out: Path) -> dict[str, Record]:
    """The last record of each picture."""
    records = {}
    with suppress(FileNotFoundError), (out / WORK / JOURNAL).open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError):  # a line that a kill cut short
                values = json.loads(line)
                crops = tuple(Crop(**crop) for crop in values.pop("crops"))
                records[values["file"]] = Record(crops=crops, **values)
    return records


def _measured(plan: Plan, files: Sequence[str], workers: int) -> Generator[Record, None, None]:
    """Records in the order of ``files``, so many under way that memory stays flat."""

    def task(file: str) -> tuple[Path | bytes | InputError, Record, Settings, Path]:
        blank = Record(file=file, stamp=plan.collection.stamp(file), domain=plan.domains[file])
        try:
            content: Path | bytes | InputError = plan.collection.content(file)
        except InputError as error:
            content = error
        return content, blank, plan.settings, plan.out / WORK

    if workers == 1 or len(files) < 2:
        for file in files:
            yield cut_picture(*task(file))
        return
    # Not forked: the libraries at work here have threads, which a fork would not take along.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    under_way: deque[Future[Record]] = deque()
    try:
        for file in files:
            work = task(file)
            with _interrupts_held():
                under_way.append(pool.submit(cut_picture, *work))
            if len(under_way) >= WINDOW * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise FacestyleError(
            "a process that was reading pictures died, perhaps for want of memory",
            "run again: what is done is kept; --workers 1 needs the least",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits, and never reaches a process that is started meanwhile: it would die of it
    with a traceback. The parent answers for all."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Else the workers of a process that was killed would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# --- settle -----------------------------------------------------------------------------------


def settle(plan: Plan, update: Update = lambda done, total: None) -> Outcome:
    """Set duplicates aside, put each crop in its place, and report; what is there stays there.

    The report is written last: where it is, the folder is complete.

    Raises:
        FacestyleError: ``plan.out`` cannot be written.
        InputError: not one crop is usable.
    """
    out = plan.out
    kept = {half: dict.fromkeys(plan.counts(), 0) for half in SPLITS}
    set_aside: Counter[str] = Counter()
    several = 0
    labels: dict[str, list[tuple[str, np.ndarray]]] = {half: [] for half in SPLITS}
    with _writing_into(out):
        (out / REPORT).unlink(missing_ok=True)
        with _replacing(out / REPORT) as file:
            report = csv.writer(file, lineterminator="\n")
            report.writerow(field.name for field in fields(Verdict))
            for verdict in _verdicts(plan, update):
                report.writerow(vars(verdict).values())
                if verdict.reason:
                    set_aside[verdict.reason] += 1
                    continue
                kept[verdict.status][verdict.domain] += 1
                several += plan.settings.face == "largest" and verdict.faces > 1
                if plan.labels is not None:
                    name = PurePosixPath(verdict.output).name
                    labels[verdict.status].append((name, plan.labels[verdict.file]))
            if plan.labels is not None:
                for half in SPLITS:
                    with _replacing(out / half / "attributes.csv") as listed:
                        write_attributes(listed, plan.attributes, labels[half])
            for half, domain in itertools.product(SPLITS, filter(None, plan.counts())):
                with suppress(OSError):  # it is not empty
                    (out / half / domain).rmdir()
    outcome = Outcome(
        kept=kept, set_aside=dict(set_aside.most_common()), several=several, report=out / REPORT
    )
    if not outcome.total:
        reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.set_aside.items())
        raise InputError(
            f"not one crop is usable: {reasons} (see {outcome.report})", outcome.remedy
        )
    return outcome


def _verdicts(plan: Plan, update: Update) -> Iterator[Verdict]:
    """What becomes of each picture and face, in the order of names, once it is in its place."""
    for half, domain in itertools.product(SPLITS, ("", *plan.counts())):
        (plan.out / half / domain).mkdir(parents=True, exist_ok=True)
    journal = _journal(plan.out)
    duplicates = _duplicates([journal[file] for file in plan.domains], update)
    for file in plan.collection.names:
        if file not in plan.domains:
            yield Verdict(file=file, reason="not listed")
            continue
        record = journal[file]
        status = _half(record.pixels, plan.settings)
        for crop in record.crops:
            verdict = Verdict(
                file=file,
                domain=record.domain,
                reason=crop.reason,
                detail=crop.detail,
                faces=record.faces,
                upscale=crop.upscale,
                sharpness=crop.sharpness,
            )
            if crop.name in duplicates:
                verdict = replace(verdict, reason="duplicate", detail=duplicates[crop.name])
            if crop.name:
                places = _places(plan.out, record, crop)
                target = places[0] if verdict.reason else places[1 + SPLITS.index(status)]
                _move(places, target)
            if not verdict.reason:
                output = target.relative_to(plan.out).as_posix()
                verdict = replace(verdict, status=status, output=output)
            yield verdict


def _duplicates(records: Sequence[Record], update: Update) -> dict[str, str]:
    """Crops that show what a better one shows, and which one that is.

    Compared with those that are kept, not with other duplicates, so that no chain of small
    steps leads from one person to another.
    """
    pairs = [(record, crop) for record in records for crop in record.crops if crop.name]
    # The face with most pixels comes first, then the order of names decides.
    pairs.sort(key=lambda pair: (pair[1].upscale, pair[0].file, pair[1].name))
    hashes = b"".join(bytes.fromhex(crop.bits) for _, crop in pairs)
    bits_WK = np.frombuffer(hashes, np.uint64).reshape(-1, WORDS).T
    kept_WK = np.empty(bits_WK.shape, np.uint64)
    kept: list[Record] = []
    found = {}
    for number, (record, crop) in enumerate(pairs):
        differ_WK = kept_WK[:, : len(kept)] ^ bits_WK[:, number, None]
        distance_K = np.bitwise_count(differ_WK).sum(axis=0, dtype=np.uint16)
        if distance_K.min(initial=MAX_BITS + 1) <= MAX_BITS:
            nearest = int(distance_K.argmin())
            other = kept[nearest]
            where = f" in domain {other.domain}" if other.domain != record.domain else ""
            bits = f"{distance_K[nearest]} of {HASH_SIDE**2} bits differ"
            how = "the same pixels" if record.pixels == other.pixels else bits
            found[crop.name] = f"of {other.file}{where}, {how}"
        else:
            kept_WK[:, len(kept)] = bits_WK[:, number]
            kept.append(record)
        if number % 500 == 0:
            update(number, len(pairs))
    return found


def _half(pixels: str, settings: Settings) -> str:
    """``train`` or ``val``, by a picture's content alone."""
    chance = int(hashlib.sha256(f"{settings.seed} {pixels}".encode()).hexdigest()[:8], 16) / 2**32
    return VAL if chance < settings.val else TRAIN


# --- files ------------------------------------------------------------------------------------


def _places(out: Path, record: Record, crop: Crop) -> tuple[Path, Path, Path]:
    """Where a crop may be: not yet or no longer in use, for training, held out."""
    train, val = (out / half / record.domain / crop.name for half in SPLITS)
    return out / WORK / crop.name, train, val


def _move(places: Iterable[Path], target: Path) -> None:
    """Leave a crop at ``target`` alone, and take the first that there is."""
    here = [place for place in places if place.exists()]
    if target not in here:
        os.replace(here.pop(0), target)
    for place in here:
        if place != target:
            place.unlink()


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes its place when it is whole."""
    temporary = path.with_name(f"{HALF_WRITTEN}{secrets.token_hex(8)}.part")
    try:
        # A file's name may be bytes that are no text: they are written as they are.
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _writing_into(out: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space and run again: what is done is kept"
            raise FacestyleError(f"disk full while writing into {out}", hint) from None
        raise FacestyleError(f"cannot write into {out}: {error.strerror or error}") from None
