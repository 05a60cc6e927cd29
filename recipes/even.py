"""A painter that treats both sides of a face alike, taught by itself and its mirror image.

    python recipes/even.py female-male --model work/models/runs/female-male-stage1-1 \
        --faces ../shared/faces --work work/models --out work/even.safetensors

What it moves and paints on a face is to be the mean of that and of what it does on the mirrored
face, mirrored back: what differs between the two is no part of what was asked for, such as one eye
half shut. The teacher is the model as it was; no judge is needed, and nothing is slower afterwards.
For painters that were trained without ``mirror``; those that are have little left to even out.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from models import RECIPES, data_of
from torch import Tensor, nn

from facestyle import training
from facestyle.checkpoint import load_checkpoint, save_model
from facestyle.families import family_named
from facestyle.painter import Painter, warped
from facestyle.training.config import resolve
from facestyle.training.data import batches, read_layout
from facestyle.weights import locate

BATCH = 16
LR = 3e-4  # Adam's at the start; it falls to 0
SAY_EVERY = 100


def brush_of(painter: Painter) -> Painter:
    """The same painter, moving nothing; it shares the weights."""
    brush = copy.copy(painter)
    brush._modules = {**painter._modules, "shaper": None}
    return brush


def even_flow(shaper: nn.Module, x_NCHW: Tensor, wanted_NV: Tensor) -> Tensor:
    """(N, h, w, 2): the mean of both, see above."""
    other_NHW2 = shaper(x_NCHW.flip(3), wanted_NV).flip(2)
    return (shaper(x_NCHW, wanted_NV) + other_NHW2 * other_NHW2.new_tensor((-1, 1))) / 2


def even_result(brush: nn.Module, x_NCHW: Tensor, wanted_NV: Tensor) -> Tensor:
    """(N, 3, H, W): the mean of both."""
    other_NCHW = brush(x_NCHW.flip(3), wanted_NV).flip(3)
    return (brush(x_NCHW, wanted_NV).float() + other_NCHW.float()) / 2


def wanted_of(
    modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], step: int, relative: bool
) -> Tensor:
    """What the painter is told: style codes that are drawn and read in turn, or labels."""
    if "mapping" not in modules:
        told_NA = batch["target_NA"] - batch["label_NA"] if relative else batch["target_NA"]
        return told_NA.float()
    if step % 2:
        code_NS: Tensor = modules["encoder"](batch["ref_NCHW"], batch["y_ref_N"])
        return code_NS
    drawn_NS: Tensor = modules["mapping"](batch["z_NL"], batch["y_ref_N"])
    return drawn_NS


def main() -> None:
    """Teach, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECIPES, help="the recipe whose data it learns from")
    parser.add_argument("--model", required=True, help="a painter with a card, or a run of one")
    parser.add_argument("--faces", type=Path, required=True, help="folder with the zips")
    parser.add_argument("--work", type=Path, default=Path("work/models"))
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=777)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    checkpoint = load_checkpoint(locate(options.model) or Path(options.model))
    card = checkpoint.card
    if card is None:
        parser.error(f"{options.model} has no card: give what facestyle train wrote")
    family = family_named(card.family)
    modules = family.modules(checkpoint, card)
    teacher = modules["generator"]
    if not isinstance(teacher, Painter):
        parser.error(f"{options.model} is no painter")
    for module in modules.values():
        module.to(options.device, memory_format=torch.channels_last).requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    brushes = [brush_of(painter) for painter in (teacher, student)]

    stage = RECIPES[options.name].cpu[-1]
    _, config = resolve(family, "compact", stage.tables)
    data = data_of(stage.data or options.name, options.faces, options.work)
    pictures = read_layout(family.layout, data, card.domains)
    optimiser = torch.optim.Adam(student.parameters(), lr=LR, betas=(0.5, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, options.steps)
    bf16 = training.computes_bf16(options.device)
    drawn = batches(
        partial(family.sample, pictures, config),
        BATCH,
        seed=options.seed,
        start=0,
        stop=options.steps,
        workers=1,
        device=options.device,
        rank=0,
        world=1,
    )
    for step, batch in enumerate(drawn):
        x = batch["x_NCHW"]
        losses: dict[str, Tensor] = {}
        with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                wanted = wanted_of(modules, batch, step, card.relative).float()
                moved = x
                if teacher.shaper is not None:
                    flow = even_flow(teacher.shaper, x, wanted)
                    moved = warped(x, flow)
                target = even_result(brushes[0], moved, wanted)
            losses["painted"] = (brushes[1](moved, wanted).float() - target).abs().mean()
            if student.shaper is not None:
                cells = flow.shape[1]  # in which ``painter.strain`` counts, too
                losses["moved"] = cells * (student.shaper(x, wanted) - flow).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        schedule.step()
        if step % SAY_EVERY == 0:
            told = "  ".join(f"{name} {float(value):.4f}" for name, value in losses.items())
            print(f"{step}  {told}", flush=True)

    (part,) = (part for part, state in checkpoint.parts.items() if "stem.weight" in state)
    parts = {**checkpoint.parts, part: student.state_dict()}
    command = f"{card.command}; recipes/even.py --steps {options.steps}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_model(options.out, parts, replace(card, command=command), half=True)
    print(options.out)


if __name__ == "__main__":
    main()
