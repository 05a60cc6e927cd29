"""Roles as torch modules: numpy in, numpy out, on any device and in any precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from facestyle.errors import FacestyleError, UsageError

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CPU_PIXELS = 256 * 256
"""Of the pictures that go through a network at once on a CPU. Measured with StarGAN v2: of 8
pictures of 256 px each takes 0.7 of the time when they go one by one, of 64 of 64 px 0.6 when they
go by 16. More activations than that leave the caches, and every call asks for their memory anew."""


class TorchBackend:
    """Runs networks by role (see ``backends.Backend``)."""

    shareable = True

    def __init__(
        self, modules: Mapping[str, nn.Module], device: str = "cpu", precision: str = "fp32"
    ) -> None:
        if precision not in ("auto", *TYPES):
            raise UsageError(f"unknown precision '{precision}'", f"known: auto, {', '.join(TYPES)}")
        self._device = torch.device(device)
        # float16 has three bits more than bfloat16, on a GPU at the same speed: 61 against 48 dB
        # from float32 with the model that ships. What overflows, ``Watched`` makes again.
        usual = "fp16" if self._device.type == "cuda" else "fp32"
        self.precision = usual if precision == "auto" else precision
        self.modules = {
            role: module.to(self._device).to(memory_format=torch.channels_last)
            for role, module in modules.items()
        }

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that can be run."""
        return tuple(self.modules)

    @property
    def device(self) -> str:
        """Where it computes."""
        return str(self._device)

    @property
    def about(self) -> str:
        """Runtime, device and precision."""
        return f"torch on {self._device}, {self.precision}"

    def exact(self) -> TorchBackend:
        """The same networks in float32."""
        return self if self.precision == "fp32" else TorchBackend(self.modules, self.device)

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        """Run one network: float arrays as float32, integer arrays as domain indices.

        Raises:
            UsageError: the model has no such role.
            FacestyleError: the device's memory is too small.
        """
        if role not in self.modules:
            raise UsageError(f"this model has no role '{role}'", f"it has {', '.join(self.roles)}")
        try:
            with torch.inference_mode(), self._autocast(), self._exactly():
                parts = [
                    self.modules[role](*map(self._tensor, part)).float().cpu().numpy()
                    for part in self._parts(role, arrays)
                ]
        except torch.OutOfMemoryError:
            raise FacestyleError(
                f"out of memory on {self._device}, for {len(arrays[0])} faces at once",
                "--face 1, 2 and so on, or --device cpu; or let other programs end first",
            ) from None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _autocast(self) -> torch.autocast:
        reduced = self.precision != "fp32"
        return torch.autocast(self._device.type, TYPES[self.precision], enabled=reduced)

    def _exactly(self) -> AbstractContextManager[None]:
        """On a GPU float32 is not TF32, which has float16's digits, as it is not in onnxruntime."""
        if self._device.type != "cuda" or self.precision != "fp32":
            return nullcontext()
        flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
            enabled=True, allow_tf32=False
        )
        return flags

    def _parts(self, role: str, arrays: Sequence[np.ndarray]) -> Sequence[Sequence[np.ndarray]]:
        """What goes through the network at once: on a CPU no more than ``CPU_PIXELS``."""
        images = arrays[0]
        # A sampler normalises by its batch: that stays whole.
        if self._device.type != "cpu" or images.ndim != 4 or role.startswith("sampler"):
            return [arrays]
        size = max(1, CPU_PIXELS // (images.shape[2] * images.shape[3]))
        return [
            [array[start : start + size] for array in arrays]
            for start in range(0, max(1, len(images)), size)
        ]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        # Read-only arrays (pictures are) must be copied: torch has no read-only tensors.
        wide = array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32)
        tensor = torch.from_numpy(np.ascontiguousarray(wide)).to(self._device)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def best_device(asked: str) -> str:
    """``auto`` → the fastest device here; an explicit one that is missing is an error.

    Raises:
        UsageError: the device is unknown or not available.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    kind, _, number = asked.partition(":")
    if kind not in available or (number and not number.isdecimal()):
        raise UsageError(f"unknown device '{asked}'", "use auto, cpu, cuda, cuda:1 or mps")
    if not available[kind]:
        raise UsageError(
            f"device '{asked}' was asked for and is not available",
            "use --device auto, or run 'facestyle doctor'",
        )
    here = torch.cuda.device_count() if kind == "cuda" else 1
    if number and int(number) >= here:
        raise UsageError(
            f"device '{asked}' was asked for, and of {kind} there {'is' if here == 1 else 'are'} "
            f"{here}, from 0 on",
            f"use {kind}:0 or another that is here",
        )
    return asked


def computes_bf16(device: str) -> bool:
    """Whether a device multiplies in bfloat16; one that imitates it is slower than in float32
    (three times, measured on a CPU with AVX-512 alone)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # An older torch does not tell.
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))
