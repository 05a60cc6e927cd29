"""A StarGAN run that goes on with fewer attributes does with them what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from narrowing import narrowed

from facestyle import training
from facestyle.families.stargan.objective import Config, Task
from facestyle.training.loop import newest_checkpoint, read_checkpoint

SMALL = Config(
    image_size=16, g_width=4, g_blocks=1, d_width=4, d_layers=2, attention=1.0, judge="attributes"
)  # fmt: skip


def test_what_is_narrowed_does_the_same_with_what_it_still_knows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run, wide, few = tmp_path / "wide", Task(SMALL, 4), Task(SMALL, 2)
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"task": wide.state_dict()}, run / "checkpoints" / "0000009.pt")
    settings = {"family": "stargan", "domains": ["a", "b", "c", "d"]}
    (run / training.SETTINGS_FILE).write_text(json.dumps(settings))
    narrowed(run, ["c", "a"], tmp_path / "few")

    found = read_checkpoint(newest_checkpoint(tmp_path / "few"))["networks"]
    for part, network in few.networks.items():
        network.load_state_dict(found[part])  # strict, shapes and all
    assert json.loads((tmp_path / "few" / "run.json").read_text())["domains"] == ["c", "a"]

    x = torch.rand(3, 3, 16, 16) * 2 - 1
    label = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # of c and a
    all_labels = torch.zeros(3, 4)
    all_labels[:, [2, 0]] = label
    with torch.inference_mode():
        made = few.networks["G"](x, label)
        assert torch.allclose(made, wide.networks["G"](x, all_labels), atol=1e-5)
        assert float((made - few.networks["G"](x, 1 - label)).abs().max()) > 1e-3
        few_said, few_known = few.networks["D"](x)
        said, known = wide.networks["D"](x)
    assert torch.allclose(few_known, known[:, [2, 0]], atol=1e-5)
    assert torch.allclose(few_said, said[:, [2, 0, 6, 4]], atol=1e-5)


def test_nobody_narrows_to_what_is_not_known(tmp_path: Path) -> None:
    settings = {"family": "stargan", "domains": ["a", "b"]}
    (tmp_path / training.SETTINGS_FILE).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="'z'"):
        narrowed(tmp_path, ["a", "z"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
