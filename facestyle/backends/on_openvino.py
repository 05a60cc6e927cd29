"""Roles as OpenVINO models, cut out of a bundle: numpy in, numpy out, no torch.

For processors that compute in bfloat16: there twice as fast as onnxruntime in float32 (a 256 px
StarGAN v2 generator on one Zen 5 core). An extra: ``pip install 'facestyle[openvino]'``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from facestyle.backends.on_onnx import plain, threads
from facestyle.bundle import Bundle
from facestyle.errors import CheckpointError, UsageError

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}  # as OpenVINO names them


class OpenVinoBackend:
    """Runs networks by role (see ``backends.Backend``), on the CPU."""

    device = "cpu"
    shareable = False  # a compiled model refuses a second caller

    def __init__(self, bundle: Bundle, device: str = "auto", precision: str = "auto") -> None:
        """Choose the precision, and compile the generator.

        Args:
            device: ``auto`` or ``cpu``.
            precision: ``fp32``, which ``auto`` takes, or one that the processor computes in.

        Raises:
            UsageError: OpenVINO is not installed, or has not the device or the precision.
            CheckpointError: it can make nothing of the bundle.
        """
        try:
            import openvino
        except ImportError:
            raise UsageError(
                "the runtime 'openvino' was asked for and is not installed",
                "pip install 'facestyle[openvino]', or use --runtime auto",
            ) from None
        if device not in ("auto", "cpu"):
            raise UsageError(
                f"openvino does not run on '{device}' here", "use --device auto or cpu"
            )
        self.bundle = bundle
        self.precision = "fp32" if precision == "auto" else precision
        self._core: Any = openvino.Core()
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if CAPABILITIES.get(self.precision) not in able:
            known = [name for name, capability in CAPABILITIES.items() if capability in able]
            raise UsageError(
                f"openvino on this processor does not compute in {self.precision}",
                f"use --precision {' or '.join(known)}",
            )
        self._models: dict[str, Any] = {}
        self._model(self.roles[0])

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that can be run."""
        return self.bundle.roles

    @property
    def about(self) -> str:
        """Runtime, device and precision."""
        return f"openvino on cpu, {self.precision}"

    def exact(self) -> OpenVinoBackend:
        """The same networks in float32."""
        return self if self.precision == "fp32" else OpenVinoBackend(self.bundle)

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        """Run one network: float arrays as float32, integer arrays as domain indices.

        Raises:
            UsageError: the model has no such role.
        """
        if role not in self.roles:
            raise UsageError(f"this model has no role '{role}'", f"it has {', '.join(self.roles)}")
        model = self._model(role)
        with self._blamed():
            return np.array(model([plain(array) for array in arrays])[0], np.float32)

    def _model(self, role: str) -> Any:
        if role not in self._models:
            settings = {
                "INFERENCE_PRECISION_HINT": HINTS[self.precision],
                "INFERENCE_NUM_THREADS": threads(),
                "PERFORMANCE_HINT": "LATENCY",
            }
            with self._blamed():
                # OpenVINO puts casts of its own into the float32 graph.
                network = self._core.read_model(self.bundle.network(role, "fp32"))
                self._models[role] = self._core.compile_model(network, "CPU", settings)
        return self._models[role]

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """What the runtime stumbles over is the file's fault."""
        try:
            yield
        except Exception as error:
            detail = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise CheckpointError(
                f"{self.bundle.path.name}: openvino cannot run it ({detail[:120]})",
                "use --runtime onnx",
            ) from error
