"""A StarGAN v2 run → the beginning of one for pictures twice as large.

The deep layers of both are the same: at half the first width, the larger network is the smaller
one between new outermost layers (progressive growing, Karras et al., ICLR 2018). Instead of
fading these in, they first learn, alone and from pictures, to do what the smaller network's
first and last layers did: begun at random, they spoil the deep layers before they are any good.

    x_NCHW  pictures of the larger side, [-1, 1]
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.families import family_named
from facestyle.families.stargan_v2.objective import Config, Task
from facestyle.training import SETTINGS_FILE
from facestyle.training.data import batches, read_layout
from facestyle.training.loop import newest_checkpoint, read_checkpoint

OUTER = r"(from_rgb|to_rgb)\..*|(shared|main)\.0\.(weight|bias)"
"""The layers next to the picture, of the generator and of the two trunks."""

NUMBERED = r"(encode|shared|main)\.(\d+)\.(.*)"
"""The layers that one comes before; ``decode`` gets one after its last."""

STAGES = ("generator", "generator", "style_encoder", "discriminator")
"""What learns, one after the other: a generator's first layers, then its last ones with them."""

STEPS, BATCH, RATE = 400, 8, 5e-3  # in which each does


def place(part: str, name: str) -> str | None:
    """Where a tensor lies in the larger network; None for what is made anew."""
    if part == "mapping_network":
        return name
    if re.fullmatch(OUTER, name):
        return None
    match = re.fullmatch(NUMBERED, name)
    return f"{match[1]}.{int(match[2]) + 1}.{match[3]}" if match else name


def grown(run: Path, config: Config, data: Path, out: Path, seed: int) -> None:
    """Write a run folder for twice the side and half the first width, to begin a run with.

    Args:
        run: the smaller one.
        data: prepared pictures of both's domains, from which the new layers learn.

    Raises:
        CheckpointError: the run has no whole checkpoint.
        RuntimeError: ``config`` is no network that grows from the run's (torch names the layer).
    """
    torch.manual_seed(seed)
    settings = json.loads((run / SETTINGS_FILE).read_text(encoding="utf-8"))
    family, domains = family_named(settings["family"]), len(settings["domains"])
    found = read_layout(family.layout, data, settings["domains"])
    drawn = batches(
        partial(family.sample, found, config), BATCH,
        seed=seed, start=0, stop=len(STAGES) * STEPS, workers=0, device="cpu",
    )  # fmt: skip
    pictures = (batch["x_NCHW"] for batch in drawn)
    half = replace(config, image_size=config.image_size // 2, first_width=2 * config.first_width)
    small, large = Task(half, domains), Task(config, domains)
    small.load_state_dict(read_checkpoint(newest_checkpoint(run)))
    fresh: dict[str, set[str]] = {}
    for part, network in large.networks.items():
        theirs = (small.averages if part in small.averages else small.networks)[part].state_dict()
        moved = {new: t for name, t in theirs.items() if (new := place(part, name))}
        fresh[part] = set(network.state_dict()) - set(moved)
        network.load_state_dict(network.state_dict() | moved)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in fresh[part])
            if name in fresh[part] and "conv2.weight" in name:
                nn.init.zeros_(parameter)  # a new block begins as its shortcut

    mapping = small.averages["mapping_network"]

    def entered(x: Tensor) -> tuple[Tensor, Tensor]:
        old: Any = small.averages["generator"]
        new: Any = large.networks["generator"]
        return new.encode[0](new.from_rgb(x)), old.from_rgb(F.avg_pool2d(x, 2)).detach()

    def restyled(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.randint(domains, (len(x),))
        with torch.no_grad():
            s = mapping(torch.randn(len(x), config.latent_dim), y)
            old = small.averages["generator"](F.avg_pool2d(x, 2), s)
        new = large.networks["generator"](x, s)
        return new, F.interpolate(old, scale_factor=2.0, mode="bilinear")

    def looked(part: str, trunk: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        old, new = (task.networks[part].get_submodule(trunk) for task in (small, large))

        def pair(x: Tensor) -> tuple[Tensor, Tensor]:
            first, block = list(new.children())[:2]
            wanted = next(old.children())(F.avg_pool2d(x, 2))
            return block(first(x)), wanted.detach()

        return pair

    pairs = (
        entered,
        restyled,
        looked("style_encoder", "shared"),
        looked("discriminator", "main"),
    )
    for part, pair in zip(STAGES, pairs, strict=True):
        network = large.networks[part]
        print(f"grown {part}: {_taught(network, pair, pictures):.4f} from the smaller one's")
    for part, average in large.averages.items():
        average.load_state_dict(large.networks[part].state_dict())
    half_made = out.with_name(f".{out.name}")
    shutil.rmtree(half_made, ignore_errors=True)
    (half_made / "checkpoints").mkdir(parents=True)
    torch.save({"task": large.state_dict()}, half_made / "checkpoints" / "0000000.pt")
    (half_made / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
    half_made.rename(out)


def _taught(
    network: nn.Module,
    pair: Callable[[Tensor], tuple[Tensor, Tensor]],
    pictures: Iterator[Tensor],
) -> float:
    """Fit the network's trainable layers to pairs (its own, wanted); the last mean distance."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, RATE)
    recent = 0.0
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        found, wanted = pair(next(pictures))
        loss = (found - wanted).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        recent += (loss.item() - recent) / min(step + 1, 50)
    return recent
