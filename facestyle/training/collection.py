"""A collection of raw pictures: a folder or a zip, listed once, with the domain of each.

Knows names and bytes; knows nothing of what is in a picture. A zip is never unpacked, and what
it says of its sizes is not believed.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from facestyle.errors import InputError, UsageError
from facestyle.images import is_picture

MAX_MEMBER_BYTES = 64 * 2**20  # a 100 megapixel JPEG; some wait in memory for each worker
MAX_MEMBER_RATIO = 200  # pictures hardly shrink in a zip; deflate's own limit is 1032
SMALL_MEMBER_BYTES = 2**20  # below this no ratio does harm


class Collection(Protocol):
    """Pictures by name: their path below the collection's top, with slashes."""

    names: tuple[str, ...]
    """Pictures in the order of their names; hidden files are none."""
    others: tuple[str, ...]
    """Files whose extension is no picture's."""

    def stamp(self, name: str) -> str:
        """Another one when the picture's file has changed."""
        ...

    def content(self, name: str) -> Path | bytes:
        """The picture's file, or its bytes; raises InputError."""
        ...


def open_collection(path: Path) -> Collection:
    """List a folder, or a zip.

    Raises:
        InputError: neither of them, damaged, unsafe, or without pictures.
    """
    if path.is_dir():
        collection: Collection = _Folder(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        collection = _Zip(path)
    else:
        found = "is neither a folder nor a zip" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}", "give a folder of pictures, or a zip of them")
    if not collection.names:
        raise InputError(f"no pictures in {path}")
    return collection


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root
        tops = list(root.iterdir())  # each by itself, so that a domain may be a link to a folder
        found = (path for top in tops for path in ([top] if top.is_file() else top.rglob("*")))
        files = (path.relative_to(root).as_posix() for path in found if path.is_file())
        self.names, self.others = _sorted_out(files)

    def stamp(self, name: str) -> str:
        try:
            stat = (self.root / name).stat()
        except OSError:
            return ""  # gone since it was listed: reading it will say so
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def content(self, name: str) -> Path:
        return self.root / name


class _Zip:
    def __init__(self, path: Path) -> None:
        try:
            self.archive = zipfile.ZipFile(path)
        except Exception as error:  # malformed bytes lead to any exception, as with pictures
            raise InputError(f"{path} is no zip that can be read ({error})") from None
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in self.archive.infolist():
            name = info.filename.replace("\\", "/")
            if re.match(r"/|[A-Za-z]:", name) or ".." in name.split("/"):
                raise InputError(
                    f"{path} names a file outside of itself: {name}", "do not trust this zip"
                )
            if not info.is_dir():
                self.members[name] = info
        self.names, self.others = _sorted_out(self.members)

    def stamp(self, name: str) -> str:
        info = self.members[name]
        return f"{info.file_size} {info.CRC:08x}"

    def content(self, name: str) -> bytes:
        info = self.members[name]
        size = info.file_size
        swollen = size > max(SMALL_MEMBER_BYTES, MAX_MEMBER_RATIO * info.compress_size)
        if swollen or size > MAX_MEMBER_BYTES:
            raise InputError(
                f"{name} unpacks from {info.compress_size} to {size} bytes, too many for a picture"
            )
        try:
            with self.archive.open(info) as file:
                # With a size, because reading all would unpack what the zip does not admit to.
                return file.read(size)
        except Exception as error:
            raise InputError(f"{name} cannot be unpacked ({error})") from None


def _sorted_out(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Pictures and other files, without hidden ones and what macOS puts into zips."""
    seen = [n for n in names if not any(p[0] == "." or p == "__MACOSX" for p in n.split("/") if p)]
    pictures = sorted(name for name in seen if is_picture(PurePosixPath(name)))
    return tuple(pictures), tuple(sorted(set(seen) - set(pictures)))


def domains_by_folder(names: Sequence[str]) -> dict[str, str]:
    """Each picture's domain: its topmost folder, or "" where no picture is in a folder.

    A single folder around the domain folders, as zips often have, is looked through.

    Raises:
        InputError: some pictures are in a folder and some are not.
    """
    split = [name.split("/") for name in names]
    while len({parts[0] for parts in split}) == 1 and min(map(len, split)) > 2:
        split = [parts[1:] for parts in split]
    loose = [name for name, parts in zip(names, split, strict=True) if len(parts) == 1]
    if loose and len(loose) < len(names):
        raise InputError(
            f"{len(loose)} pictures lie beside the domain folders, such as {loose[0]}",
            "move them into a domain's folder, or say which they are with --attributes",
        )
    return {
        name: parts[0] if len(parts) > 1 else "" for name, parts in zip(names, split, strict=True)
    }


def rows_by_picture(names: Sequence[str], rows: Mapping[str, Any]) -> dict[str, Any]:
    """The row of each picture that a list knows, by its path or by its file name alone, which is
    not another picture's path.

    Raises:
        InputError: two pictures have a file name that the list knows once, or none is known.
    """
    found, paths = {}, set(names)
    by_name: Counter[str] = Counter()
    for name in names:
        file = name.rpartition("/")[2]
        if name in rows:
            found[name] = rows[name]
        elif file in rows and file not in paths:
            found[name] = rows[file]
            by_name[file] += 1
            if by_name[file] > 1:
                raise InputError(
                    f"several pictures are called {file}, the list of attributes means one",
                    "name each by its path in the list, such as folder/picture.jpg",
                )
    if not found:
        raise InputError(
            f"none of the {len(rows)} files that the list of attributes names is here",
            f"it names {next(iter(rows), 'nothing')}, here is {names[0]}",
        )
    return found


def parse_by(text: str) -> tuple[str, tuple[str, str]]:
    """``"Male:male,female"`` → the attribute, and its domains: where it holds, where it does not.

    >>> parse_by("Male:male,female")
    ('Male', ('male', 'female'))
    """
    match = re.fullmatch(r"\s*([^:]+?)\s*:\s*([^,/\\]+?)\s*,\s*([^,/\\]+?)\s*", text)
    if not match or match[2] == match[3] or match[2][0] == "." or match[3][0] == ".":
        raise UsageError(
            f"--by '{text}' is not ATTRIBUTE:DOMAIN,DOMAIN",
            "such as Male:male,female: male where Male is 1, female where it is not",
        )
    return match[1], (match[2], match[3])
