"""How fast a folder of photos is restyled, against its generator alone.

    python benchmarks/folder.py                          # 200 portraits, 256 px, paper's width
    python benchmarks/folder.py --pictures 24 --rounds 3
    python benchmarks/folder.py --width 8                # a small network: the rest counts
    python benchmarks/folder.py --device cuda --workers 16

Portraits are one photo, resized and shifted at random, as JPEG; results are PNG. A round runs,
on equal pictures: the generator alone, one crop after the other with all cores (or full calls
on an accelerator) and side by side with one thread each; the folder with one worker; the
folder with all. They alternate in one process, and the ratio of the medians is what counts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from facestyle import batch
from facestyle.backends.on_torch import TorchBackend, best_device
from facestyle.card import ModelCard
from facestyle.cli.plan import Source, plan
from facestyle.cli.session import Lines, Session, Wish, lazy_detector
from facestyle.families.stargan_v2.networks import Generator, Sizes
from facestyle.images import to_model
from facestyle.pipeline import aligned_faces
from facestyle.translator import Style, Translator

ROOT = Path(__file__).resolve().parents[1]


def portraits(folder: Path, photo: Path, count: int) -> list[Path]:
    """Copies of a photo that differ in size and place."""
    rng = np.random.default_rng(0)
    original = Image.open(photo).convert("RGB")
    paths = []
    for number in range(count):
        width, height = (round(side * rng.uniform(0.9, 1.4)) for side in original.size)
        left, top = (int(side * rng.uniform(0, 0.08)) for side in (width, height))
        picture = original.resize((width, height)).crop((left, top, width, height))
        paths.append(folder / f"{number:04d}.jpg")
        picture.save(paths[-1], quality=92)
    return paths


def random_model(size: int, width: int, device: str) -> Translator:
    """A StarGAN v2 generator that has learned nothing: what it draws makes no difference."""
    torch.manual_seed(0)
    sizes = Sizes(image_size=size, first_width=width, max_width=8 * width)
    card = ModelCard(
        family="stargan-v2", image_size=size, domains=("a", "b"), styles=("latent",),
        latent_dim=16, alignment="celeba-square", name="random",
    )  # fmt: skip
    return Translator(card, TorchBackend({"generator": Generator(sizes).eval()}, device))


def wish_for(folder: Path, device: str) -> Wish:
    """What ``facestyle translate FOLDER`` would ask for."""
    usual: dict[str, Any] = dict.fromkeys(Wish.__dataclass_fields__)
    usual |= {"inputs": [str(folder)], "face": "largest", "detector": "auto", "mark": True}
    usual |= {"precision": "fp32", "device": device, "engine": "local"}
    return Wish(**usual)


def main() -> None:
    """Measure and print a table, then the same as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--width", type=int, default=64, help="the first layer's; 64 at 256 px")
    parser.add_argument("--workers", type=int, default=batch.usual_workers())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--photo", type=Path, default=ROOT / "examples" / "astronaut.jpg")
    options = parser.parse_args()

    model = random_model(options.size, options.width, best_device(options.device))
    style = Style(domain="b", code_NS=np.zeros((1, 64), np.float32), origin="zero")
    with tempfile.TemporaryDirectory() as place:
        inputs, results = Path(place, "in"), Path(place, "out")
        inputs.mkdir()
        paths = portraits(inputs, options.photo, options.pictures)
        wish = wish_for(inputs, options.device)
        detector = lazy_detector(wish, Lines())
        face = aligned_faces(np.asarray(Image.open(paths[0])), model, detector=detector())

        def folder(workers: int) -> None:
            shutil.rmtree(results, ignore_errors=True)
            results.mkdir()
            sources = [Source(path=path, below=Path()) for path in paths]
            groups = [[job] for job in plan(sources, f"{results}/", ["b"], ".png")]
            with batch.Crew(workers) as crew:
                session = Session(wish, model, detector, [style], "", crew)
                for outcome in session.outcomes(groups):
                    assert outcome.error is None, outcome.error
            assert len(list(results.iterdir())) == len(paths)

        def alone() -> None:
            size = 1 if batch.runs_side_by_side(model) else batch.TOGETHER
            crops_NCHW = to_model(np.repeat(face[0].crop_HWC[None], size, axis=0))
            for _ in range(-(-len(paths) // size)):
                model.translate(crops_NCHW, style)

        def beside() -> None:
            with batch.side_by_side(), batch.Crew(options.workers) as crew:
                made = crew.ordered(lambda _: batch.translate_together([face], model, style), paths)
                assert len(list(made)) == len(paths)

        ways: dict[str, Callable[[], None]] = {"generator, all cores": alone}
        if batch.runs_side_by_side(model):
            ways["generator, side by side"] = beside
        ways |= {"1 worker": lambda: folder(1)}
        ways |= {f"{options.workers} workers": lambda: folder(options.workers)}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        processor: dict[str, list[float]] = {name: [] for name in ways}
        model.translate(to_model(face[0].crop_HWC[None]), style)  # warm
        for _ in range(options.rounds):
            for name, way in ways.items():
                began, worked = time.perf_counter(), time.process_time()
                way()
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - worked)

    print(f"{options.pictures} portraits, {options.size} px, {model.backend.about}")
    rates = {name: options.pictures / statistics.median(times) for name, times in seconds.items()}
    best = max(rate for name, rate in rates.items() if name.startswith("generator"))
    for name, rate in rates.items():
        work = statistics.median(processor[name]) / options.pictures
        print(
            f"{name:<26}{rate:>8.2f} pictures/s{rate / best:>8.0%} of the generator"
            f"{work:>10.3f} s of a core each"
        )
    print(json.dumps({"pictures_a_second": rates, "seconds": seconds}))


if __name__ == "__main__":
    main()
