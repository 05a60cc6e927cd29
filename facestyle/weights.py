"""Weights by name or by path: where a file is, whether it is the right one, how to obtain it.

Knows the index (``weights/index.toml``), the two places a named file may lie in (shipped
with facestyle, or the user's cache) and how to fetch one so that no bad file ever bears its
final name. Does not know what is inside a file: ``checkpoint.py`` reads it, and a path that
the user gives is handed on as it is.

A file of that path wins over a name. A shipped file lies with facestyle, any other in the
cache (``FACESTYLE_HOME/weights``, else ``XDG_CACHE_HOME/facestyle/weights``, else
``~/.cache/facestyle/weights``), where it is fetched from its url when first wanted.
``FACESTYLE_MIRROR`` (a url or a folder) stands in for every url as mirror/file;
``FACESTYLE_OFFLINE=1`` opens no socket; the proxies of the environment (``HTTPS_PROXY``,
``NO_PROXY``) hold, as anywhere in Python's urllib.
"""

from __future__ import annotations

import difflib
import errno
import functools
import hashlib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

from facestyle.errors import CheckpointError, UsageError, WeightsError

Progress = Callable[[int, int | None], None]  # (bytes received, bytes in all where known)
Status = Literal["verified", "first-use", "unknown", "mismatch", "missing"]

MODEL_FILE = "model.safetensors"  # the model in the folder of a run
RUN_FILE = "run.json"  # of a run's folder: all that --resume needs
TIMEOUT_S = 20.0  # seconds without one byte, to connect or to read; then the link is dead
BLOCK_BYTES = 1 << 16  # 64 KiB a read: a progress bar moves once a second on a 0.5 Mbit/s line
HEAD_BYTES = 512  # shows a web page behind blank lines, or a Git LFS pointer (some 130 bytes)
NOT_WEIGHTS = {  # what servers send with status 200 in place of a file, by its first bytes
    "a web page": re.compile(rb"\s*<(!doctype|html|head|!--|\?xml)", re.IGNORECASE),
    "a Git LFS pointer": re.compile(rb"version https://git-lfs"),
    "nothing": re.compile(rb"\Z"),
}


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """One file of the index."""

    name: str  # what users call it: female-male
    file: str  # its name in the shipped folder, in the cache and on a mirror
    kind: Literal["model", "detector", "landmarks"]  # what it is for
    licence: str  # terms of the weights, and the data behind them where it binds
    about: str  # one line for `facestyle models list`
    family: str | None = None  # of a model: the family that loads it
    url: str | None = None  # where it is published; None: nowhere that we know of
    sha256: str | None = None  # hex digest of the published file; None: not known, never guessed
    size: int | None = None  # bytes
    shipped: bool = False  # part of facestyle itself: never written
    knows: tuple[str, ...] = ()  # of a model that ships: the domains by which it is found
    onnx: str | None = None  # the entry that holds the same model as an ONNX bundle
    needs: tuple[str, ...] = ()  # names of the entries without which this one does not run
    known_as: tuple[str, ...] = ()  # trailing path parts under which its own project stores it
    card: Mapping[str, Any] | None = None  # domains, alignment, image_size: what no file can say


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a file's content says of it.

    ``verified``: the published sha256; ``first-use``: unchanged since its first download;
    ``unknown``: nothing to compare with; ``mismatch``: damaged, or another file; ``missing``.
    """

    status: Status
    path: Path  # where it was looked for
    sha256: str | None = None  # hex digest found
    expected: str | None = None  # hex digest it should have, where known


def index() -> dict[str, WeightsEntry]:
    """Every entry of ``index.toml`` by name, in the order of the page."""
    page = shipped_dir() / "index.toml"
    return dict(_read(page, page.stat().st_mtime_ns))


@functools.cache
def _read(page: Path, changed_ns: int) -> Mapping[str, WeightsEntry]:
    """The page as it is since ``changed_ns``; every name that is looked up asks for it."""
    tables = tomllib.loads(page.read_text("utf-8"))
    return {name: _entry(name, table) for name, table in tables.items()}


def _entry(name: str, table: dict[str, Any]) -> WeightsEntry:
    for key in ("needs", "known_as", "knows"):
        table[key] = tuple(table.get(key, ()))
    return WeightsEntry(name=name, **table)


def shipped_model(wanted: Collection[str]) -> str:
    """The name of the model that ships and knows these domains; the first one for none.

    Raises:
        UsageError: none of them knows them all.
    """
    known = {name: entry.knows for name, entry in index().items() if entry.knows}
    for name, knows in known.items():
        if set(wanted) <= set(knows):
            return name
    every = [domain for knows in known.values() for domain in knows]
    strange = next((domain for domain in wanted if domain not in every), "")
    folded = {domain.lower(): domain for domain in reversed(every)}
    near = difflib.get_close_matches(strange.lower(), folded, n=1)
    raise UsageError(
        f"no model that ships knows {', '.join(wanted)}",
        (f"did you mean '{folded[near[0]]}'? " if near else "")
        + "they know "
        + "; ".join(", ".join(knows) for knows in known.values())
        + "; or name a model: --model",
    )


def shipped_dir() -> Path:
    """The folder of index and shipped files: in an installed wheel, else of the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parent / "weights"


def cache_dir() -> Path:
    """Where downloads go. Asking does not create it."""
    if home := os.environ.get("FACESTYLE_HOME"):
        return Path(os.path.expanduser(home)).absolute() / "weights"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative values ignored.
    cache = xdg if os.path.isabs(xdg) else os.path.expanduser("~/.cache")
    return Path(cache) / "facestyle" / "weights"


def locate(name_or_path: str | Path) -> Path | None:
    """Where the weights are now, or None: those of a run for its folder. Reads only the index."""
    entry = index().get(str(name_or_path))
    # A folder that happens to be called like an entry (training data, often) is not meant.
    if os.path.isfile(name_or_path) or (entry is None and os.path.exists(name_or_path)):
        path = Path(name_or_path)
        return path / MODEL_FILE if os.path.isfile(path / MODEL_FILE) else path
    return _place(entry) if entry is not None and _place(entry).is_file() else None


def _place(entry: WeightsEntry) -> Path:
    return (shipped_dir() if entry.shipped else cache_dir()) / entry.file


def resolve(
    name_or_path: str | Path, *, offline: bool = False, progress: Progress | None = None
) -> Path:
    """The file of a path (as it is) or of a name (checked, and fetched where it is missing)."""
    path, entry = locate(name_or_path), index().get(str(name_or_path))
    if path is not None and (path / RUN_FILE).is_file():
        raise WeightsError(
            f"{path} has no model yet", f"go on with it: facestyle train --resume {path}"
        )
    if path is not None and (entry is None or path != _place(entry)):
        return path
    if entry is None:
        raise _unknown(name_or_path)
    if path is None:
        return download(entry, offline=offline, progress=progress)
    found = verify(entry)
    if found.status == "mismatch":
        again = f"fetch it anew: facestyle models pull {entry.name}"
        raise CheckpointError(
            f"{path} is damaged: sha256 {found.sha256}, expected {found.expected}",
            "reinstall facestyle" if entry.shipped else again,
        )
    return path


def entry_for(path: str | Path) -> WeightsEntry | None:
    """The entry whose file this is, wherever it lies and whatever it is called.

    Where the sha256 is known it decides, and a file is hashed only when its name or size fits;
    where none is known, the name under which we or its own project store it has to do.
    """
    path = Path(path)
    if not os.path.isfile(path):
        return None
    size, digest = path.stat().st_size, None
    for entry in index().values():
        names = [Path(name).parts for name in (entry.file, *entry.known_as)]
        named = any(path.absolute().parts[-len(parts) :] == parts for parts in names)
        if entry.sha256 is None and named:
            return entry
        if entry.sha256 is not None and (named or size == entry.size):
            digest = digest or sha256_of(path)
            if digest == entry.sha256:
                return entry
    return None


def sha256_of(path: str | Path) -> str:
    """Hex sha256 of a file's content."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error


def verify(entry_or_path: WeightsEntry | str | Path) -> Verification:
    """Hash a file and compare: with the index, else with what its first download recorded."""
    if isinstance(entry_or_path, WeightsEntry):
        path, published = _place(entry_or_path), entry_or_path.sha256
    else:
        path = Path(entry_or_path)
        published = next((e.sha256 for e in index().values() if e.file == path.name), None)
    expected = published or _recorded(path)
    if not os.path.isfile(path):
        return Verification(status="missing", path=path, expected=expected)
    found = sha256_of(path)
    status: Status = "unknown"
    if expected is not None:
        status = "mismatch" if found != expected else "verified" if published else "first-use"
    return Verification(status=status, path=path, sha256=found, expected=expected)


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _recorded(path: Path) -> str | None:
    record = _record(path)  # one line as sha256sum writes it: digest, two blanks, file name
    return record.read_text("utf-8").partition(" ")[0] if os.path.isfile(record) else None


def download(
    entry: WeightsEntry,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Path:
    """Fetch an entry into the cache, once for any number of processes that ask together."""
    target, url, status = _place(entry), _source(entry), verify(entry).status
    if status not in ("missing", "mismatch"):
        return target
    found = f"{entry.name} is {'damaged' if status == 'mismatch' else 'missing'}: {target}"
    if entry.shipped:
        raise WeightsError(found, "this installation is incomplete: reinstall facestyle")
    if url is None:
        raise WeightsError(found, "no url is known for it: save the file there by hand")
    offline = offline or os.environ.get("FACESTYLE_OFFLINE", "0") not in ("", "0")
    if offline and not url.startswith("file:"):
        raise WeightsError(
            f"{found}, and facestyle is offline", f"fetch {url} elsewhere and save it there"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            # Another process may have fetched it while this one waited for the lock.
            if verify(entry).status in ("missing", "mismatch"):
                _fetch(entry, url, target, progress=progress, timeout_s=timeout_s)
    except _RefusedError as error:
        raise WeightsError(
            f"could not download {entry.name} from {url}: {error}",
            f"try again, set FACESTYLE_MIRROR, or save the file as {target}",
        ) from error
    except OSError as error:  # the network's are _RefusedError: these are the disk's
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"disk full while writing {target}",
                "free some space, or set FACESTYLE_HOME to a folder on another disk",
            ) from error
        raise WeightsError(
            f"cannot write {target}: {error}", "set FACESTYLE_HOME to a folder that you can write"
        ) from error
    return target


def _source(entry: WeightsEntry) -> str | None:
    mirror = os.environ.get("FACESTYLE_MIRROR")
    if not mirror:
        return entry.url
    base = mirror if "://" in mirror else Path(os.path.expanduser(mirror)).absolute().as_uri()
    return f"{base.rstrip('/')}/{quote(entry.file)}"


def _fetch(
    entry: WeightsEntry, url: str, target: Path, *, progress: Progress | None, timeout_s: float
) -> None:
    digest, received = hashlib.sha256(), 0
    with _atomic(target) as out:
        for block, total in _blocks(url, size=entry.size, timeout_s=timeout_s):
            out.write(block)
            digest.update(block)
            received += len(block)
            if progress is not None:
                progress(received, total)
        found, expected = digest.hexdigest(), entry.sha256 or _recorded(target)
        if expected not in (None, found):
            source = "" if entry.sha256 else f" as recorded in {_record(target)}"
            raise _RefusedError(f"got a file of sha256 {found}, expected {expected}{source}")
        if expected is None:
            with _atomic(_record(target)) as record:
                record.write(f"{found}  {target.name}\n".encode())


class _RefusedError(Exception):
    """The network gave no file, or not the one that was asked for; the message says why."""


def _blocks(url: str, *, size: int | None, timeout_s: float) -> Iterator[tuple[bytes, int | None]]:
    """A file's content in order with its full length where known; raises unless it was whole."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, build_opener

    if not url.startswith(("https://", "http://", "file://")):
        raise _RefusedError("only https, http and file urls are fetched")
    # Compressed on the way, a body could not be compared with its length.
    request = Request(url, headers={"User-Agent": "facestyle", "Accept-Encoding": "identity"})
    try:
        with build_opener().open(request, timeout=timeout_s) as answer:
            if url.startswith("https:") and not answer.url.startswith("https:"):
                raise _RefusedError(f"was redirected to {answer.url}, which is not https")
            length = answer.headers.get("Content-Length") or ""
            total = int(length) if length.isdigit() else size
            block = answer.read(HEAD_BYTES)
            page = answer.headers.get_content_type() == "text/html" and "a web page"
            wrong = page or next((k for k, v in NOT_WEIGHTS.items() if v.match(block)), None)
            if wrong:
                raise _RefusedError(f"got {wrong}, expected a file")
            if size not in (None, total):
                raise _RefusedError(f"got a file of {total:,} bytes, expected {size:,}")
            received = 0
            while block and (total is None or received <= total):
                received += len(block)
                yield block, total
                block = answer.read(BLOCK_BYTES)
            if total not in (None, received):
                raise _RefusedError(f"got {received:,} bytes, expected {total:,}")
    except HTTPError as error:
        error.close()
        raise _RefusedError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _RefusedError(_reason(error, timeout_s)) from error


def _reason(error: Exception, timeout_s: float) -> str:
    """Of a connection that failed. Its cause is not to stay in a frame of its own traceback: such a
    circle would keep the connection open until the garbage is collected."""
    cause = getattr(error, "reason", error)
    return f"not a byte for {timeout_s:g} s" if isinstance(cause, TimeoutError) else str(cause)


@contextmanager
def _atomic(target: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is whole and on the disk, and leaves nothing otherwise.

    The caller holds the target's lock, so a part that a killed process left is overwritten.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the operating system's lock on a file: it ends with the process, however that dies."""
    with path.open("ab") as handle:  # never deleted: a waiter may already hold the old file
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)  # gives up after 10 s
                    break
                except OSError as error:
                    if error.errno != errno.EDEADLK:
                        raise
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _unknown(name_or_path: str | Path) -> WeightsError:
    entries, path = index(), Path(name_or_path)
    same_file = [entry.name for entry in entries.values() if entry.file == path.name]
    near = same_file or difflib.get_close_matches(str(name_or_path), entries, n=1, cutoff=0.5)
    listing = "'facestyle models list' shows every name"
    return WeightsError(
        f"no weights '{name_or_path}': no file at {path.absolute()}, and no such name",
        f"did you mean '{near[0]}'? {listing}" if near else listing,
    )
