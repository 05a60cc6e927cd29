"""What holds for every family, the one of docs/adding-a-family.md among them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import facestyle
from facestyle import families as families_package
from facestyle import training
from facestyle.checkpoint import load_checkpoint, save_model
from facestyle.cli import app
from facestyle.convert import convert
from facestyle.edits import Edit
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import detect, families
from facestyle.pipeline import restyle
from facestyle.training.data import attribute_pictures
from facestyle.training.loop import Progress, Sheet, read_metrics
from facestyle.training.settings import read_settings
from facestyle.translator import Style, Translator

ROOT = Path(__file__).resolve().parents[1]

# The smallest networks of each family; a family that is not here is tested with its defaults.
TINY: Mapping[str, Mapping[str, Any]] = {
    "stargan-v2": {"image_size": 16, "first_width": 8, "max_width": 16, "mapping_width": 16},
    "ugatit": {"image_size": 32, "load_size": 36, "width": 4, "blocks": 1, "light": True,
               "global_layers": 5, "local_layers": 4},
    "cyclegan": {"image_size": 32, "load_size": 36, "generator_width": 4, "blocks": 2,
                 "discriminator_width": 4, "pool": 2},
    "pix2pix": {"image_size": 64, "load_size": 68, "width": 4, "judge_width": 4},
    "bicyclegan": {"image_size": 32, "load_size": 36, "latent_dim": 4, "generator_width": 4,
                   "encoder_width": 4, "discriminator_width": 4, "discriminator_layers": 2},
    "stargan": {"image_size": 32, "crop": 0, "g_width": 8, "g_blocks": 1, "d_width": 8,
                "d_layers": 4, "n_critic": 2},
}  # fmt: skip
RUN = {"steps": 4, "batch_size": 2, "workers": 0, "log_every": 1, "save_every": 2,
       "sample_every": 2, "threads": 1}  # fmt: skip
NAMES = (*sorted(TINY), "recolour")


@pytest.fixture(scope="session")
def recolour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the family that the documentation builds, from its own text."""
    text = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    root = tmp_path_factory.mktemp("families")
    found = re.findall(r"`(recolour/\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in found] == [
        "recolour/networks.py", "recolour/objective.py", "recolour/__init__.py"
    ]  # fmt: skip
    (root / "recolour").mkdir()
    for name, code in found:
        (root / name).write_text(code, encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def _all_families(recolour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented family stands beside the others as if its folder had been added."""
    monkeypatch.setattr(families_package, "__path__", [*families_package.__path__, str(recolour)])


class Quiet:
    """A watcher that remembers what is announced."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def announce(self, text: str) -> None:
        self.said.append(text)

    def tick(self, step: int, steps: int) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def sheet(self, sheet: Sheet) -> None: ...


def data_for(layout: str, root: Path) -> Path:
    """Pictures as a layout wants them: noise in two colours."""
    rng = np.random.default_rng(0)

    def picture(colour: tuple[int, int, int]) -> np.ndarray:
        return np.clip(rng.normal(colour, 25, (36, 36, 3)), 0, 255).astype(np.uint8)

    colours = {"blue": (60, 90, 200), "red": (200, 90, 60)}
    for domain, colour in colours.items():
        for number in range(4):
            folder = {"paired": root / "train", "attributes": root}.get(layout, root / domain)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = picture(colour)
            if layout == "paired":  # the target is the input's negative
                pixels = np.concatenate([pixels, 255 - pixels], axis=1)
            Image.fromarray(pixels).save(folder / f"{domain}{number}.png")
    if layout == "attributes":
        rows = [f"{d}{n}.png,{int(d == 'red')},{n % 2}" for d in colours for n in range(4)]
        (root / "attributes.csv").write_text("file,Red,Odd\n" + "\n".join(rows) + "\n")
    return root


def start(name: str, data: Path, runs: Path, **run: Any) -> Path:
    family = families()[name]
    tables = {"run": {**RUN, **run}, name: dict(TINY.get(name, {}))}
    if family.layout == "attributes":
        tables["run"]["domains"] = "Red,Odd"
    outcome = training.start(data, family=name, tables=tables, runs=runs, watcher=Quiet())
    assert outcome.finished
    return outcome.folder


@pytest.fixture(scope="session")
def trained(
    recolour: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Path]]:
    """A run of each family, a few iterations long."""
    torch.set_num_threads(1)
    runs: dict[str, Path] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families_package, "__path__", [*families_package.__path__, str(recolour)])
        for name in NAMES:
            root = tmp_path_factory.mktemp(name)
            data = data_for(families()[name].layout, root / "data")
            runs[name] = start(name, data, root / "runs")
        yield runs


def some_style(model: Translator) -> Style:
    """A style in the model's own way."""
    if "attributes" in model.card.styles:
        return model.edited(Edit(flip=model.card.domains[:1]))
    return model.style(model.card.domains[0])


def faces(model: Translator, number: int = 2) -> np.ndarray:
    side = model.card.image_size
    return np.random.default_rng(1).uniform(-1, 1, (number, 3, side, side)).astype(np.float32)


def test_the_six_published_systems_are_here() -> None:
    assert set(families()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_one_family_recognises_a_file(name: str, trained: Mapping[str, Path]) -> None:
    shapes = load_checkpoint(trained[name] / "model.safetensors").shapes()
    fitting = [family.name for family in families().values() if family.misfit(shapes) is None]
    assert fitting == [name]


@pytest.mark.parametrize("name", NAMES)
def test_what_training_writes_loads_as_the_networks_that_were_trained(
    name: str, trained: Mapping[str, Path]
) -> None:
    folder = trained[name]
    model = facestyle.load(folder / "model.safetensors")
    assert (model.card.family, model.card.steps) == (name, RUN["steps"])
    saved = sorted((folder / "checkpoints").glob("*.pt"))[-1]
    state = torch.load(saved, weights_only=True)  # as resume reads it
    family = families()[name]
    config = replace(family.config(), **TINY.get(name, {}))
    # Where training cuts at random, faces are cut as large afterwards.
    assert model.card.load_size == getattr(config, "load_size", None)
    task = family.task(config, len(model.card.domains), device="cpu", bf16=False, compile=False)
    task.load_state_dict(state["task"])
    expected = task.model_parts()
    # A checkpoint is a model too: so any iteration that was kept can be used and looked at.
    for path in (folder / "model.safetensors", saved):
        loaded = load_checkpoint(path)
        assert loaded.card == model.card
        assert loaded.parts.keys() == expected.keys()
        for part, tensors in expected.items():
            assert loaded.parts[part].keys() == tensors.keys()
            assert all(torch.equal(loaded.parts[part][k], value) for k, value in tensors.items())
    x = faces(model)
    style = model.style(model.card.domains[0])
    assert np.array_equal(facestyle.load(saved).translate(x, style), model.translate(x, style))


@pytest.mark.parametrize("name", NAMES)
def test_every_role_gives_finite_pictures_codes_or_maps(
    name: str, trained: Mapping[str, Path]
) -> None:
    model = facestyle.load(trained[name] / "model.safetensors")
    x = faces(model)
    domain = np.zeros(2, np.int64)
    z = np.random.default_rng(2).standard_normal((2, model.card.latent_dim or 1), np.float32)
    has_mapping = "mapping" in model.backend.roles
    codes = {
        "stargan": np.eye(2, dtype=np.float32),
        "stargan-v2": model.backend.run("mapping", z, domain) if has_mapping else z,
    }
    arrays = {
        "generator": (x, codes.get(name, z)) if name != "recolour" else (x,),
        "mapping": (z, domain),
        "encoder": (x, domain) if has_mapping else (x,),
        "classifier": (x,),
    }
    assert model.backend.roles
    for role in model.backend.roles:
        kind = role.split(".")[0]
        given = arrays.get(kind, (x,)) if "." not in role else (x,)
        given = (*given, np.array([7])) if kind == "sampler" else given
        output = model.backend.run(role, *given)
        assert len(output) == 2, role
        assert np.isfinite(output).all(), role
        if kind in ("generator", "sampler"):
            assert output.shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_resumed_equals_one_that_was_not(
    name: str, trained: Mapping[str, Path], tmp_path: Path
) -> None:
    whole = trained[name]
    data = data_for(families()[name].layout, tmp_path / "data")
    resumed = start(name, data, tmp_path / "runs", steps=2)
    training.proceed(resumed, steps=RUN["steps"], watcher=Quiet())
    one, two = (load_checkpoint(run / "model.safetensors").parts for run in (whole, resumed))
    for part, state in one.items():
        for key, tensor in state.items():
            assert torch.equal(tensor, two[part][key]), f"{part}.{key}"


@pytest.mark.parametrize("name", NAMES)
def test_a_run_beyond_the_fall_of_its_learning_rate_says_so(name: str, tmp_path: Path) -> None:
    """When it begins, when it is given a new end, and before it is begun."""
    family, watcher = families()[name], Quiet()
    data = data_for(family.layout, tmp_path / "data")
    fall = {"lr_fall_from": 2, "lr_fall_to": 4} if name == "ugatit" else {
        "constant_steps": 2, "decay_steps": 2
    }  # fmt: skip
    falls = name not in ("stargan-v2", "recolour")
    tables: dict[str, Any] = {
        "run": {**RUN, "steps": 6}, name: {**TINY.get(name, {}), **(fall if falls else {})},
    }  # fmt: skip
    if name == "stargan":
        tables["run"]["domains"], tables[name]["n_critic"] = "Red,Odd", 1
    told = "learning rate is 0 from iteration 4 on, so up to"
    common = {"family": name, "tables": tables}
    folder = training.start(data, **common, runs=tmp_path / "runs", watcher=watcher).folder  # type: ignore[arg-type]
    assert [told in text for text in watcher.said].count(True) == int(falls)
    found = training.estimate(data, preset="paper", **common)  # type: ignore[arg-type]
    assert [told in note for note in found.notes] == [True] * falls
    again = Quiet()
    training.proceed(folder, steps=7, watcher=again)
    assert [f"{told} 7" in t and f"--from {folder}" in t for t in again.said].count(True) == falls
    tables["run"]["steps"] = 4
    assert training.estimate(data, preset="paper", **common).notes == ()  # type: ignore[arg-type]
    # It is as told.
    lines = [line for line in read_metrics(folder) if "swd" not in line]
    rates = [[v for n, v in line.items() if n.startswith("lr/")] for line in lines]
    assert all(rate > 0 for rate in rates[2])
    assert all((rate == 0) is falls for rate in (*rates[4], *rates[6]))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "stargan-v2"])
def test_averaged_weights_are_the_model_and_resume(name: str, tmp_path: Path) -> None:
    """The average is the one by hand, a resumed run has the same, and the last weights another."""
    data = data_for(families()[name].layout, tmp_path / "data")
    run: dict[str, Any] = {"ema": 0.5, "save_every": 1, "keep": 9, "steps": 3}
    whole = start(name, data, tmp_path / "runs", **run)
    resumed = start(name, data, tmp_path / "runs", **{**run, "steps": 1})
    training.proceed(resumed, steps=3, watcher=Quiet())
    one, two = (load_checkpoint(folder / "model.safetensors").parts for folder in (whole, resumed))
    states = [
        torch.load(whole / "checkpoints" / f"{step:07d}.pt", weights_only=True)["task"]
        for step in (1, 2, 3)
    ]
    moved = False
    for part, state in one.items():
        for key, tensor in state.items():
            assert torch.equal(tensor, two[part][key]), f"{part}.{key}"
            second, third = (s["networks"][part][key] for s in states[1:])
            if not tensor.is_floating_point():
                assert torch.equal(tensor, third)
                continue
            # Decays 1/4 and 4/13 in iterations 2 and 3, as 0.5 would hold on to the start.
            wanted = states[0]["average"][part][key]
            for decay, new in ((3 / 12, second), (4 / 13, third)):
                wanted = decay * wanted + (1 - decay) * new
            assert torch.allclose(tensor, wanted, atol=1e-5), f"{part}.{key}"
            moved |= not torch.equal(tensor, third)
    assert moved


def test_an_average_of_an_average_is_refused(tmp_path: Path) -> None:
    for ema, match in ((0.9, "averages by itself"), (1.0, "less than 1"), (-0.1, "expected 0")):
        with pytest.raises(UsageError, match=match):
            training.start(tmp_path, tables={"run": {"ema": ema}}, watcher=Quiet())


@pytest.mark.parametrize("name", NAMES)
def test_a_photo_goes_through_translate(
    name: str, trained: Mapping[str, Path], photo: Path, tmp_path: Path
) -> None:
    model = trained[name] / "model.safetensors"
    card = facestyle.load(model).card
    to = ["--flip", card.domains[0]] if "attributes" in card.styles else ["-d", card.domains[0]]
    output = tmp_path / "out.png"
    command = ["translate", str(photo), "-m", str(model), *to, "-o", str(output)]
    done = CliRunner().invoke(app, [*command, "--align", "celeba-square", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with Image.open(photo) as before, Image.open(output) as after:
        assert before.size == after.size
        assert np.asarray(before.convert("RGB")).shape == np.asarray(after.convert("RGB")).shape
        assert (np.asarray(before.convert("RGB")) != np.asarray(after.convert("RGB"))).any()


@pytest.mark.parametrize("name", NAMES)
def test_ours_and_the_published_layout_make_the_same_picture(
    name: str, trained: Mapping[str, Path], tmp_path: Path
) -> None:
    ours = facestyle.load(trained[name] / "model.safetensors")
    written = convert(trained[name], tmp_path / "published", "published")
    published = facestyle.load(written[0], domains=ours.card.domains)
    x = faces(ours)
    if published.card.image_size != ours.card.image_size:  # no file of this family says it
        published = Translator(replace(published.card, image_size=32), published.backend)
    # Not to the last bit: how torch multiplies depends on where a file put a tensor in memory.
    expected = ours.translate(x, some_style(ours))
    assert np.allclose(expected, published.translate(x, some_style(published)), atol=1e-5)
    (back,) = convert(written[0], tmp_path / "back.safetensors", domains=ours.card.domains)
    again = facestyle.load(back)
    assert np.allclose(expected, again.translate(x, some_style(again)), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_model_cannot_do_is_refused_with_what_it_can(
    name: str, trained: Mapping[str, Path], photo: Path, tmp_path: Path
) -> None:
    path = trained[name] / "model.safetensors"
    card = facestyle.load(path).card
    common = [
        "-m",
        str(path),
        "-o",
        str(tmp_path / "out.png"),
        "--device",
        "cpu",
        "--align",
        "none",
    ]
    attempts = {
        "reference": ["reference", str(photo), str(photo)],
        "latent": ["translate", str(photo), "-d", card.domains[0], "--psi", "0.5"],
        "attributes": ["translate", str(photo), "--set", card.domains[0]],
    }
    for kind, command in attempts.items():
        if kind not in card.styles:
            done = CliRunner().invoke(app, [*command, *common])
            assert done.exit_code == 2, (kind, done.output)
            assert f"its styles are: {', '.join(card.styles)}" in done.output
    if not any(role.startswith("attention") for role in facestyle.load(path).backend.roles):
        done = CliRunner().invoke(app, ["translate", str(photo), "--cam", *common, *_target(card)])
        assert done.exit_code == 2
        assert "cannot show attention" in done.output
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("female-male", "generator is a painter"), ("attributes", "differences of labels")],
)
def test_what_the_published_program_does_not_have_is_not_written_for_it(
    name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        convert(name, tmp_path / "published", "published")
    assert not (tmp_path / "published").exists()
    checkpoint = load_checkpoint(ROOT / "weights" / "attributes.safetensors")
    family = detect(checkpoint)
    with pytest.raises(UsageError, match="painter"):
        family.published(family.parts(checkpoint), 0)


def test_a_heatmap_is_overwritten_and_restyled_no_more_than_a_result(
    trained: Mapping[str, Path], photo: Path, tmp_path: Path
) -> None:
    model = trained["ugatit"] / "model.safetensors"
    domain = facestyle.load(model).card.domains[1]
    (tmp_path / "a.png").write_bytes(photo.read_bytes())
    heatmap = tmp_path / f"a.{domain}.cam.png"
    heatmap.write_bytes(b"the user's own")
    command = ["translate", str(tmp_path), "-m", str(model), "-d", domain, "--cam", "--align",
               "none", "--device", "cpu", "--no-mark"]  # fmt: skip
    heatmap_of_a = tmp_path / "b" / heatmap.name
    heatmap_of_a.parent.mkdir()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert heatmap.read_bytes() == b"the user's own"
    assert f"{heatmap} exists, skipped" in done.stderr
    done = CliRunner().invoke(app, [*command, "--overwrite"])
    assert done.exit_code == 0, done.output
    assert heatmap.read_bytes() != b"the user's own"
    # Neither result nor heatmap has become a picture to restyle.
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [
        "a.png", heatmap.name, f"a.{domain}.png"
    ]  # fmt: skip
    # A heatmap that is not here yet is written, and the result stays.
    heatmap.unlink()
    result = tmp_path / f"a.{domain}.png"
    result.write_bytes(b"the user's own")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert heatmap.exists()
    assert result.read_bytes() == b"the user's own"
    # Nor is it written over an input.
    done = CliRunner().invoke(app, [*command, str(heatmap), "--overwrite"])
    assert done.exit_code == 2
    assert "is an input" in done.stderr


def test_a_converted_model_replaces_no_file_unasked(
    trained: Mapping[str, Path], tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"the user's own")
    for target, more in ((own, {}), (tmp_path / "published", {"layout": "published"})):
        if more:
            convert(trained["pix2pix"], target, **more)
        with pytest.raises(UsageError, match=r"exists.*--overwrite"):
            convert(trained["pix2pix"], target, **more)
    assert own.read_bytes() == b"the user's own"
    convert(trained["pix2pix"], own, overwrite=True)
    assert facestyle.load(own).card.family == "pix2pix"


def _target(card: Any) -> list[str]:
    if "attributes" in card.styles:
        return ["--flip", card.domains[0]]
    return ["-d", card.domains[0]]


def test_a_file_of_no_family_names_the_nearest_and_why(
    trained: Mapping[str, Path], tmp_path: Path
) -> None:
    model = load_checkpoint(trained["ugatit"] / "model.safetensors")
    broken = {part: dict(state) for part, state in model.parts.items()}
    for state in broken.values():
        del state["gap_fc.weight"]
    torch.save(broken, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match=r"nearest ugatit, but .*gap_fc"):
        detect(load_checkpoint(tmp_path / "broken.pt"))
    torch.save({"layer1.0.conv1.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match="of no known family"):
        detect(load_checkpoint(tmp_path / "resnet.pt"))


def test_the_documented_family_learns_what_it_is_for(
    trained: Mapping[str, Path], tmp_path: Path
) -> None:
    data = data_for("paired", tmp_path / "data")
    folder = start("recolour", data, tmp_path / "runs", steps=300, log_every=300, save_every=300,
                   sample_every=300)  # fmt: skip
    model = facestyle.load(folder / "model.safetensors")
    picture = np.full((64, 64, 3), (200, 90, 60), np.uint8)
    negative = restyle(picture, model, model.style(), detail=0)
    assert np.abs(negative.astype(int) - (255 - picture.astype(int))).mean() < 25


@pytest.mark.parametrize("name", NAMES)
def test_own_files_in_half_precision_load_too(
    name: str, trained: Mapping[str, Path], tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(trained[name] / "model.safetensors")
    assert checkpoint.card is not None
    save_model(tmp_path / "half.safetensors", checkpoint.parts, checkpoint.card, half=True)
    half, full = facestyle.load(tmp_path / "half.safetensors"), facestyle.load(checkpoint.path)
    x = faces(full)
    difference = half.translate(x, some_style(half)) - full.translate(x, some_style(full))
    assert np.abs(difference).max() < 0.05


def test_attention_lies_over_the_photo_in_both_directions(
    trained: Mapping[str, Path], photo: Path, tmp_path: Path
) -> None:
    model = trained["ugatit"] / "model.safetensors"
    with Image.open(photo) as picture:
        before = np.asarray(picture.convert("RGB")).astype(int)
    for direction, domain in (("AtoB", "red"), ("BtoA", "blue")):
        output = tmp_path / f"{direction}.png"
        command = ["translate", str(photo), "-m", str(model), "--direction", direction, "--cam"]
        command += ["--align", "celeba-square", "--device", "cpu", "-o", str(output)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert f"{domain}, fixed" in done.output
        with Image.open(output.with_name(f"{direction}.cam.png")) as picture:
            overlay = np.asarray(picture.convert("RGB")).astype(int)
        assert overlay.shape == before.shape
        changed = np.abs(overlay - before).sum(axis=2) > 0
        assert 0.01 < changed.mean() < 0.5
        assert not changed[:20].any()  # the face is not at the border
    refused = CliRunner().invoke(
        app, ["translate", str(photo), "-m", str(model), "--direction", "AtoC"]
    )
    assert refused.exit_code == 2
    assert "AtoB or BtoA" in refused.output


def test_attributes_of_a_photo_are_changed_as_asked(trained: Mapping[str, Path]) -> None:
    model = facestyle.load(trained["stargan"] / "model.safetensors")
    x = faces(model)
    on, off = (model.labels(x, Edit(on=("Red",), source=s)) for s in ((), ("Odd",)))
    assert on.tolist() == [[1, 0]] * 2
    assert off.tolist() == [[1, 1]] * 2
    assert model.labels(x, Edit(flip=("Odd",), source=("Odd", "Red"))).tolist() == [[1, 0]] * 2
    assert model.labels(x, Edit(off=("Red",), source=("Odd", "Red"))).tolist() == [[0, 1]] * 2
    seen = model.backend.run("classifier", x) > 0
    assert np.array_equal(model.labels(x, Edit(flip=("Red",)))[:, 0], ~seen[:, 0])
    exclusive = Translator(replace(model.card, exclusive=("Red,Odd",)), model.backend)
    assert exclusive.labels(x, Edit(on=("Red",), source=("Odd",))).tolist() == [[1, 0]] * 2


def test_folders_as_labels_exclude_each_other(tmp_path: Path) -> None:
    """Nobody is asked to be two of them, or none, in training and in use."""
    data = data_for("labelled", tmp_path / "data")
    (data / "red").rename(data / "crimson")
    data_for("labelled", data)
    run = {**RUN, "domains": ""}
    tables = {"run": run, "stargan": {**TINY["stargan"], "judge": "attributes"}}
    folder = training.start(
        data, family="stargan", tables=tables, runs=tmp_path / "runs", watcher=Quiet()
    ).folder
    settings = read_settings(folder)
    assert settings["stargan"]["labels"] == "one-hot"
    model = facestyle.load(folder / "model.safetensors")
    assert model.card.exclusive == ("blue,crimson,red",)
    with pytest.raises(UsageError):
        model.edited(Edit(on=("blue", "red")))
    family, rng = families()["stargan"], np.random.default_rng(0)
    config = replace(family.config(), **settings["stargan"])
    pictures = attribute_pictures(data)
    targets = [family.sample(pictures, config, rng)["target_NA"] for _ in range(40)]
    assert all(target.sum() == 1 for target in targets)


def test_a_generator_of_labels_does_not_go_on_with_differences(
    trained: Mapping[str, Path], tmp_path: Path
) -> None:
    """Of a run and of its model: it would read what it is told as something else."""
    run = trained["stargan"]
    tables = {
        "run": {**RUN, "domains": "Red,Odd"}, "stargan": {**TINY["stargan"], "relative": True},
    }  # fmt: skip
    data = data_for("attributes", tmp_path / "data")
    for origin in (run, run / "model.safetensors"):
        with pytest.raises(UsageError, match="was told labels, this run's is told differences"):
            training.start(
                data, family="stargan", tables=tables, runs=tmp_path / "runs", origin=origin,
                watcher=Quiet(),
            )  # fmt: skip
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("stargan-v2", {"image_size": 32, "latent_dim": 8}),
        ("stargan-v2", {"roughness": 1.0}),
        ("ugatit", {"width": 8, "light": False}),
        ("cyclegan", {"generator_width": 8, "blocks": 3}),
        ("pix2pix", {"image_size": 32, "norm": "instance"}),
        ("bicyclegan", {"latent_dim": 5, "encoder": "conv", "upsample": "bilinear"}),
        ("stargan", {"image_size": 64, "g_blocks": 2}),
        ("stargan", {"roughness": 1.0, "judge": "attributes"}),
    ],
)
def test_an_origin_of_other_sizes_is_refused_with_the_settings_that_fit(
    name: str, changes: dict[str, Any], trained: Mapping[str, Path], tmp_path: Path
) -> None:
    """They are set as the error says, and fit."""
    family, origin = families()[name], trained[name] / "model.safetensors"
    data = data_for(family.layout, tmp_path / "data")
    tables: dict[str, Any] = {"run": dict(RUN), name: {**TINY[name], **changes}}
    if family.layout == "attributes":
        tables["run"]["domains"] = "Red,Odd"
    common: dict[str, Any] = {"family": name, "preset": "paper", "origin": origin}
    with pytest.raises(CheckpointError, match="this run's are of ") as caught:
        training.estimate(data, tables=tables, **common)
    remedy = re.fullmatch(rf"set (.*) in \[{name}\]", caught.value.hint or "")
    assert remedy is not None, caught.value.hint
    told = tomllib.loads(remedy[1].replace(", ", "\n"))
    defaults = vars(family.config())
    assert told == {key: TINY[name].get(key, defaults[key]) for key in told}
    assert set(changes) <= set(told)
    training.estimate(data, tables={**tables, name: {**tables[name], **told}}, **common)
