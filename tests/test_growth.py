"""A StarGAN v2 run grows: the deep layers stay, the new outermost ones do what the old did."""

from __future__ import annotations

import json
from pathlib import Path

import growth
import numpy as np
import pytest
import torch
from models import Printed
from PIL import Image

from facestyle import training
from facestyle.families.stargan_v2.objective import Config, Task
from facestyle.training.loop import newest_checkpoint, read_checkpoint

SMALL = Config(image_size=16, first_width=8, max_width=16, mapping_width=16)
LARGE = Config(image_size=32, first_width=4, max_width=16, mapping_width=16)


@pytest.mark.slow
def test_what_grows_keeps_its_depth_and_begins_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for domain in ("a", "b"):
        (tmp_path / "data" / domain).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / domain / f"{number}.png")
    torch.manual_seed(0)
    small = Task(SMALL, 2)
    run = tmp_path / "small"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"task": small.state_dict()}, run / "checkpoints" / "0000009.pt")
    settings = {"family": "stargan-v2", "domains": ["a", "b"]}
    (run / training.SETTINGS_FILE).write_text(json.dumps(settings))

    errors = []
    for steps in (1, 60):  # who is taught longer is nearer to the smaller network
        monkeypatch.setattr(growth, "STEPS", steps)
        out = tmp_path / f"grown-{steps}"
        growth.grown(run, LARGE, tmp_path / "data", out, seed=1)
        state = read_checkpoint(newest_checkpoint(out))
        assert state["step"] == 0
        for part, tensors in small.averages.items():
            for name, tensor in tensors.state_dict().items():
                if place := growth.place(part, name):
                    assert torch.equal(state["networks"][part][place], tensor), (part, name)
                    assert torch.equal(state["averages"][part][place], tensor), (part, name)
        large = Task(LARGE, 2)
        large.load_state_dict(state)
        x = torch.rand(4, 3, 32, 32) * 2 - 1
        with torch.no_grad():
            found = large.networks["style_encoder"].get_submodule("shared")[:2](x)  # type: ignore
            half = torch.nn.functional.avg_pool2d(x, 2)
            wanted = small.averages["style_encoder"].get_submodule("shared")[0](half)  # type: ignore
        errors.append(float((found - wanted).abs().mean()))
    assert errors[1] < 0.7 * errors[0]

    tables = {
        "run": {"steps": 1, "batch_size": 2, "workers": 0, "threads": 1},
        "stargan-v2": {
            "image_size": 32, "first_width": 4, "max_width": 16, "mapping_width": 16,
        },
    }  # fmt: skip
    assert training.start(
        tmp_path / "data", tables=tables, runs=tmp_path / "runs", origin=out, watcher=Printed()
    ).finished
