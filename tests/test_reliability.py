"""Training under bad conditions: kill -9, a full disk, several processes, one of them dying."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facestyle import training
from facestyle.errors import FacestyleError
from facestyle.training.loop import Progress, Sheet, read_metrics

RUN = {"steps": 12, "batch_size": 4, "workers": 0, "log_every": 1, "save_every": 2, "keep": 2,
       "sample_every": 5, "threads": 1}  # fmt: skip
TINY = {"image_size": 16, "first_width": 8, "max_width": 16, "mapping_width": 16, "r1_every": 2,
        "diversity_steps": 6}  # fmt: skip


class Quiet:
    """A watcher that says nothing."""

    def announce(self, text: str) -> None: ...

    def tick(self, step: int, steps: int) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def sheet(self, sheet: Sheet) -> None: ...


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two domains told apart by colour: reddish and bluish noise."""
    rng = np.random.default_rng(0)
    for domain, colour in (("blue", (60, 90, 200)), ("red", (200, 90, 60))):
        folder = tmp_path / "data" / domain
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = np.clip(rng.normal(colour, 25, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


def start(data: Path, runs: Path, **run: Any) -> Path:
    tables = {"run": {**RUN, **run}, "stargan-v2": TINY}
    return training.start(data, tables=tables, runs=runs, watcher=Quiet()).folder


def sha256(folder: Path) -> str:
    """Of the finished model's weights; its card differs in name and command."""
    from facestyle.checkpoint import load_checkpoint

    digest = hashlib.sha256()
    for part, state in sorted(load_checkpoint(folder / "model.safetensors").parts.items()):
        for name, tensor in sorted(state.items()):
            digest.update(f"{part}/{name}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def write_toml(path: Path, **run: Any) -> Path:
    lines = ["[run]", *(f"{key} = {json.dumps(value)}" for key, value in {**RUN, **run}.items())]
    lines += ["[stargan-v2]", *(f"{key} = {value}" for key, value in TINY.items())]
    path.write_text("\n".join(lines))
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_options(data: Path, tmp_path: Path, name: str, **run: Any) -> list[str]:
    config = write_toml(tmp_path / f"{name}.toml", **run)
    options = ["--data", str(data), "--device", "cpu", "--config", str(config), "--name", name]
    return [*options, "--runs", str(tmp_path / "runs")]


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_in_the_weights_of_an_uninterrupted_one(
    data: Path, tmp_path: Path
) -> None:
    expected = sha256(start(data, tmp_path / "runs", steps=60))
    train = [sys.executable, "-m", "facestyle", "train", "-q"]
    command = [*train, *run_options(data, tmp_path, "killed", steps=60)]
    folder = tmp_path / "runs" / "killed-1"
    moments = random.Random(0)
    kills = 0
    while kills < 5:
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment())
        lines = len(read_metrics(folder))
        deadline = time.monotonic() + 300
        while len(read_metrics(folder)) <= lines and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.4))
        child.kill()
        child.wait()
        if child.returncode == 0:  # done before it could be killed
            break
        kills += 1
        command = [*train, "--resume", str(folder)]
    assert kills >= 2
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    assert sha256(folder) == expected
    steps = [line["step"] for line in read_metrics(folder) if "swd" not in line]
    assert steps == list(range(1, 61))


@pytest.mark.slow
def test_a_full_disk_leaves_the_former_checkpoint_and_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sha256(start(data, tmp_path / "runs"))
    save, saved = torch.save, []

    def fill_up(content: object, file: Any) -> None:
        saved.append(content)
        if len(saved) == 3:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", fill_up)
    with pytest.raises(FacestyleError, match="disk full"):
        start(data, tmp_path / "runs")
    monkeypatch.undo()
    folder = tmp_path / "runs" / "run-2"
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["0000002.pt", "0000004.pt"]  # no half file, no temporary one
    training.proceed(folder, watcher=Quiet())
    assert sha256(folder) == expected


ONE_OF_TWO = """
import sys, torch
from pathlib import Path
from facestyle.families.stargan_v2.objective import Config, Task, sample
from facestyle.training import parallel
from facestyle.training.data import batches, labelled_folders

torch.set_num_threads(1)
config = Config(image_size=16, first_width=8, max_width=16, mapping_width=16, lr=1e-3)
pictures = labelled_folders(Path(sys.argv[1]))
with parallel.joined("cpu") as processes:
    torch.manual_seed(0)
    task = Task(config, 2)
    parameters = {
        f"{part}.{name}": parameter
        for part, net in task.networks.items() for name, parameter in net.named_parameters()
    }
    least = {name: torch.full_like(p, float("inf")) for name, p in parameters.items()}
    data = batches(
        lambda rng: sample(pictures, config, rng), 4, seed=1, start=0, stop=3,
        rank=processes.rank, world=processes.world,
    )
    step = task.optimisers.finish

    def watched(*names):
        done = step(*names)
        for name, p in parameters.items():
            if p.grad is not None:
                least[name] = torch.minimum(least[name], p.grad.abs())
        return done

    task.optimisers.finish = watched
    for batch in data:
        task.step(batch)
    if processes.writes:
        weights = {name: p.detach() for name, p in parameters.items()}
        torch.save({"world": processes.world, "weights": weights, "least": least}, sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "steps.py"
    script.write_text(ONE_OF_TWO)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = []
    for number, launcher in enumerate(([], torchrun)):
        output = tmp_path / f"{number}.pt"
        command = [sys.executable, *launcher, str(script), str(data), str(output)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=300
        )
        assert done.returncode == 0, done.stderr
        found.append(torch.load(output))
    alone, shared = found
    assert (alone["world"], shared["world"]) == (1, 2)
    compared = total = 0
    for name, weight in alone["weights"].items():
        # A bias before a norm has no gradient but rounding, which Adam makes a whole step of.
        sure = alone["least"][name] > 1e-5
        difference = (weight - shared["weights"][name]).abs()[sure]
        assert difference.numel() == 0 or float(difference.max()) < 1e-5, name
        compared, total = compared + int(sure.sum()), total + sure.numel()
    assert compared > 0.5 * total


@pytest.mark.slow
def test_when_one_process_dies_torchrun_goes_on_with_the_run(data: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--max-restarts", "2", "-m", "facestyle", "train"]
    whole = [*torchrun, *run_options(data, tmp_path, "whole", steps=40)]
    done = subprocess.run(whole, capture_output=True, text=True, env=environment(), timeout=400)
    assert done.returncode == 0, done.stderr
    # One process says how it went, and not each of them.
    assert done.stdout.splitlines() == [str(tmp_path / "runs" / "whole-1" / "model.safetensors")]
    assert done.stderr.count("from iteration 0 to 40") == 1
    broken = [*torchrun, *run_options(data, tmp_path, "broken", steps=40)]
    parent = subprocess.Popen(broken, stderr=subprocess.PIPE, text=True, env=environment())
    folder = tmp_path / "runs" / "broken-1"
    deadline = time.monotonic() + 300
    while not list((folder / "checkpoints").glob("*.pt")):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.02)
    children = subprocess.run(
        ["pgrep", "-P", str(parent.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, stderr = parent.communicate(timeout=400)
    assert parent.returncode == 0, stderr
    assert sha256(folder) == sha256(tmp_path / "runs" / "whole-1")
    assert not (tmp_path / "runs" / "broken-2").exists()
