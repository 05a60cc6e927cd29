"""The recipes of the models that ship: every stage can be run, and what it makes can ship."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import judges
import models
import pytest
import score
import ship
import torch
from models import RECIPES, TRAINED, Recipe, Stage, in_time, stretched
from ship import kept_alone, mean_of, strengthened

from facestyle import training
from facestyle.checkpoint import load_checkpoint, save_model
from facestyle.families import family_named
from facestyle.families.stargan.objective import Config, Task
from facestyle.nn.painter import Painter
from facestyle.training import Estimate
from facestyle.training.config import resolve

STAGES = [
    pytest.param(recipe, stage, id=f"{name}-{scale}{number}")
    for name, recipe in RECIPES.items()
    for scale, stages in (("cpu", recipe.cpu), ("gpu", recipe.gpu))
    for number, stage in enumerate(stages, 1)
]
SHIPPED = 57_000_000  # bytes of all models with their ONNX twins; the detector has the rest of 60


@pytest.mark.parametrize(("recipe", "stage"), STAGES)
def test_every_stage_is_settings_that_its_family_takes(recipe: Recipe, stage: Stage) -> None:
    for factor in (1.0, 0.37):
        tables = stretched(stage, factor).tables
        run, config = resolve(family_named(recipe.family), "compact", tables)
        assert run.steps == round(stage.tables["run"]["steps"] * factor)
        for late in ("warmup_steps", "lr_fall_from", "constant_steps"):
            assert getattr(config, late, 0) <= run.steps, late


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_stage_can_take_over_the_networks_of_the_one_before(name: str, scale: str) -> None:
    """All of them, or with fresh discriminators those that a model's file has."""
    recipe, before = RECIPES[name], None
    family, domains = family_named(recipe.family), len(recipe.domains.split(","))

    def shapes(parts: Any) -> dict[str, Any]:
        return {part: {n: t.shape for n, t in state.items()} for part, state in parts.items()}

    for stage in getattr(recipe, scale):
        _, config = resolve(family, "compact", stage.tables)
        with torch.device("meta"):
            task = family.task(config, domains, device="meta", bf16=False, compile=False)
        networks = shapes(task.state_dict()["networks"])
        wanted = shapes(task.model_parts()) if stage.fresh else networks
        assert before is None or wanted.items() <= before.items()
        before = networks


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_what_is_trained_is_small_enough_to_ship(scale: str) -> None:
    parameters = 0
    for recipe in RECIPES.values():
        family = family_named(recipe.family)
        _, config = resolve(family, "compact", getattr(recipe, scale)[-1].tables)
        domains = len(recipe.domains.split(","))
        with torch.device("meta"):  # sizes without memory
            task = family.task(config, domains, device="meta", bf16=False, compile=False)
        parts = task.model_parts().values()
        parameters += sum(tensor.numel() for part in parts for tensor in part.values())
    assert 2 * 2 * parameters < SHIPPED  # float16, twice


def test_what_counts_iterations_is_stretched_and_nothing_else() -> None:
    stage = Stage(
        tables={
            "run": {"steps": 100, "batch_size": 7},
            "ugatit": {"lr_fall_from": 60, "lr_fall_to": 100, "warmup_steps": 0, "cycle": 5.0},
        }
    )
    assert stretched(stage, 0.5).tables == {
        "run": {"steps": 50, "batch_size": 7},
        "ugatit": {"lr_fall_from": 30, "lr_fall_to": 50, "warmup_steps": 0, "cycle": 5.0},
    }


def test_runs_fit_into_the_minutes_and_keep_their_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(
        family="ugatit",
        about="",
        cpu=(Stage(tables={"run": {"steps": 300}}), Stage(tables={"run": {"steps": 100}})),
        gpu=(),
    )
    options = argparse.Namespace(
        minutes=5.0 / TRAINED, work=tmp_path, faces=tmp_path, device="cpu", seed=1, threads=1
    )
    seconds = iter([1.0, 3.0])

    def measured(*_: object, **__: object) -> Estimate:
        return Estimate(counts={}, parameters={}, seconds=next(seconds), memory=0, steps=0)

    monkeypatch.setattr(models, "data_of", lambda *_: tmp_path)
    monkeypatch.setattr(training, "estimate", measured)
    for _ in range(2):  # the second time what was measured is read, or there would be no next
        stages = in_time("some", recipe, recipe.cpu, options)
        assert [stage.tables["run"]["steps"] for stage in stages] == [150, 50]
    assert json.loads((tmp_path / "some-minutes.json").read_text())["minutes"] == 5 / TRAINED


def test_a_finished_run_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def measured(arguments: list[str]) -> None:
        calls.append(arguments)
        model = Path(arguments[arguments.index("--model") + 1])
        work = Path(arguments[arguments.index("--work") + 1])
        work.mkdir(exist_ok=True)
        document = {"sha256": {"model": judges.sha256(model.read_bytes())}}
        (work / "scores.json").write_text(json.dumps(document))

    monkeypatch.setattr(score, "main", measured)
    monkeypatch.setattr(models, "data_of", lambda name, *_: tmp_path / name)
    options = argparse.Namespace(
        faces=Path("f"), photos=Path("p"), weights=Path("w"), work=tmp_path, threads=1
    )
    (tmp_path / "model.safetensors").write_bytes(b"last")
    for _ in range(2):
        assert models.scored("attributes", tmp_path, options) == tmp_path / "attributes-scores"
    models.scored("portrait-anime", tmp_path, options)
    assert len(calls) == 2
    assert "--held-out" not in calls[0]
    assert calls[1][calls[1].index("--held-out") + 1] == str(tmp_path / "portrait-anime" / "val")
    # Another model is scored anew, and the best one of a run before its last.
    (tmp_path / "best.safetensors").write_bytes(b"best")
    models.scored("attributes", tmp_path, options)
    assert calls[2][1] == str(tmp_path / "best.safetensors")
    _, parsed = score.parse(calls[2])
    assert (parsed.photos, parsed.threads) == (Path("p"), 1)


def test_a_painters_changes_can_be_made_larger() -> None:
    torch.manual_seed(0)
    painter = Painter(vector=2, width=4, widest=8, blocks=1, depth=2)
    torch.nn.init.normal_(painter.painted.weight, std=0.01)
    x, label = torch.rand(2, 3, 16, 16) - 0.5, torch.ones(2, 2)
    with torch.inference_mode():
        change = painter(x, label) - x
        others = {
            "style_encoder": {"main.0.weight": x}
        }  # StarGAN v2's, whose painter is "generator"
        parts = strengthened({"generator": painter.state_dict(), **others}, 1.5)
        assert parts["style_encoder"] == others["style_encoder"]
        painter.load_state_dict(parts["generator"])
        assert torch.allclose(painter(x, label) - x, 1.5 * change, atol=1e-6)
    with pytest.raises(ValueError, match="no painter"):
        strengthened({"G": {"main.0.weight": x}}, 1.5)


def test_a_card_tells_what_was_done_to_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = family_named("stargan-v2")
    tables = {"stargan-v2": {"image_size": 16, "first_width": 4, "max_width": 8, "roughness": 1.0}}
    _, config = resolve(family, "compact", tables)
    task = family.task(config, 2, device="cpu", bf16=False, compile=False)
    card = replace(family.new_card(config, ("female", "male")), command="facestyle train")
    save_model(tmp_path / "run.safetensors", task.model_parts(), card)
    words = f"--model {tmp_path / 'run.safetensors'} --name a-b --strength 1.5 --out {tmp_path}"
    for more in ("", " --both-ways"):
        monkeypatch.setattr("sys.argv", ["ship.py", *(words + more).split()])
        ship.main()
        shipped = load_checkpoint(tmp_path / "a_b.safetensors").card
        assert shipped is not None
        assert (shipped.name, shipped.command, shipped.both_ways) == (
            "a-b", f"facestyle train; recipes/ship.py --strength 1.5{more}", bool(more),
        )  # fmt: skip


def test_the_mean_of_two_states_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_named("ugatit")
    tables = {"ugatit": {"image_size": 32, "load_size": 32, "width": 4, "blocks": 1}}
    _, config = resolve(family, "compact", tables)
    card = replace(family.new_card(config, ("portrait", "anime")), command="facestyle train")
    states = []
    for run in ("first", "second"):
        task = family.task(config, 2, device="cpu", bf16=False, compile=False)
        states.append(task.model_parts())
        (tmp_path / run).mkdir()
        save_model(tmp_path / run / "model.safetensors", states[-1], card)
    first, second = (tmp_path / run / "model.safetensors" for run in ("first", "second"))
    words = f"--model {second} --mean {first} --name a --out {tmp_path}"
    monkeypatch.setattr("sys.argv", ["ship.py", *words.split()])
    ship.main()
    shipped = load_checkpoint(tmp_path / "a.safetensors")
    assert shipped.card is not None
    expected = "facestyle train; recipes/ship.py --mean first/model.safetensors"
    assert shipped.card.command == expected
    for part, state in shipped.parts.items():
        for name, tensor in state.items():
            mean = (states[0][part][name] + states[1][part][name]) / 2
            assert torch.allclose(tensor.float(), mean, atol=1e-3), name
    with pytest.raises(ValueError, match="other networks"):
        mean_of(states[0], {"genA2B": states[1]["genA2B"]})


def test_what_is_left_out_is_off_and_all_else_as_it_was() -> None:
    config = Config(
        image_size=16, g_width=4, g_blocks=1, d_width=4, d_layers=2, roughness=1.0,
        judge="attributes",
    )  # fmt: skip
    torch.manual_seed(0)
    whole, few = Task(config, 4), Task(config, 2)
    torch.nn.init.normal_(whole.networks["G"].painted.weight)  # type: ignore[union-attr]
    parts = kept_alone(whole.model_parts(), ["a", "b", "c", "d"], ["c", "a"])
    for part, network in few.networks.items():
        network.load_state_dict(dict(parts[part]))  # strict, shapes and all

    x = torch.rand(3, 3, 16, 16) * 2 - 1
    label = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # of c and a
    all_labels = torch.zeros(3, 4)
    all_labels[:, [2, 0]] = label
    with torch.inference_mode():
        made = few.networks["G"](x, label)
        assert torch.allclose(made, whole.networks["G"](x, all_labels), atol=1e-5)
        assert not torch.equal(made, few.networks["G"](x, 1 - label))
        few_said, few_known = few.networks["D"](x)
        said, known = whole.networks["D"](x)
    assert torch.allclose(few_known, known[:, [2, 0]], atol=1e-5)
    assert torch.allclose(few_said, said[:, [2, 0, 6, 4]], atol=1e-5)
