"""Pictures for training: listed once, and batches drawn as a pure function of (seed, step).

Because nothing but the step and the place in the batch decides an item, a resumed run sees the
very pictures that an uninterrupted one would have seen, with any number of workers, and with
any number of processes that share a batch.
"""

from __future__ import annotations

import hashlib
import signal
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from facestyle.errors import FacestyleError, InputError, UsageError
from facestyle.images import is_picture, read_picture
from facestyle.training.attributes import read_attributes
from facestyle.training.collection import rows_by_picture

# RandomResizedCrop of StarGAN v2's program: half of the pictures lose up to 20 % of their area.
CROP_PROBABILITY = 0.5
CROP_AREA = (0.8, 1.0)
CROP_RATIO = (0.9, 1.1)
MEASURED = 16  # pictures, of which all have one size, or it is taken that all have
ATTRIBUTE_FILES = ("attributes.csv", "list_attr_celeba.txt", "list_attr_celeba.csv")


class Pictures(Protocol):
    """What every layout offers; a family's ``sample`` knows the rest of its own layout."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names for the model's card, in the order of the domain index."""
        ...

    @property
    def files(self) -> Sequence[Any]:
        """Files, or tuples of files."""
        ...

    def counts(self) -> dict[str, int]:
        """Pictures by domain, for people."""
        ...

    def sources(self, number: int, side: int, load_side: int = 0) -> list[np.ndarray]:
        """The last pictures to translate, some of each domain: float32 (3, side, side).

        ``load_side`` is the card's ``load_size``, where it has one: of the picture at that side
        the middle is shown, for so large faces are learned.
        """
        ...

    def members(self, domain: str, number: int, side: int, load_side: int = 0) -> list[np.ndarray]:
        """The last real pictures of a target domain, none where nothing tells them apart."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LargerEyes:
    """Aligned pictures → the same with larger eyes, as ``Translator.translate`` shows them to a
    generator that makes drawings of them."""

    times: float
    """How many times as large."""
    template_52: np.ndarray
    """Where the landmarks lie, as shares of the side."""
    drawings: tuple[str, ...]
    """Domains whose eyes are large already."""

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The same size."""
        from facestyle.faces.align import with_larger_eyes

        larger_HWC = with_larger_eyes(np.asarray(picture, np.float32), self.template_52, self.times)
        return Image.fromarray(larger_HWC.round().astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class LabelledPictures:
    """``root/<domain>/*``: the picture files of each domain."""

    one_hot: ClassVar[bool] = True
    """A picture is of one domain."""
    domains: tuple[str, ...]
    """Names, in the order of the domain index."""
    files: tuple[tuple[Path, ...], ...]
    """Sorted files, one tuple a domain."""
    larger_eyes: LargerEyes | None = None
    """What training pictures go through, but those of drawings; ``sources`` and ``members`` do not,
    for a ``Translator`` does it itself."""
    squares: bool = False
    """``sources`` and ``members`` show the middle square, as ``load_labelled`` does, not all of a
    picture squeezed into one."""

    def load(self, domain: int, rng: np.random.Generator, side: int) -> np.ndarray:
        """A random picture of a domain, sometimes cropped a little, sometimes mirrored."""
        return augmented(self._any(domain, rng), rng, side)

    def jittered(
        self, domain: int, rng: np.random.Generator, side: int, load_side: int
    ) -> np.ndarray:
        """A random picture of a domain, resized to ``load_side``, cropped, sometimes mirrored."""
        (picture,) = jittered([self._any(domain, rng)], rng, side, load_side)
        return picture

    def load_labelled(
        self, rng: np.random.Generator, side: int, crop: int, *, even: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """A random picture and its domain as a one-hot label; domains are even in any case."""
        domain = int(rng.integers(len(self.domains)))
        return centred(self._any(domain, rng), rng, side, crop), self._one_hot(domain)

    def label(self, rng: np.random.Generator, *, even: bool = False) -> np.ndarray:
        """A random picture's label; domains are even in any case."""
        return self._one_hot(int(rng.integers(len(self.domains))))

    def counts(self) -> dict[str, int]:
        """See ``Pictures.counts``."""
        return {name: len(files) for name, files in zip(self.domains, self.files, strict=True)}

    def shorter_side(self) -> int:
        """See ``shorter_side``."""
        return shorter_side([path for files in self.files for path in files])

    def sources(self, number: int, side: int, load_side: int = 0) -> list[np.ndarray]:
        """See ``Pictures.sources``."""
        share = -(-number // len(self.domains))
        last = [path for files in self.files for path in files[-share:]][:number]
        return [middle(_rgb(path), side, load_side, square=self.squares) for path in last]

    def members(self, domain: str, number: int, side: int, load_side: int = 0) -> list[np.ndarray]:
        """See ``Pictures.members``."""
        last = self.files[self.domains.index(domain)][-number:]
        return [middle(_rgb(path), side, load_side, square=self.squares) for path in last]

    def _any(self, domain: int, rng: np.random.Generator) -> Image.Image:
        files, larger = self.files[domain], self.larger_eyes
        picture = _rgb(files[rng.integers(len(files))])
        if larger is None or self.domains[domain] in larger.drawings:
            return picture
        return larger(picture)

    def _one_hot(self, domain: int) -> np.ndarray:
        return np.eye(len(self.domains), dtype=np.float32)[domain]


@dataclass(frozen=True, kw_only=True)
class PairedPictures:
    """Pairs of an input and the picture that is wanted for it, aligned pixel by pixel."""

    domains: tuple[str, ...]
    """The one target's name."""
    files: tuple[tuple[Path, Path], ...]
    """Input and target; twice the same file where it holds both side by side."""
    flipped: bool = False
    """The target is the left half."""

    def load_pair(
        self, rng: np.random.Generator, side: int, load_side: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A random pair, resized to ``load_side``, cropped and mirrored alike."""
        a, b = jittered(self._pair(int(rng.integers(len(self.files)))), rng, side, load_side)
        return a, b

    def counts(self) -> dict[str, int]:
        """See ``Pictures.counts``."""
        return {f"pairs to {self.domains[0]}": len(self.files)}

    def sources(self, number: int, side: int, load_side: int = 0) -> list[np.ndarray]:
        """See ``Pictures.sources``."""
        return [middle(self._pair(index)[0], side, load_side) for index in self._last(number)]

    def members(self, domain: str, number: int, side: int, load_side: int = 0) -> list[np.ndarray]:
        """See ``Pictures.members``."""
        return [middle(self._pair(index)[1], side, load_side) for index in self._last(number)]

    def _last(self, number: int) -> range:
        return range(max(0, len(self.files) - number), len(self.files))

    def _pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        first, second = self.files[index]
        if first == second:
            both = _rgb(first)
            middle = both.width // 2
            pair = (
                both.crop((0, 0, middle, both.height)),
                both.crop((middle, 0, 2 * middle, both.height)),
            )
        else:
            pair = (_rgb(first), _rgb(second))
        return (pair[1], pair[0]) if self.flipped else pair


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributePictures:
    """Pictures with attributes that hold or do not."""

    one_hot: ClassVar[bool] = False
    """A picture may have any of them."""
    domains: tuple[str, ...]
    """The attributes to learn."""
    files: tuple[Path, ...]
    """Sorted files."""
    labels_NA: np.ndarray
    """float32 0 or 1, a row a file."""

    def load_labelled(
        self, rng: np.random.Generator, side: int, crop: int, *, even: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """A random picture, its middle ``crop`` px (0: the largest square), and its label; see
        ``_index`` for ``even``."""
        index = self._index(rng, even)
        return centred(_rgb(self.files[index]), rng, side, crop), self.labels_NA[index]

    def label(self, rng: np.random.Generator, *, even: bool = False) -> np.ndarray:
        """A random picture's label; see ``_index`` for ``even``."""
        label_A: np.ndarray = self.labels_NA[self._index(rng, even)]
        return label_A

    def counts(self) -> dict[str, int]:
        """See ``Pictures.counts``."""
        return {n: int(self.labels_NA[:, i].sum()) for i, n in enumerate(self.domains)}

    def shorter_side(self) -> int:
        """See ``shorter_side``."""
        return shorter_side(self.files)

    def sources(self, number: int, side: int, load_side: int = 0) -> list[np.ndarray]:
        """See ``Pictures.sources``."""
        last = self.files[-number:]
        return [middle(_rgb(path), side, load_side, square=True) for path in last]

    def members(self, domain: str, number: int, side: int, load_side: int = 0) -> list[np.ndarray]:
        """See ``Pictures.members``."""
        having = np.flatnonzero(self.labels_NA[:, self.domains.index(domain)])[-number:]
        last = [self.files[index] for index in having]
        return [middle(_rgb(path), side, load_side, square=True) for path in last]

    def _index(self, rng: np.random.Generator, even: bool) -> int:
        """A random picture; ``even``: of those that have, or by the toss of a coin lack, a random
        attribute, so that what is rare is seen more often."""
        if not even:
            return int(rng.integers(len(self.files)))
        column_N = self.labels_NA[:, rng.integers(len(self.domains))]
        alike = np.flatnonzero(column_N == rng.integers(2))
        return int(rng.choice(alike if len(alike) else len(self.files)))


def labelled_folders(root: Path, names: Sequence[str] = ()) -> LabelledPictures:
    """List ``root/<domain>/*``; domains are the folders in alphabetical order unless given.

    Raises:
        InputError: no such folder, or a domain without pictures.
        UsageError: fewer than two domains.
    """
    _check_folder(root, "expected DIR/<domain>/<pictures>")
    found = sorted(p.name for p in root.iterdir() if _is_domain(p))
    domains = tuple(names or found)
    if len(names) == 1:
        raise UsageError(
            f"[run] domains names {names[0]} alone, at least 2 are needed",
            f"there are {', '.join(found)}",
        )
    if len(domains) < 2:
        raise UsageError(
            f"{root} holds {len(domains)} domain folder(s), at least 2 are needed",
            "expected DIR/<domain>/<pictures>, such as data/female and data/male",
        )
    return LabelledPictures(domains=domains, files=tuple(_files(root / name) for name in domains))


def unpaired_folders(root: Path, names: Sequence[str] = ()) -> LabelledPictures:
    """List two folders of unpaired pictures: ``trainA`` and ``trainB`` as the published programs
    have them (domains A and B), else ``root/<domain>/*``.

    Raises:
        InputError: no such folder, or a domain without pictures.
        UsageError: not exactly two domains.
    """
    _check_folder(root, "expected DIR/trainA and DIR/trainB, or DIR/<domain>/<pictures> twice")
    if all((root / folder).is_dir() for folder in ("trainA", "trainB")):
        if len(names) not in (0, 2):
            raise UsageError(
                f"[run] domains has {len(names)} names ({', '.join(names)}), expected 2",
                f"name what {root / 'trainA'} shows and what trainB does, or neither",
            )
        files = (_files(root / "trainA"), _files(root / "trainB"))
        return LabelledPictures(domains=tuple(names or ("A", "B")), files=files)
    pictures = labelled_folders(root, names)
    if len(pictures.domains) != 2:
        raise UsageError(
            f"{root} holds {len(pictures.domains)} domains ({', '.join(pictures.domains)}), "
            "expected 2",
            "choose two in [run] domains, the source first",
        )
    return pictures


def paired_pictures(root: Path, names: Sequence[str] = ()) -> PairedPictures:
    """List aligned pairs: pictures with input and target side by side (in ``root/train`` or
    ``root``), or two folders with equal file names, the input's first in the alphabet. Two names
    are input and target, one is the target.

    Raises:
        InputError: no such folder, no pair, or a picture without its partner.
        UsageError: the names given are no folders, or more than two, or name none of several.
    """
    _check_folder(root, "expected DIR/train/<A and B side by side>, or DIR/<A>/* and DIR/<B>/*")
    folders = sorted(p.name for p in root.iterdir() if _is_domain(p) and p.name != "train")
    if len(names) > 2:
        raise UsageError(
            f"[run] domains has {len(names)} names ({', '.join(names)}), expected 1 or 2",
            "name the input's folder and the target's, or the target alone",
        )
    if len(names) == 2 or len(folders) >= 2:
        halves = _halves(root, folders, names)
        a, b = ({p.stem: p for p in _files(root / half)} for half in halves)
        if lonely := sorted(a.keys() ^ b.keys()):
            raise InputError(
                f"{lonely[0]} is in only one of {halves[0]} and {halves[1]}",
                "pairs have equal file names",
            )
        files = tuple((a[stem], b[stem]) for stem in sorted(a))
        return PairedPictures(domains=halves[1:], files=files)
    both = _files(root / "train" if (root / "train").is_dir() else root)
    # The published programs call the left half A and the right one B.
    domains = tuple(names or ("B",))
    files = tuple((path, path) for path in both)
    return PairedPictures(domains=domains, files=files, flipped=domains == ("A",))


def _halves(root: Path, folders: Sequence[str], names: Sequence[str]) -> tuple[str, str]:
    """The folders of the inputs and of the targets; raises UsageError where that is in doubt."""
    there = ", ".join(folders)
    if lacking := [name for name in names if not (root / name).is_dir()]:
        raise UsageError(
            f"{root} has no folder {lacking[0]}",
            f"[run] domains names the input's and the target's, there are {there}"
            if folders
            else "of pictures that hold input and target, name the target alone",
        )
    if len(names) == 2:
        return names[0], names[1]
    if len(folders) > 2:
        raise UsageError(
            f"{root} holds {len(folders)} folders ({there}), expected 2 of pairs",
            "name two in [run] domains, the input's first",
        )
    first, second = folders
    return (second, first) if tuple(names) == (first,) else (first, second)


def attribute_pictures(
    root: Path, names: Sequence[str] = ()
) -> AttributePictures | LabelledPictures:
    """Pictures with a list of attributes beside them (``attributes.csv``, or CelebA's list); or
    folders, one a label, where there is no list.

    Raises:
        InputError: no such folder, no pictures, a broken list, or one that names several pictures
            at once.
        UsageError: an attribute that the list does not have.
    """
    _check_folder(root, f"expected pictures and {ATTRIBUTE_FILES[0]}")
    lists = [root / name for name in ATTRIBUTE_FILES if (root / name).is_file()]
    if not lists:
        return replace(labelled_folders(root, names), squares=True)
    known, rows = read_attributes(lists[0])
    domains = tuple(names or known)
    if missing := [name for name in domains if name not in known]:
        raise UsageError(
            f"{lists[0].name} has no attribute '{missing[0]}'", f"it has {', '.join(known)}"
        )
    # The list may speak of more pictures than are here, and name them with or without a folder.
    here = {path.relative_to(root).as_posix(): path for path in _files(root)}
    kept = rows_by_picture(list(here), rows)
    columns = [known.index(name) for name in domains]
    labels_NA = np.stack(list(kept.values())).astype(np.float32)[:, columns]
    return AttributePictures(
        domains=domains, files=tuple(here[name] for name in kept), labels_NA=labels_NA
    )


LAYOUTS: dict[str, Callable[[Path, Sequence[str]], Pictures]] = {
    "labelled": labelled_folders,
    "unpaired": unpaired_folders,
    "paired": paired_pictures,
    "attributes": attribute_pictures,
}


def read_layout(layout: str, root: Path, names: Sequence[str] = ()) -> Pictures:
    """The pictures of a data folder; of one that ``prepare`` made, its ``train`` half.

    Raises:
        UsageError: a name is empty or there twice; see the layouts for more.
    """
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(
            f"[run] domains is '{','.join(names)}', expected names, each once",
            "commas stand between them alone",
        )
    return LAYOUTS[layout](half_of(root, "train") or root, names)


def digest(pictures: Pictures) -> str:
    """Of which files, in which order, with which labels: batches are drawn by place in the list."""
    found = hashlib.sha256()
    for entry in pictures.files:
        for path in (entry,) if isinstance(entry, Path) else entry:
            found.update(f"{path.parent.name}/{path.name}\n".encode("utf-8", "surrogateescape"))
        found.update(b"\n")
    if isinstance(pictures, AttributePictures):
        found.update(pictures.labels_NA.tobytes())
    return found.hexdigest()


def half_of(root: Path, half: str) -> Path | None:
    """``root/train`` or ``root/val`` of a folder that was split in two, else None."""
    halves = ("train", "val")
    split = all((root / name).is_dir() for name in halves)
    if not split and (root / "train").is_dir():  # nothing was held out, or is any more
        split = all(path.name in halves for path in root.iterdir() if _is_domain(path))
    return root / half if split and (root / half).is_dir() else None


def _check_folder(root: Path, expected: str) -> None:
    if not root.is_dir():
        raise InputError(f"no data folder {root}", expected)


def _is_domain(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _files(folder: Path) -> tuple[Path, ...]:
    hint = "name the domains that are there in [run] domains, or add pictures"
    if not folder.is_dir():
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        there = ", ".join(sorted(path.name for path in beside if _is_domain(path)))
        raise InputError(f"no folder {folder}" + (f", there are {there}" if there else ""), hint)
    found = sorted(filter(is_picture, folder.rglob("*")))
    if not found:
        raise InputError(f"no pictures in {folder}", hint)
    return tuple(found)


def shorter_side(files: Sequence[Path]) -> int:
    """The shorter side of pictures, px; 0 where theirs differ."""
    some = files[:: -(-len(files) // MEASURED)]
    sides = {min(read_picture(path).pixels_HWC.shape[:2]) for path in some}
    return sides.pop() if len(sides) == 1 else 0


def middle(
    picture: Image.Image, side: int, load_side: int = 0, *, square: bool = False
) -> np.ndarray:
    """What training sees in the mean: a picture, or its middle ``square``, of which the middle
    ``side`` px of ``load_side`` are cut, where that is larger."""
    width, height = picture.size
    share = side / max(side, load_side)
    w, h = ((min(width, height),) * 2) if square else (width, height)
    left, top = (width - share * w) / 2, (height - share * h) / 2
    box = (left, top, left + share * w, top + share * h)
    return _floats(picture.resize((side, side), Image.Resampling.BILINEAR, box=box))


def augmented(picture: Image.Image, rng: np.random.Generator, side: int) -> np.ndarray:
    """Sometimes crop a little, resize, sometimes mirror (StarGAN v2's way)."""
    width, height = picture.size
    box = (0.0, 0.0, float(width), float(height))
    if rng.random() < CROP_PROBABILITY:
        area = width * height * rng.uniform(*CROP_AREA)
        ratio = np.exp(rng.uniform(*np.log(CROP_RATIO)))
        w, h = min(width, np.sqrt(area * ratio)), min(height, np.sqrt(area / ratio))
        left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = (left, top, left + w, top + h)
    return _mirrored(
        _floats(picture.resize((side, side), Image.Resampling.BILINEAR, box=box)), rng.random()
    )


def jittered(
    pictures: Sequence[Image.Image], rng: np.random.Generator, side: int, load_side: int
) -> list[np.ndarray]:
    """Resize to ``load_side``, cut ``side`` px at random, sometimes mirror: all alike
    (CycleGAN's, pix2pix's and U-GAT-IT's way)."""
    left, top = (int(rng.integers(load_side - side + 1)) for _ in range(2))
    mirror = rng.random()
    cut = []
    for picture in pictures:
        large = picture.resize((load_side, load_side), Image.Resampling.BICUBIC)
        cut.append(_mirrored(_floats(large.crop((left, top, left + side, top + side))), mirror))
    return cut


def centred(picture: Image.Image, rng: np.random.Generator, side: int, crop: int) -> np.ndarray:
    """Cut the middle ``crop`` px (0, or more than there are: the largest square), resize,
    sometimes mirror (StarGAN's way)."""
    width, height = picture.size
    edge = min(width, height, crop or width)
    left, top = (width - edge) / 2, (height - edge) / 2
    small = picture.resize(
        (side, side), Image.Resampling.BILINEAR, box=(left, top, left + edge, top + edge)
    )
    return _mirrored(_floats(small), rng.random())


def _rgb(path: Path) -> Image.Image:
    return Image.fromarray(read_picture(path).pixels_HWC)


def _floats(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1


def _mirrored(picture_CHW: np.ndarray, chance: float) -> np.ndarray:
    return picture_CHW[:, :, ::-1] if chance < 0.5 else picture_CHW


Draw = Callable[[np.random.Generator], Mapping[str, np.ndarray]]


class Steps(Dataset[dict[str, Tensor] | FacestyleError]):
    """Item i is this process's share of iteration i's batch; place j of the batch has the
    random stream of (seed, i, j)."""

    def __init__(self, draw: Draw, size: int, seed: int, rank: int, world: int) -> None:
        self.draw = draw
        self.seed = seed
        self.places = range(rank * size // world, (rank + 1) * size // world)

    def __getitem__(self, step: int) -> dict[str, Tensor] | FacestyleError:
        try:
            items = [
                self.draw(np.random.default_rng((self.seed, step, place))) for place in self.places
            ]
        except FacestyleError as error:
            return error  # raised in a decoding process it would come with that one's traceback
        return {name: _stacked([item[name] for item in items]) for name in items[0]}


def _stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    tensor = torch.from_numpy(np.stack(arrays))
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def batches(
    draw: Draw,
    size: int,
    *,
    seed: int,
    start: int,
    stop: int,
    workers: int = 0,
    device: str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> Generator[dict[str, Tensor], None, None]:
    """Batches ``start`` to ``stop - 1`` in order on a device, decoded by ``workers`` processes.

    Args:
        size: items of the whole batch; ``world`` processes share it, this one is ``rank``.
    """
    pinned = device.startswith("cuda")
    with warnings.catch_warnings():
        # More processes than cores is what was asked for, and stops nothing.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = DataLoader(
            Steps(draw, size, seed, rank, world),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pinned,
            worker_init_fn=_serve,
        )
        # A decoding process that is forked has none of OpenCV's threads, and would wait for them
        # for ever: there are to be none.
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        decoded = iter(loader)
        cv2.setNumThreads(threads)
    try:
        for batch in decoded:
            if isinstance(batch, FacestyleError):
                raise batch
            yield {name: tensor.to(device, non_blocking=pinned) for name, tensor in batch.items()}
    finally:
        del decoded  # ends its processes; at the interpreter's end they would not listen


def _serve(_: int) -> None:
    """What a decoding process starts with."""
    torch.set_num_threads(1)  # it must not compete with the training threads
    # A signal to the whole group is the training process's to answer: it still needs the batches
    # of its last iteration, and tells the others to end, which they also do when it is gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
