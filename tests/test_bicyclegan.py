"""BicycleGAN: published files load as they are, and give the published program's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
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
from facestyle.checkpoint import Checkpoint, load_checkpoint, save_model
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import detect, families
from facestyle.families.bicyclegan import FAMILY
from facestyle.families.bicyclegan.networks import (
    Discriminator,
    Encoder,
    EncoderSizes,
    Generator,
    InstanceNorm,
    Sizes,
    encoder_sizes_from_shapes,
    sizes_from_shapes,
)
from facestyle.families.bicyclegan.objective import (
    Config,
    Task,
    kl_loss,
    learning_rate,
    realness_loss,
)

GOLDENS = Path(__file__).parent / "goldens"
OUTPUT_TOLERANCE = 1e-4  # of an output's largest absolute value (goldens' own rule)
LOSS_TOLERANCE = 1e-3  # relative

State = dict[str, Tensor]


def golden(name: str) -> tuple[dict[str, Any], dict[str, State]]:
    """What was computed, and the weights by part."""
    meta = json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
    parts = {
        part: {
            key: torch.from_numpy(np.asarray(standin.tensor_for(f"{part}.{key}", shape)))
            for key, shape in shapes.items()
        }
        for part, shapes in meta["shapes"].items()
    }
    return meta, parts


def written(folder: Path, parts: Mapping[str, State], name: str = "latest_net_") -> Path:
    """The published files of some parts; the generator's path."""
    for part, state in parts.items():
        torch.save(state, folder / f"{name}{part}.pth")
    return folder / f"{name}G.pth"


def opened(path: Path) -> tuple[ModelCard, dict[str, nn.Module]]:
    """Card and modules, the way ``facestyle.load`` goes."""
    checkpoint = load_checkpoint(path)
    family = detect(checkpoint)
    assert family is FAMILY
    card = checkpoint.card or family.card(checkpoint, {})
    return card, family.modules(checkpoint, card)


def shapes_of(parts: Mapping[str, State]) -> dict[str, dict[str, tuple[int, ...]]]:
    return Checkpoint(path=Path("a.pth"), parts=parts, card=None).shapes()


def off_by(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# --- Against the published program -----------------------------------------------------------


@pytest.mark.slow
def test_the_published_files(tmp_path: Path) -> None:
    meta, parts = golden("bicyclegan_unet256_all")
    outputs = np.load(GOLDENS / "bicyclegan_unet256_all.npz")
    model = facestyle.load(written(tmp_path, {part: parts[part] for part in "GE"}))
    assert model.card == ModelCard(
        family="bicyclegan",
        image_size=256,
        domains=("B",),
        styles=("latent", "reference"),
        latent_dim=8,
        name="latest_net_G",
    )
    x, z, b = standin.image(41, 1, 256, 3), standin.noise(42, 1, 8), standin.image(43, 1, 256, 3)
    image = model.backend.run("generator", x, z)
    mu = model.backend.run("encoder", b)
    with torch.inference_mode():
        encoder = Encoder(encoder_sizes_from_shapes(meta["shapes"]["E"]))
        encoder.load_state_dict(parts["E"])
        logvar = encoder(torch.from_numpy(b))[1]
        discriminator = Discriminator(64, layers=3)
        discriminator.load_state_dict(parts["D"])
        logits = discriminator(torch.from_numpy(image))
    found = {
        "image": image[..., ::4, ::4],
        "mu": mu,
        "logvar": logvar,
        "image_encoded": model.backend.run("generator", x, mu)[..., ::4, ::4],
        "logit0": logits[0],
        "logit1": logits[1],
    }
    assert found.keys() == set(outputs.files)
    for name, array in found.items():
        error = off_by(array, outputs[name])
        assert error <= OUTPUT_TOLERANCE, f"{name} is off by {error:.1e}"

    # A style drawn, and a style read off a reference, through the translator.
    drawn = model.style(seed=3)
    assert drawn.domain == "B"
    assert drawn.code_NS is not None
    assert drawn.code_NS.shape == (1, 8)
    read = model.style_of(b, "B").code_NS
    assert read is not None
    assert np.array_equal(read, mu)


def golden_task(meta: Mapping[str, Any], parts: Mapping[str, State]) -> Task:
    width = meta["ngf"]
    task = Task(
        Config(
            image_size=meta["img_size"],
            load_size=meta["img_size"],
            generator_width=width,
            encoder_width=width,
            discriminator_width=width,
            discriminator_layers=2,
        )
    )
    for part, network in task.networks.items():
        network.load_state_dict(parts[part])
    return task


def golden_batch(meta: Mapping[str, Any], index: int) -> dict[str, Tensor]:
    b, side = 100 * (index + 1), meta["img_size"]
    # The encoded item's noise, then the random item's code.
    codes = np.concatenate([standin.noise(b + 3, 1, 8), standin.noise(b + 4, 1, 8)])
    arrays = {"A": standin.image(b + 1, 2, side), "B": standin.image(b + 2, 2, side), "z": codes}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_the_published_training_step() -> None:
    meta, parts = golden("train_bicyclegan")
    task = golden_task(meta, parts)
    for index, expected in enumerate(meta["losses"]):
        found = task.step(golden_batch(meta, index))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=LOSS_TOLERANCE), f"{name} at {index}"
    for part, sums in meta["after"].items():
        weights = [p.detach().double() for p in task.networks[part].parameters()]
        mean_abs = float(np.mean([float(w.abs().mean()) for w in weights]))
        # A bias before a norm has no gradient but rounding, which Adam makes whole steps of: in
        # float64 these sums are off by 3e-5 too.
        assert mean_abs == pytest.approx(sums["mean_abs"], rel=2e-4), part
        assert sum(float((w**2).sum()) for w in weights) == pytest.approx(sums["sum_sq"], rel=1e-5)


# --- Against a second reading of the names ---------------------------------------------------


def plain_norm(x: Tensor, state: State, name: str) -> Tensor:
    """Batch norm by running statistics where the name has some, else instance norm."""
    if f"{name}.weight" not in state:
        return F.instance_norm(x)
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])


def plain_convolution(x: Tensor, state: State, name: str, **options: Any) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)


def plain_up(x: Tensor, state: State, stem: str, first: int) -> tuple[Tensor, str]:
    """The doubling whose first layer has the number ``first``, and the next layer's name."""
    if f"{stem}.{first}.weight" in state:
        weight, bias = state[f"{stem}.{first}.weight"], state[f"{stem}.{first}.bias"]
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1), f"{stem}.{first + 1}"
    x = F.interpolate(x, scale_factor=2, mode="bilinear")
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return plain_convolution(x, state, f"{stem}.{first + 2}"), f"{stem}.{first + 3}"


def plain_all(state: State, x: Tensor, z: Tensor, stem: str = "model") -> Tensor:
    """A U-Net with the code at every level, from a published state dict alone."""
    y = torch.cat([x, z[:, :, None, None].expand(*z.shape, *x.shape[2:])], 1)
    inner, outermost = f"{stem}.submodule", stem == "model"
    if outermost:
        y = plain_convolution(y, state, f"{stem}.down.0", stride=2, padding=1)
    else:
        y = F.leaky_relu(y, 0.2)
        y = plain_convolution(y, state, f"{stem}.down.1", stride=2, padding=1)
    if f"{inner}.down.1.weight" in state:
        if not outermost:
            y = plain_norm(y, state, f"{stem}.down.2")
        y = plain_all(state, y, z, inner)
    y, after = plain_up(F.relu(y), state, f"{stem}.up", 1)
    return torch.tanh(y) if outermost else torch.cat([plain_norm(y, state, after), x], 1)


def plain_input(state: State, x: Tensor, z: Tensor) -> Tensor:
    """A U-Net with the code beside the picture, from a published state dict alone."""

    def level(x: Tensor, stem: str) -> Tensor:
        outermost = stem == "model.model"
        down = 0 if outermost else 1
        y = x if outermost else F.leaky_relu(x, 0.2)
        y = plain_convolution(y, state, f"{stem}.{down}", stride=2, padding=1)
        inner = f"{stem}.{1 if outermost else 3}.model"
        innermost = f"{inner}.1.weight" not in state
        if not innermost:
            if not outermost:
                y = plain_norm(y, state, f"{stem}.2")
            y = level(y, inner)
        first = 3 if outermost or innermost else 5
        y, after = plain_up(F.relu(y), state, stem, first)
        return torch.tanh(y) if outermost else torch.cat([plain_norm(y, state, after), x], 1)

    return level(
        torch.cat([x, z[:, :, None, None].expand(*z.shape, *x.shape[2:])], 1), "model.model"
    )


def plain_encoder(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """Either encoder, from a published state dict alone."""
    y = plain_convolution(x, state, "conv.0", stride=2, padding=1)
    block = 1
    while f"conv.{block}.shortcut.1.weight" in state:
        stem = f"conv.{block}.conv"
        h = F.leaky_relu(plain_norm(y, state, f"{stem}.0"), 0.2)
        h = plain_convolution(h, state, f"{stem}.2", padding=1)
        h = F.leaky_relu(plain_norm(h, state, f"{stem}.3"), 0.2)
        h = F.avg_pool2d(plain_convolution(h, state, f"{stem}.5.0", padding=1), 2)
        y = h + plain_convolution(F.avg_pool2d(y, 2), state, f"conv.{block}.shortcut.1")
        block += 1
    layer = 2
    while block == 1 and f"conv.{layer}.weight" in state:
        y = plain_convolution(F.leaky_relu(y, 0.2), state, f"conv.{layer}", stride=2, padding=1)
        y = plain_norm(y, state, f"conv.{layer + 1}")
        layer += 3
    h = F.avg_pool2d(F.leaky_relu(y, 0.2), 8)[:, :, 0, 0]
    return tuple(
        F.linear(h, state[f"{head}.0.weight"], state[f"{head}.0.bias"]) for head in ("fc", "fcVar")
    )  # type: ignore[return-value]


def randomised(network: nn.Module) -> State:
    """A state dict whose every value counts, running statistics too."""
    state = {}
    for name, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        state[name] = torch.from_numpy(np.asarray(standin.tensor_for(name, shape)))
    return state


SMALL = Sizes(depth=6, first_width=4, latent_dim=5)
SMALL_ENCODER = EncoderSizes(halvings=3, first_width=4, latent_dim=5)
VARIANTS = {
    f"{where} {norm} {upsample}": replace(SMALL, where_add=where, norm=norm, upsample=upsample)
    for where, norm, upsample in product(
        ("all", "input"), ("instance", "batch"), ("basic", "bilinear")
    )
} | {
    "one number": replace(SMALL, latent_dim=1),
    "16 numbers at the input": replace(SMALL, latent_dim=16, where_add="input"),
    "128 px": replace(SMALL, depth=7),
    "256 px at the input": replace(SMALL, depth=8, where_add="input"),
    "grey": replace(SMALL, input_channels=1),
    "grey at the input": replace(SMALL, input_channels=1, where_add="input", latent_dim=8),
    "odd width": replace(SMALL, first_width=3),
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_variants_of_the_generator(name: str, tmp_path: Path) -> None:
    sizes = VARIANTS[name]
    state = randomised(Generator(sizes))
    encoder_sizes = EncoderSizes(
        kind="conv" if sizes.depth == 7 else "resnet",
        halvings=sizes.depth - 3,
        first_width=3,
        latent_dim=sizes.latent_dim,
        norm=sizes.norm,
    )
    encoder_state = randomised(Encoder(encoder_sizes))
    path = written(tmp_path, {"G": state, "E": encoder_state}, "edges2shoes_net_")
    card, modules = opened(path)
    side = 2**sizes.depth
    assert (card.image_size, card.latent_dim) == (side, sizes.latent_dim)
    assert card.styles == ("latent", "reference")
    assert card.name == "edges2shoes_net_G"

    torch.manual_seed(0)
    x, z = torch.rand(2, 3, side, side) * 2 - 1, torch.randn(2, sizes.latent_dim)
    given = x
    if sizes.input_channels == 1:
        given = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]
    with torch.inference_mode():
        plain = plain_all if sizes.where_add == "all" else plain_input
        assert off_by(modules["generator"](x, z), plain(state, given, z)) < 1e-4
        assert off_by(modules["encoder"](x), plain_encoder(encoder_state, x)[0]) < 1e-4


@pytest.mark.parametrize(
    ("kind", "halvings", "norm"),
    list(product(("resnet", "conv"), (3, 4, 5), ("instance", "batch"))),
)
def test_variants_of_the_encoder(kind: str, halvings: int, norm: str) -> None:
    sizes = replace(SMALL_ENCODER, kind=kind, halvings=halvings, norm=norm)
    network = Encoder(sizes).eval()
    state = randomised(network)
    network.load_state_dict(state)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert encoder_sizes_from_shapes(shapes) == sizes
    x = torch.from_numpy(standin.image(1, 2, sizes.image_size))
    with torch.inference_mode():
        for found, expected in zip(network(x), plain_encoder(state, x), strict=True):
            assert found.shape == (2, 5)
            assert off_by(found, expected) < 1e-4


def test_published_names_of_the_convolutional_encoder() -> None:
    """Where E_NLayers puts its convolutions: no norm after the first, one after the others."""
    kernels = {
        halvings: [
            key
            for key in Encoder(replace(SMALL_ENCODER, kind="conv", halvings=halvings)).state_dict()
            if key.startswith("conv") and key.endswith("weight")
        ]
        for halvings in (4, 5)
    }
    assert kernels[4] == [f"conv.{layer}.weight" for layer in (0, 2, 5, 8)]
    assert kernels[5] == [*kernels[4], "conv.11.weight"]


def test_names_of_a_code_at_the_input() -> None:
    """The U-Net that pix2pix has too, with a bias everywhere."""
    with torch.device("meta"):
        keys = set(Generator(replace(SMALL, where_add="input", depth=7)).state_dict())
    stems = ["model.model.0", "model.model.3", "model.model.1.model.1", "model.model.1.model.5"]
    deepest = "model.model.1" + ".model.3" * 5 + ".model"
    stems += [f"{deepest}.1", f"{deepest}.3"]
    assert {f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")} <= keys
    assert len(keys) == 7 * 4


# --- Files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> dict[str, State]:
    return {
        "G": randomised(Generator(SMALL)),
        "E": randomised(Encoder(SMALL_ENCODER)),
    }


def test_a_generator_alone_offers_no_references(small: dict[str, State], tmp_path: Path) -> None:
    model = facestyle.load(written(tmp_path, {"G": small["G"]}), domains=("cartoon",))
    assert model.card.styles == ("latent",)
    assert model.card.domains == ("cartoon",)
    assert model.backend.roles == ("generator",)
    x = standin.image(1, 1, 64)
    one, two = (model.translate(x, model.style(seed=seed)) for seed in (1, 2))
    assert one.shape == x.shape
    assert np.abs(one - two).max() > 0.01
    with pytest.raises(UsageError, match="reference"):
        model.style_of(x, "cartoon")
    with pytest.raises(UsageError, match="2 domain names"):
        facestyle.load(tmp_path / "latest_net_G.pth", domains=("a", "b"))


@pytest.mark.parametrize("where", ["all", "input"])
def test_buffers_of_old_instance_norms_are_dropped(
    where: str, small: dict[str, State], tmp_path: Path
) -> None:
    network = Generator(replace(SMALL, where_add=where))
    state = randomised(network)
    buffers = {
        f"{name}.{leaf}": torch.zeros(4)
        for name, module in network.named_modules()
        if isinstance(module, InstanceNorm)
        for leaf in ("running_mean", "running_var")
    }
    assert buffers
    path = written(tmp_path, {"G": {**state, **buffers}})
    card, modules = opened(path)
    assert card.latent_dim == 5
    assert FAMILY.parts(load_checkpoint(path))["G"].keys() == state.keys()
    assert modules["generator"].state_dict().keys() == state.keys()


def test_batch_norms_of_old_torch_have_no_count(tmp_path: Path) -> None:
    state = randomised(Generator(replace(SMALL, norm="batch")))
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    _, modules = opened(written(tmp_path, {"G": old}))
    assert modules["generator"].state_dict().keys() == state.keys()


def test_an_encoder_of_larger_pictures_tells_their_side(
    small: dict[str, State], tmp_path: Path
) -> None:
    larger = randomised(Encoder(replace(SMALL_ENCODER, halvings=4)))
    card, modules = opened(written(tmp_path, {"G": small["G"], "E": larger}))
    assert card.image_size == 128
    x = torch.zeros(1, 3, 128, 128)
    with torch.inference_mode():
        assert modules["generator"](x, modules["encoder"](x)).shape == x.shape


def test_an_encoder_of_another_model(small: dict[str, State], tmp_path: Path) -> None:
    for other in (replace(SMALL_ENCODER, latent_dim=8), replace(SMALL_ENCODER, halvings=2)):
        path = written(tmp_path, {"G": small["G"], "E": randomised(Encoder(other))})
        with pytest.raises(CheckpointError, match=r"latest_net_E\.pth"):
            opened(path)
    torch.save(small["G"], tmp_path / "latest_net_E.pth")
    with pytest.raises(CheckpointError, match=r"latest_net_E\.pth beside .* is no BicycleGAN"):
        opened(path)


def changed(state: State, key: str, value: Any) -> State:
    kept = {name: tensor for name, tensor in state.items() if name != key}
    return kept if value is None else {**kept, key: value}


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("G", "model.up.1.bias", None, "G.pth: model.up.1.bias is missing"),
        ("G", "model.submodule.up.1.bias", torch.zeros(3), r"up.1.bias has shape \(3,\)"),
        ("G", "model.extra.weight", torch.zeros(3), "model.extra.weight is not part"),
        ("G", "model.down.0.weight", torch.zeros(4, 10, 4, 4), "pictures of 5 channels"),
        ("G", "model.down.0.weight", torch.zeros(0, 8, 4, 4), "tell no sizes"),
        ("G", "model.down.0.bias", torch.zeros(4).long(), "holds torch.int64"),
        ("G", "model.submodule.down.1.weight", None, "no known family"),
        ("E", "conv.2.shortcut.1.bias", None, "E.pth: conv.2.shortcut.1.bias is missing"),
        ("E", "conv.2.conv.2.weight", torch.zeros(2), r"conv.2.conv.2.weight has shape \(2,\)"),
        ("E", "fcVar.0.extra", torch.zeros(2), "fcVar.0.extra is not part"),
        ("E", "conv.0.weight", torch.zeros(()), "tell no sizes"),
    ],
)
def test_tensors_that_do_not_fit(
    part: str, key: str, value: Any, said: str, small: dict[str, State], tmp_path: Path
) -> None:
    path = written(tmp_path, {**small, part: changed(small[part], key, value)})
    with pytest.raises(CheckpointError, match=said):
        opened(path)


def test_the_encoder_alone_is_named(small: dict[str, State], tmp_path: Path) -> None:
    for kind in ("resnet", "conv"):
        state = randomised(Encoder(replace(SMALL_ENCODER, kind=kind)))
        torch.save(state, tmp_path / "latest_net_E.pth")
        with pytest.raises(CheckpointError, match=r"this is the encoder; give latest_net_G\.pth"):
            opened(tmp_path / "latest_net_E.pth")


def test_who_is_a_bicyclegan_and_who_is_not(small: dict[str, State]) -> None:
    for sizes in VARIANTS.values():
        with torch.device("meta"):
            shapes = shapes_of({"": Generator(sizes).state_dict()})
        fitting = [name for name, family in families().items() if family.misfit(shapes) is None]
        assert fitting == ["bicyclegan"]
    strangers: dict[str, dict[str, State]] = {
        "its discriminator": {"": Discriminator(8, layers=2).state_dict()},
        "its encoder": {"": small["E"]},
        "a classifier": {"": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)).state_dict()},
        "nothing": {"": {}},
        "scalars": {
            "": {"model.down.0.weight": torch.zeros(()), "model.model.0.weight": torch.zeros(3)}
        },
    }
    for name, parts in strangers.items():
        assert FAMILY.misfit(shapes_of(parts)) is not None, name


def test_goldens_of_other_families_are_not_bicyclegans() -> None:
    others = [path for path in GOLDENS.glob("*.json") if "bicyclegan" not in path.name]
    assert others
    for path in others:
        shapes = json.loads(path.read_text("utf-8"))["shapes"]
        for found in (shapes, *({"": part} for part in shapes.values())):
            assert FAMILY.misfit(found) is not None, path.name


def test_a_pix2pix_unet_is_none() -> None:
    """The same names as a code at the input, but for the code."""
    with torch.device("meta"):
        state = Generator(replace(SMALL, where_add="input", latent_dim=0)).state_dict()
    misfit = FAMILY.misfit(shapes_of({"": state}))
    assert misfit is not None
    assert "no latent code" in misfit


def test_our_own_file_and_the_published_ones(small: dict[str, State], tmp_path: Path) -> None:
    card = FAMILY.new_card(Config(image_size=64, load_size=64, latent_dim=5), ("cartoon",))
    save_model(tmp_path / "own.safetensors", small, card)
    again, modules = opened(tmp_path / "own.safetensors")
    assert again == card
    for name, content in FAMILY.published(small, 100).items():
        torch.save(content, tmp_path / name)
    _, published = opened(tmp_path / "latest_net_G.pth")
    x, z = torch.from_numpy(standin.image(1, 2, 64)), torch.from_numpy(standin.noise(2, 2, 5))
    with torch.inference_mode():
        assert torch.equal(modules["generator"](x, z), published["generator"](x, z))
        assert torch.equal(modules["encoder"](x), published["encoder"](x))
    # What a file's parts are called, and a second file: by now all is one model.
    for name in ("own.safetensors", "latest_net_G.pth"):
        assert equal(FAMILY.parts(load_checkpoint(tmp_path / name)), small)
    (tmp_path / "latest_net_E.pth").unlink()
    alone = FAMILY.parts(load_checkpoint(tmp_path / "latest_net_G.pth"))
    assert set(FAMILY.published(alone, 0)) == {"latest_net_G.pth"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 128}, "its card says 128 px"),
        ({"latent_dim": 8}, "latent width 8"),
        ({"domains": ("a", "b")}, r"2 domain\(s\)"),
    ],
)
def test_a_card_that_contradicts_its_tensors(
    changes: dict[str, Any], said: str, small: dict[str, State], tmp_path: Path
) -> None:
    card = FAMILY.new_card(Config(image_size=64, latent_dim=5), ("B",))
    save_model(tmp_path / "a.safetensors", small, replace(card, **changes))
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path / "a.safetensors")
    save_model(tmp_path / "b.safetensors", {"G": small["G"]}, card)
    with pytest.raises(CheckpointError, match="no part 'E'"):
        opened(tmp_path / "b.safetensors")


# --- Training --------------------------------------------------------------------------------

TINY = Config(
    image_size=32,
    load_size=36,
    latent_dim=4,
    generator_width=4,
    encoder_width=4,
    discriminator_width=4,
    discriminator_layers=2,
)


class Pairs:
    """Stand-in pairs, one for each draw."""

    def load_pair(
        self, rng: np.random.Generator, side: int, load_side: int
    ) -> tuple[np.ndarray, np.ndarray]:
        assert load_side >= side
        a, b = rng.uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
        return a, b


def batch_of(config: Config, index: int, size: int = 2) -> dict[str, Tensor]:
    items = [
        FAMILY.sample(Pairs(), config, np.random.default_rng((7, index, place)))  # type: ignore[arg-type]
        for place in range(size)
    ]
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}


def fresh(
    config: Config, *, device: str = "cpu", bf16: bool = False, compile: bool = False
) -> Task:
    torch.manual_seed(0)
    return FAMILY.task(config, 1, device=device, bf16=bf16, compile=compile)


def lively(config: Config) -> Task:
    """A task whose networks answer to every input; fresh ones hardly do."""
    task = fresh(config)
    for network in task.networks.values():
        network.load_state_dict(randomised(network))
    return task


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if isinstance(one, Tensor) else one == two


def test_losses_by_hand() -> None:
    logits = [torch.tensor([0.0, 2.0]), torch.tensor([3.0])]
    assert float(realness_loss(logits, real=True)) == pytest.approx(1 + 4)
    assert float(realness_loss(logits, real=False)) == pytest.approx(2 + 9)
    zero = torch.zeros(2, 3)
    assert float(kl_loss(zero, zero)) == 0
    # KL(N(1, 1) || N(0, 1)) = 1/2, and of N(0, e) it is (e - 2) / 2; a sum over all numbers.
    assert float(kl_loss(zero + 1, zero)) == pytest.approx(6 / 2)
    assert float(kl_loss(zero, zero + 1)) == pytest.approx(6 * (np.e - 2) / 2)


def test_the_learning_rate_is_constant_then_falls_to_0() -> None:
    config = Config(lr=1.0, constant_steps=10, decay_steps=4)
    rates = [learning_rate(config, step) for step in (0, 10, 11, 13, 14, 99)]
    assert rates == [1.0, 1.0, 0.75, 0.25, 0.0, 0.0]
    assert learning_rate(replace(config, decay_steps=0), 10) == 1.0
    task = fresh(replace(TINY, constant_steps=0, decay_steps=2))
    task.step_index = 1
    task.step(batch_of(TINY, 0))
    assert set(task.optimisers.learning_rates().values()) == {1e-4}


def test_one_backward_pass_is_the_published_two() -> None:
    """z-L1 alone must not move the encoder; all else moves both."""
    task, twice = lively(TINY), lively(TINY)
    batch = batch_of(TINY, 0)
    a, b, z = batch["A"], batch["B"], batch["z"]
    losses, _ = task._generator_losses(a[0::2], b[0::2], z[0::2], z[1::2])
    torch.stack(list(losses.values())).sum().backward()

    # Published: the whole graph, then z-L1 with the encoder's gradients held back.
    generator, encoder = twice.networks["G"], twice.networks["E"]
    mu, logvar = encoder(b[:1])
    encoded = generator(a[:1], mu + z[:1] * (0.5 * logvar).exp())
    random = generator(a[:1], z[1:])
    z_l1 = 0.5 * (encoder(random)[0] - z[1:]).abs().mean()
    rest = (
        realness_loss(twice.networks["D"](encoded), real=True)
        + realness_loss(twice.networks["D2"](random), real=True)
        + 0.01 * kl_loss(mu, logvar)
        + 10 * (encoded - b[:1]).abs().mean()
    )
    rest.backward(retain_graph=True)
    held = [parameter.grad.clone() for parameter in encoder.parameters()]
    z_l1.backward()
    moved = [parameter.grad for parameter in encoder.parameters()]
    assert not equal(moved, held)
    for parameter, gradient in zip(encoder.parameters(), held, strict=True):
        parameter.grad = gradient
    for part in "GE":
        for ours, theirs in zip(
            task.networks[part].parameters(), twice.networks[part].parameters(), strict=True
        ):
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert all(parameter.requires_grad for parameter in task.networks["E"].parameters())


def test_what_moves_whom() -> None:
    """Without the other losses, z-L1 moves the generator and not the encoder."""
    task = fresh(replace(TINY, gan=0.0, gan2=0.0, l1=0.0, kl=0.0))
    before = {
        part: {k: v.clone() for k, v in net.state_dict().items()}
        for part, net in task.networks.items()
    }
    task.step(batch_of(TINY, 0))
    assert equal(before["E"], task.networks["E"].state_dict())
    for part in ("G", "D", "D2"):
        assert not equal(before[part], task.networks[part].state_dict())


def test_the_halves_of_a_batch() -> None:
    """Even items are encoded; odd ones give their code and their real B alone."""
    batch = batch_of(TINY, 0, size=4)
    expected = lively(TINY).step(batch)

    def with_changed(name: str, place: int) -> dict[str, float]:
        other = {key: value.clone() for key, value in batch.items()}
        other[name][place] = -other[name][place]
        found = lively(TINY).step(other)
        return {key for key in expected if found[key] != expected[key]}  # type: ignore[return-value]

    assert with_changed("A", 1) == set()
    assert with_changed("B", 3) == {"D2"}
    assert with_changed("z", 1) == {"G_GAN2", "z_L1", "D2"}
    assert with_changed("z", 2) == {"G_GAN", "G_L1", "D"}
    assert {"kl", "G_L1", "G_GAN", "D"} <= set(with_changed("B", 0))


def test_a_pair_of_processes_shares_a_batch_as_one_would_take_it() -> None:
    """Shares are contiguous; each must hold whole couples of an encoded and a random item."""
    batch = batch_of(TINY, 0, size=4)
    whole = lively(TINY).step(batch)
    halves = [
        lively(TINY).step({name: value[part] for name, value in batch.items()})
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name, value in whole.items():
        mean = sum(half[name] for half in halves) / 2
        # One process sums KL over the batch; each of several takes its share times their number.
        assert value == pytest.approx(mean * (2 if name == "kl" else 1), rel=1e-4), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "where_add": "input",
            "encoder": "conv",
            "dropout": True,
            "image_size": 64,
            "load_size": 64,
        },
        {"upsample": "bilinear", "latent_dim": 1},
    ],
)
def test_resuming_equals_going_on(changes: dict[str, Any], tmp_path: Path) -> None:
    config = replace(TINY, **changes)
    FAMILY.check(config)
    straight, first = fresh(config), fresh(config)
    torch.manual_seed(1)
    resumed = Task(config)

    def go(task: Task, *steps: int) -> list[dict[str, float]]:
        found = []
        for step in steps:
            torch.manual_seed(step)  # as the loop does
            found.append(task.step(batch_of(config, step)))
        return found

    expected = go(straight, 0, 1, 2, 3)
    found = go(first, 0, 1)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    found += go(resumed, 2, 3)
    assert found == expected
    assert equal(straight.state_dict(), resumed.state_dict())

    # What it has learned so far is a model that loads.
    card = FAMILY.new_card(config, ("B",))
    save_model(tmp_path / "model.safetensors", straight.model_parts(), card)
    again, modules = opened(tmp_path / "model.safetensors")
    assert again == card
    x = batch_of(config, 9)["A"]
    z = torch.randn(2, config.latent_dim)
    with torch.inference_mode():
        for module in modules.values():
            module.to(memory_format=torch.channels_last)  # as training and backends have it
        trained = {part: network.eval() for part, network in straight.networks.items()}
        assert torch.equal(modules["generator"](x, z), trained["G"](x, z))
        assert torch.equal(modules["encoder"](x), trained["E"](x)[0])


def test_bf16_stays_near_fp32() -> None:
    batch = batch_of(TINY, 0)
    plain, half = fresh(TINY).step(batch), fresh(TINY, bf16=True).step(batch)
    for name, value in plain.items():
        assert half[name] == pytest.approx(value, rel=0.05, abs=1e-3), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler, of its own doing
def test_compiled_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The freezes of a step reach compiled graphs; no C++ is made, which takes minutes."""
    traced = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    plain, compiled = fresh(TINY), fresh(TINY, compile=True)
    for step in range(2):
        expected, found = (task.step(batch_of(TINY, step)) for task in (plain, compiled))
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    assert plain.model_parts()["G"].keys() == compiled.model_parts()["G"].keys()


def test_a_batch_must_be_even() -> None:
    with pytest.raises(UsageError, match="3 pairs, expected an even number"):
        fresh(TINY).step(batch_of(TINY, 0, size=3))


def test_an_item_is_a_pure_function_of_its_randomness() -> None:
    one, two = (batch_of(TINY, 5) for _ in range(2))
    assert equal(one, two)
    assert one["A"].shape == one["B"].shape == (2, 3, 32, 32)
    assert one["z"].shape == (2, 4)
    assert not torch.equal(one["z"][0], one["z"][1])


def test_what_ails_a_run() -> None:
    task = fresh(TINY)
    well = {"G_GAN": 0.5, "G_GAN2": 0.5, "kl": 0.1, "G_L1": 2.0, "z_L1": 0.2, "D": 1.0, "D2": 1.0}
    assert task.ailments(well) == []
    assert "D2 tells all" in task.ailments({**well, "D2": 0.001})[0]
    silent = {**well, "kl": 0.0005}
    assert task.ailments(silent) == []
    task.step_index = 2000
    assert "no effect" in task.ailments(silent)[0]
    assert task.ailments(well) == []
    assert fresh(replace(TINY, kl=0.0)).ailments({**well, "kl": 0.0}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 100}, "image_size is 100.*nearest: 128"),
        ({"image_size": 16}, "from 32 to 1024"),
        ({"load_size": 255}, "load_size is 255, expected 256"),
        ({"where_add": "middle"}, "where_add is 'middle', expected all or input"),
        ({"encoder": "vgg"}, "encoder is 'vgg'"),
        ({"upsample": "nearest"}, "upsample is 'nearest'"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"discriminator_width": 1}, "discriminator_width is 1, expected 2"),
        ({"discriminator_layers": 6}, "discriminator_layers is 6, too many at 256 px.*the most: 5"),
        ({"kl": float("nan")}, "kl is nan"),
        ({"z": -1.0}, "z is -1.0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
    ],
)
def test_settings_that_make_no_networks(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FAMILY.check(replace(Config(), **changes))


def test_discriminators_reach_the_limit_that_is_checked() -> None:
    for side, layers in ((32, 2), (64, 3)):
        FAMILY.check(replace(Config(), image_size=side, discriminator_layers=layers))
        for logits in Discriminator(4, layers)(torch.zeros(1, 3, side, side)):
            assert logits.numel() > 0
        with pytest.raises(UsageError):
            FAMILY.check(replace(Config(), image_size=side, discriminator_layers=layers + 1))


def test_presets() -> None:
    from facestyle.training.config import resolve

    run, config = resolve(FAMILY, "paper", {})
    assert (config, run.batch_size) == (Config(), 2)
    run, config = resolve(FAMILY, "compact", {})
    assert (config.image_size, run.precision, run.compile) == (64, "auto", True)
    assert run.batch_size % 2 == 0
    assert run.steps == config.constant_steps + config.decay_steps


# --- Arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_fast_norm_is_the_instance_norm(mean: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 5, 16, 16) + mean).to(memory_format=layout)
    weight = torch.randn_like(x)
    results = []
    for norm in (InstanceNorm(), nn.InstanceNorm2d(5)):
        inner = x.clone().requires_grad_()
        output = norm(inner)
        (gradient,) = torch.autograd.grad((output.tanh() * weight).sum(), inner)
        results.append((output.detach(), gradient))
    # The value's own rounding is the mean's, 100 · 2^-24, times the gain.
    tolerance = 1e-5 * max(1.0, mean / 10)
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.parametrize("where", ["all", "input"])
def test_memory_layout_does_not_change_a_generator(where: str) -> None:
    generator = Generator(replace(SMALL, where_add=where)).eval()
    generator.load_state_dict(randomised(generator))
    x, z = torch.from_numpy(standin.image(1, 2, 64)), torch.from_numpy(standin.noise(2, 2, 5))
    with torch.inference_mode():
        expected = generator(x, z)
        generator.to(memory_format=torch.channels_last)
        found = generator(x.contiguous(memory_format=torch.channels_last), z)
    assert off_by(found, expected) < 1e-4


def test_sizes_are_read_as_they_were_built() -> None:
    with torch.device("meta"):
        for sizes in VARIANTS.values():
            state = Generator(sizes).state_dict()
            shapes = {key: tuple(value.shape) for key, value in state.items()}
            assert sizes_from_shapes(shapes, sizes.latent_dim) == sizes
        widths = [SMALL.width(level) for level in range(6)]
    assert widths == [4, 8, 16, 32, 32, 32]
    assert all(wider >= wide for wide, wider in pairwise(widths))
