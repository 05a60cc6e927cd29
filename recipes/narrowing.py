"""A StarGAN run → the beginning of one that knows fewer attributes.

What a network learned of the attributes that go stays in it, unused: a picture's own ones are
what they are. The columns and rows of those that stay are kept, in their order.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from facestyle.families.stargan.networks import BY_LABEL
from facestyle.training import SETTINGS_FILE
from facestyle.training.loop import newest_checkpoint, read_checkpoint

COLOURS = 3  # of a picture, which come before the labels


def narrow(name: str, tensor: Tensor, kept: Sequence[int], count: int) -> Tensor:
    """A tensor of ``G`` or ``D`` for those of ``count`` attributes that are kept."""
    labels = list(kept)
    if name.endswith(BY_LABEL):
        return tensor[:, labels]
    if name == "main.0.weight" and tensor.shape[1] == COLOURS + count:
        return tensor[:, [*range(COLOURS), *(COLOURS + one for one in labels)]]
    if re.fullmatch(r"conv1\.weight", name) and len(tensor) == 2 * count:
        return tensor[[*labels, *(count + one for one in labels)]]  # lacking, then having
    return tensor[labels] if name == "conv2.weight" else tensor


def narrowed(run: Path, domains: Sequence[str], out: Path) -> None:
    """Write a run folder that knows these attributes alone, to begin a run with.

    Raises:
        CheckpointError: the run has no whole checkpoint.
        ValueError: the run does not know one of them.
    """
    settings = json.loads((run / SETTINGS_FILE).read_text(encoding="utf-8"))
    known = settings["domains"]
    kept = [known.index(name) for name in domains]
    networks = {
        part: {name: narrow(name, tensor, kept, len(known)) for name, tensor in tensors.items()}
        for part, tensors in read_checkpoint(newest_checkpoint(run))["networks"].items()
    }
    half_made = out.with_name(f".{out.name}")
    shutil.rmtree(half_made, ignore_errors=True)
    (half_made / "checkpoints").mkdir(parents=True)
    torch.save({"task": {"networks": networks}}, half_made / "checkpoints" / "0000000.pt")
    told = json.dumps({**settings, "domains": list(domains)})
    (half_made / SETTINGS_FILE).write_text(told, encoding="utf-8")
    half_made.rename(out)
