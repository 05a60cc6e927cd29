"""Training: losses by hand, batches as functions of the step, runs that resume exactly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import facestyle
from facestyle import training
from facestyle.checkpoint import load_checkpoint
from facestyle.errors import CheckpointError, FacestyleError, InputError, UsageError
from facestyle.families import family_named
from facestyle.families.stargan_v2.objective import (
    Config,
    diversity_weight,
    draw_batch,
    r1_penalty,
    realness_loss,
)
from facestyle.training.config import RunConfig, merged, read_toml, resolve
from facestyle.training.data import batches, labelled_folders
from facestyle.training.loop import fit

TINY = {
    "image_size": 16, "first_width": 8, "max_width": 16, "mapping_width": 16, "r1_every": 2,
    "diversity_steps": 6,
}  # fmt: skip
RUN = {"steps": 6, "batch_size": 2, "workers": 0, "log_every": 1, "save_every": 3,
       "sample_every": 3, "threads": 1, "alignment": "celeba-square"}  # fmt: skip


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


def start(data: Path, runs: Path, **run: Any) -> training.Outcome:
    return training.start(
        data,
        preset="paper",
        tables={"run": {**RUN, **run}, "stargan-v2": TINY},
        runs=runs,
        command="facestyle train",
        report=lambda progress: None,
        announce=lambda text: None,
    )


def proceed(folder: Path) -> training.Outcome:
    return training.proceed(folder, report=lambda progress: None, announce=lambda text: None)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    parts = load_checkpoint(folder / "model.safetensors").parts
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


# --- losses ---------------------------------------------------------------------------------


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight() -> None:
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    weight = torch.randn(3, 4, 4)
    penalty = r1_penalty((x * weight).sum(dim=(1, 2, 3)), x)
    assert torch.isclose(penalty, 0.5 * weight.square().sum())


def test_realness_loss_is_cross_entropy_with_logits() -> None:
    logits = torch.randn(7)
    for real in (True, False):
        target = torch.full_like(logits, float(real))
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        assert torch.isclose(realness_loss(logits, real), expected)


def test_the_diversity_weight_falls_linearly_and_stays_at_zero() -> None:
    assert [diversity_weight(2.0, 100, step) for step in (0, 25, 100, 1000)] == [2, 1.5, 0, 0]


# --- data -----------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step_with_any_number_of_workers(data: Path) -> None:
    pictures = labelled_folders(data)
    config = Config(image_size=16)

    def draw(rng: np.random.Generator) -> Any:
        return draw_batch(pictures, config, 3, rng)

    here = list(batches(draw, seed=1, start=0, stop=4, workers=0))
    later = list(batches(draw, seed=1, start=2, stop=4, workers=0))
    other = next(batches(draw, seed=2, start=0, stop=1, workers=0))
    assert torch.equal(here[2].x_NCHW, later[0].x_NCHW)
    assert torch.equal(here[3].z2_NL, later[1].z2_NL)
    assert not torch.equal(here[0].x_NCHW, other.x_NCHW)


def test_a_batch_shows_each_domain_equally_and_references_are_of_the_target(data: Path) -> None:
    for extra in range(40):  # a lopsided data set
        (data / "red" / f"extra{extra}.png").write_bytes((data / "red" / "0.png").read_bytes())
    pictures = labelled_folders(data)
    assert pictures.domains == ("blue", "red")
    batch = draw_batch(pictures, Config(image_size=16), 200, np.random.default_rng(0))
    assert 70 < Counter(batch.y_N.tolist())[0] < 130
    redness = batch.ref_NCHW[:, 0].mean(dim=(1, 2)) - batch.ref_NCHW[:, 2].mean(dim=(1, 2))
    assert torch.equal(redness > 0, batch.y_ref_N == 1)
    assert batch.x_NCHW.abs().max() <= 1
    assert not torch.equal(batch.ref_NCHW, batch.ref2_NCHW)


def test_bad_data_folders_are_refused_with_what_was_found(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="no data folder"):
        labelled_folders(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds 0 domain"):
        labelled_folders(data / "red")
    (data / "empty").mkdir()
    with pytest.raises(InputError, match="'empty' has no pictures"):
        labelled_folders(data)


# --- config -----------------------------------------------------------------------------------


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'batch_size'"):
        merged(RunConfig(), {"batchsize": 4}, "the config")


@pytest.mark.parametrize("value", ["8", 8.5, True, None])
def test_a_setting_of_the_wrong_type_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="expected int"):
        merged(RunConfig(), {"batch_size": value}, "the config")


def test_settings_go_preset_then_toml(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[run]\nsteps = 5\n[stargan-v2]\nlr = 1\n")
    run, config = resolve(family_named("stargan-v2"), "compact", read_toml(path))
    assert (run.steps, run.batch_size) == (5, 16)
    assert (config.lr, config.image_size) == (1.0, 64)


@pytest.mark.parametrize(
    ("preset", "tables", "words"),
    [
        ("huge", {}, "compact"),
        ("paper", {"ugatit": {}}, "unknown table"),
        ("paper", {"stargan-v2": {"image_size": 100}}, "nearest: 128"),
        ("paper", {"run": {"batch_size": 0}}, "expected 1 or more"),
        ("paper", {"run": {"precision": "fp8"}}, "bf16"),
    ],
)
def test_bad_settings_are_usage_errors(preset: str, tables: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(family_named("stargan-v2"), preset, tables)


def test_broken_toml_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[run\n")
    with pytest.raises(UsageError, match="not TOML"):
        read_toml(tmp_path / "x.toml")


# --- runs -----------------------------------------------------------------------------------


def test_a_run_leaves_a_model_metrics_previews_and_its_settings(data: Path, tmp_path: Path) -> None:
    outcome = start(data, tmp_path / "runs")
    assert outcome.finished
    folder = outcome.folder
    assert folder.name == "run-1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"D/latent/real", "G/reference/cyc", "waiting"} <= set(lines[0])
    assert "D/latent/reg" in lines[0]  # R1 every second iteration
    assert "D/latent/reg" not in lines[1]
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["0000003.png", "0000006.png"]
    settings = json.loads((folder / "run.json").read_text())
    assert settings["stargan-v2"]["diversity_steps"] == 6
    assert settings["domains"] == ["blue", "red"]

    model = facestyle.load(folder / "model.safetensors")
    assert model.card.domains == ("blue", "red")
    assert (model.card.steps, model.card.seed, model.card.alignment) == (6, 777, "celeba-square")
    faces = np.zeros((1, 3, 16, 16), np.float32)
    output = model.translate(faces, model.sample_style("red"))
    assert np.isfinite(output).all()
    assert start(data, tmp_path / "runs").folder.name == "run-2"  # a name is never reused


def test_a_resumed_run_ends_in_the_weights_of_an_uninterrupted_one(
    data: Path, tmp_path: Path
) -> None:
    whole = start(data, tmp_path / "runs").folder
    resumed = start(data, tmp_path / "runs").folder
    (resumed / "checkpoints" / "0000006.pt").unlink()
    (resumed / "model.safetensors").unlink()
    assert proceed(resumed).finished
    expected, found = tensors(whole), tensors(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_training_changes_every_network(data: Path, tmp_path: Path) -> None:
    one = tensors(start(data, tmp_path / "runs", steps=1).folder)
    six = tensors(start(data, tmp_path / "runs", steps=6).folder)
    for part in ("generator", "mapping_network", "style_encoder"):
        assert any(not torch.equal(one[k], six[k]) for k in one if k.startswith(part))


def test_old_checkpoints_go_only_when_newer_ones_are_safe(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs", save_every=1, keep=2).folder
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["0000005.pt", "0000006.pt"]


def test_a_damaged_checkpoint_says_which_and_what_to_do(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs").folder
    newest = folder / "checkpoints" / "0000006.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"0000006.*delete it"):
        proceed(folder)
    with pytest.raises(UsageError, match="no run folder"):
        proceed(tmp_path)


def test_data_that_changed_its_domains_is_refused(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs").folder
    (data / "red").rename(data / "crimson")
    with pytest.raises(UsageError, match=r"crimson.*started with.*red"):
        proceed(folder)


class Diverging:
    """A task whose losses are never finite."""

    step_index = 0

    def step(self, batch: object) -> dict[str, float]:
        self.step_index += 1
        return {"loss": float("nan")}


def test_ten_iterations_without_a_finite_loss_stop_the_run(tmp_path: Path) -> None:
    task = Diverging()
    run = RunConfig(steps=100, save_every=1000, sample_every=1000)
    with pytest.raises(FacestyleError, match="no finite loss in 10 iterations"):
        fit(
            task, iter(range(100)), run, tmp_path, None,
            report=lambda p: None, preview=lambda s: None, stopping=lambda: False,
        )  # type: ignore[arg-type] # fmt: skip
    assert task.step_index == 10


@pytest.mark.slow
def test_a_term_signal_saves_and_the_run_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**RUN, "steps": 40}.items()]
    lines += ["[stargan-v2]", *(f"{key} = {value}" for key, value in TINY.items())]
    config.write_text("[run]\n" + "\n".join(lines))
    command = [sys.executable, "-m", "facestyle", "train", "--data", str(data), "--device", "cpu"]
    command += ["--config", str(config), "--runs", str(tmp_path / "runs")]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "run-1"
    deadline = time.monotonic() + 90
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    assert f"--resume {folder}" in stderr
    assert child.returncode == 130
    saved = load_checkpoint(folder / "model.safetensors").card
    assert saved is not None
    assert 0 < (saved.steps or 0) < 40
    assert proceed(folder).finished
    expected = tensors(start(data, tmp_path / "runs", steps=40).folder)
    found = tensors(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
