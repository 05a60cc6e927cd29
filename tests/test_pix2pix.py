"""pix2pix: published files load as they are, give the published program's numbers, and train."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import facestyle
from facestyle.card import ModelCard
from facestyle.checkpoint import load_checkpoint, save_model
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import detect
from facestyle.families.pix2pix import FAMILY, PRESETS
from facestyle.families.pix2pix.networks import (
    DROPOUT,
    NORMS,
    BatchNorm,
    Discriminator,
    Dropout,
    Generator,
    InstanceNorm,
    Sampler,
    Sizes,
    sizes_from_shapes,
)
from facestyle.families.pix2pix.objective import (
    INIT_DEVIATION,
    Config,
    Task,
    learning_rate,
    sizes_of,
)
from facestyle.nn.adversarial import cross_entropy
from facestyle.pipeline import restyle

GOLDENS = Path(__file__).parent / "goldens"
OUTPUT_TOLERANCE = 1e-4  # of an output's largest absolute value (goldens' own rule)

State = dict[str, Tensor]


def small(image_size: int = 64, **sizes: Any) -> Sizes:
    return Sizes(image_size=image_size, **{"width": 4, **sizes})


def built(sizes: Sizes) -> Generator:
    """A generator with random weights and running statistics."""
    torch.manual_seed(0)
    generator = Generator(sizes)
    for norm in generator.modules():
        if isinstance(norm, BatchNorm):
            for name, value in norm.state_dict().items():
                shape = tuple(value.shape)
                stand_in = torch.from_numpy(np.asarray(standin.tensor_for(name, shape)))
                norm.load_state_dict({**norm.state_dict(), name: stand_in})
    return generator.eval()


def opened(path: Path, **known: Any) -> tuple[ModelCard, dict[str, nn.Module]]:
    """Card and modules, the way ``facestyle.load`` goes."""
    checkpoint = load_checkpoint(path)
    family = detect(checkpoint)
    assert family is FAMILY
    card = checkpoint.card or family.card(checkpoint, known)
    return card, family.modules(checkpoint, card)


def saved(path: Path, content: Mapping[str, Any]) -> Path:
    torch.save(dict(content), path)
    return path


def faces(image_size: int, number: int = 1, seed: int = 0) -> Tensor:
    return torch.from_numpy(standin.image(seed, number, image_size))


# --- Against the published program -----------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    meta = json.loads((GOLDENS / "pix2pix_unet256.json").read_text("utf-8"))
    parts = {
        part: {
            key: torch.from_numpy(np.asarray(standin.tensor_for(f"{part}.{key}", shape)))
            for key, shape in shapes.items()
        }
        for part, shapes in meta["shapes"].items()
    }
    return {"meta": meta, "parts": parts, **np.load(GOLDENS / "pix2pix_unet256.npz")}


def check(found: Any, expected: np.ndarray) -> None:
    found = np.asarray(found)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() / np.abs(expected).max() <= OUTPUT_TOLERANCE


def test_a_published_checkpoint_and_its_discriminator(
    golden: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(tmp_path / "latest_net_G.pth", golden["parts"]["G"])
    model = facestyle.load(path, domains=("photo",))
    path.unlink()  # some 200 MB
    assert model.card == ModelCard(
        family="pix2pix",
        image_size=256,
        domains=("photo",),
        styles=("fixed", "dropout"),
        name="latest_net_G",
    )
    x = standin.image(31, 1, 256, 3)
    image = model.backend.run("generator.photo", x)
    stride = golden["meta"]["stride"]["image"]
    check(image[..., ::stride, ::stride], golden["image"])
    judge = Discriminator()
    judge.load_state_dict(golden["parts"]["D"])
    with torch.inference_mode():
        check(judge.eval()(torch.from_numpy(x), torch.from_numpy(image)), golden["logit"])


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Generator(Sizes()).parameters()) == 54_413_955
        assert sum(p.numel() for p in Discriminator().parameters()) == 2_768_705


def test_dropout_stands_where_it_was_published() -> None:
    for image_size, levels in ((32, 0), (64, 1), (128, 2), (256, 3)):
        network = Generator(small(image_size))
        names = [n for n, module in network.named_modules() if isinstance(module, Dropout)]
        assert len(names) == levels
        # Levels 5 and on, after the norm of what comes back.
        assert all(name.endswith(".model.7") and name.count("model") >= 6 for name in names)


# --- Every variant of the file ---------------------------------------------------------------

VARIANTS = {
    **{f"{2**level} px": small(2**level, width=2) for level in range(5, 11)},
    **{f"{norm} norm": small(norm=norm) for norm in NORMS},
    "odd width": small(width=3),
    "grey in": small(channels_in=1),
    "grey out": small(channels_out=1, norm="instance"),
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_build_save_reload(name: str, tmp_path: Path) -> None:
    sizes = VARIANTS[name]
    generator = built(sizes)
    state = generator.state_dict()
    assert sizes_from_shapes({key: tuple(v.shape) for key, v in state.items()}) == sizes
    x = faces(min(sizes.image_size, 256)).repeat(1, 1, max(1, sizes.image_size // 256), 1)
    x = F.interpolate(x, size=sizes.image_size)
    with torch.inference_mode():
        expected = generator(x)
    assert expected.shape == x.shape
    card, modules = opened(saved(tmp_path / "3_net_G.pth", state))
    assert (card.image_size, card.domains, card.name) == (sizes.image_size, ("B",), "3_net_G")
    assert card.styles == (("fixed", "dropout") if sizes.image_size > 32 else ("fixed",))
    assert set(modules) == {"generator.B", "sampler.B"} if sizes.image_size > 32 else 1
    save_model(tmp_path / "own.safetensors", {"G": state}, card)
    again_card, again = opened(tmp_path / "own.safetensors")
    assert again_card == card
    for loaded in (modules["generator.B"], again["generator.B"]):
        assert not any(module.training for module in loaded.modules())
        with torch.inference_mode():
            assert torch.equal(loaded(x), expected)


def norms_of(generator: nn.Module, kind: type[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [
        (name, module) for name, module in generator.named_modules() if isinstance(module, kind)
    ]


def test_files_of_older_programs(tmp_path: Path) -> None:
    x = faces(64)

    def same(generator: Generator, content: Mapping[str, Any]) -> None:
        loaded = opened(saved(tmp_path / "a.pth", content))[1]["generator.B"]
        with torch.inference_mode():
            assert torch.equal(loaded(x), generator(x))

    # Instance norms had running statistics, which were never used.
    instance = built(small(norm="instance"))
    legacy = instance.state_dict()
    for name, _ in norms_of(instance, InstanceNorm):
        legacy[f"{name}.running_mean"] = torch.randn(8)  # whatever their width
        legacy[f"{name}.running_var"] = torch.rand(8)
    same(instance, legacy)
    for name, _ in norms_of(instance, InstanceNorm):
        legacy[f"{name}.num_batches_tracked"] = torch.tensor(7)
    same(instance, legacy)

    # Batch norms did not count their batches; their statistics are used, and must be there.
    batch = built(small())
    uncounted = {k: v for k, v in batch.state_dict().items() if "num_batches" not in k}
    same(batch, uncounted)
    parts = FAMILY.parts(load_checkpoint(saved(tmp_path / "a.pth", uncounted)))
    assert {k: v.tolist() for k, v in parts["G"].items() if k not in uncounted} == {
        k: 0 for k in batch.state_dict() if k not in uncounted
    }
    lost = {k: v for k, v in uncounted.items() if k != "model.model.1.model.6.running_var"}
    with pytest.raises(CheckpointError, match=r"model\.1\.model\.6\.running_var is missing"):
        opened(saved(tmp_path / "a.pth", lost))

    # What DataParallel and other trainers put around it, and other precisions.
    same(batch, {f"module.{key}": value for key, value in batch.state_dict().items()})
    same(batch, {"state_dict": batch.state_dict(), "epoch": 3})
    same(batch, {k: v.double() if v.is_floating_point() else v for k, v in uncounted.items()})


def test_a_grey_side_is_luma_and_equal_colours() -> None:
    x = faces(64)
    luma = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    with torch.inference_mode():
        grey_in = built(small(channels_in=1))
        assert torch.allclose(grey_in(x), grey_in(luma.repeat(1, 3, 1, 1)), atol=1e-5)
        grey_out = built(small(channels_out=1))(x)
    assert torch.equal(grey_out[:, 0], grey_out[:, 1])
    assert torch.equal(grey_out[:, 0], grey_out[:, 2])


# --- The published test: batch statistics and dropout ----------------------------------------


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_sampler_is_the_generator_in_training_mode(norm: str) -> None:
    generator = built(small(norm=norm, dropout=False))
    sampler, x = Sampler(generator).eval(), faces(64, 3)
    before = copy.deepcopy(generator.state_dict())
    with torch.inference_mode():
        found = sampler(x, torch.tensor([3]))
        assert torch.equal(found, sampler(x, torch.tensor([4])))  # nothing is left to draw
        by_running = generator(x)
        expected = copy.deepcopy(generator).train()(x)
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.equal(found, by_running) == (norm == "instance")
    after = generator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_dropout_comes_from_the_seed_alone(norm: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "edges2faces.pth", built(small(128, norm=norm)).state_dict())
    model = facestyle.load(path)
    x = standin.image(0, 2, 128)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    run = model.backend.run
    first = run("sampler.B", x, np.array([3]))
    plain = run("generator.B", x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert np.array_equal(run("sampler.B", x, np.array([3])), first)
    assert np.array_equal(run("generator.B", x), plain)
    for seed in (4, 0, 2**31):
        assert not np.allclose(run("sampler.B", x, np.array([seed])), first, atol=1e-3)
    # Two equal pictures of one batch are dropped out differently, as published.
    twins = run("sampler.B", np.repeat(x[:1], 2, axis=0), np.array([3]))
    assert not np.allclose(twins[0], twins[1], atol=1e-3)

    # As a user asks for it: no seed is the plain picture.
    assert np.array_equal(model.translate(x, model.style("B", seed=3)), first)
    assert np.array_equal(model.translate(x, model.style()), plain)
    with pytest.raises(UsageError):
        model.style("B", psi=0.5)


def test_a_whole_picture_through_the_pipeline(tmp_path: Path) -> None:
    """``facestyle translate edges.png --model pix2pix.pth --seed 3``: no face is looked for."""
    model = facestyle.load(saved(tmp_path / "a.pth", built(small(64)).state_dict()))
    picture_HWC = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)
    plain, seeded, other = (
        restyle(picture_HWC, model, model.style(seed=seed)) for seed in (None, 3, 4)
    )
    assert plain.shape == seeded.shape == picture_HWC.shape
    assert not np.array_equal(plain[4:44], picture_HWC[4:44])
    assert not np.array_equal(plain, seeded)
    assert not np.array_equal(seeded, other)


def test_dropout_doubles_what_it_keeps() -> None:
    ones = torch.ones(4, 8, 32, 32)
    dropped = Dropout()(ones, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0.0, 1 / (1 - DROPOUT)}
    assert abs(float(dropped.mean()) - 1) < 0.05
    assert torch.equal(Dropout().eval()(ones), ones)
    assert set(Dropout().train()(ones).unique().tolist()) == {0.0, 2.0}


def test_the_instance_norm_is_torchs() -> None:
    x = faces(32, 2) * 3 + 1
    assert torch.allclose(InstanceNorm()(x), nn.InstanceNorm2d(3)(x), atol=1e-5)
    constant = torch.full((1, 2, 2, 2), 3.0)
    assert torch.allclose(InstanceNorm()(constant), torch.zeros_like(constant), atol=1e-3)


# --- What is not pix2pix ---------------------------------------------------------------------

SHAPES = {k: tuple(v.shape) for k, v in Generator(small(32)).state_dict().items()}
STRANGERS: dict[str, Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    "nothing": {},
    "an empty part": {"": {}},
    "CycleGAN's ResNet": {"": {"model.1.weight": (64, 3, 7, 7), "model.26.weight": (3, 64, 7, 7)}},
    "a discriminator": {"": {k: tuple(v.shape) for k, v in Discriminator().state_dict().items()}},
    "two generators": {"G_A": SHAPES, "G_B": SHAPES},
    "BicycleGAN, z everywhere": {
        "": {"model.down.0.weight": (64, 11, 4, 4), "model.up.1.weight": (128, 3, 4, 4)}
    },
    "BicycleGAN, z at the input": {"": {**SHAPES, "model.model.0.weight": (4, 11, 4, 4)}},
    "lightness to colours": {
        "": {
            **SHAPES,
            "model.model.0.weight": (4, 1, 4, 4),
            "model.model.3.weight": (8, 2, 4, 4),
        }
    },
    "a resize in place of a transposed convolution": {
        "": {k: v for k, v in SHAPES.items() if not k.startswith("model.model.3.")}
    },
    "other kernels": {"": {**SHAPES, "model.model.0.weight": (4, 3, 3, 3)}},
    "a vector": {"": {**SHAPES, "model.model.0.weight": (4,)}},
    "no width": {"": {**SHAPES, "model.model.0.weight": (0, 3, 4, 4)}},
    "too shallow": {
        "": {k: v for k, v in SHAPES.items() if not k.startswith("model.model.1.model.3.model.3.")}
    },
    "too deep": {
        "": {
            **SHAPES,
            **{f"model.model.1{'.model.3' * n}.model.1.weight": (1, 1, 4, 4) for n in range(40)},
        }
    },
}


@pytest.mark.parametrize("name", list(STRANGERS))
def test_what_is_not_pix2pix(name: str) -> None:
    misfit = FAMILY.misfit(STRANGERS[name])
    assert misfit
    assert "\n" not in misfit


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.model.1.model.1.weight", None, "model.model.1.model.1.weight"),
        ("model.model.1.model.2.bias", None, "model.model.1.model.2.bias is missing"),
        ("model.model.3.bias", torch.zeros(4), r"model.model.3.bias has shape \(4,\)"),
        ("model.model.1.model.1.bias", torch.zeros(8), "model.1.bias is not part"),
        ("model.model.0.weight", torch.zeros(5, 3, 4, 4), "has shape"),
        ("model.model.1.model.9.running_mean", torch.zeros(8), "running_mean is not part"),
        ("model.model.1.model.2.weight", torch.zeros(8).long(), "holds torch.int64"),
    ],
)
def test_tensors_that_do_not_fit(key: str, value: Any, said: str, tmp_path: Path) -> None:
    state = {k: v for k, v in built(small(32)).state_dict().items() if k != key}
    path = saved(tmp_path / "a.pth", state if value is None else {**state, key: value})
    with pytest.raises(CheckpointError, match=said):
        opened(path)


def test_a_card_that_contradicts_its_tensors(tmp_path: Path) -> None:
    state = built(small()).state_dict()
    card = ModelCard(family="pix2pix", image_size=64, domains=("B",), styles=("fixed",))
    path = tmp_path / "a.safetensors"
    for wrong in (replace(card, image_size=32), replace(card, domains=("A", "B"))):
        save_model(path, {"G": state}, wrong)
        with pytest.raises(CheckpointError, match="its card says"):
            opened(path)
    # A card without dropout offers no seed.
    save_model(path, {"G": state}, card)
    model = facestyle.load(path)
    assert model.backend.roles == ("generator.B",)
    with pytest.raises(UsageError):
        model.style(seed=3)
    with pytest.raises(UsageError, match="one kind of picture"):
        facestyle.load(saved(tmp_path / "a.pth", state), domains=("edges", "photos"))


# --- Losses and the step ---------------------------------------------------------------------

TINY = Config(image_size=32, load_size=36, width=4, judge_width=4, constant_steps=2, decay_steps=4)


def batch_of(number: int, step: int, image_size: int = 32) -> dict[str, Tensor]:
    return {
        "x_NCHW": faces(image_size, number, seed=2 * step),
        "y_NCHW": faces(image_size, number, seed=2 * step + 1),
    }


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0]]]])
    # -log sigmoid(0), -log sigmoid(2); and toward 0, with the signs turned.
    assert float(cross_entropy(logits, real=True)) == pytest.approx((0.693147 + 0.126928) / 2)
    assert float(cross_entropy(logits, real=False)) == pytest.approx((0.693147 + 2.126928) / 2)
    rates = [learning_rate(TINY, step) / TINY.lr for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0, 0])


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_step_by_hand(norm: str) -> None:
    """Three iterations against the same sums written out with torch's own modules and losses."""
    torch.manual_seed(0)
    task = Task(replace(TINY, norm=norm))
    generator, judge = (copy.deepcopy(task.networks[part]) for part in ("G", "D"))
    opt_g, opt_d = (
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for net in (generator, judge)
    )
    bce = nn.BCEWithLogitsLoss()

    def judged(*pair: Tensor) -> Tensor:
        logits: Tensor = judge.model(torch.cat(pair, 1))
        return logits

    for step in range(4):
        for opt in (opt_g, opt_d):
            opt.param_groups[0]["lr"] = 2e-4 * min(1.0, 1 - (step - 2) / 4)
        x, y = batch_of(1, step).values()
        fake = generator(x)
        logits = judged(x, fake.detach())
        d_fake = bce(logits, torch.zeros_like(logits))
        logits = judged(x, y)
        d_real = bce(logits, torch.ones_like(logits))
        opt_d.zero_grad()
        ((d_fake + d_real) * 0.5).backward()
        opt_d.step()
        logits = judged(x, fake)
        g_adv, g_l1 = bce(logits, torch.ones_like(logits)), 100 * nn.L1Loss()(fake, y)
        opt_g.zero_grad()
        (g_adv + g_l1).backward()
        opt_g.step()
        expected = {"D/fake": d_fake, "D/real": d_real, "G/adv": g_adv, "G/l1": g_l1}
        found = task.step(batch_of(1, step))
        assert found == pytest.approx({n: v.item() for n, v in expected.items()}, rel=1e-4)
    for part, net in (("G", generator), ("D", judge)):
        mine = task.networks[part].state_dict()
        for name, value in net.state_dict().items():
            # A bias before an instance norm has no effect: its gradient is all rounding.
            if norm == "batch" or name.endswith("weight"):
                assert torch.allclose(mine[name], value, atol=1e-5), name


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    task = Task(Config(image_size=64, load_size=72, width=16, judge_width=16))
    for network in task.networks.values():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | BatchNorm):
                mean = 1.0 if isinstance(module, BatchNorm) else 0.0
                if module.weight.numel() > 1000:
                    assert module.weight.std().item() == pytest.approx(INIT_DEVIATION, rel=0.1)
                assert module.weight.mean().item() == pytest.approx(mean, abs=0.02)
                assert module.bias is None or not module.bias.any()


def run(task: Task, steps: range, number: int = 2) -> list[dict[str, float]]:
    losses = []
    for step in steps:
        torch.manual_seed(step)  # as the loop does; dropout depends on it
        losses.append(task.step(batch_of(number, step, task.config.image_size)))
    return losses


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    config = replace(TINY, image_size=64, load_size=72)
    assert sizes_of(config).drops_at(5)
    torch.manual_seed(0)
    straight = Task(config)
    whole = run(straight, range(4))
    torch.manual_seed(0)
    first = Task(config)
    begun = run(first, range(2))
    torch.save(first.state_dict(), tmp_path / "0000002.pt")
    torch.manual_seed(9)
    second = Task(config)
    second.load_state_dict(torch.load(tmp_path / "0000002.pt", weights_only=True))
    assert second.step_index == 2
    assert begun + run(second, range(2, 4)) == whole
    for part, network in straight.networks.items():
        mine, theirs = network.state_dict(), second.networks[part].state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises((KeyError, RuntimeError)):
        second.load_state_dict({**straight.state_dict(), "networks": {"G": {}, "D": {}}})


@pytest.mark.parametrize("changes", [{}, {"norm": "instance"}, {"dropout": False}])
def test_a_trained_model_loads_from_both_layouts(changes: dict[str, Any], tmp_path: Path) -> None:
    config = replace(TINY, image_size=64, load_size=72, **changes)
    torch.manual_seed(0)
    task = Task(config)
    run(task, range(2))
    card = FAMILY.new_card(config, ("photo",))
    assert card.styles == (("fixed", "dropout") if config.dropout else ("fixed",))
    save_model(tmp_path / "own.safetensors", task.model_parts(), card)
    own = facestyle.load(tmp_path / "own.safetensors")
    assert own.card == card
    ((name, content),) = FAMILY.published(
        load_checkpoint(tmp_path / "own.safetensors").parts, 2
    ).items()
    assert name == "latest_net_G.pth"
    published = facestyle.load(saved(tmp_path / name, content), domains=("photo",))
    x = standin.image(5, 2, 64)
    with torch.inference_mode():
        expected = task.networks["G"].eval()(torch.from_numpy(x)).numpy()
    for model in (own, published):
        assert np.allclose(model.backend.run("generator.photo", x), expected, atol=1e-6)
    if config.dropout:
        seeded = [m.backend.run("sampler.photo", x, np.array([1])) for m in (own, published)]
        assert np.array_equal(*seeded)


def test_it_learns_and_bf16_too() -> None:
    """The output comes nearer to the wanted picture, here the negative."""
    for bf16 in (False, True):
        torch.manual_seed(0)
        task = Task(replace(TINY, width=8, lr=2e-3, constant_steps=100), bf16=bf16)
        l1 = []
        for step in range(40):
            x = faces(32, 4, seed=step % 8)
            l1.append(task.step({"x_NCHW": x, "y_NCHW": -x})["G/l1"])
        assert np.mean(l1[-5:]) < 0.5 * l1[0]
        for network in task.networks.values():
            for value in network.state_dict().values():
                assert value.dtype in (torch.float32, torch.int64)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's, which it hides
def test_compiled_training_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced as always, but not made into C++, which takes minutes.
    traced = partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        task = Task(TINY, compile=compiled)
        losses.append([task.step(batch_of(2, step)) for step in range(2)])
    for ours, theirs in zip(*losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


# --- Settings --------------------------------------------------------------------------------


class Pairs:
    """Stands in for ``training.data.PairedPictures``: B is A's negative."""

    def load_pair(
        self, rng: np.random.Generator, side: int, load_side: int
    ) -> tuple[np.ndarray, np.ndarray]:
        assert (side, load_side) == (32, 36)
        a = rng.uniform(0, 1, (3, side, side)).astype(np.float32)
        return a, -a


def test_a_sample_is_a_pair_from_input_to_target() -> None:
    pictures: Any = Pairs()
    pair, again = (FAMILY.sample(pictures, TINY, np.random.default_rng(0)) for _ in range(2))
    assert pair["x_NCHW"].min() >= 0
    assert np.array_equal(pair["x_NCHW"], again["x_NCHW"])
    assert np.array_equal(pair["x_NCHW"], -pair["y_NCHW"])


def test_ailments() -> None:
    task = Task(TINY)
    assert task.ailments({"D/real": 0.5, "D/fake": 0.4, "G/adv": 1.0, "G/l1": 20.0}) == []
    assert "all fakes" in task.ailments({"D/real": 0.001, "D/fake": 0.002})[0]
    assert "nothing apart" in task.ailments({"D/real": 0.6931, "D/fake": 0.6932})[0]
    assert task.ailments({"D/real": math.nan, "D/fake": 0.1}) == []


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_usable(preset: str) -> None:
    config = replace(FAMILY.config(), **PRESETS[preset][FAMILY.name])
    FAMILY.check(config)
    run = PRESETS[preset]["run"]
    assert run["steps"] == config.constant_steps + config.decay_steps
    with torch.device("meta"):
        Generator(sizes_of(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 100},
        {"image_size": 16},
        {"image_size": 2048, "load_size": 2048},
        {"load_size": 200},
        {"norm": "layer"},
        {"width": 0},
        {"judge_width": 0},
        {"judge_layers": 0},
        {"judge_layers": 7},
        {"decay_steps": 0},
        {"l1": -1.0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"beta1": 1.0},
    ],
)
def test_settings_that_no_network_can_be_built_from(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        FAMILY.check(replace(Config(), **changes))


def test_the_deepest_discriminator_still_judges() -> None:
    config = Config(image_size=32, load_size=32, judge_layers=3)
    FAMILY.check(config)
    x = faces(32)
    assert Discriminator(width=4, layers=3)(x, x).shape == (1, 1, 2, 2)
