"""What runs a model's networks: numpy in and out, one file a runtime. Knows no styles."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Backend(Protocol):
    """Named networks with numpy in and out.

    Roles: ``generator`` (image, code) → image, or one ``generator.<domain>`` (image) → image
    for each target domain; ``flow`` (image, code) → displacements, where the generator moves
    before it paints; ``mapping`` (latent, domain) → code; ``encoder`` (image, domain) →
    code, without a mapping (image) → code; ``classifier`` (image) → attribute logits;
    ``attention.<domain>`` (image) → heatmap; ``sampler.<domain>`` (image, seed) → image.
    """

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that can be run."""
        ...

    @property
    def about(self) -> str:
        """Runtime, device and precision, for people: ``torch on cpu, fp32``."""
        ...

    @property
    def device(self) -> str:
        """Where it computes: ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
        ...

    @property
    def shareable(self) -> bool:
        """Whether several threads may run it at the same time."""
        ...

    precision: str
    """``fp32``, ``bf16`` or ``fp16``."""

    def exact(self) -> Backend:
        """The same networks in float32."""
        ...

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        """Run one network."""
        ...
