"""``doctor``: what this machine has, and what stands in the way."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import platform
from typing import Any

import typer

from facestyle import __version__
from facestyle.cli import options
from facestyle.cli.report import reporting
from facestyle.errors import FacestyleError

PACKAGES = (
    "torch", "torchvision", "numpy", "pillow", "opencv-python", "onnxruntime-gpu", "onnxruntime",
    "facexlib", "safetensors", "typer", "rich",
)  # fmt: skip


def doctor(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Print versions, devices, weights, and known troubles with their cure.

    Example: facestyle doctor
    """
    with reporting(as_json=as_json, debug=debug) as report:
        facts: dict[str, Any] = {
            "facestyle": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": _versions(),
            **_torch(),
            **_onnxruntime(),
            **_weights(),
        }
        troubles = _troubles(facts)
        facts["troubles"] = troubles
        lines = [f"{key:<12} {_text(value)}" for key, value in facts.items() if key != "troubles"]
        lines += [f"trouble      {trouble}" for trouble in troubles] or ["no trouble found"]
        report.result(facts, "\n".join(lines))
        if troubles:
            raise typer.Exit(FacestyleError.exit_code)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"torch_error": str(error)}
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cuda": cuda or "none", "mps": torch.backends.mps.is_available(),
            "threads": torch.get_num_threads()}  # fmt: skip


def _onnxruntime() -> dict[str, Any]:
    """Providers that really start: the list of available ones names CUDA without a GPU."""
    try:
        import onnxruntime
    except ImportError as error:
        return {"onnxruntime_error": str(error)}
    from facestyle import weights

    onnxruntime.set_default_logger_severity(4)  # fatal alone: what does not start is no news here
    model = weights.locate("builtin")
    started = []
    for provider in onnxruntime.get_available_providers() if model else ():
        with contextlib.redirect_stdout(io.StringIO()):  # where it tells of its fallback
            session = onnxruntime.InferenceSession(model, providers=[provider])
        started += [provider] if provider in session.get_providers() else []
    return {"providers": started}


def _weights() -> dict[str, Any]:
    from facestyle import weights

    states = {
        entry.name: weights.verify(entry).status
        for entry in weights.index().values()
        if entry.shipped or weights.locate(entry.name)
    }
    return {"cache": str(weights.cache_dir()), "weights": states}


def _troubles(facts: dict[str, Any]) -> list[str]:
    troubles = []
    wheels = [name for name in _installed() if name.startswith("opencv-")]
    if len(wheels) > 1:
        troubles.append(
            f"{' and '.join(sorted(wheels))} overwrite each other: uninstall both, then "
            "install opencv-python"
        )
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        cure = (
            "install libgl1 (Debian: apt-get install libgl1)"
            if "libGL" in str(error)
            else ("reinstall opencv-python")
        )
        troubles.append(f"OpenCV does not load ({error}): {cure}")
    for key in ("torch_error", "onnxruntime_error"):
        if key in facts:
            troubles.append(f"{key.removesuffix('_error')} does not load: {facts[key]}")
    for name, status in facts["weights"].items():
        if status in ("mismatch", "missing"):
            troubles.append(f"the weights '{name}' are {status}: facestyle models pull {name}")
    return troubles


def _installed() -> set[str]:
    names = (found.metadata["Name"] for found in importlib.metadata.distributions())
    return {name.lower() for name in names if name}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
