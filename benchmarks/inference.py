"""How fast a generator runs on each runtime, against plain eager float32 torch.

    python benchmarks/inference.py                                  # this machine's CPU
    python benchmarks/inference.py --models ugatit-light-256 --batches 1
    python benchmarks/inference.py --device cuda --batches 1,8,64   # the GPU rows

Plain is the same network in contiguous memory with torch's own norms and every convolution at
the size that the published program has it. Every variant of a model runs once a round, in turn,
in one process; the ratio of the medians is what counts. Beside it stand the published arithmetic
done a second, to hold against this machine's own matrix product, and the largest and mean
difference from plain of the picture, in grey levels of 255.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import plain_networks
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import facestyle
from facestyle.backends.on_torch import TorchBackend
from facestyle.checkpoint import save_model
from facestyle.errors import UsageError
from facestyle.families import family_named
from facestyle.opening import model_file
from facestyle.translator import Translator

MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "stargan-v2-256": ("stargan-v2", {}),
    "ugatit-light-256": ("ugatit", {"light": True}),
    "shipped": ("", {}),
}
GEMM_SIDE = 2048  # of the matrix product that tells what the machine can do


def opened(name: str, folder: Path) -> tuple[Translator, Path]:
    """A model with random weights, or what ships, and its file."""
    family_name, changes = MODELS[name]
    if not family_name:
        path = model_file("female-male", runtime="torch")
        return facestyle.load(path), path
    from dataclasses import replace

    family = family_named(family_name)
    config = replace(family.config(), **changes)
    torch.manual_seed(0)
    task = family.task(config, 2, device="cpu", bf16=False, compile=False)
    path = folder / f"{name}.safetensors"
    save_model(path, task.model_parts(), family.new_card(config, ("a", "b")))
    return facestyle.load(path), path


def inputs(model: Translator, batch: int) -> tuple[str, tuple[np.ndarray, ...]]:
    """The generator's role and what it takes."""
    side, rng = model.card.image_size, np.random.default_rng(0)
    x = rng.uniform(-1, 1, (batch, 3, side, side)).astype(np.float32)
    role = model.backend.roles[0]
    if "latent" in model.card.styles:
        code = model.sample_style(model.card.domains[0]).code_NS
        assert code is not None, "a drawn style has a code"
        return "generator", (x, np.repeat(code, batch, axis=0))
    return next(r for r in model.backend.roles if r.startswith("generator")) or role, (x,)


class Plain:
    """The network as one would first write it."""

    def __init__(self, path: Path, device: str) -> None:
        backend = TorchBackend(_modules(path), device)
        for module in backend.modules.values():
            module.to(memory_format=torch.contiguous_format)
        self.backend, self.device = backend, device

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        """Eager, contiguous, float32."""
        tensors = [torch.from_numpy(array).to(self.device) for array in arrays]
        with torch.inference_mode(), plain_networks():
            output: Tensor = self.backend.modules[role](*tensors)
        return output.cpu().numpy()


def _modules(path: Path) -> dict[str, Any]:
    from facestyle.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    assert checkpoint.card is not None, "our own files have cards"
    return family_named(checkpoint.card.family).modules(checkpoint, checkpoint.card)


def variants(path: Path, device: str, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """By name, what opens a variant; one that is not here raises UsageError."""
    yield "plain fp32", lambda: Plain(path, device)
    for precision in ("fp32", "bf16") if device == "cpu" else ("fp32", "bf16", "fp16"):
        yield (
            f"torch {precision}",
            lambda p=precision: facestyle.load(path, device=device, precision=p).backend,
        )
    for precision in ("fp32", "bf16"):
        yield f"compiled {precision}", lambda p=precision: _compiled(path, device, p)
    bundle = folder / f"{path.stem}.onnx"
    yield "onnxruntime fp32", lambda: _exported(path, bundle, "onnx", device, "fp32")
    if device == "cpu":
        for precision in ("fp32", "bf16"):
            yield (
                f"openvino {precision}",
                lambda p=precision: _exported(path, bundle, "openvino", device, p),
            )


def _compiled(path: Path, device: str, precision: str) -> TorchBackend:
    """torch.compile; on a GPU with CUDA graphs, which is what its mode reduce-overhead means."""
    backend = TorchBackend(_modules(path), device, precision)
    for module in backend.modules.values():
        module.compile(mode="reduce-overhead" if device.startswith("cuda") else None)
    return backend


def _exported(path: Path, bundle: Path, runtime: str, device: str, precision: str) -> Any:
    from facestyle.export import export_model

    if not bundle.exists():
        export_model(facestyle.load(path), bundle)
    return facestyle.load(bundle, runtime=runtime, device=device, precision=precision).backend


def gemm_peak(device: str, kind: torch.dtype) -> float:
    """GFLOP/s of this machine's own matrix product."""
    a, b = (torch.randn(GEMM_SIDE, GEMM_SIDE, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * GEMM_SIDE**3 / best / 1e9


def measure(name: str, batch: int, options: Any, folder: Path) -> dict[str, Any]:
    """Seconds and differences of every variant of one model at one batch size."""
    model, path = opened(name, folder)
    role, arrays = inputs(model, batch)
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), plain_networks():
        assert isinstance(model.backend, TorchBackend), "checkpoints run on torch"
        model.backend.modules[role](*(torch.from_numpy(array) for array in arrays))
    backends, missing = {}, {}
    for variant, make in variants(path, options.device, folder):
        if options.only and not variant.startswith(tuple(options.only.split(","))):
            continue
        try:
            backends[variant] = make()
        except UsageError as error:
            missing[variant] = error.message
    results = {variant: backend.run(role, *arrays) for variant, backend in backends.items()}
    seconds: dict[str, list[float]] = {variant: [] for variant in backends}
    for _ in range(options.rounds):
        for variant, backend in backends.items():
            began = time.perf_counter()
            backend.run(role, *arrays)
            seconds[variant].append(time.perf_counter() - began)
    plain = results["plain fp32"]
    rows = {}
    for variant, times in seconds.items():
        middle = statistics.median(times)
        away = np.abs(np.clip(results[variant], -1, 1) - np.clip(plain, -1, 1)) * 127.5
        rows[variant] = {
            "seconds": middle,
            "speed": statistics.median(seconds["plain fp32"]) / middle,
            "gflops": counter.get_total_flops() / middle / 1e9,
            "pictures": batch / middle,
            "largest": float(away.max()),
            "mean": float(away.mean()),
        }
    return {"rows": rows, "missing": missing}


def main() -> None:
    """Measure and print tables, then the same as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", help="variants whose names begin so, 'plain fp32' among them")
    options = parser.parse_args()
    if strangers := [name for name in options.models.split(",") if name not in MODELS]:
        parser.error(f"no model {', '.join(strangers)}; known: {', '.join(MODELS)}")
    torch.set_num_threads(options.threads)
    peaks = {
        str(kind).removeprefix("torch."): gemm_peak(options.device, kind)
        for kind in (torch.float32, torch.bfloat16)
    }
    print(f"torch {torch.__version__}, {options.threads} threads, {platform.machine()}")
    print("matrix product: " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in peaks.items()))
    found: dict[str, Any] = {"peaks": peaks}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            for batch in map(int, options.batches.split(",")):
                table = measure(name, batch, options, Path(folder))
                found[f"{name}, batch {batch}"] = table
                print(f"\n{name}, batch {batch}")
                print(
                    f"{'':<18}{'ms':>9}{'speed':>8}{'GFLOP/s':>9}{'pict/s':>8}{'max':>7}{'mean':>8}"
                )
                for variant, row in table["rows"].items():
                    print(
                        f"{variant:<18}{1e3 * row['seconds']:>9.1f}{row['speed']:>7.2f}x"
                        f"{row['gflops']:>9.0f}{row['pictures']:>8.1f}"
                        f"{row['largest']:>7.2f}{row['mean']:>8.4f}"
                    )
                for variant, why in table["missing"].items():
                    print(f"{variant:<18}not here: {why}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
