"""Pictures for training: folders listed once, batches drawn as a pure function of (seed, step).

Because nothing but the step decides a batch, a resumed run sees the very pictures that an
uninterrupted one would have seen, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from facestyle.errors import InputError, UsageError
from facestyle.images import READABLE_EXTENSIONS, read_picture

T = TypeVar("T")

# RandomResizedCrop of the published program: half of the pictures lose up to 20 % of their area.
CROP_PROBABILITY = 0.5
CROP_AREA = (0.8, 1.0)
CROP_RATIO = (0.9, 1.1)


@dataclass(frozen=True, kw_only=True)
class LabelledPictures:
    """``root/<domain>/*``: the picture files of each domain."""

    domains: tuple[str, ...]
    """Names, in the order of the domain index."""
    files: tuple[tuple[Path, ...], ...]
    """Sorted files, one tuple a domain."""

    def load(self, domain: int, rng: np.random.Generator, side: int) -> np.ndarray:
        """A random picture of a domain, augmented: float32 (3, side, side) in [-1, 1]."""
        files = self.files[domain]
        return augmented(files[rng.integers(len(files))], rng, side)


def labelled_folders(root: Path, domains: Sequence[str] | None = None) -> LabelledPictures:
    """List ``root/<domain>/*``; domains are the folders in alphabetical order unless given.

    Raises:
        InputError: no such folder, or a domain without pictures.
        UsageError: fewer than two domains.
    """
    if not root.is_dir():
        raise InputError(f"no data folder {root}", "expected DIR/<domain>/<pictures>")
    names = tuple(domains or sorted(p.name for p in root.iterdir() if _is_domain(p)))
    if len(names) < 2:
        raise UsageError(
            f"{root} holds {len(names)} domain folder(s), at least 2 are needed",
            "expected DIR/<domain>/<pictures>, such as data/female and data/male",
        )
    files = []
    for name in names:
        folder = root / name
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in READABLE_EXTENSIONS)
        if not found:
            raise InputError(f"domain '{name}' has no pictures in {folder}")
        files.append(tuple(found))
    return LabelledPictures(domains=names, files=tuple(files))


LAYOUTS: dict[str, Callable[[Path], LabelledPictures]] = {"labelled": labelled_folders}


def _is_domain(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def plain(path: Path, side: int) -> np.ndarray:
    """Read and resize: float32 (3, side, side) in [-1, 1]."""
    image = Image.fromarray(read_picture(path).pixels_HWC)
    resized = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32).transpose(2, 0, 1) / 127.5 - 1


def augmented(path: Path, rng: np.random.Generator, side: int) -> np.ndarray:
    """Read, sometimes crop a little, resize, sometimes mirror: float32 (3, side, side)."""
    pixels = read_picture(path).pixels_HWC
    height, width = pixels.shape[:2]
    box = (0.0, 0.0, float(width), float(height))
    if rng.random() < CROP_PROBABILITY:
        area = width * height * rng.uniform(*CROP_AREA)
        ratio = np.exp(rng.uniform(*np.log(CROP_RATIO)))
        w, h = min(width, np.sqrt(area * ratio)), min(height, np.sqrt(area / ratio))
        left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = (left, top, left + w, top + h)
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, box=box)
    chw = np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1
    return chw[:, :, ::-1] if rng.random() < 0.5 else chw


class Steps(Dataset[T]):
    """Item i is iteration i's batch: ``draw(rng)`` with the random stream of (seed, i)."""

    def __init__(self, draw: Callable[[np.random.Generator], T], seed: int) -> None:
        self.draw = draw
        self.seed = seed

    def __getitem__(self, step: int) -> T:
        return self.draw(np.random.default_rng((self.seed, step)))


def batches(
    draw: Callable[[np.random.Generator], T], *, seed: int, start: int, stop: int, workers: int
) -> Iterator[T]:
    """Batches ``start`` to ``stop - 1`` in order, decoded by ``workers`` processes."""
    loader = DataLoader(
        Steps(draw, seed),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)  # a decoding process must not compete with the training threads
