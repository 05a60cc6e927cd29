"""From a name or a file to a model that can be used: which file, which runtime, whose card."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from facestyle import weights
from facestyle.backends import Backend
from facestyle.backends.watched import Watched
from facestyle.bundle import is_onnx, load_bundle
from facestyle.card import ModelCard, fault_in
from facestyle.errors import UsageError
from facestyle.translator import Translator
from facestyle.weights import Progress

if TYPE_CHECKING:
    from facestyle.checkpoint import Checkpoint

RUNTIMES = ("auto", "torch", "onnx", "openvino")


def open_translator(
    name_or_path: str | Path,
    *,
    domains: Sequence[str] | None = None,
    runtime: str = "auto",
    device: str = "cpu",
    precision: str = "fp32",
    offline: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Translator:
    """Load a model: a name of ``facestyle models list``, a checkpoint of a known family, or an
    ONNX bundle (``facestyle export``).

    Args:
        domains: names for the domains of a checkpoint that has none, in its own order; of one that
            has, other names for them, as many.
        runtime: ``torch`` for checkpoints, ``onnx`` or ``openvino`` for bundles; ``auto`` takes
            onnxruntime for bundles and for what ships as one, torch for all else. OpenVINO is
            never taken unasked: its start costs more than a picture gains, it takes one picture
            at a time, and whether it is installed must not change the result's bytes.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``; ``auto`` is the first GPU, else the CPU.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: on a CPU fp32, since less keeps one
            model's picture and not the next one's; on CUDA fp16 for a checkpoint, and for a
            bundle what it was exported in.
        warn: told of each result that came out broken in reduced precision and was made again.

    Raises:
        WeightsError: the file, or another that it needs, is not here.
        CheckpointError: the file is refused, damaged, or of no known family.
        UsageError: the domain names, the runtime, the device or the precision do not fit.
    """
    path = model_file(
        name_or_path,
        runtime=runtime,
        device=device,
        precision=precision,
        offline=offline,
        progress=progress,
    )
    if is_onnx(path):
        card, backend = _open_bundle(path, domains, runtime, device, precision)
    else:
        card, backend = _open_checkpoint(path, domains, device, precision)
    return Translator(card, backend if backend.precision == "fp32" else Watched(backend, warn))


def model_file(
    name_or_path: str | Path,
    *,
    runtime: str = "auto",
    device: str = "cpu",
    precision: str = "fp32",
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The file that ``open_translator`` would open.

    A model that ships as a checkpoint and as an ONNX bundle is opened as the bundle where that
    can do what was asked: its first picture comes without the seconds that torch takes to load.

    Raises:
        UsageError: an unknown runtime, or a checkpoint for onnxruntime or OpenVINO.
        WeightsError: the file is not here.
    """
    wanted = file_of(name_or_path, runtime, device, precision)
    path = weights.resolve(wanted, offline=offline, progress=progress)
    if runtime in ("onnx", "openvino") and not is_onnx(path):
        raise UsageError(
            f"runtime '{runtime}' needs an ONNX bundle, {path.name} is none",
            f"make one: facestyle export {path} -o {path.stem}.onnx",
        )
    return path


def file_of(name_or_path: str | Path, runtime: str, device: str, precision: str) -> str | Path:
    """The entry, or the path, behind what the user named; see ``model_file``."""
    if runtime not in RUNTIMES:
        raise UsageError(f"unknown runtime '{runtime}'", f"known: {', '.join(RUNTIMES)}")
    entry = None if Path(name_or_path).is_file() else weights.index().get(str(name_or_path))
    light = device.startswith(("auto", "cpu")) and precision in ("auto", "fp32")
    if entry and entry.onnx and (runtime in ("onnx", "openvino") or (runtime == "auto" and light)):
        return entry.onnx
    return name_or_path


def device_for(path: Path | None, asked: str, runtime: str) -> str:
    """Where a model's file would run; raises UsageError for a device that is not here."""
    if path is None or not is_onnx(path):
        from facestyle.backends.on_torch import best_device

        return best_device(asked)
    from facestyle.backends.on_onnx import gpu

    here = ["cpu"] if runtime == "openvino" or not gpu() else ["cuda", "cpu"]
    if asked != "auto" and asked.split(":")[0] not in here:
        raise UsageError(
            f"device '{asked}' was asked for, and this runtime has none here",
            f"use --device auto, or {' or '.join(here)}",
        )
    return here[0] if asked == "auto" else asked


def reasons(path: Path, backend: Backend, runtime: str, device: str, precision: str) -> list[str]:
    """Why ``open_translator`` took what it took where the user said ``auto``, for people."""
    on_cpu, bundle = backend.device == "cpu", is_onnx(path)
    if bundle and not on_cpu:
        why_precision = "which the bundle was exported in"
    elif backend.precision == "fp32":
        why_precision = "since less does not keep every model's picture"
    else:
        why_precision = "several times as fast; a broken picture is made again in fp32"
    chosen = {
        "runtime": (
            "onnxruntime, the first of those that run bundles to have a picture ready"
            if bundle
            else "torch, which alone runs checkpoints"
        ),
        "device": "cpu, this runtime finds no GPU here" if on_cpu else "the GPU, far faster",
        "precision": f"{backend.precision}, {why_precision}",
    }
    asked = {"runtime": runtime, "device": device, "precision": precision}
    return [f"--{what} auto: {why}" for what, why in chosen.items() if asked[what] == "auto"]


def _open_bundle(
    path: Path, domains: Sequence[str] | None, runtime: str, device: str, precision: str
) -> tuple[ModelCard, Backend]:
    if runtime == "torch":
        raise UsageError(
            f"{path.name} is an ONNX bundle, which torch does not run",
            "use --runtime auto, or give the checkpoint that it was made of",
        )
    bundle = load_bundle(path)
    bundle = bundle.with_card(renamed(bundle.card, domains))
    if runtime == "openvino":
        from facestyle.backends.on_openvino import OpenVinoBackend

        return bundle.card, OpenVinoBackend(bundle, device, precision)
    from facestyle.backends.on_onnx import OnnxBackend

    return bundle.card, OnnxBackend(bundle, device, precision)


def _open_checkpoint(
    path: Path, domains: Sequence[str] | None, device: str, precision: str
) -> tuple[ModelCard, Backend]:
    from facestyle.backends.on_torch import TorchBackend, best_device
    from facestyle.checkpoint import load_checkpoint
    from facestyle.families import detect

    checkpoint = load_checkpoint(path)
    card = card_of(checkpoint, domains)
    modules = detect(checkpoint).modules(checkpoint, card)
    return card, TorchBackend(modules, best_device(device), precision)


def card_of(checkpoint: Checkpoint, domains: Sequence[str] | None = None) -> ModelCard:
    """A checkpoint's own card, or one from its shapes, the index, and the names given.

    Raises:
        CheckpointError: of no known family.
        UsageError: more or fewer names than domains, or names that cannot be.
    """
    from facestyle.families import detect

    if checkpoint.card is not None:
        return renamed(checkpoint.card, domains)
    if domains is not None:
        _check_names(domains)
    family = detect(checkpoint)
    entry = weights.entry_for(checkpoint.path)
    known = dict(entry.card or {}, licence=entry.licence, name=entry.name) if entry else {}
    if domains is not None:
        known["domains"] = tuple(domains)
    return family.card(checkpoint, known)


def renamed(card: ModelCard, domains: Sequence[str] | None) -> ModelCard:
    """The card with the domains that the user names; they may rename, not add or drop.

    Raises:
        UsageError: more or fewer names than domains, or names that cannot be.
    """
    if domains is None or tuple(domains) == card.domains:
        return card
    if len(domains) != len(card.domains):
        raise UsageError(
            f"{len(domains)} domain names were given, this model has {len(card.domains)}",
            f"its own are: {', '.join(card.domains)}",
        )
    _check_names(domains)
    new = dict(zip(card.domains, domains, strict=True))

    def of(groups: Sequence[str]) -> tuple[str, ...]:
        return tuple(",".join(new[name] for name in group.split(",")) for group in groups)

    return replace(
        card,
        domains=tuple(domains),
        attribute_sets=of(card.attribute_sets),
        exclusive=of(card.exclusive),
        on_skin=of(card.on_skin),
        as_shade=of(card.as_shade),
        on_hair=of(card.on_hair),
        drawings=of(card.drawings),
    )


def _check_names(domains: Sequence[str]) -> None:
    if fault := fault_in(domains):
        raise UsageError(
            f"the list of domains {fault}: {', '.join(domains)!r}",
            "names become parts of file names; each is different, without / and \\",
        )
