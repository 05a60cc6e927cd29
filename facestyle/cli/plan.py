"""Which picture is read and where its result goes, decided before anything is opened.

Knows paths alone: no model, no pixels. ``-`` is stdin or stdout.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
    named: bool = True
    """False: found in a folder or by a pattern."""

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
    cam: Path | None = None
    """Where its heatmap goes, if one is wanted."""


def expand(
    inputs: Sequence[str],
    output: str | None,
    *,
    recursive: bool,
    is_picture: Callable[[Path], bool],
    is_result: Callable[[Path], bool],
) -> tuple[list[Source], list[Path]]:
    """Files, folders and globs as pictures in a stable order, each once; and what is left out.

    Left out of folders and globs are earlier results, so that a second run does not restyle
    what the first one wrote: what lies beside its picture (``a.female.png`` by ``a.jpg``) or
    in the output folder, if ``is_result`` agrees.

    Raises:
        InputError: a pattern or folder without pictures.
    """
    sources: dict[Path | None, Source] = {}
    left_out: list[Path] = []
    for text in inputs:
        path = None if text == STDIO else Path(text)
        if path is not None and path.is_dir():
            found, root = _folder(path, recursive, is_picture), path
        elif path is not None and not path.exists() and glob.has_magic(text):
            found, root = _matches(text), None
        else:
            sources.setdefault(path, Source(path=path, below=Path()))  # missing: fails by itself
            continue
        results = _results(found, root, output, is_result)
        left_out += sorted(results)
        for picture in found:
            if picture not in results:
                below = picture.parent.relative_to(root) if root else Path()
                sources.setdefault(picture, Source(path=picture, below=below, named=False))
    return list(sources.values()), [result for result in left_out if result not in sources]


def _matches(pattern: str) -> list[Path]:
    found = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    if not found:
        raise InputError(f"no file matches {pattern}")
    return found


def _folder(folder: Path, recursive: bool, is_picture: Callable[[Path], bool]) -> list[Path]:
    def pictures(paths: Iterable[Path]) -> list[Path]:
        return sorted(p for p in paths if is_picture(p) and p.is_file())

    found = pictures(folder.rglob("*") if recursive else folder.iterdir())
    if not found:
        deeper = not recursive and any(map(is_picture, folder.rglob("*")))
        hint = "try --recursive" if deeper else None
        raise InputError(f"no pictures in {folder}", hint)
    return found


def _results(
    found: Sequence[Path], root: Path | None, output: str | None, is_result: Callable[[Path], bool]
) -> set[Path]:
    """Those of the pictures found that an earlier run wrote."""
    stems = {path.with_suffix("") for path in found}
    folder = Path(output).resolve() if output and root else None
    inside = folder is not None and root is not None and root.resolve() in folder.parents

    def lies_like_one(path: Path) -> bool:
        words = path.stem.split(".")
        beside = (path.parent / ".".join(words[:n]) in stems for n in range(1, len(words)))
        return any(beside) or (inside and folder in path.resolve().parents)

    return {path for path in found if lies_like_one(path) and is_result(path)}


def plan(
    sources: Sequence[Source],
    output: str | None,
    suffixes: Sequence[str],
    extension: str,
    *,
    cam: bool = False,
) -> list[Job]:
    """Where each result goes: ``a.jpg`` and suffix ``female`` give ``a.female.png`` beside it.

    Where ``a.jpg`` and ``a.png`` go to one folder, their names stay whole: ``a.jpg.female.png``.

    Args:
        output: a file, a folder (existing, ending in a slash, or without an extension where
            it is for more than one picture), ``-``, or None for beside the source.
        suffixes: one a variant; more than one makes several results a picture.
        cam: whether each result has a heatmap beside it, ``a.female.cam.png``.

    Raises:
        UsageError: several results for one output file, a result that is one of the inputs,
            or no place for a result of stdin.
    """
    single = len(sources) * len(suffixes) == 1
    into_folder = (
        output is not None
        and output != STDIO
        and (
            output.endswith(("/", "\\"))
            or Path(output).is_dir()
            or not (Path(output).suffix or (single and sources[0].named))
        )
    )
    if output is not None and not into_folder and not single:
        raise UsageError(
            f"{len(sources) * len(suffixes)} results cannot go to the one output '{output}'",
            "give a folder: -o results/",
        )
    if output is None and any(source.path is None for source in sources):
        raise UsageError("a picture from stdin needs -o FILE, -o DIR/ or -o -")
    plain = [_place(source, output) for source in sources]
    often = {place for place, times in Counter(plain).items() if times > 1}
    jobs = []
    for source, place in zip(sources, plain, strict=True):
        if place in often and source.path is not None:
            place = place.with_name(source.path.name)  # a.jpg and a.png: a.jpg.female.png
        for variant, suffix in enumerate(suffixes):
            if output == STDIO:
                target = None
            elif output is not None and not into_folder:
                target = Path(output)
            else:
                target = place.with_name(f"{place.name}.{suffix}{extension}")
            heatmap = target and target.with_name(f"{target.stem}.cam{target.suffix}")
            jobs.append(
                Job(source=source, target=target, variant=variant, cam=heatmap if cam else None)
            )
    _check(jobs)
    return jobs


def _place(source: Source, folder: str | None) -> Path:
    """A result's path without suffix and extension."""
    if source.path is None:
        return Path(folder or "") / "stdin"
    return (Path(folder) / source.below if folder else source.path.parent) / source.path.stem


def _check(jobs: Sequence[Job]) -> None:
    inputs = {job.source.path.resolve() for job in jobs if job.source.path}
    seen: dict[Path, Job] = {}
    written = [(job, path) for job in jobs for path in (job.target, job.cam) if path]
    for job, path in written:
        target = path.resolve()
        if target in inputs:
            raise UsageError(
                f"{path} is an input, it is never overwritten",
                "leave it out, or choose another -o",
            )
        if target in seen:
            first = seen[target].source.name
            raise UsageError(
                f"{first} and {job.source.name} would both write {path}",
                "translate them into separate folders with -o",
            )
        seen[target] = job
