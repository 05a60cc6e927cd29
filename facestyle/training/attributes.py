"""Lists that say which attributes each picture has: CelebA's own format, and CSV.

CelebA's ``list_attr_celeba.txt``: a line with the number of pictures, a line with the attributes'
names, then a line a picture: its file name and 1 or -1 for each attribute. CSV: a header, whose
first column is the file, and 1 or 0, 1 or -1, or true or false. Knows nothing of pictures.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from facestyle.errors import InputError, UsageError

VALUES = {"1": 1, "true": 1, "-1": 0, "0": 0, "false": 0}
SEPARATORS = ",;\t"

Attributes = tuple[tuple[str, ...], dict[str, np.ndarray]]


def read_attributes(path: Path, only: Sequence[str] = ()) -> Attributes:
    """The attributes' names, and of each file a uint8 vector of 0 and 1 in that order.

    Args:
        only: leave out all other columns, whatever is in them.

    Raises:
        InputError: the file is missing, or is no list of attributes.
        UsageError: ``only`` names an attribute that the list does not have.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the attributes {path}: {error.strerror}") from None
    return parse_attributes(content, str(path), only)


def parse_attributes(content: bytes, name: str, only: Sequence[str] = ()) -> Attributes:
    """``read_attributes`` of a list that is in memory; ``name`` is for messages."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{name} is not text, expected a list of attributes") from None
    is_celeba = bool(lines) and lines[0].strip().isdecimal()
    names, rows = _celeba(lines) if is_celeba else _csv(lines)
    if not names:
        raise InputError(
            f"{name} names no attributes",
            "expected CelebA's list, or CSV with a header such as file,Male,Smiling",
        )
    if len(set(names)) < len(names):
        raise InputError(f"{name} names an attribute twice, expected each once")
    columns = [_column(names, wanted, name) for wanted in only] or range(len(names))
    kept: dict[str, np.ndarray] = {}
    for number, file, values in rows:
        where = f"{name}, line {number}"
        if len(values) != len(names):
            raise InputError(f"{where} has {len(values)} values, expected {len(names)}")
        if file in kept:
            raise InputError(f"{where} names {file} for the second time")
        try:
            chosen = [VALUES[values[column].strip().lower()] for column in columns]
        except KeyError as error:
            raise InputError(
                f"{where} has the value {error}, expected 1, 0, -1, true or false"
            ) from None
        kept[file] = np.array(chosen, np.uint8)
    return tuple(names[column] for column in columns), kept


def write_attributes(
    file: TextIO, names: Sequence[str], rows: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write CSV that ``read_attributes`` reads."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(("file", *names))
    table.writerows((name, *label.tolist()) for name, label in rows)


Rows = Iterator[tuple[int, str, list[str]]]  # line number, file, values


def _celeba(lines: Sequence[str]) -> tuple[list[str], Rows]:
    names = lines[1].split() if len(lines) > 1 else []
    # From the right, because a file's name may have spaces.
    cells = ((n, line.strip().rsplit(maxsplit=len(names))) for n, line in enumerate(lines, 1))
    return names, ((n, row[0], row[1:]) for n, row in islice(cells, 2, None) if row)


def _csv(lines: Sequence[str]) -> tuple[list[str], Rows]:
    header = lines[0] if lines else ""
    separator = max(SEPARATORS, key=header.count)
    cells = ((n, _split(line, separator)) for n, line in enumerate(lines, 1))
    _, (_, *names) = next(cells, (1, [""]))
    return names, ((n, row[0], row[1:]) for n, row in cells if any(row))


def _split(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator)) or [""]]
    except csv.Error:  # a cell of more than 131,072 characters
        raise InputError("a list of attributes has short lines, this file has none") from None


def _column(names: Sequence[str], wanted: str, where: str) -> int:
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=1)
        raise UsageError(
            f"{where} has no attribute '{wanted}'",
            f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}",
        )
    return names.index(wanted)
