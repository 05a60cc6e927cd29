"""CycleGAN: published files load as they are, and give the published program's numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
import torch
from torch import Tensor, nn

import facestyle
from facestyle.card import ModelCard
from facestyle.checkpoint import load_checkpoint, save_model
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import detect
from facestyle.families.cyclegan import FAMILY
from facestyle.families.cyclegan.networks import Discriminator, Generator, Sizes
from facestyle.families.cyclegan.objective import (
    Config,
    Task,
    ailments,
    discriminator_loss,
    l1,
    learning_rate,
    realness_loss,
)
from facestyle.nn.adversarial import ReplayPool
from facestyle.nn.norms import instance_norm
from facestyle.training.config import resolve

GOLDENS = Path(__file__).parent / "goldens"
OUTPUT_TOLERANCE = 1e-4  # of an output's largest absolute value (goldens' own rule)
LOSS_TOLERANCE = 1e-3  # relative (goldens' own rule)

State = dict[str, Tensor]


def golden(name: str) -> tuple[dict[str, Any], dict[str, State]]:
    """What was computed, and the weights of each network."""
    meta = json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
    parts = {
        part: {
            key: torch.from_numpy(np.asarray(standin.tensor_for(f"{part}.{key}", shape)))
            for key, shape in shapes.items()
        }
        for part, shapes in meta["shapes"].items()
    }
    return meta, parts


def error(found: Any, expected: Any) -> float:
    """The largest difference as a share of the largest expected value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


# --- Against the published program -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cyclegan_resnet9_128", "latest_net_G_A.pth"),
        ("cyclegan_resnet9_legacy_64", "latest_net_G.pth"),
    ],
)
def test_the_published_outputs(name: str, file: str, tmp_path: Path) -> None:
    meta, parts = golden(name)
    expected = np.load(GOLDENS / f"{name}.npz")
    model = facestyle.load(saved(tmp_path / file, parts["G"]), domains=("zebra",))
    assert model.card == ModelCard(
        family="cyclegan",
        image_size=256,
        domains=("zebra",),
        styles=("fixed",),
        pasted="crop",
        name=file.removesuffix(".pth"),
    )
    assert model.backend.roles == ("generator.zebra",)
    image = model.backend.run("generator.zebra", standin.image(31, 1, meta["img_size"]))
    stride = meta.get("stride", {}).get("image", 1)
    assert error(image[..., ::stride, ::stride], expected["image"]) <= OUTPUT_TOLERANCE
    judge = Discriminator()
    judge.load_state_dict(parts["D"])
    with torch.inference_mode():
        assert error(judge(torch.from_numpy(image)), expected["logit"]) <= OUTPUT_TOLERANCE


def test_the_published_training_step() -> None:
    meta, parts = golden("train_cyclegan")
    hyper = meta["hyper"]
    task = Task(
        Config(
            image_size=meta["img_size"],
            generator_width=meta["ngf"],
            discriminator_width=meta["ndf"],
            blocks=6,
            lr=hyper["lr"],
            cycle_A=hyper["lambda_A"],
            cycle_B=hyper["lambda_B"],
            identity=hyper["lambda_identity"],
            pool=0,
        )
    )
    for part, state in parts.items():
        task.networks[part].load_state_dict(state)
    for i, expected in enumerate(meta["losses"]):
        batch = {
            name: torch.from_numpy(standin.image(100 * (i + 1) + place, 1, meta["img_size"]))
            for place, name in ((1, "A"), (2, "B"))
        }
        assert task.step(batch) == pytest.approx(expected, rel=LOSS_TOLERANCE)
    for part, expected in meta["after"].items():
        tensors = [p.detach().double() for p in task.networks[part].parameters()]
        assert sum(float(t.square().sum()) for t in tensors) == pytest.approx(
            expected["sum_sq"], rel=1e-5
        )
        assert np.mean([float(t.abs().mean()) for t in tensors]) == pytest.approx(
            expected["mean_abs"], rel=LOSS_TOLERANCE
        )


def test_the_papers_settings() -> None:
    run, config = resolve(FAMILY, "paper", {})
    assert (run.steps, run.batch_size) == (200_000, 1)
    with torch.device("meta"):
        generator = Generator(Sizes(width=config.generator_width, blocks=config.blocks))
    assert sum(p.numel() for p in generator.parameters()) == 11_378_179
    assert (config.lr, config.beta1, config.pool) == (2e-4, 0.5, 50)
    assert (config.cycle_A, config.cycle_B, config.identity) == (10, 10, 0.5)
    assert (config.load_size, config.image_size) == (286, 256)
    task = Task(replace(SMALL, generator_width=16))
    weights = torch.cat([p.flatten() for n, p in _parameters(task) if n.endswith("weight")])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02)
    assert all(not p.any() for n, p in _parameters(task) if n.endswith("bias"))


def _parameters(task: Task) -> list[tuple[str, Tensor]]:
    return [
        (name, value.detach())
        for net in task.networks.values()
        for name, value in net.named_parameters()
    ]


# --- Files -----------------------------------------------------------------------------------


class ReferenceBlock(nn.Module):
    """The published residual block in torch's own layers."""

    def __init__(self, width: int, norm: Any, dropout: bool, bias: bool) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm(width)]
        layers += [nn.ReLU(True), *([nn.Dropout(0.5)] if dropout else [])]
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm(width)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Reference(nn.Module):
    """The published generator in torch's own layers."""

    def __init__(self, width: int, blocks: int, norm: Any, dropout: bool, bias: bool) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7, bias=bias), norm(width), nn.ReLU()]
        for wide in (width, 2 * width):
            convolution = nn.Conv2d(wide, 2 * wide, 3, stride=2, padding=1, bias=bias)
            layers += [convolution, norm(2 * wide), nn.ReLU()]
        layers += [ReferenceBlock(4 * width, norm, dropout, bias) for _ in range(blocks)]
        for wide in (4 * width, 2 * width):
            double = nn.ConvTranspose2d(wide, wide // 2, 3, 2, 1, output_padding=1, bias=bias)
            layers += [double, norm(wide // 2), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def reference(
    *, width: int = 4, blocks: int = 2, batch: bool = False, dropout: bool = False, seed: int = 0
) -> Reference:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d if batch else nn.InstanceNorm2d
    built = Reference(width, blocks, norm, dropout, bias=not batch)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0, 0.1)
    return built.eval()


def with_legacy_buffers(state: Mapping[str, Tensor]) -> State:
    """What instance norms of old torch added to a file without dropout."""
    norms = {
        f"{name.rpartition('.')[0].rpartition('.')[0]}.{int(name.split('.')[-2]) + 1}": len(value)
        for name, value in state.items()
        if name.endswith("bias") and len(value) != 3
    }
    buffers: State = {}
    for name, width in norms.items():
        buffers[f"{name}.running_mean"] = torch.full((width,), 9.0)
        buffers[f"{name}.running_var"] = torch.full((width,), 9.0)
        buffers[f"{name}.num_batches_tracked"] = torch.tensor(9)
    return {**state, **buffers}


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one block": {"blocks": 1},
    "six blocks": {"blocks": 6},
    "eleven blocks": {"blocks": 11, "width": 2},
    "width": {"width": 7},
    "dropout": {"dropout": True},
    "batch norm": {"batch": True},
    "batch norm and dropout": {"batch": True, "dropout": True},
}
X = standin.image(5, 2, 32)


def answer(network: nn.Module, x: np.ndarray = X) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_variants_of_the_network(variant: str, tmp_path: Path) -> None:
    network = reference(**VARIANTS[variant])
    path = saved(tmp_path / "monet2photo.pth", network.state_dict())
    model = facestyle.load(path)
    assert (model.card.name, model.card.domains) == ("monet2photo", ("B",))
    assert error(model.backend.run("generator.B", X), answer(network)) < 1e-5
    # Our own format with the same tensors, as a conversion would write it.
    own = tmp_path / "own.safetensors"
    save_model(own, FAMILY.parts(load_checkpoint(path)), model.card)
    again = facestyle.load(own)
    assert again.card == model.card
    assert np.array_equal(again.backend.run("generator.B", X), model.backend.run("generator.B", X))


@pytest.mark.parametrize(
    "wrapped", ["plain", "module.", "state_dict", "half", "legacy", "no count"]
)
def test_variants_of_the_file(wrapped: str, tmp_path: Path) -> None:
    network = reference(batch=wrapped == "no count")
    state = dict(network.state_dict())
    content: dict[str, Any] = {
        "module.": {f"module.{name}": value for name, value in state.items()},
        "state_dict": {"state_dict": state, "epoch": 200},
        "half": {name: value.half() for name, value in state.items()},
        "legacy": with_legacy_buffers(state),
        # torch before 0.4.1
        "no count": {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    }.get(wrapped, state)
    assert wrapped != "legacy" or len(content) == len(state) + 3 * 9
    model = facestyle.load(saved(tmp_path / "a.pth", content))
    tolerance = 2e-2 if wrapped == "half" else 1e-5
    assert error(model.backend.run("generator.B", X), answer(network)) < tolerance


def two_files(folder: Path, epoch: str = "latest") -> tuple[Path, Path, Reference, Reference]:
    a, b = reference(seed=1), reference(seed=2, blocks=3)
    path_a = saved(folder / f"{epoch}_net_G_A.pth", a.state_dict())
    path_b = saved(folder / f"{epoch}_net_G_B.pth", b.state_dict())
    saved(folder / f"{epoch}_net_D_A.pth", Discriminator(4).state_dict())
    return path_a, path_b, a, b


@pytest.mark.parametrize("epoch", ["latest", "200"])
@pytest.mark.parametrize("given", ["G_A", "G_B"])
def test_both_directions_beside_each_other(given: str, epoch: str, tmp_path: Path) -> None:
    path_a, path_b, a, b = two_files(tmp_path, epoch)
    path = path_a if given == "G_A" else path_b
    assert facestyle.load(path).card.domains == ("A", "B")
    model = facestyle.load(path, domains=("horse", "zebra"))
    assert model.card.domains == ("horse", "zebra")
    assert set(model.backend.roles) == {"generator.horse", "generator.zebra"}
    assert error(model.backend.run("generator.zebra", X), answer(a)) < 1e-5
    assert error(model.backend.run("generator.horse", X), answer(b)) < 1e-5


def test_one_direction_alone(tmp_path: Path) -> None:
    path_a, path_b, a, b = two_files(tmp_path)
    path_b.rename(tmp_path / "b")
    model = facestyle.load(path_a)
    assert model.backend.roles == ("generator.B",)
    assert error(model.backend.run("generator.B", X), answer(a)) < 1e-5
    path_a.unlink()
    (tmp_path / "b").rename(path_b)
    model = facestyle.load(path_b)
    assert model.card.domains == ("A",)
    assert error(model.backend.run("generator.A", X), answer(b)) < 1e-5
    model = facestyle.load(path_b, domains=("horse",))
    assert error(model.backend.run("generator.horse", X), answer(b)) < 1e-5


def test_both_directions_in_our_own_format(tmp_path: Path) -> None:
    path_a, _, a, b = two_files(tmp_path)
    parts = FAMILY.parts(load_checkpoint(path_a))
    assert same(parts, {"G_A": a.state_dict(), "G_B": b.state_dict()})
    own = tmp_path / "latest_net_G_A.safetensors"
    save_model(own, parts, facestyle.load(path_a, domains=("horse", "zebra")).card)
    model = facestyle.load(own)
    assert error(model.backend.run("generator.zebra", X), answer(a)) < 1e-5
    assert error(model.backend.run("generator.horse", X), answer(b)) < 1e-5
    # And back.
    (tmp_path / "published").mkdir()
    for name, content in FAMILY.published(load_checkpoint(own).parts, 100).items():
        saved(tmp_path / "published" / name, content)
    back = facestyle.load(tmp_path / "published" / "latest_net_G_B.pth", domains=("horse", "zebra"))
    for role in back.backend.roles:
        assert np.array_equal(back.backend.run(role, X), model.backend.run(role, X))


def test_one_direction_in_our_own_format_and_back(tmp_path: Path) -> None:
    network = reference()
    path = saved(tmp_path / "old.pth", with_legacy_buffers(network.state_dict()))
    parts = FAMILY.parts(load_checkpoint(path))
    assert same(parts, {"G_A": network.state_dict()})
    (file, content), *others = FAMILY.published(parts, 100).items()
    assert (file, others) == ("latest_net_G.pth", [])
    assert same(content, dict(network.state_dict()))
    other_way = saved(tmp_path / "latest_net_G_B.pth", network.state_dict())
    assert list(FAMILY.published(FAMILY.parts(load_checkpoint(other_way)), 1)) == [other_way.name]
    own = tmp_path / "own.safetensors"
    save_model(
        own,
        FAMILY.parts(load_checkpoint(other_way)),
        facestyle.load(other_way, domains=("h",)).card,
    )
    assert error(facestyle.load(own).backend.run("generator.h", X), answer(network)) < 1e-5


def test_a_file_beside_it_that_does_not_belong(tmp_path: Path) -> None:
    path_a, path_b, *_ = two_files(tmp_path)
    saved(path_b, Discriminator(4).state_dict())
    with pytest.raises(CheckpointError, match=r"net_G_B\.pth beside latest_net_G_A"):
        facestyle.load(path_a)
    path_b.write_bytes(path_a.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"latest_net_G_B\.pth is corrupt"):
        facestyle.load(path_a)


@pytest.mark.parametrize(
    ("names", "said"),
    [(("a", "b"), "name the one domain"), (("a", "b", "c"), "3 domain names")],
)
def test_domain_names_that_do_not_fit(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", reference().state_dict())
    with pytest.raises(UsageError, match=said):
        facestyle.load(path, domains=names)


def test_two_directions_need_two_names(tmp_path: Path) -> None:
    path, *_ = two_files(tmp_path)
    for names in (("a",), ("a", "a")):
        with pytest.raises(UsageError):
            facestyle.load(path, domains=names)


def test_a_card_that_contradicts_its_tensors(tmp_path: Path) -> None:
    state, path = reference().state_dict(), tmp_path / "a.safetensors"
    save_model(path, {"G_A": state}, FAMILY.new_card(SMALL, ("horse", "zebra")))
    with pytest.raises(CheckpointError, match=r"its card says 2 domain\(s\), it has 1 generator"):
        facestyle.load(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.1.bias", None, "model.1.bias is missing"),
        ("model.11.conv_block.5.weight", None, "model.11.conv_block.5.weight is missing"),
        ("model.19.weight", None, "model.19.weight is missing"),
        ("model.12.weight", torch.zeros(3, 5, 3, 3), r"model.12.weight has shape \(3, 5, 3, 3\)"),
        ("model.19.bias", torch.zeros(4), r"model.19.bias has shape \(4,\), expected \(3,\)"),
        ("model.4.bias", torch.zeros(8).long(), "model.4.bias holds torch.int64"),
        ("extra.weight", torch.zeros(1), "extra.weight is not part of this network"),
        ("model.4.running_mean", torch.zeros(8), "model.4.running_mean is not part"),
        ("model.2.extra", torch.zeros(1), "model.2.extra is not part"),
        ("model.1.weight", None, "no known family"),
        ("model.10.conv_block.1.weight", None, "no known family"),
        ("model.1.weight", torch.zeros(4, 1, 7, 7), r"\(4, 1, 7, 7\), expected \(any, 3, 7, 7\)"),
        ("model.1.weight", torch.zeros(4), "no known family"),
        ("model.1.weight", torch.zeros(0, 3, 7, 7), "tell no sizes"),
    ],
)
def test_tensors_that_do_not_fit(key: str, value: Any, said: str, tmp_path: Path) -> None:
    state = {**reference().state_dict(), key: value}
    path = saved(tmp_path / "a.pth", {k: v for k, v in state.items() if v is not None})
    with pytest.raises(CheckpointError, match=said):
        facestyle.load(path)


def test_strangers_are_refused() -> None:
    """Shapes of other systems' networks, and of this family's own discriminator."""
    strangers: dict[str, dict[str, tuple[int, ...]]] = {
        "PatchGAN": {k: tuple(v.shape) for k, v in Discriminator(8).state_dict().items()},
        "pix2pix": {"model.model.0.weight": (64, 3, 4, 4), "model.model.1.model.1.weight": (1,)},
        "StarGAN": {"main.0.weight": (64, 8, 7, 7), "main.9.main.0.weight": (256, 256, 3, 3)},
        "BicycleGAN G": {"model.down.0.weight": (64, 11, 4, 4)},
        "BicycleGAN E": {"conv.0.weight": (64, 3, 4, 4), "fc.0.weight": (8, 256)},
        "U-GAT-IT D": {"model.1.weight_orig": (64, 3, 4, 4), "model.1.bias": (64,)},
        "pix2pixHD": {"model.1.weight": (64, 3, 7, 7), "model.16.conv_block.1.weight": (1,)},
        "CUT": {"model.1.weight": (64, 3, 7, 7), "model.7.filt": (128, 1, 3, 3)},
        "classifier": {"0.weight": (64, 3, 3, 3), "fc.weight": (10, 64)},
        "conv stack": {"model.1.weight": (64, 3, 7, 7), "model.4.weight": (64, 64, 3, 3)},
    }
    for name, shapes in strangers.items():
        assert FAMILY.misfit({"": shapes}) is not None, name
    for part in ("generator", "genA2B", "D_A"):
        ours = {k: tuple(v.shape) for k, v in reference().state_dict().items()}
        assert FAMILY.misfit({part: ours}) == "it has no part 'G_A' or 'G_B'"
    for variant in VARIANTS.values():
        ours = {k: tuple(v.shape) for k, v in reference(**variant).state_dict().items()}
        assert FAMILY.misfit({"": ours}) is None
        assert FAMILY.misfit({"G_A": ours, "G_B": ours}) is None


# --- Arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_fast_norm_is_the_instance_norm(mean: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 5, 16, 16) + mean).to(memory_format=layout).requires_grad_()
    weight = torch.randn(3, 5, 16, 16)
    results = [norm(x) for norm in (instance_norm, nn.InstanceNorm2d(5))]
    gradients = [torch.autograd.grad((y.tanh() * weight).sum(), x)[0] for y in results]
    # The value's own rounding is the mean's, 100 · 2^-24, times the gain.
    tolerance = 1e-5 * max(1.0, mean / 10)
    for ours, theirs in (results, gradients):
        assert float((ours - theirs).detach().abs().max()) <= tolerance
    half = instance_norm(x.detach().bfloat16())
    assert half.dtype == torch.bfloat16
    flat = torch.full((1, 2, 4, 4), 3.0)
    assert float(instance_norm(flat).abs().max()) < 1e-3


def test_losses_by_hand() -> None:
    logits = torch.tensor([0.0, 1.0, 3.0])
    assert float(realness_loss(logits, real=True)) == pytest.approx((1 + 0 + 4) / 3)
    assert float(realness_loss(logits, real=False)) == pytest.approx((0 + 1 + 9) / 3)
    assert float(l1(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0]))) == 2
    # Half of each: to guess (0.5 for everything) costs a quarter.
    guess = torch.full((4,), 0.5)
    assert float(discriminator_loss(guess, guess)) == pytest.approx(0.25)
    assert float(discriminator_loss(torch.ones(4), torch.zeros(4))) == 0


def test_the_learning_rate_is_constant_and_then_falls_to_nothing() -> None:
    config = Config(lr=2.0, constant_steps=10, decay_steps=20)
    found = [learning_rate(config, step) for step in (0, 10, 15, 20, 29)]
    assert found == pytest.approx([2, 2, 1.5, 1, 0.1])
    assert learning_rate(config, 30) == learning_rate(config, 99) == 0
    assert learning_rate(replace(config, decay_steps=0), 10) == 2  # the last step of all


def test_what_losses_say() -> None:
    healthy = {"D_A": 0.2, "D_B": 0.1, "G_A": 0.4, "G_B": 0.5}
    assert ailments(healthy) == []
    (won,) = ailments(healthy | {"D_A": 0.001})
    assert "D_A is hardly ever wrong" in won
    (lost,) = ailments(healthy | {"G_B": 7.0})
    assert "G_B is 7" in lost


def one(value: float) -> Tensor:
    return torch.full((1, 3, 2, 2), value)


def values(pictures: Tensor) -> list[float]:
    return pictures[:, 0, 0, 0].tolist()


def test_the_replay_pool() -> None:
    pool = ReplayPool(2, 2, torch.device("cpu"))
    keep, swap = torch.tensor([0.1]), torch.tensor([0.9])
    slot0, slot1 = torch.tensor([0]), torch.tensor([1])
    # While it fills, what comes in is shown, whatever the draw.
    assert values(pool.shown(one(1), swap, slot0)) == [1]
    assert values(pool.shown(one(2), keep, slot0)) == [2]
    assert values(pool.pictures_KCHW) == [1, 2]
    # Then the new one is shown and forgotten, or kept and an earlier one shown.
    assert values(pool.shown(one(3), keep, slot1)) == [3]
    assert values(pool.pictures_KCHW) == [1, 2]
    assert values(pool.shown(one(4), swap, slot1)) == [2]
    assert values(pool.pictures_KCHW) == [1, 4]
    # Of a batch, one picture after the other, with its own draw.
    shown = pool.shown(
        torch.cat([one(5), one(6), one(7)]),
        torch.tensor([0.9, 0.2, 0.9]),
        torch.tensor([0, 0, 0]),
    )
    assert values(shown) == [1, 6, 5]
    assert values(pool.pictures_KCHW) == [7, 4]
    # What is not finite does not come back.
    pool.shown(one(float("nan")), swap, slot0)
    assert bool(torch.isfinite(pool.pictures_KCHW).all())


def test_a_pool_that_fills_within_a_batch() -> None:
    pool = ReplayPool(1, 2, torch.device("cpu"))
    shown = pool.shown(torch.cat([one(1), one(2)]), torch.ones(2), torch.zeros(2, dtype=torch.long))
    assert values(shown) == [1, 1]
    assert values(pool.pictures_KCHW) == [2]


# --- Training --------------------------------------------------------------------------------

SMALL = Config(
    image_size=32,
    load_size=36,
    generator_width=4,
    blocks=1,
    discriminator_width=4,
    constant_steps=3,
    decay_steps=5,
    pool=3,
)


class Pictures:
    """Two domains of random pictures, as ``sample`` uses them."""

    domains = ("a", "b")

    def jittered(
        self, domain: int, rng: np.random.Generator, side: int, load_side: int
    ) -> np.ndarray:
        assert load_side > side
        return rng.uniform(domain - 1, domain, (3, side, side)).astype(np.float32)


def batch_of(step: int, config: Config = SMALL, size: int = 2) -> dict[str, Tensor]:
    items = [
        FAMILY.sample(Pictures(), config, np.random.default_rng((step, j)))  # type: ignore[arg-type]
        for j in range(size)
    ]
    stacked = {
        name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]
    }
    return {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in stacked.items()
    }


def new_task(config: Config = SMALL, *, bf16: bool = False, compile: bool = False) -> Task:
    torch.manual_seed(0)
    return FAMILY.task(config, 2, device="cpu", bf16=bf16, compile=compile)


def test_an_item_is_a_pure_function_of_its_random_stream() -> None:
    first, again, other = (batch_of(step) for step in (1, 1, 2))
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["A"], other["A"])
    assert first["A"].max() <= 0 <= first["B"].min()
    many = [batch_of(step) for step in range(100)]
    slots = {int(slot) for batch in many for slot in batch["pool_A_slot"]}
    assert slots == set(range(SMALL.pool))
    swaps = torch.cat([batch["pool_B_swap"] for batch in many])
    assert 0.4 < float((swaps >= 0.5).float().mean()) < 0.6
    batch_of(0, replace(SMALL, pool=0))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_resume_is_the_uninterrupted_run(tmp_path: Path) -> None:
    whole = new_task()
    losses = [whole.step(batch_of(step)) for step in range(7)]
    half = new_task()
    for step in range(3):
        half.step(batch_of(step))
    saved(tmp_path / "checkpoint.pt", half.state_dict())
    torch.manual_seed(9)
    resumed = Task(SMALL)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert [resumed.step(batch_of(step)) for step in range(3, 7)] == losses[3:]
    assert same(resumed.state_dict(), whole.state_dict())
    assert resumed.pools["A"].filled == SMALL.pool

    state = half.state_dict()
    state["networks"] = {"G_A": state["networks"]["G_A"]}
    with pytest.raises(KeyError):
        resumed.load_state_dict(state)


def test_the_schedule_reaches_the_optimisers() -> None:
    task = new_task()
    rates = []
    for step in range(9):
        task.step(batch_of(step))
        rates.append(task.optimisers.learning_rates())
    expected = [learning_rate(SMALL, step) for step in range(9)]
    assert [rate["generators"] for rate in rates] == expected
    assert [rate["discriminators"] for rate in rates] == expected
    before = task.state_dict()["networks"]
    before = {part: {k: v.clone() for k, v in net.items()} for part, net in before.items()}
    task.step(batch_of(9))
    assert same(before, task.state_dict()["networks"])


def test_each_half_of_a_step_trains_its_own_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    task = new_task()
    updates: list[tuple[str, set[str]]] = []

    def record(loss: Tensor, *names: str) -> bool:
        for net in task.networks.values():
            net.zero_grad()
        loss.backward()
        graded = {
            part
            for part, net in task.networks.items()
            if any(p.grad is not None for p in net.parameters())
        }
        updates.extend((name, graded) for name in names)
        return True

    monkeypatch.setattr(task.optimisers, "update", record)
    task.step(batch_of(0))
    assert updates == [("generators", {"G_A", "G_B"}), ("discriminators", {"D_A", "D_B"})]


def test_the_identity_loss_can_be_left_out() -> None:
    config = replace(SMALL, pool=0)
    with_it, without = new_task(config), new_task(replace(config, identity=0.0))
    full, bare = with_it.step(batch_of(0, config)), without.step(batch_of(0, config))
    assert full.keys() - bare.keys() == {"idt_A", "idt_B"}
    # Before the first update nothing else differs.
    for name in ("G_A", "G_B", "cycle_A", "cycle_B"):
        assert bare[name] == pytest.approx(full[name], rel=1e-5)


def test_a_batch_is_the_mean_of_its_pictures() -> None:
    config = replace(SMALL, pool=0)
    both = batch_of(0, config)
    mean = new_task(config).step(both)
    alone = [
        new_task(config).step({name: value[j : j + 1] for name, value in both.items()})
        for j in range(2)
    ]
    for name in ("G_A", "cycle_B", "idt_A"):
        assert mean[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2, rel=1e-5)


def test_a_poisoned_batch_costs_one_iteration() -> None:
    task = new_task()
    for step in range(4):
        task.step(batch_of(step))
    poisoned = batch_of(4)
    poisoned["A"][0, 0, 0, 0] = float("nan")
    task.step(poisoned)
    assert task.optimisers.skipped > 0
    skipped = task.optimisers.skipped
    for step in range(5, 12):
        assert all(np.isfinite(list(task.step(batch_of(step)).values())))
    assert task.optimisers.skipped == skipped


def test_bf16_is_near_fp32() -> None:
    config = replace(SMALL, pool=0)
    exact, rough = new_task(config), new_task(config, bf16=True)
    batch = batch_of(0, config)
    expected, found = exact.step(batch), rough.step(batch)
    assert found == pytest.approx(expected, rel=0.05)
    assert all(p.dtype == torch.float32 for _, p in _parameters(rough))


def test_the_finished_model_loads_and_gives_the_same_pictures(tmp_path: Path) -> None:
    task = new_task()
    task.step(batch_of(0))
    path = tmp_path / "model.safetensors"
    save_model(path, task.model_parts(), FAMILY.new_card(SMALL, ("woman", "man")))
    model = facestyle.load(path)
    assert detect(load_checkpoint(path)).name == "cyclegan"
    assert (model.card.image_size, model.card.domains) == (32, ("woman", "man"))
    for trained, loaded in (("G_B", "woman"), ("G_A", "man")):
        expected = answer(task.networks[trained])
        assert error(model.backend.run(f"generator.{loaded}", X), expected) < 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 30},
        {"image_size": 28},
        {"image_size": 4096},
        {"load_size": 255},
        {"blocks": 0},
        {"generator_width": 0},
        {"discriminator_width": -1},
        {"pool": -1},
        {"identity": -0.5},
        {"lr": 0.0},
        {"beta1": 1.0},
        {"decay_steps": -1},
    ],
)
def test_settings_that_do_not_work(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        FAMILY.check(replace(FAMILY.config(), **changes))


def test_the_compact_preset() -> None:
    run, config = resolve(FAMILY, "compact", {})
    assert (config.image_size, config.blocks, run.precision, run.compile) == (64, 6, "auto", True)
    assert config.constant_steps + config.decay_steps == run.steps


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler, of its own doing
def test_a_compiled_step_is_the_step() -> None:
    config = replace(SMALL, pool=1)
    plain, compiled = new_task(config), new_task(config, compile=True)
    # Adam makes a whole step of the rounding of gradients that should be 0 (a bias before a norm).
    for step, tolerance in enumerate((1e-5, 1e-2)):
        batch = batch_of(step, config)
        assert compiled.step(batch) == pytest.approx(plain.step(batch), rel=tolerance)
    assert set(compiled.model_parts()["G_A"]) == set(plain.model_parts()["G_A"])


SHARED_RUN = """
import os, sys, torch, torch.distributed as dist
sys.path[:0] = [{tests!r}, {tests!r} + "/goldens"]
rank, out = int(sys.argv[1]), {out!r}
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{{out}}.join", rank=rank, world_size=2)
from test_cyclegan import batch_of, new_task
task = new_task()
for step in range(4):
    task.step({{name: value.chunk(2)[rank] for name, value in batch_of(step).items()}})
if rank == 0:
    torch.save(task.state_dict()["pools"], out)
dist.barrier()
dist.destroy_process_group()  # gloo's threads abort a process that leaves without it
os._exit(0)  # and, seldom, under load, one that has done so: what is asserted is in the file
"""


@pytest.mark.slow
def test_two_processes_keep_the_pool_of_one(tmp_path: Path) -> None:
    out = str(tmp_path / "pools.pt")
    code = SHARED_RUN.format(tests=str(Path(__file__).parent), out=out)
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    task = new_task()
    for step in range(4):
        task.step(batch_of(step))
    together = torch.load(out, weights_only=True)
    for name, pool in task.pools.items():
        assert torch.allclose(together[name]["pictures"], pool.pictures_KCHW, atol=1e-3)
