"""Training: losses by hand, batches as functions of the step, runs that resume exactly."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import facestyle
from facestyle import training
from facestyle.backends import on_torch
from facestyle.card import ModelCard
from facestyle.checkpoint import load_checkpoint, save_model
from facestyle.cli import app
from facestyle.errors import CheckpointError, FacestyleError, InputError, UsageError
from facestyle.faces.align import whole
from facestyle.faces.paste import paste
from facestyle.families import family_named
from facestyle.families.stargan_v2.objective import (
    Config,
    Task,
    colour_difference,
    diversity_weight,
    energy_distance,
    keep_tone,
    sample,
)
from facestyle.nn.adversarial import Judge, cross_entropy, r1_penalty
from facestyle.nn.painter import Painter
from facestyle.nn.updates import Optimisers
from facestyle.training.average import Averaged
from facestyle.training.config import RunConfig, merged, read_toml, resolve
from facestyle.training.data import batches, labelled_folders
from facestyle.training.loop import Progress, Sheet, fit, read_metrics
from facestyle.training.parallel import Processes, joined
from facestyle.training.report import run_report
from facestyle.training.score import sliced_wasserstein

ROOT = Path(__file__).resolve().parents[1]

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


class Quiet:
    """A watcher that remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.reports: list[Progress] = []
        self.sheets: list[Sheet] = []

    def announce(self, text: str) -> None:
        self.said.append(text)

    def tick(self, step: int, steps: int) -> None:
        assert 0 < step <= steps

    def progress(self, progress: Progress) -> None:
        self.reports.append(progress)

    def sheet(self, sheet: Sheet) -> None:
        self.sheets.append(sheet)


def start(data: Path, runs: Path, **run: Any) -> training.Outcome:
    return training.start(
        data,
        preset="paper",
        tables={"run": {**RUN, **run}, "stargan-v2": TINY},
        runs=runs,
        command="facestyle train",
        watcher=Quiet(),
    )


def proceed(folder: Path) -> training.Outcome:
    return training.proceed(folder, watcher=Quiet())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    parts = load_checkpoint(folder / "model.safetensors").parts
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


# --- losses ---------------------------------------------------------------------------------


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight() -> None:
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    weight = torch.randn(3, 4, 4)
    penalty = r1_penalty((x * weight).sum(dim=(1, 2, 3)), x)
    assert torch.isclose(penalty, 0.5 * weight.square().sum())


def test_r1_of_patches_is_that_of_their_mean() -> None:
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    weight_P3HW = torch.randn(6, 3, 4, 4)
    penalty = r1_penalty((x[:, None] * weight_P3HW).sum(dim=(2, 3, 4)), x)
    assert torch.isclose(penalty, 0.5 * weight_P3HW.mean(dim=0).square().sum())


@pytest.mark.parametrize("side", [32, 48, 64, 100])
def test_a_judge_hears_every_size_and_answers_by_domain(side: int) -> None:
    torch.manual_seed(0)
    judge, x = Judge(side, 8, domains=3), torch.randn(4, 3, side, side)
    with torch.inference_mode():
        alone = [judge(x, torch.full((4,), domain)) for domain in range(3)]
        mixed = judge(x, torch.tensor([0, 1, 2, 1]))
        every = judge(x)
    assert alone[0].shape in ((4, 4), (4, 9))
    assert torch.equal(every, torch.stack(alone, dim=1))
    for place, domain in enumerate((0, 1, 2, 1)):
        assert torch.equal(mixed[place], alone[domain][place])
    assert float((alone[0] - alone[0].mean(dim=0)).std()) > 0.1, "the picture is not heard"


@pytest.mark.parametrize("side", [32, 96])
def test_a_judge_may_judge_patches_beside_the_whole(side: int) -> None:
    torch.manual_seed(0)
    judge, x = Judge(side, 8, domains=2, levels=3), torch.randn(1, 3, side, side)
    elsewhere = x.clone()
    elsewhere[..., : side // 8, : side // 8] *= -1
    with torch.inference_mode():
        levels_LDP = judge(x).unflatten(2, (3, -1)).transpose(1, 2)[0]
        moved_LDP = judge(elsewhere).unflatten(2, (3, -1)).transpose(1, 2)[0]
        whole_DP = judge.main(x).flatten(2)[0]
    finest = round(levels_LDP.shape[2] ** 0.5)
    assert finest == 4 * round(whole_DP.shape[1] ** 0.5), "each level doubles the patches"
    assert torch.allclose(levels_LDP[0].mean(dim=1), whole_DP.mean(dim=1), atol=1e-6)
    changed_LHW = ((moved_LDP - levels_LDP).abs() > 0).any(dim=1).unflatten(1, (finest, finest))
    assert changed_LHW[0].all(), "the whole hears every pixel"
    assert changed_LHW[2, 0, 0]
    assert not changed_LHW[2, :, finest // 2 :].any(), "a patch hears its own place alone"
    assert not changed_LHW[2, finest // 2 :].any()


def test_realness_loss_is_cross_entropy_with_logits() -> None:
    logits = torch.randn(7)
    for real in (True, False):
        target = torch.full_like(logits, float(real))
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        assert torch.isclose(cross_entropy(logits, real), expected)


def test_the_diversity_weight_falls_linearly_and_stays_at_zero() -> None:
    assert [diversity_weight(2.0, 100, step) for step in (0, 25, 100, 1000)] == [2, 1.5, 0, 0]


def judged_batch(generator: torch.Generator, size: int = 8) -> dict[str, torch.Tensor]:
    """Domain 0 is dark, domain 1 bright."""
    y_N, y_ref_N = (torch.arange(size) % 2, torch.arange(size) // 2 % 2)

    def pictures(domain_N: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(size, 3, 16, 16, generator=generator) - 0.5
        return 0.6 * noise + domain_N[:, None, None, None] - 0.5

    codes = torch.randn(2, size, 16, generator=generator)
    return {
        "x_NCHW": pictures(y_N), "y_N": y_N, "y_ref_N": y_ref_N,
        "ref_NCHW": pictures(y_ref_N), "ref2_NCHW": pictures(y_ref_N),
        "z_NL": codes[0], "z2_NL": codes[1],
    }  # fmt: skip


JUDGED = Config(
    image_size=16, first_width=8, max_width=16, mapping_width=16, alternate=True, r1=0.01,
    r1_every=4, lr=2e-3, mapping_lr=2e-3, diversity=0.0, ema=0.9, judge="plain", judge_width=4,
    warmup_steps=20,
)  # fmt: skip


def test_first_a_plain_judge_learns_alone_then_all() -> None:
    torch.manual_seed(0)
    task, noise = Task(JUDGED, 2), torch.Generator().manual_seed(0)
    assert isinstance(task.networks["discriminator"], Judge)
    before = {part: [p.clone() for p in n.parameters()] for part, n in task.networks.items()}

    def moved(part: str) -> bool:
        now = task.networks[part].parameters()
        return not all(torch.equal(a, b) for a, b in zip(before[part], now, strict=True))

    for _ in range(20):
        assert all(name.startswith("D/") for name in task.step(judged_batch(noise)))
    assert [part for part in task.networks if moved(part)] == ["discriminator"]
    for _ in range(2):
        losses = task.step(judged_batch(noise))
    assert "G/reference/adv" in losses
    assert all(moved(part) for part in task.networks)


@pytest.mark.slow
@pytest.mark.parametrize("roughness", [0.0, 0.01])
def test_a_plain_judge_teaches_the_domains(roughness: float) -> None:
    """Nothing but the judge says that domain 1 is bright, to either generator."""
    torch.manual_seed(0)
    config = replace(JUDGED, cycle=0.1, roughness=roughness, blocks=1)
    task, noise = Task(config, 2), torch.Generator().manual_seed(0)
    assert isinstance(task.networks["generator"], Painter) is (roughness > 0)
    for _ in range(140):
        losses = task.step(judged_batch(noise))
    assert ("G/reference/rough" in losses) is (roughness > 0)
    batch = judged_batch(noise)
    with torch.inference_mode():
        s = task.averages["mapping_network"](batch["z_NL"], batch["y_ref_N"])
        fake = task.averages["generator"](batch["x_NCHW"], s)
    brightness_N = fake.mean(dim=(1, 2, 3)) - batch["x_NCHW"].mean(dim=(1, 2, 3))
    crossed_N = batch["y_ref_N"] - batch["y_N"]
    assert float((brightness_N * crossed_N).sum() / crossed_N.abs().sum()) > 0.4


def test_what_a_change_costs_rises_from_nothing() -> None:
    def painted(roughness: float, rise: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        config = replace(
            JUDGED, roughness=roughness, roughness_steps=rise, blocks=1, warmup_steps=0
        )
        task, noise = Task(config, 2), torch.Generator().manual_seed(0)
        last = task.networks["generator"].get_parameter("painted.weight")
        torch.nn.init.normal_(last, std=0.1)  # a fresh one changes nothing, which costs nothing
        found = []
        for _ in range(2):
            task.step(judged_batch(noise))
            found.append(last.detach().clone())
        return found

    free, rising, full = painted(1e-9, 0), painted(100.0, 50), painted(100.0, 0)
    assert torch.equal(free[0], rising[0])
    assert not torch.equal(free[1], rising[1])
    assert not torch.equal(free[0], full[0])


@pytest.mark.parametrize("judge", ["plain", "residual"])
def test_pictures_under_another_domains_name_teach_the_domains_alone(judge: str) -> None:
    """Fakes are the pictures themselves under their own names, so nothing else tells domains."""
    torch.manual_seed(0)
    config = replace(JUDGED, judge=judge, warmup_steps=100, roughness=1.0, blocks=1, mismatch=1.0)
    task, noise = Task(config, 2), torch.Generator().manual_seed(0)
    blind = Task(replace(config, mismatch=0.0), 2)
    for _ in range(60):
        batch = judged_batch(noise)
        batch["y_ref_N"] = batch["y_N"]
        losses, none = task.step(batch), blind.step(batch)
    (mismatch,) = (value for name, value in losses.items() if name.endswith("/mismatch"))
    assert mismatch < 0.2  # a guess is 0.69
    assert not [name for name in none if name.endswith("/mismatch")]
    with torch.inference_mode():
        x, y_N = judged_batch(noise)["x_NCHW"], batch["y_N"]
        sure, unsure = (
            (t.networks["discriminator"](x, y_N) - t.networks["discriminator"](x, 1 - y_N)).mean()
            for t in (task, blind)
        )
    assert float(sure) > 1 > abs(float(unsure))


def test_colours_of_a_reference_are_compared_where_the_face_is() -> None:
    torch.manual_seed(0)
    face = torch.rand(2, 3, 32, 32)
    assert float(colour_difference(face, face)) == 0
    assert float(colour_difference(face, face - 0.25)) == pytest.approx(0.25)
    grain = 0.5 * (torch.arange(32) % 2) - 0.25  # as fine as this is no colour
    assert float(colour_difference(face, face + grain)) < 1e-6
    corners, middle = face.clone(), face.clone()
    corners[..., :4, :4] += 1
    middle[..., 14:18, 14:18] += 1
    assert float(colour_difference(face, corners)) == 0 < float(colour_difference(face, middle))


def test_a_tone_is_kept_in_training_as_in_a_picture() -> None:
    noise = np.random.default_rng(0)
    photo, made = (
        cv2.resize(noise.integers(0, 256, (5, 5, 3), np.uint8), (64, 64)) for _ in range(2)
    )
    for tone in (0.4, 1.0):
        shown = paste(photo, whole(photo, 64), made, detail=0.0, tone=tone)
        fake, x = (torch.from_numpy(one).permute(2, 0, 1)[None] / 255 for one in (made, photo))
        kept = 255 * keep_tone(fake, x, tone)[0].permute(1, 2, 0).clamp(0, 1)
        assert np.abs(kept.numpy() - shown).max() < 0.51  # a byte's rounding
    assert np.abs(made.astype(float) - shown).mean() > 20


def test_a_tone_that_is_kept_is_seen_by_its_cost_and_the_style_loss_alone() -> None:
    """A shade over all of a result, by latent code and by reference."""

    def losses(tone: float, shade: float) -> dict[str, float]:
        torch.manual_seed(0)
        config = replace(
            JUDGED, roughness=1.0, blocks=1, warmup_steps=0, alternate=False, mirror=1.0, tone=tone,
            lr=0.0,
        )  # fmt: skip
        task, noise = Task(config, 2), torch.Generator().manual_seed(0)
        generator = task.networks["generator"]
        torch.nn.init.normal_(generator.get_parameter("painted.weight"), std=0.02)
        torch.nn.init.constant_(generator.get_parameter("painted.bias"), shade)
        batch = judged_batch(noise)
        return task.step(batch | {name: 0.3 * batch[name] for name in ("x_NCHW", "ref_NCHW")})

    plain, shaded, seen = losses(1.0, 0.0), losses(1.0, 0.2), losses(0.0, 0.2)
    for name in ("D/latent/fake", "G/latent/adv", "G/latent/ds", "G/latent/mirror"):
        assert shaded[name] == pytest.approx(plain[name], rel=1e-4), name
    for name in ("D/latent/fake", "G/latent/adv"):
        assert seen[name] != pytest.approx(plain[name], rel=1e-3), name
    for name in ("G/latent/rough", "G/latent/sty", "D/reference/fake"):
        assert shaded[name] != pytest.approx(plain[name], rel=1e-3), name


def test_energy_distance_is_least_between_samples_of_one_distribution() -> None:
    torch.manual_seed(0)
    y_M = torch.arange(600) % 2
    domain_M1 = 3.0 * y_M[:, None]
    drawn, read = (torch.randn(600, 4) + domain_M1 for _ in range(2))
    of_one = energy_distance(drawn, read, y_M)
    own = sum(torch.cdist(r, r).sum() / (300 * 299) for r in (read[::2], read[1::2]))
    assert float(of_one - own) == pytest.approx(0, abs=0.05)
    for other in (drawn + 0.5, domain_M1 + 2 * (drawn - domain_M1), torch.full_like(drawn, 1.5)):
        assert float(energy_distance(other, read, y_M) - of_one) > 0.2
    # Domains are apart: the codes of both are as they should be, and in the other's place.
    assert float(energy_distance(drawn.roll(1, 0), read, y_M) - of_one) > 2


@pytest.mark.slow
@pytest.mark.parametrize("colour", [0.0, 10.0])
def test_the_style_encoder_and_drawn_codes_learn_from_references(colour: float) -> None:
    """Of pictures of one colour each: what is made has its reference's, not its source's."""
    torch.manual_seed(0)
    config = replace(
        JUDGED, roughness=0.01, blocks=1, warmup_steps=0, style=0.02, cycle=0.0, alternate=False,
        colour=colour, codes=1.0 if colour else 0.0,
    )  # fmt: skip
    task, noise = Task(config, 2), torch.Generator().manual_seed(0)

    def batch(size: int) -> dict[str, torch.Tensor]:
        shades = 1.6 * torch.rand(3, size, 3, 1, 1, generator=noise) - 0.8
        flat = dict(zip(("x_NCHW", "ref_NCHW", "ref2_NCHW"), shades, strict=True))
        return judged_batch(noise, size) | {
            name: shade.expand(-1, -1, 16, 16).contiguous() for name, shade in flat.items()
        }

    for _ in range(200):
        task.step(batch(8))
    shown = batch(64)
    x, y, ref = (shown[name] for name in ("x_NCHW", "y_ref_N", "ref_NCHW"))
    with torch.inference_mode():
        generator = task.averages["generator"]
        read = task.averages["style_encoder"](ref, y)
        drawn = task.averages["mapping_network"](shown["z_NL"], y)
        made, seen, own = (p.mean(dim=(2, 3)).flatten() for p in (generator(x, read), ref, x))
        spreads = [generator(x[:1].expand_as(x), s).std(dim=0).mean() for s in (read, drawn)]
    followed = torch.corrcoef(torch.stack([made, seen, own]))[0, 1:]
    if colour:
        assert followed[0] > 0.7 > followed[1]
        assert 0.5 < float(spreads[1] / spreads[0]) < 2
    else:
        assert followed[0] < 0.5 < followed[1]


# --- data -----------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step_with_any_number_of_workers(data: Path) -> None:
    pictures = labelled_folders(data)
    config = Config(image_size=16)

    def draw(rng: np.random.Generator) -> Any:
        return sample(pictures, config, rng)

    here = list(batches(draw, 4, seed=1, start=0, stop=4))
    later = list(batches(draw, 4, seed=1, start=2, stop=4))
    other = next(batches(draw, 4, seed=2, start=0, stop=1))
    assert torch.equal(here[2]["x_NCHW"], later[0]["x_NCHW"])
    assert torch.equal(here[3]["z2_NL"], later[1]["z2_NL"])
    assert not torch.equal(here[0]["x_NCHW"], other["x_NCHW"])
    assert not torch.equal(here[0]["z_NL"][0], here[0]["z_NL"][1])


def test_processes_share_a_batch_without_gap_or_overlap(data: Path) -> None:
    pictures = labelled_folders(data)
    config = Config(image_size=16)

    def draw(rng: np.random.Generator) -> Any:
        return sample(pictures, config, rng)

    whole = next(batches(draw, 6, seed=1, start=5, stop=6))
    shares = [next(batches(draw, 6, seed=1, start=5, stop=6, rank=r, world=3)) for r in range(3)]
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([share[name] for share in shares]))


def test_a_batch_shows_each_domain_equally_and_references_are_of_the_target(data: Path) -> None:
    for extra in range(40):  # a lopsided data set
        (data / "red" / f"extra{extra}.png").write_bytes((data / "red" / "0.png").read_bytes())
    pictures = labelled_folders(data)
    assert pictures.domains == ("blue", "red")
    config = Config(image_size=16)
    batch = next(batches(lambda rng: sample(pictures, config, rng), 200, seed=0, start=0, stop=1))
    assert 70 < Counter(batch["y_N"].tolist())[0] < 130
    ref_NCHW = batch["ref_NCHW"]
    redness = ref_NCHW[:, 0].mean(dim=(1, 2)) - ref_NCHW[:, 2].mean(dim=(1, 2))
    assert torch.equal(redness > 0, batch["y_ref_N"] == 1)
    assert batch["x_NCHW"].abs().max() <= 1
    assert not torch.equal(ref_NCHW, batch["ref2_NCHW"])


@pytest.mark.parametrize(
    ("other_domain", "least", "most"), [(0.0, 70, 130), (0.6, 135, 185), (1.0, 200, 200)]
)
def test_targets_can_be_other_domains_more_often_than_chance_has_it(
    data: Path, other_domain: float, least: int, most: int
) -> None:
    pictures = labelled_folders(data)
    config = Config(image_size=16, other_domain=other_domain)
    batch = next(batches(lambda rng: sample(pictures, config, rng), 200, seed=0, start=0, stop=1))
    assert least <= int((batch["y_N"] != batch["y_ref_N"]).sum()) <= most
    assert 70 < Counter(batch["y_ref_N"].tolist())[0] < 130  # each as often as before


def test_bad_data_folders_are_refused_with_what_was_found(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="no data folder"):
        labelled_folders(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds 0 domain"):
        labelled_folders(data / "red")
    (data / "empty").mkdir()
    with pytest.raises(InputError, match=r"no pictures in .*empty"):
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
        ("paper", {"stargan-v2": {"judge": "patches"}}, "known: residual, plain"),
        ("paper", {"stargan-v2": {"judge_width": 0}}, "expected 1 or more"),
        ("paper", {"stargan-v2": {"roughness": -1.0}}, "expected 0 or more"),
        ("paper", {"stargan-v2": {"warmup_steps": -1}}, "expected 0 or more"),
        ("paper", {"stargan-v2": {"other_domain": 1.5}}, "expected a share from 0 to 1"),
        ("paper", {"stargan-v2": {"mismatch": -1.0}}, "mismatch is -1.0, expected 0 or more"),
        ("paper", {"stargan-v2": {"colour": -1.0}}, "colour is -1.0, expected 0 or more"),
        ("paper", {"stargan-v2": {"codes": -1.0}}, "codes is -1.0, expected 0 or more"),
        ("paper", {"stargan-v2": {"tone": 1.5}}, "tone is 1.5, expected a share from 0 to 1"),
        ("paper", {"stargan-v2": {"mirror": -1.0}}, "mirror is -1.0, expected 0 or more"),
        ("paper", {"stargan-v2": {"roughness_steps": -1}}, "roughness_steps is -1, expected 0"),
        ("paper", {"stargan-v2": {"roughness": 1.0, "blocks": 0}}, "expected 1 or more"),
        ("paper", {"stargan-v2": {"roughness": 1.0, "w_hpf": 1.0}}, "both set"),
        ("paper", {"stargan-v2": {"warp": 1.0}}, "warp is 1.0, and only a painter moves"),
        ("paper", {"stargan-v2": {"warp_steps": 9}}, "warp_steps is 9, and this .* moves nothing"),
        ("paper", {"stargan-v2": {"r1_every": 0}}, "r1_every is 0, expected 1 or more"),
        ("paper", {"stargan-v2": {"latent_dim": 0}}, "latent_dim is 0, expected 1 or more"),
        (
            "paper",
            {"stargan-v2": {"first_width": 600}},
            "first_width is 600, expected max_width, 512",
        ),
        ("paper", {"stargan-v2": {"lr": -1.0}}, "lr is -1.0, expected 0 or more"),
        ("paper", {"stargan-v2": {"lr": float("nan")}}, "lr is nan, expected 0 or more"),
        ("paper", {"stargan-v2": {"ema": 7.0}}, "ema is 7.0, expected 0 to below 1"),
        ("paper", {"run": {"batch_size": 0}}, "expected 1 or more"),
        ("paper", {"run": {"precision": "fp8"}}, "bf16"),
        ("paper", {"run": {"pasted": "hair"}}, "known: face, skin, crop"),
    ],
)
def test_bad_settings_are_usage_errors(preset: str, tables: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(family_named("stargan-v2"), preset, tables)


@pytest.mark.parametrize("able", [True, False])
def test_auto_computes_as_the_device_does_and_a_run_keeps_it(
    able: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facestyle.backends.on_torch.computes_bf16", lambda device: able)
    folder = start(data, tmp_path / "runs", precision="auto", steps=3).folder
    settings = json.loads((folder / "run.json").read_text())
    assert settings["run"]["precision"] == ("bf16" if able else "fp32")
    # Another machine goes on as this one began.
    monkeypatch.setattr("facestyle.backends.on_torch.computes_bf16", lambda device: not able)
    training.proceed(folder, steps=6, watcher=Quiet())
    again = json.loads((folder / "run.json").read_text())
    assert again["run"]["precision"] == settings["run"]["precision"]


def test_a_cpu_that_imitates_bfloat16_does_not_compute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, able in (({"amx_bf16": True}, True), ({"avx512_bf16": False}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert on_torch.computes_bf16("cpu") is able


def test_broken_toml_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[run\n")
    with pytest.raises(UsageError, match="not TOML"):
        read_toml(tmp_path / "x.toml")
    with pytest.raises(UsageError, match="cannot read the config file"):
        read_toml(tmp_path)


# --- runs -----------------------------------------------------------------------------------


def test_a_run_leaves_a_model_metrics_previews_and_its_settings(data: Path, tmp_path: Path) -> None:
    outcome = start(data, tmp_path / "runs")
    assert outcome.finished
    folder = outcome.folder
    assert folder.name == "run-1"
    lines = [line for line in read_metrics(folder) if "swd" not in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"D/latent/real", "G/reference/cyc", "waiting", "memory", "skipped"} <= set(lines[0])
    assert lines[0]["lr/mapping_network"] == 1e-6
    assert lines[0]["gradient/generator"] > 0
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


def test_what_is_pasted_and_of_which_domains_is_on_the_card(data: Path, tmp_path: Path) -> None:
    cards = [
        facestyle.load(start(data, tmp_path / "runs", **told).folder / "model.safetensors").card
        for told in (
            {},
            {"pasted": "skin", "drawings": "red", "on_skin": "blue", "both_ways": True},
        )
    ]
    assert [(card.pasted, card.drawings, card.on_skin, card.both_ways) for card in cards] == [
        ("face", (), (), False),
        ("skin", ("red",), ("blue",), True),
    ]
    larger = {"drawings": "red", "eyes": 1.5, "mouth": 0.8, "alignment": "anime"}
    card = facestyle.load(
        start(data, tmp_path / "runs", **larger).folder / "model.safetensors"
    ).card
    assert [(one.eyes, one.mouth) for one in (cards[1], card)] == [(None, None), (1.5, 0.8)]
    for changes, said in (
        ({"eyes": 0.5}, "eyes is 0.5, expected 1 to 3"),
        ({"drawings": ""}, "eyes is 1.5, and no domain is a drawing's"),
        ({"alignment": "none"}, "eyes is 1.5, and these pictures are not aligned"),
        ({"drawings": "red,blue"}, "eyes is 1.5, and 0 domains are of photos, expected 1"),
    ):
        with pytest.raises(UsageError, match=said):
            start(data, tmp_path / "runs", **larger | changes)
    # Pairs are alike pixel by pixel: one half of a pair cannot have larger eyes than the other.
    with pytest.raises(UsageError, match="no folder of drawings beside one of photos"):
        training.start(
            data / "red", family="pix2pix", runs=tmp_path / "pairs", watcher=Quiet(),
            tables={"run": {"domains": "red", **larger}},
        )  # fmt: skip
    for setting in ("drawings", "on_skin", "as_shade", "on_hair"):
        with pytest.raises(
            UsageError, match=rf"{setting} names 'green', which is no domain .*blue, red"
        ):
            start(data, tmp_path / "runs", **{setting: "red, green"})
    with pytest.raises(UsageError, match="on_hair is red, blue, expected two or more of a model"):
        start(data, tmp_path / "runs", on_hair="red, blue")


def test_a_model_that_nobody_could_use_is_not_trained(data: Path, tmp_path: Path) -> None:
    for wrong, said in (
        ({"drawings": "red", "alignment": "anime", "mouth": 1.5}, "mouth is 1.5, expected 0 to 1"),
        ({"mouth": 0.8}, "mouth is 0.8, and it makes no drawings of aligned faces"),
        ({"on_skin": "red", "as_shade": "red"}, "'red' go back in two ways"),
        ({"alignment": "celebra"}, "celebra"),
        ({"drawings": "red", "eyes": 1.5, "alignment": "anime", "on_skin": "red,red"}, "two ways"),
    ):
        with pytest.raises(UsageError, match=said):
            start(data, tmp_path / "runs", **wrong)
        with pytest.raises(UsageError, match=said):
            training.estimate(
                data, family="stargan-v2", preset="paper",
                tables={"run": {**RUN, **wrong}, "stargan-v2": TINY},
            )  # fmt: skip
    assert not (tmp_path / "runs").exists()


def test_a_resumed_run_says_that_its_pictures_have_changed(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs", steps=3).folder
    same, other = Quiet(), Quiet()
    training.proceed(folder, steps=4, watcher=same)
    (data / "red" / "0.png").rename(data / "red" / "z.png")
    training.proceed(folder, steps=5, watcher=other)
    assert [any("other pictures" in text for text in one.said) for one in (same, other)] == [
        False, True
    ]  # fmt: skip


def test_a_resumed_run_does_not_end_before_it_stands(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs", steps=3).folder
    before = (folder / "run.json").read_text()
    with pytest.raises(UsageError, match="has done 3 iterations, asked for were 2"):
        training.proceed(folder, steps=2, watcher=Quiet())
    assert (folder / "run.json").read_text() == before
    assert proceed(folder).finished


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_in_training_is_one_clear_error_and_ends(
    data: Path, tmp_path: Path, workers: int
) -> None:
    for path in (data / "red").iterdir():
        path.write_bytes(b"no picture")
    command = [
        sys.executable, "-c",
        "import sys; from pathlib import Path; from test_training import start\n"
        "start(Path(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[3]))",
        str(data), str(tmp_path / "runs"), str(workers),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("facestyle.errors.InputError: ")
    assert ".png" in last
    assert "DataLoader worker" not in done.stderr


FORKED = """
import sys
import cv2, numpy as np
from pathlib import Path
from facestyle.training.data import batches

cv2.setNumThreads(4)
for _ in range(20):  # its threads are there
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 3)

def draw(rng):
    return {"x": cv2.GaussianBlur(rng.random((600, 600), np.float32), (0, 0), 3)}

for batch in batches(draw, 2, seed=0, start=0, stop=3, workers=2):
    print(tuple(batch["x"].shape))
assert cv2.getNumThreads() == 4
"""


def test_decoding_processes_wait_for_no_threads_of_their_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["(2, 600, 600)"] * 3


def test_data_of_which_nothing_usable_was_held_out_is_trained_on(
    data: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "halves"
    shutil.copytree(data, whole / "train")
    (whole / "val" / "red").mkdir(parents=True)
    shutil.copy(data / "red" / "0.png", whole / "val" / "red")
    watcher = Quiet()
    common = {"tables": {"run": RUN, "stargan-v2": TINY}, "runs": tmp_path / "runs"}
    assert training.start(whole, watcher=watcher, **common).finished  # type: ignore[arg-type]
    assert any("blue" in text and "training pictures" in text for text in watcher.said)
    shutil.rmtree(whole / "val")
    watcher = Quiet()
    assert training.start(whole, watcher=watcher, **common).finished  # type: ignore[arg-type]
    assert any("no train/ and val/" in text for text in watcher.said)


def test_a_run_goes_on_where_it_is_told_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = start(data, tmp_path / "runs", steps=3).folder
    settings = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**settings, "device": "cuda"}))
    with pytest.raises(UsageError, match="'cuda' was asked for and is not available"):
        training.proceed(folder, steps=4, watcher=Quiet())
    assert training.proceed(folder, steps=4, device="cpu", watcher=Quiet()).finished
    assert json.loads((folder / "run.json").read_text())["device"] == "cpu"
    (folder / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json cannot be read"):
        proceed(folder)


def test_previews_of_pairs_go_the_way_that_training_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From sketch to photo, though the alphabet has photos first."""
    for half in ("train", "val"):
        for domain in ("photo", "sketch"):
            folder = tmp_path / half / domain
            folder.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "1.png")
    family, run = family_named("pix2pix"), RunConfig(domains="sketch,photo")
    previewed: list[Any] = []
    monkeypatch.setattr(
        "facestyle.training.preview.Previewer",
        lambda family, task, card, pictures, folder, device: previewed.append(pictures),
    )
    trained = training._pictures(family, run, tmp_path)
    settings = {"data": str(tmp_path), "device": "cpu"}
    training._previewer(family, run, settings, None, None, tmp_path, trained, Quiet())  # type: ignore[arg-type]
    for pictures, half in ((trained, "train"), (*previewed, "val")):
        assert pictures.domains == ("photo",)
        assert [path.parent.name for path in pictures.files[0]] == ["sketch", "photo"]
        assert pictures.files[0][0].parent.parent.name == half


def test_what_is_put_into_an_averages_state_changes_nothing() -> None:
    torch.manual_seed(0)
    config = replace(family_named("stargan").config(), **{"image_size": 16, "g_width": 4,
        "d_width": 4, "d_layers": 2, "g_blocks": 1})  # fmt: skip
    task = Averaged(family_named("stargan").task(
        config, 2, device="cpu", bf16=False, compile=False), 0.9)  # fmt: skip
    before = {k: v.clone() for k, v in task.model_parts()["G"].items()}
    held = dict(task.model_parts()["G"])
    state = task.state_dict()
    state["average"]["G"] = {k: torch.zeros_like(v) for k, v in before.items()}
    assert all(torch.equal(task.model_parts()["G"][k], v) for k, v in before.items())
    task.load_state_dict(state)
    # Copied into the tensors that there were: they keep their device and layout.
    assert all(task.model_parts()["G"][k] is v for k, v in held.items())
    assert all(not v.any() for v in held.values())


def test_the_landmark_network_is_where_its_task_is() -> None:
    from facestyle.families.stargan_v2.objective import Config, Task

    config = Config(image_size=16, first_width=4, max_width=8, mapping_width=8, w_hpf=1.0)
    task = Task(config, 2, device="meta", fan=torch.nn.Conv2d(1, 1, 1))
    assert task.fan is not None
    assert next(task.fan.parameters()).device.type == "meta"


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


@pytest.mark.slow
def test_augmented_it_is_another_run_that_resumes_as_exactly(data: Path, tmp_path: Path) -> None:
    tables = {"run": RUN, "stargan-v2": {**TINY, "augment": True}}
    plain = tensors(start(data, tmp_path / "runs").folder)
    whole, resumed = (
        training.start(data, tables=tables, runs=tmp_path / "runs", watcher=Quiet()).folder
        for _ in range(2)
    )
    (resumed / "checkpoints" / "0000006.pt").unlink()
    assert proceed(resumed).finished
    expected, found = tensors(whole), tensors(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(not torch.equal(expected[name], plain[name]) for name in expected)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_where_memory_ends_a_run_says_what_takes_less_and_what_is_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    step, ends = Task.step, [4]

    def limited(self: Task, batch: Any) -> dict[str, float]:
        if self.step_index >= ends[0]:
            raise error
        return step(self, batch)

    monkeypatch.setattr(Task, "step", limited)
    less = "out of memory on cpu with batch_size 2; a smaller batch_size .*image_size in "
    with pytest.raises(FacestyleError, match=rf"{less}.*0000003\.pt is whole: --resume") as caught:
        start(data, tmp_path / "runs")
    assert caught.value.exit_code == 1
    ends[0] = 0
    with pytest.raises(FacestyleError, match=rf"{less}\[stargan-v2\] takes less$"):
        start(data, tmp_path / "runs")
    with pytest.raises(FacestyleError, match=less):
        training.estimate(
            data, family="stargan-v2", preset="paper", tables={"run": RUN, "stargan-v2": TINY}
        )


def test_a_bug_in_training_keeps_its_traceback(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Task, batch: Any) -> dict[str, float]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Task, "step", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        start(data, tmp_path / "runs")


def test_of_several_processes_the_one_that_writes_says_how_it_goes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = start(data, tmp_path / "runs", steps=3).folder
    second = Processes(rank=1, device="cpu")
    monkeypatch.setattr("facestyle.training.parallel.joined", lambda device: nullcontext(second))
    watcher = Quiet()
    outcome = training.proceed(folder, steps=4, watcher=watcher)
    assert (outcome.finished, outcome.writes) == (True, False)
    assert watcher.said + watcher.reports == []
    for stop in (True, False):
        monkeypatch.setattr(
            training, "proceed", lambda *_, stop=stop, **__: replace(outcome, finished=not stop)
        )
        result = CliRunner().invoke(app, ["train", "--resume", str(folder)])
        assert (result.output, result.exit_code) == ("", 130 if stop else 0)


def test_a_finished_model_is_not_replaced_by_a_run_that_lost_its_checkpoints(
    data: Path, tmp_path: Path
) -> None:
    folder = start(data, tmp_path / "runs", steps=2).folder
    model = folder / "model.safetensors"
    before = model.read_bytes()
    for checkpoint in (folder / "checkpoints").glob("*.pt"):
        checkpoint.unlink()
    # As it is, too, where a run was killed between its first model and its first checkpoint.
    for number, steps in ((1, 3), (2, 4)):
        watcher = Quiet()
        assert training.proceed(folder, steps=steps, watcher=watcher).finished
        kept = folder / f"model-before-{number}.safetensors"
        assert any(str(kept) in text for text in watcher.said)
        assert kept.read_bytes() == before
        before = model.read_bytes()
        for checkpoint in (folder / "checkpoints").glob("*.pt"):
            checkpoint.unlink()


def test_a_bad_picture_takes_no_iteration_with_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facestyle.training import loop

    waited = loop._Window.waited_for

    def failing(window: Any, batches: Any) -> Any:
        if window.task.step_index == 3:
            raise InputError("x.png is damaged")
        return waited(window, batches)

    monkeypatch.setattr(loop._Window, "waited_for", failing)
    watcher = Quiet()
    with pytest.raises(InputError, match="damaged"):
        training.start(
            data, family="stargan-v2", preset="paper", runs=tmp_path / "runs", watcher=watcher,
            tables={"run": {**RUN, "steps": 5, "save_every": 100}, "stargan-v2": TINY},
        )  # fmt: skip
    folder = tmp_path / "runs" / "run-1"
    assert [path.stem for path in loop.saved_checkpoints(folder)] == ["0000003"]
    assert any(f"--resume {folder}" in text for text in watcher.said)
    monkeypatch.undo()
    assert training.proceed(folder, watcher=Quiet()).finished
    expected = tensors(start(data, tmp_path / "runs", steps=5).folder)
    found = tensors(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_torchrun_does_not_put_all_processes_on_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    one = r"cuda:0 is one GPU, and torchrun started 2 .*each its own"
    with pytest.raises(UsageError, match=one), joined("cuda:0"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined("cuda:0") as processes:
        assert processes.device == "cuda:0"


def test_what_a_killed_process_half_wrote_is_gone_when_its_run_goes_on(
    data: Path, tmp_path: Path
) -> None:
    folder = start(data, tmp_path / "runs", steps=3).folder
    half = [
        folder / f".model.safetensors.{'0' * 16}.tmp",
        folder / "checkpoints" / ".0000004.pt.0123456789abcdef.tmp",
    ]
    others = [folder / ".mine.tmp", folder / "checkpoints" / "0000003.pt.0123456789abcdef.tmp"]
    for path in (*half, *others):
        path.write_bytes(b"half")
    training.proceed(folder, steps=4, watcher=Quiet())
    assert [path.exists() for path in (*half, *others)] == [False, False, True, True]


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


def test_a_run_begins_with_the_networks_of_another(data: Path, tmp_path: Path) -> None:
    """Of a run all networks, the discriminator too; of a model those that it holds."""
    first = start(data, tmp_path / "runs").folder
    state = torch.load(first / "checkpoints" / "0000006.pt", weights_only=True)["task"]
    fine = {**RUN, "steps": 1, "save_every": 1}
    frozen = {**TINY, "lr": 0.0, "mapping_lr": 0.0, "weight_decay": 0.0}

    def begun(origin: Path) -> Any:
        watcher = Quiet()
        folder = training.start(
            data, tables={"run": fine, "stargan-v2": frozen}, runs=tmp_path / "runs",
            origin=origin, watcher=watcher,
        ).folder  # fmt: skip
        assert any("beginning with generator, mapping_network" in line for line in watcher.said)
        return torch.load(folder / "checkpoints" / "0000001.pt", weights_only=True)["task"]

    of_run, of_model = begun(first), begun(first / "model.safetensors")
    assert of_run["step"] == of_model["step"] == 1
    for part, theirs in state["networks"].items():
        for key, tensor in theirs.items():
            assert torch.equal(of_run["networks"][part][key], tensor), (part, key)
    for part, theirs in state["averages"].items():  # a model is the averages
        for key, tensor in theirs.items():
            assert torch.equal(of_model["networks"][part][key], tensor), (part, key)
            assert torch.allclose(of_model["averages"][part][key], tensor, atol=1e-6)
    key = "main.0.weight"
    fresh = of_model["networks"]["discriminator"][key]
    assert not torch.equal(fresh, state["networks"]["discriminator"][key])


@pytest.mark.slow
def test_a_painter_that_moved_nothing_begins_to(data: Path, tmp_path: Path) -> None:
    """The same network as before until its fresh shaper learns; one that moves keeps its shape."""
    still = {**TINY, "roughness": 1.0}
    moving = {**still, "warp": 1.0, "warp_steps": 1, "lr": 0.0, "weight_decay": 0.0}
    origin, parts = None, []
    for settings in (still, moving, {**moving, "warp_steps": 0}):
        folder = training.start(
            data, tables={"run": RUN, "stargan-v2": settings}, runs=tmp_path / "runs",
            origin=origin, watcher=Quiet(),
        ).folder  # fmt: skip
        origin = folder / "model.safetensors"
        parts.append(load_checkpoint(origin).parts["generator"])
    before, after, later = parts
    assert {name.split(".")[0] for name in set(after) - set(before)} == {"shaper"}
    assert torch.allclose(after["stem.weight"], before["stem.weight"], atol=1e-6)
    assert set(later) == set(after)
    assert torch.allclose(later["shaper.stem.weight"], after["shaper.stem.weight"], atol=1e-6)


def test_an_origins_landmark_network_is_left_aside(data: Path, tmp_path: Path) -> None:
    """Published face models carry one, and nothing trains it."""
    first = start(data, tmp_path / "runs").folder
    model = load_checkpoint(first / "model.safetensors")
    assert model.card is not None
    path = tmp_path / "with-fan.safetensors"
    save_model(path, {**model.parts, "fan": {"conv1.weight": torch.zeros(1)}}, model.card)
    tables = {"run": {**RUN, "steps": 1}, "stargan-v2": TINY}
    assert training.start(
        data, tables=tables, runs=tmp_path / "runs", origin=path, watcher=Quiet()
    ).finished


def test_an_origin_that_does_not_fit_is_refused_before_a_run_is_made(
    data: Path, tmp_path: Path
) -> None:
    first = start(data, tmp_path / "runs").folder
    wider = {"run": RUN, "stargan-v2": {**TINY, "max_width": 32}}
    for error, match, settings in (
        (
            CheckpointError,
            r"of max_width = 16, this run's are of max_width = 32; set max_width = 16 in",
            {"tables": wider},
        ),
        (UsageError, "is of family stargan-v2, this run's is cyclegan", {"family": "cyclegan"}),
    ):
        with pytest.raises(error, match=match):
            training.start(
                data, runs=tmp_path / "none", origin=first / "model.safetensors",
                watcher=Quiet(), **settings,
            )  # fmt: skip
    with pytest.raises(UsageError, match="no run folder"):
        training.start(data, runs=tmp_path / "none", origin=data, watcher=Quiet())
    assert not (tmp_path / "none").exists()


def test_domains_do_not_begin_as_one_another_in_silence(data: Path, tmp_path: Path) -> None:
    first = start(data, tmp_path / "runs").folder

    def begun(origin: Path, domains: str) -> list[str]:
        tables = {"run": {**RUN, "steps": 1, "domains": domains}, "stargan-v2": TINY}
        told = training.estimate(
            data, family="stargan-v2", preset="paper", tables=tables, origin=origin
        ).notes
        watcher = Quiet()
        training.start(data, tables=tables, runs=tmp_path / "new", origin=origin, watcher=watcher)
        assert [note for note in told if note in watcher.said] == list(told)
        return list(told)

    (data / "red").rename(data / "crimson")
    for origin in (first, first / "model.safetensors"):
        (note,) = begun(origin, "")
        assert "has the domains blue, red, this run blue, crimson: each begins as" in note
    (data / "crimson").rename(data / "red")
    assert begun(first, "blue,red") == []
    (data / "a").mkdir()
    shutil.copy(data / "red" / "0.png", data / "a")
    for domains, order in (("red,blue", "blue,red"), ("red,a", "a,red")):
        for origin in (first, first / "model.safetensors"):
            wanted = f'red, this run has them in another order.*set domains = "{order}"'
            with pytest.raises(UsageError, match=wanted):
                begun(origin, domains)
    with pytest.raises(UsageError, match="has 2 domains, this run has 3; choose 2 in"):
        begun(first, "a,blue,red")
    # What a published file calls them nobody knows.
    published = tmp_path / "100000_nets_ema.ckpt"
    torch.save(load_checkpoint(first / "model.safetensors").parts, published)
    (note,) = begun(published, "blue,red")
    assert "does not name its domains, they are taken to be blue, red, in this order" in note


def test_data_that_changed_its_domains_is_refused(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs").folder
    (data / "red").rename(data / "crimson")
    with pytest.raises(UsageError, match=r"crimson.*started with.*red"):
        proceed(folder)


class Doubtful:
    """A task of one weight whose loss is not finite in some iterations."""

    def __init__(self, bad: range) -> None:
        self.bad = bad
        self.step_index = 0
        self.weight = torch.nn.Linear(1, 1, bias=False)
        self.networks = {"line": self.weight}
        self.optimisers = Optimisers({"line": torch.optim.SGD(self.weight.parameters(), lr=0.1)})

    def step(self, batch: object) -> dict[str, float]:
        scale = float("nan") if self.step_index in self.bad else 1.0
        loss = (self.weight(torch.ones(1, 1)) * scale).sum()
        self.optimisers.update(loss, "line")
        self.step_index += 1
        return {"loss": float(loss.detach())}

    def ailments(self, losses: object) -> list[str]:
        return []

    def model_parts(self) -> dict[str, Any]:
        return {"line": self.weight.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        return {"line": self.weight.state_dict(), "step": self.step_index}


def fit_doubtful(task: Doubtful, folder: Path, watcher: Quiet, **run: Any) -> bool:
    card = ModelCard(family="none", image_size=8, domains=("a",), styles=("fixed",))
    return fit(
        task, iter([{}] * 1000), RunConfig(log_every=5, **run), folder, card,
        watcher=watcher, preview=lambda step: None, stopping=lambda: False,
    )  # type: ignore[arg-type] # fmt: skip


def test_ten_iterations_without_a_finite_step_stop_the_run_and_spoil_nothing(
    tmp_path: Path,
) -> None:
    task = Doubtful(bad=range(7, 100))
    with pytest.raises(FacestyleError, match=r"no finite step in 10 iterations.*up to 17"):
        fit_doubtful(task, tmp_path, Quiet(), steps=100, save_every=5, sample_every=1000)
    assert task.step_index == 17
    state = torch.load(tmp_path / "checkpoints" / "0000015.pt", weights_only=True)
    assert torch.isfinite(state["task"]["line"]["weight"]).all()


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    task, watcher = Doubtful(bad=range(3, 6)), Quiet()
    before = float(task.weight.weight.detach())
    assert fit_doubtful(task, tmp_path, watcher, steps=10, save_every=99, sample_every=99)
    assert float(task.weight.weight.detach()) == pytest.approx(before - 0.1 * 7)
    assert [report.skipped for report in watcher.reports] == [2, 3]
    assert all(math.isfinite(report.losses["loss"]) for report in watcher.reports)


def test_the_best_model_by_score_is_kept_beside_the_last(tmp_path: Path) -> None:
    scores = {2: 0.5, 4: 0.2, 6: 0.3}
    task = Doubtful(bad=range(0))
    card = ModelCard(family="none", image_size=8, domains=("a",), styles=("fixed",))

    def preview(step: int) -> Sheet:
        return Sheet(step=step, path=tmp_path / "none.png", score=scores[step])

    fit(
        task, iter([{}] * 6), RunConfig(steps=6, sample_every=2, save_every=1, keep=1),
        tmp_path, card, watcher=Quiet(), preview=preview, stopping=lambda: False,
    )  # type: ignore[arg-type] # fmt: skip
    best = load_checkpoint(tmp_path / "best.safetensors").card
    last = load_checkpoint(tmp_path / "model.safetensors").card
    assert best is not None
    assert last is not None
    assert (best.steps, best.scores, last.steps) == (4, {"swd": 0.2}, 6)


def test_a_resumed_run_forgets_the_metrics_that_it_makes_again(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs").folder
    expected = [(line["step"], line.get("G/latent/adv")) for line in read_metrics(folder)]
    (folder / "checkpoints" / "0000006.pt").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "G/lat')  # as a crash leaves it
    proceed(folder)
    found = [(line["step"], line.get("G/latent/adv")) for line in read_metrics(folder)]
    assert found == expected


@pytest.mark.slow
def test_the_same_run_can_be_given_a_new_end(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs").folder
    training.proceed(folder, steps=8, watcher=Quiet())
    expected = tensors(start(data, tmp_path / "runs", steps=8).folder)
    found = tensors(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_estimate_measures_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = training.estimate(
        data, family="stargan-v2", preset="paper", tables={"run": RUN, "stargan-v2": TINY}
    )
    assert found.counts == {"blue": 8, "red": 8}
    assert found.parameters.keys() == {
        "generator", "mapping_network", "style_encoder", "discriminator"
    }  # fmt: skip
    assert found.seconds > 0
    assert found.memory > 100
    assert sorted(tmp_path.rglob("*")) == before


def test_an_estimate_is_of_iterations_in_which_all_learns(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge alone, for 50 iterations, takes no time here; R1 comes in every third."""
    from facestyle.families.stargan_v2.objective import Task

    steps: list[int] = []
    clock = 0.0

    def step(self: Task, batch: object) -> dict[str, float]:
        nonlocal clock
        clock += 0 if self.step_index < 50 else 5 if self.step_index % 3 == 0 else 2
        steps.append(self.step_index)
        self.step_index += 1
        return {}

    monkeypatch.setattr(Task, "step", step)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock)
    tables = {"run": RUN, "stargan-v2": {**TINY, "warmup_steps": 50, "r1_every": 3}}
    found = training.estimate(data, family="stargan-v2", preset="paper", tables=tables)
    assert steps == [50, 51, 52, 53]
    assert found.seconds == pytest.approx(3)


def test_sliced_wasserstein_is_zero_for_equal_sets_and_grows_with_the_difference() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (8, 3, 32, 32)).astype(np.float32)
    smooth = np.repeat(np.repeat(a[:, :, ::4, ::4], 4, axis=2), 4, axis=3)
    alike = rng.uniform(-1, 1, a.shape).astype(np.float32)
    assert sliced_wasserstein(a, a) == 0
    near, far = sliced_wasserstein(a, alike), sliced_wasserstein(a, smooth)
    assert 0 < near < far
    assert sliced_wasserstein(a, smooth) == pytest.approx(sliced_wasserstein(smooth, a))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 2)],
    ids=["alone", "as a service is stopped", "as a terminal sends Ctrl-C"],
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    config = tmp_path / "run.toml"
    run = {**RUN, "steps": 40, "workers": workers}
    lines = [f"{key} = {json.dumps(value)}" for key, value in run.items()]
    lines += ["[stargan-v2]", *(f"{key} = {value}" for key, value in TINY.items())]
    config.write_text("[run]\n" + "\n".join(lines))
    command = [sys.executable, "-m", "facestyle", "train", "--data", str(data), "--device", "cpu"]
    command += ["--config", str(config), "--runs", str(tmp_path / "runs")]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    folder = tmp_path / "runs" / "run-1"
    deadline = time.monotonic() + 90
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, number)  # whoever decodes pictures hears it too
    _, stderr = child.communicate(timeout=60)
    assert f"--resume {folder}" in stderr
    assert "Traceback" not in stderr
    assert child.returncode == 128 + number
    saved = load_checkpoint(folder / "model.safetensors").card
    assert saved is not None
    assert 0 < (saved.steps or 0) < 40
    assert proceed(folder).finished
    expected = tensors(start(data, tmp_path / "runs", steps=40).folder)
    found = tensors(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_tensorboard_gets_curves_and_sheets(data: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = start(data, tmp_path / "runs", tensorboard=True).folder
    read = events.EventAccumulator(str(folder / "tensorboard"), {events.IMAGES: 0})
    read.Reload()
    assert {"G/latent/adv", "gradient/generator", "lr/generator", "run/waiting"} <= set(
        read.Tags()["scalars"]
    )
    assert [event.step for event in read.Scalars("G/latent/adv")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in read.Images("samples")] == [3, 6]


def test_a_report_shows_every_curve_and_sheet_in_one_file(data: Path, tmp_path: Path) -> None:
    folder = start(data, tmp_path / "runs").folder
    page = run_report(folder)
    for word in ("D/latent", "G/reference", "gradient", "swd", "6 of 6 iterations", "blue, red"):
        assert word in page
    assert page.count("<img") == 2
    assert 'src="http' not in page
    assert "href=" not in page
    svg = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for drawing in svg:
        ElementTree.fromstring(drawing)
    assert sum(drawing.count("<polyline") for drawing in svg) >= 20
    with pytest.raises(UsageError, match="no run folder"):
        run_report(tmp_path)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no metrics yet"):
        run_report(folder)
