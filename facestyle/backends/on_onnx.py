"""Roles as onnxruntime sessions, cut out of a bundle: numpy in, numpy out, no torch.

A session is made when its role is first run: a translation loads no encoder.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from facestyle.bundle import Bundle, choose_precision
from facestyle.errors import CheckpointError, FacestyleError, UsageError

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
USUAL = {"cpu": "fp32", "cuda": "fp16"}  # a CPU has no float16 arithmetic: it would be slower


class OnnxBackend:
    """Runs networks by role (see ``backends.Backend``)."""

    shareable = True

    def __init__(self, bundle: Bundle, device: str = "auto", precision: str = "auto") -> None:
        """Choose device and precision, and make the generator's session.

        Args:
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            precision: ``auto``, or one that the bundle was exported for.

        Raises:
            UsageError: the device or the precision is not there.
            CheckpointError: onnxruntime cannot make anything of the bundle.
        """
        if device.split(":")[0] not in ("auto", *PROVIDERS):
            raise UsageError(
                f"onnxruntime does not run on '{device}' here", "use --device auto, cpu or cuda"
            )
        self.bundle = bundle
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        candidates = [device] if device != "auto" else ["cuda", "cpu"] if gpu() else ["cpu"]
        for self.device in candidates:
            self.precision = choose_precision(bundle, precision, USUAL[self.device.split(":")[0]])
            try:
                self._session(self.roles[0])
                break
            except UsageError:
                if self.device == candidates[-1]:
                    raise

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that can be run."""
        return self.bundle.roles

    @property
    def about(self) -> str:
        """Runtime, device and precision."""
        return f"onnxruntime on {self.device}, {self.precision}"

    def exact(self) -> OnnxBackend:
        """The same networks in float32."""
        return self if self.precision == "fp32" else OnnxBackend(self.bundle, self.device, "fp32")

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        """Run one network: float arrays as float32, integer arrays as domain indices.

        Raises:
            UsageError: the model has no such role.
        """
        if role not in self.roles:
            raise UsageError(f"this model has no role '{role}'", f"it has {', '.join(self.roles)}")
        session = self._session(role)
        names = [value.name for value in session.get_inputs()]
        with self._blamed():
            (output,) = session.run(None, dict(zip(names, map(plain, arrays), strict=True)))
        return np.asarray(output, np.float32)

    def _session(self, role: str) -> onnxruntime.InferenceSession:
        if role not in self._sessions:
            import onnxruntime  # noqa: F401  # that it is missing is not the file's fault

            with self._blamed():
                network = self.bundle.network(role, self.precision)
                self._sessions[role] = _open(network, self.device)
        return self._sessions[role]

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """What the runtime stumbles over is the file's fault: it stumbles over nothing that
        ``export`` wrote. Its exceptions are of many kinds, Python's own among them."""
        try:
            yield
        except FacestyleError:
            raise
        except Exception as error:
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{self.bundle.path.name}: onnxruntime cannot run it ({detail[:120]})",
                "export it again with this facestyle",
            ) from error


def plain(array: np.ndarray) -> np.ndarray:
    """As the networks take it: whole numbers int64, all others float32."""
    kind = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
    return np.ascontiguousarray(array, kind)


def threads() -> int:
    """How many threads to compute with: OMP_NUM_THREADS, else one a core of this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    siblings = set()
    for cpu in cpus:
        # Two threads of one core share its arithmetic: the second gains nothing.
        try:
            folder = f"/sys/devices/system/cpu/cpu{cpu}/topology"
            with open(f"{folder}/thread_siblings_list", encoding="ascii") as file:
                siblings.add(file.read())
        except OSError:
            siblings.add(str(cpu))
    return len(siblings)


def _open(network: bytes, device: str) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said once, by our own error
    options.intra_op_num_threads = threads()
    options.inter_op_num_threads = 1
    # Bytes might also be a model in onnxruntime's own format, which nobody here has looked into.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    kind, _, number = device.partition(":")
    provider: Any = PROVIDERS[kind]
    started: list[str] = []
    failure: Exception | None = None
    if provider in onnxruntime.get_available_providers():
        if kind == "cuda":
            onnxruntime.preload_dlls()  # CUDA's libraries, where pip put them
            provider = (provider, {"device_id": number or "0", "use_tf32": "0"})
        try:
            # Of its own fallback to the CPU it would tell on stdout, which is the results'.
            session = onnxruntime.InferenceSession(
                network, options, providers=[provider], enable_fallback=0
            )
            started = session.get_providers()
        except Exception as error:
            if kind == "cpu":
                raise
            failure = error  # what ``auto`` tries next is the CPU, where the file would be at fault
    if PROVIDERS[kind] not in started:
        raise UsageError(
            f"device '{device}' was asked for, and onnxruntime cannot start on it",
            "use --device auto, or run 'facestyle doctor'",
        ) from failure
    return session


def gpu() -> bool:
    """Whether the CUDA driver is there and sees a device: onnxruntime's list does not tell."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 < count.value
