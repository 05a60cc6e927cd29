"""A batch over many machines: Ray tasks that each take consecutive items. An extra: ``[ray]``.

Tasks and not Ray Data: what flows here are names in and a few lines out (pictures stay in
files), so blocks in an object store, pandas and pyarrow would carry nothing. Tasks run in any
free process, a process keeps what it opened, and Ray itself runs a task again whose process or
machine has died. That needs work which may be done twice.

Knows no pictures. All machines must see the same folder under the same path.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from facestyle.batch import usual_workers
from facestyle.errors import FacestyleError, UsageError

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Sequence[T]], list[R]]

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # it says on stdout that a process died
}
"""Of Ray, read when it is imported."""

ITEMS_A_TASK = 16
"""At most: what a death costs, against some milliseconds a task."""

TASKS_A_WORKER = 2
"""Handed over at once: one at work, one waiting; the driver's memory stays flat."""

RETRIES = 3
"""Deaths that a task survives; with the next one its items are tried one by one."""

STORE_BYTES = 80 * 2**20
"""Of a Ray started here: its least. No picture goes through it."""

PATIENCE = 4
"""Seconds that an interrupted batch leaves its workers to tidy up."""


def across(
    open_work: Callable[[int], Work[T, R]],
    items: Sequence[T],
    failed: Callable[[T, FacestyleError], R],
    *,
    workers: int | None,
    use_gpu: bool,
) -> Iterator[R]:
    """The results of all items in their order, whichever machine made them.

    It connects to the cluster that ``RAY_ADDRESS`` names (``auto`` for the one that this machine
    belongs to); without it, it starts a Ray of its own here, on localhost, which ends with it.
    A cluster is never looked for unasked: Ray waits minutes for one that is gone.

    Args:
        open_work: called once in each process with its number of cores; pickled.
        failed: the result of an item that its process did not survive.
        workers: items' tasks at a time; by default what the cluster has.
        use_gpu: each task takes a GPU, where the cluster has some.

    Raises:
        UsageError: Ray is not installed.
        FacestyleError: no cluster answers, or what ``open_work`` or the work raised.
    """
    for name, text in SETTINGS.items():
        os.environ.setdefault(name, text)
    try:
        import ray
    except ImportError:
        raise UsageError(
            "the engine 'ray' was asked for and is not installed", "pip install 'facestyle[ray]'"
        ) from None
    with _connected(ray, workers):
        has = ray.cluster_resources()
        gpus = int(has.get("GPU", 0)) if use_gpu else 0
        cores = _cores_beside_a_gpu(ray.nodes()) if gpus else 1
        at_once = workers or gpus or max(1, int(has.get("CPU", 1)))
        # By default a process that used a GPU ends with its task, and the model with it.
        needs: dict[str, Any] = {"num_cpus": cores, "num_gpus": 1 if gpus else 0}
        task = ray.remote(**needs, max_calls=0, max_retries=RETRIES)(_run)
        opener = ray.put(ray.cloudpickle.dumps(_Here(open_work, cores)))
        size = max(1, min(ITEMS_A_TASK, len(items) // (4 * at_once)))
        waiting: deque[tuple[Any, Sequence[T]]] = deque()
        try:
            for first in range(0, len(items), size):
                part = items[first : first + size]
                waiting.append((task.remote(opener, part), part))
                if len(waiting) >= TASKS_A_WORKER * at_once:
                    yield from _results(ray, task, opener, failed, *waiting.popleft())
            while waiting:
                yield from _results(ray, task, opener, failed, *waiting.popleft())
        finally:
            left = [reference for reference, _ in waiting]
            for reference in left:
                ray.cancel(reference)
            if left:
                ray.wait(left, num_returns=len(left), timeout=PATIENCE)


def _cores_beside_a_gpu(nodes: Sequence[Mapping[str, Any]]) -> int:
    """How many CPUs a process with a GPU may ask for: what the poorest machine has for each of its
    own, for a task that no machine can take waits for ever."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    shares = [int(has.get("CPU", 0) // has["GPU"]) for has in alive if has.get("GPU", 0) >= 1]
    return max(1, min(shares, default=1))


class _Here:
    """Opens the work as it would be here: same folder, same settings."""

    def __init__(self, open_work: Callable[[int], Work[T, R]], cores: int) -> None:
        self.open_work, self.cores = open_work, cores
        self.folder = os.getcwd()
        ours = {key: text for key, text in os.environ.items() if key.startswith("FACESTYLE_")}
        self.environment = ours

    def __call__(self) -> Work[Any, Any]:
        os.environ.update(self.environment)
        os.chdir(self.folder)
        return self.open_work(self.cores)


@lru_cache(maxsize=1)
def _opened(pickled: bytes) -> Work[Any, Any]:
    """The work, opened once a process: many tasks run in it."""
    import ray

    opener: _Here = ray.cloudpickle.loads(pickled)
    return opener()


def _run(pickled: bytes, part: Sequence[Any]) -> list[Any]:
    return _opened(pickled)(part)


def _results(
    ray: Any,
    task: Any,
    opener: Any,
    failed: Callable[[T, FacestyleError], R],
    reference: Any,
    part: Sequence[T],
) -> Iterator[R]:
    """A task's results; one that its processes died of is split to find the item."""
    try:
        yield from ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    ):
        if len(part) == 1:
            death = FacestyleError(
                f"its process died {RETRIES + 1} times", "see Ray's logs, or use --engine local"
            )
            yield failed(part[0], death)
            return
        for item in part:
            yield from _results(ray, task, opener, failed, task.remote(opener, [item]), [item])


@contextmanager
def _connected(ray: Any, workers: int | None) -> Iterator[None]:
    if ray.is_initialized():  # by a program that uses facestyle: its own to end
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    own: dict[str, Any] = {
        "num_cpus": workers or usual_workers(),
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address == "local" else {}),
        )
    except ConnectionError:
        raise FacestyleError(
            f"no Ray cluster answers at RAY_ADDRESS={address}",
            "start it, or unset RAY_ADDRESS for a Ray of this machine alone",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
