"""A backend in reduced precision whose failures are done again in float32.

Half precision has a small range: now and then a network overflows in it, and a picture comes out
as NaN or black. Knows neither runtimes nor networks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from facestyle.backends import Backend

BLACK = -1 + 8 / 255  # of [-1, 1]: a picture with nothing brighter is black


class Watched:
    """A ``backends.Backend`` around another one that computes in reduced precision."""

    def __init__(self, backend: Backend, warn: Callable[[str], object]) -> None:
        """Watch ``backend``; ``warn`` is told of each result that had to be done again."""
        self.backend = backend
        self.precision = backend.precision
        self.warn = warn

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that can be run."""
        return self.backend.roles

    @property
    def about(self) -> str:
        """Runtime, device and precision."""
        return self.backend.about

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.backend.device

    @property
    def shareable(self) -> bool:
        """Whether several threads may run it at the same time."""
        return self.backend.shareable

    @cached_property
    def _exact(self) -> Backend:
        return self.backend.exact()

    def exact(self) -> Backend:
        """The same networks in float32."""
        return self._exact

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        """Run one network; what comes out broken is replaced by its float32 result."""
        results = self.backend.run(role, *arrays)
        broken_N = broken(results)
        if broken_N.any():
            self.warn(
                f"{role}: {broken_N.sum()} of {len(results)} came out not finite or black in "
                f"{self.precision}, done again in fp32"
            )
            # All of them: a network may look at the whole batch.
            results[broken_N] = self._exact.run(role, *arrays)[broken_N]
        return results


def broken(results: np.ndarray) -> np.ndarray:
    """(N,) bool: which results are not finite, or are black pictures."""
    flat = results.reshape(len(results), -1)
    broken_N = ~np.isfinite(flat).all(axis=1)
    if results.ndim == 4 and results.shape[1] == 3:
        broken_N |= flat.max(axis=1) < BLACK
    return broken_N
