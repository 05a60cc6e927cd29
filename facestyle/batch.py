"""Many pictures at once: what one waits for, another computes; in order, in bounded memory.

Knows how a machine's cores are shared between pictures, and how crops of several pictures go
through a network together. Knows neither files, options nor torch.

    crops_NHWC  uint8 RGB    images_NCHW  float32 [-1, 1]
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import TypeVar

import cv2
import numpy as np

from facestyle.errors import FacestyleError
from facestyle.faces.align import AlignedFace
from facestyle.images import to_model
from facestyle.pipeline import Restyled, joined, networks, restyled, translate_crops
from facestyle.translator import Style, Translator

T = TypeVar("T")
R = TypeVar("R")

MOST_WORKERS = 16
"""As many as are taken unasked: on a CPU each holds a network's activations, some 0.3 GB."""

TOGETHER = 8
"""Crops in one call of a network on an accelerator; always so many, see ``translate_together``."""


def usual_workers() -> int:
    """One a core of this process, within reason."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


class Crew:
    """So many threads at work on pictures; one is the caller's own.

    Pillow, OpenCV, onnxruntime and torch compute without Python's lock. Left as a context, it
    finishes what was begun at its next ``checkpoint`` and begins no more.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, "facestyle") if workers > 1 else None
        self._stopping = threading.Event()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def checkpoint(self) -> None:
        """Called between the steps of some work: ends it where nobody waits for it any more."""
        if self._stopping.is_set():
            raise CancelledError

    def ordered(self, work: Callable[[T], R], items: Iterable[T], *, ahead: int = 0) -> Iterator[R]:
        """``work(item)`` of each item, in the items' order.

        ``items`` is drawn from, in the caller's thread, no more than the workers and ``ahead``
        before what was taken last: what lies between is all that is held in memory.
        """
        if self._pool is None:
            yield from map(work, items)
            return
        begun: deque[Future[R]] = deque()
        for item in items:
            begun.append(self._pool.submit(work, item))
            del item  # else the last one would live until the next is there
            if len(begun) > self.workers + ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


@contextmanager
def side_by_side() -> Iterator[None]:
    """Within, torch and OpenCV compute each call on the thread that makes it.

    Pictures side by side use the cores better than threads within one, which wait for each
    other. And the last bits of a convolution follow its threads: so they are always one,
    whatever the workers and the machine. Warnings are silent: ``images`` silences Pillow's
    for one picture, and threads share that.
    """
    torch = sys.modules.get("torch")  # whoever computes with it has imported it
    before = cv2.getNumThreads(), torch.get_num_threads() if torch else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cv2.setNumThreads(1)
            if torch:
                torch.set_num_threads(1)
            yield
        finally:
            cv2.setNumThreads(before[0])
            if torch:
                torch.set_num_threads(before[1])


def runs_side_by_side(model: Translator) -> bool:
    """Whether several threads may and should run the model's networks at the same time: on an
    accelerator they would only queue up, and crops together are faster."""
    return model.backend.device == "cpu" and model.backend.shareable


def translate_together(
    pictures: Sequence[Sequence[AlignedFace]], model: Translator, style: Style
) -> list[list[Restyled] | FacestyleError]:
    """The restyled faces of each picture, or why there are none.

    On an accelerator crops of several pictures go through the networks at once: always
    ``TOGETHER``, the last call filled up with copies. Kernels are chosen by shape, so a
    picture's numbers do not follow from who its neighbours are. Elsewhere each picture goes by
    itself: a CPU gains nothing. So it does with drawn noise, which belongs to a whole call.
    """
    results: list[list[Restyled] | FacestyleError] = []
    if model.backend.device == "cpu" or style.noise_seed is not None:
        for aligned in pictures:
            try:
                results.append(translate_crops(aligned, model, style))
            except FacestyleError as error:
                results.append(error)
        return results
    if not pictures:
        return []
    everyone = [one for aligned in pictures for one in aligned]
    crops_NHWC = np.stack([one.crop_HWC for one in everyone])
    total = len(crops_NHWC)
    filled = np.minimum(np.arange(-(-total // TOGETHER) * TOGETHER), total - 1)
    calls = []
    try:
        for first in range(0, total, TOGETHER):
            faces_NCHW = to_model(crops_NHWC[filled[first : first + TOGETHER]])
            calls.append(networks(faces_NCHW, model, style, everyone[0].template_52))
    except FacestyleError as error:
        return [error] * len(pictures)
    made = joined(calls)
    first = 0
    for aligned in pictures:
        own = slice(first, first + len(aligned))
        try:
            results.append(restyled(aligned, made.of(own), model.card, style))
        except FacestyleError as error:  # not finite: the others may be
            results.append(error)
        first += len(aligned)
    return results


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive items, ``size`` at a time.

    >>> list(chunks("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
