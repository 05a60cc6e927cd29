"""How fast and how large a training iteration is, against a plain loop of the same arithmetic.

    python benchmarks/train.py                      # 256 px, batch 1, this machine's CPU
    python benchmarks/train.py --size 128 --batch 2
    python benchmarks/train.py --device cuda --batch 8 --data FOLDER

The plain loop is StarGAN v2's step written as one would first write it: contiguous memory,
eager float32, ``F.instance_norm``, convolutions at the large size with pooling and doubling apart
from them, gradients for every network in every step, the diversity picture with its graph, an
optimiser that goes parameter by parameter. Both start from equal weights and see equal batches;
they alternate in one process, and the ratio of the medians is what counts. Peak memory is that
of a process of its own for each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import plain_networks
from torch import Tensor

from facestyle.families.stargan_v2 import objective
from facestyle.families.stargan_v2.objective import Config, Task
from facestyle.nn import adversarial
from facestyle.nn.updates import Optimisers
from facestyle.training.loop import peak_memory

DOMAINS = 2


class PlainTask(Task):
    """The same networks and losses without any of our economies."""

    def __init__(self, config: Config, domains: int, *, device: str) -> None:
        super().__init__(config, domains, device=device)
        for net in (*self.networks.values(), *self.averages.values()):
            net.to(memory_format=torch.contiguous_format)
        self.optimisers = Optimisers(
            {
                part: torch.optim.Adam(
                    net.parameters(),
                    lr=config.mapping_lr if part == "mapping_network" else config.lr,
                    betas=(0.0, config.beta2),
                    weight_decay=config.weight_decay,
                    foreach=False,
                )
                for part, net in self.networks.items()
            }
        )

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration on contiguous pictures with torch's own instance norm."""
        batch = {name: tensor.contiguous() for name, tensor in batch.items()}
        with plain_networks():
            return super().step(batch)

    def _train_only(self, *parts: str) -> None:
        for net in self.networks.values():
            net.requires_grad_(True)

    def _discriminator_step(self, batch: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        discriminator = self.networks["discriminator"]
        self._train_only()
        with torch.no_grad():
            s = self._style(batch, source, first=True)
            fake = self.networks["generator"](batch["x_NCHW"], s, None)
        x = batch["x_NCHW"].detach().requires_grad_()
        logits = discriminator(x, batch["y_N"])
        losses = {
            "real": adversarial.cross_entropy(logits, real=True),
            "reg": adversarial.r1_penalty(logits, x),
            "fake": adversarial.cross_entropy(discriminator(fake, batch["y_ref_N"]), real=False),
        }
        total = losses["real"] + losses["fake"] + self.config.r1 * losses["reg"]
        self.optimisers.update(total, "discriminator")
        return {f"D/{source}/{name}": value.detach() for name, value in losses.items()}

    def _generator_step(self, batch: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        config, generator = self.config, self.networks["generator"]
        encoder, x, y_ref = self.networks["style_encoder"], batch["x_NCHW"], batch["y_ref_N"]
        self._train_only()
        s = self._style(batch, source, first=True)
        fake = generator(x, s, None)
        logits = self.networks["discriminator"](fake, y_ref)
        fake2 = generator(x, self._style(batch, source, first=False), None).detach()
        back = generator(fake, encoder(x, batch["y_N"]), None)
        losses = {
            "adv": adversarial.cross_entropy(logits, real=True),
            "sty": (encoder(fake, y_ref) - s).abs().mean(),
            "ds": (fake - fake2).abs().mean(),
            "cyc": (back - x).abs().mean(),
        }
        weight = objective.diversity_weight(
            config.diversity, config.diversity_steps, self.step_index
        )
        total = losses["adv"] + config.style * losses["sty"] - weight * losses["ds"]
        trained = ["generator"]
        if source == "latent":
            trained += ["mapping_network", "style_encoder"]
        self.optimisers.update(total + config.cycle * losses["cyc"], *trained)
        return {f"G/{source}/{name}": value.detach() for name, value in losses.items()}


def variants(config: Config, device: str, wanted: list[str]) -> dict[str, Task]:
    """Tasks from equal weights, by name."""
    built: dict[str, Task] = {}
    for name in wanted:
        torch.manual_seed(0)
        if name == "plain":
            built[name] = PlainTask(config, DOMAINS, device=device)
        else:
            bf16, compiled = "bf16" in name, "compiled" in name
            built[name] = Task(config, DOMAINS, device=device, bf16=bf16, compile=compiled)
    return built


def made_up_batch(config: Config, size: int, step: int, device: str) -> dict[str, Tensor]:
    """Noise pictures: what they show makes no difference to the time."""
    rng = np.random.default_rng(step)
    side = config.image_size

    def pictures() -> Tensor:
        values = rng.uniform(-1, 1, (size, 3, side, side)).astype(np.float32)
        return torch.from_numpy(values).contiguous(memory_format=torch.channels_last)

    labels = torch.arange(size) % DOMAINS
    batch = {
        "x_NCHW": pictures(), "y_N": labels, "ref_NCHW": pictures(), "ref2_NCHW": pictures(),
        "y_ref_N": (labels + 1) % DOMAINS,
        "z_NL": torch.from_numpy(rng.standard_normal((size, config.latent_dim), np.float32)),
        "z2_NL": torch.from_numpy(rng.standard_normal((size, config.latent_dim), np.float32)),
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in batch.items()}


def timed(task: Task, batch: Mapping[str, Tensor], device: str) -> float:
    """Seconds of one iteration."""
    began = time.perf_counter()
    task.step(batch)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def alternate(tasks: Mapping[str, Task], config: Config, options: Any) -> dict[str, list[float]]:
    """Seconds by variant; each round runs every variant once, the first round is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(options.rounds + 1):
        batch = made_up_batch(config, options.batch, number, options.device)
        for name, task in tasks.items():
            took = timed(task, batch, options.device)
            if number:
                seconds[name].append(took)
    return seconds


def memory_of(name: str, options: Any) -> float:
    """Peak MB of a process that runs two iterations of one variant."""
    command = [sys.executable, __file__, "--only", name]
    for key in ("size", "batch", "device", "threads"):
        command += [f"--{key}", str(getattr(options, key))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["memory"])


def with_data(config: Config, options: Any) -> dict[str, float]:
    """Seconds an iteration and the share spent waiting, with pictures decoded from a folder."""
    from functools import partial

    from facestyle.training.data import batches, labelled_folders

    task = variants(config, options.device, [options.fed])[options.fed]
    draw = partial(objective.sample, labelled_folders(Path(options.data)), config)
    data = batches(
        draw, options.batch, seed=0, start=0, stop=options.rounds + 3,
        workers=options.workers, device=options.device,
    )  # fmt: skip
    waited, took = [], []
    while True:
        began = time.perf_counter()
        batch = next(data, None)
        if batch is None:
            break
        ready = time.perf_counter()
        timed(task, batch, options.device)
        waited.append(ready - began)
        took.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(took[3:]),
        "waiting": sum(waited[3:]) / sum(took[3:]),
        "pictures_a_second": options.batch / statistics.median(took[3:]),
    }


def main() -> None:
    """Measure and print a table, then the same as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", default="plain,fp32,bf16")
    parser.add_argument("--data", help="a folder of domains: measure with real pictures too")
    parser.add_argument("--fed", default="bf16", help="the variant measured with --data")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # equal arithmetic; bf16 rounds on purpose
    config = Config(image_size=options.size, first_width=2**14 // options.size)

    if options.only:
        task = variants(config, options.device, [options.only])[options.only]
        for number in range(2):
            task.step(made_up_batch(config, options.batch, number, options.device))
        print(json.dumps({"memory": peak_memory(options.device)}))
        return

    wanted = options.variants.split(",")
    memory = {name: memory_of(name, options) for name in wanted}
    seconds = alternate(variants(config, options.device, wanted), config, options)
    machine = (
        torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor()
    )
    print(
        f"StarGAN v2, {options.size} px, batch {options.batch}, {options.threads} threads, "
        f"torch {torch.__version__}, {machine or platform.machine()}"
    )
    print(f"{'':<16}{'s/iteration':>12}{'speed':>8}{'MB':>8}{'memory':>8}")
    rows = {}
    first = wanted[0]
    for name in wanted:
        middle = statistics.median(seconds[name])
        speed = statistics.median(seconds[first]) / middle
        share = memory[name] / memory[first]
        print(f"{name:<16}{middle:>12.3f}{speed:>7.2f}x{memory[name]:>8.0f}{share:>8.2f}")
        rows[name] = {"seconds": seconds[name], "speed": speed, "memory": memory[name]}
    if options.data:
        rows["fed"] = with_data(config, options)
        print(f"with pictures from {options.data}: {rows['fed']}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
