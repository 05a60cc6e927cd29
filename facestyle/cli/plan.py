"""Which picture is read and where its result goes, decided before anything is opened.

Knows paths alone: no model, no pixels. ``-`` is stdin or stdout.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facestyle.errors import InputError, UsageError

STDIO = "-"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One picture to read."""

    path: Path | None
    """None is stdin."""
    below: Path
    """Its folder relative to the folder that the user gave; ``.`` for a single file."""

    @property
    def name(self) -> str:
        """For messages."""
        return "stdin" if self.path is None else str(self.path)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture in, one picture out."""

    source: Source
    target: Path | None
    """None is stdout."""
    variant: int
    """Which of the styles asked for, from 0."""


def expand(inputs: Sequence[str], *, recursive: bool, extensions: frozenset[str]) -> list[Source]:
    """Files, folders and globs as a list of pictures in a stable order, each once.

    Raises:
        InputError: a pattern or folder without pictures.
        UsageError: a folder inside which only ``--recursive`` finds pictures.
    """
    sources: list[Source] = []
    for text in inputs:
        if text == STDIO:
            sources.append(Source(path=None, below=Path()))
            continue
        path = Path(text)
        if path.is_dir():
            sources += _folder(path, recursive, extensions)
        elif not path.exists() and glob.has_magic(text):
            found = sorted(p for p in glob.glob(text, recursive=True) if Path(p).is_file())
            if not found:
                raise InputError(f"no file matches {text}")
            sources += [Source(path=Path(p), below=Path()) for p in found]
        else:
            sources.append(Source(path=path, below=Path()))  # a missing file fails by itself
    unique = {source.path: source for source in sources}
    return list(unique.values())


def _folder(folder: Path, recursive: bool, extensions: frozenset[str]) -> list[Source]:
    def pictures(paths: Sequence[Path]) -> list[Path]:
        return sorted(p for p in paths if p.suffix.lower() in extensions and p.is_file())

    found = pictures(list(folder.rglob("*") if recursive else folder.iterdir()))
    if not found:
        hint = None if recursive or not pictures(list(folder.rglob("*"))) else "try --recursive"
        raise InputError(f"no pictures in {folder}", hint)
    return [Source(path=p, below=p.parent.relative_to(folder)) for p in found]


def plan(
    sources: Sequence[Source], output: str | None, suffixes: Sequence[str], extension: str
) -> list[Job]:
    """Where each result goes: ``a.jpg`` and suffix ``female`` give ``a.female.png`` beside it.

    Args:
        output: a file, a folder (existing, or ending in a slash), ``-``, or None for beside
            the source.
        suffixes: one a variant; more than one makes several results a picture.

    Raises:
        UsageError: several results for one output file, a result that is one of the inputs,
            or no place for a result of stdin.
    """
    single = len(sources) * len(suffixes) == 1
    into_folder = output is not None and (
        output.endswith(("/", "\\")) or (output != STDIO and Path(output).is_dir())
    )
    if output is not None and not into_folder and not single:
        raise UsageError(
            f"{len(sources) * len(suffixes)} results cannot go to the one output '{output}'",
            "give a folder: -o results/",
        )
    jobs = []
    for source in sources:
        for variant, suffix in enumerate(suffixes):
            if output == STDIO:
                target = None
            elif output is not None and not into_folder:
                target = Path(output)
            else:
                if source.path is None and output is None:
                    raise UsageError("a picture from stdin needs -o FILE, -o DIR/ or -o -")
                stem = "stdin" if source.path is None else source.path.stem
                folder = Path(output) / source.below if output else None
                beside = source.path.parent if source.path else Path()
                target = (folder or beside) / f"{stem}.{suffix}{extension}"
            jobs.append(Job(source=source, target=target, variant=variant))
    _check(jobs)
    return jobs


def _check(jobs: Sequence[Job]) -> None:
    inputs = {job.source.path.resolve() for job in jobs if job.source.path}
    seen: dict[Path, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        target = job.target.resolve()
        if target in inputs:
            raise UsageError(
                f"{job.target} is an input, it is never overwritten", "choose another -o"
            )
        if target in seen:
            first = seen[target].source.name
            raise UsageError(
                f"{first} and {job.source.name} would both write {job.target}",
                "translate them into separate folders with -o",
            )
        seen[target] = job
