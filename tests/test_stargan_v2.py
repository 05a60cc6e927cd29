"""StarGAN v2: published files load as they are, and give the published program's numbers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import facestyle
from facestyle import weights
from facestyle.card import ModelCard
from facestyle.checkpoint import Checkpoint, load_checkpoint, save_model
from facestyle.errors import CheckpointError, UsageError, WeightsError
from facestyle.families import detect
from facestyle.families.stargan_v2 import FAMILY, LANDMARK_FILE, landmark_network
from facestyle.families.stargan_v2.networks import (
    Discriminator,
    Generator,
    HighPass,
    InstanceNorm,
    MappingNetwork,
    MaskedGenerator,
    Sizes,
    StyleEncoder,
    built_generator,
    high_pass_masks,
    instance_norm,
    landmark_heatmaps,
    sizes_from_shapes,
)
from facestyle.families.stargan_v2.objective import Config, Task
from facestyle.training.origin import adopt

GOLDENS = Path(__file__).parent / "goldens"
OUTPUT_TOLERANCE = 1e-4  # of an output's largest absolute value (goldens' own rule)
PART_ROLES = {"generator": "generator", "mapping_network": "mapping", "style_encoder": "encoder"}

State = dict[str, Tensor]


class Golden:
    """One golden: what was computed, its outputs, its weights in the published layout."""

    def __init__(self, name: str) -> None:
        self.meta = json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
        self.outputs = dict(np.load(GOLDENS / f"{name}.npz"))
        self.parts: dict[str, State] = {
            part: {
                key: torch.from_numpy(np.asarray(standin.tensor_for(f"{part}.{key}", shape)))
                for key, shape in shapes.items()
            }
            for part, shapes in self.meta["shapes"].items()
        }
        self.x = standin.image(1, 2, self.meta["img_size"])
        self.reference = standin.image(2, 2, self.meta["img_size"])
        self.z = standin.noise(3, 2, 16)
        self.y = np.array([0, 1])

    def check(self, output: str, found: Any) -> None:
        """Compare with the published program's output."""
        found, expected = np.asarray(found), self.outputs[output]
        stride = self.meta.get("stride", {}).get(output, 1)
        if stride > 1:
            found = found[..., ::stride, ::stride]
        assert found.shape == expected.shape
        worst = np.abs(found - expected).max() / np.abs(expected).max()
        assert worst <= OUTPUT_TOLERANCE, f"{output} is off by {worst:.1e}"


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Iterator[None]:
    """pytest keeps the folders of its last runs; these files have some 300 MB each."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def plain() -> Golden:
    return Golden("stargan_v2_64_3domains")


@pytest.fixture(scope="module")
def hpf() -> Golden:
    return Golden("stargan_v2_128_hpf")


def saved(path: Path, content: Mapping[str, Any], *, prefix: str = "") -> Path:
    """A published file: every part's keys behind ``prefix``."""
    torch.save(
        {
            part: {prefix + key: value for key, value in state.items()}
            for part, state in content.items()
        },
        path,
    )
    return path


def without(parts: Mapping[str, State], *left_out: str) -> dict[str, State]:
    """The parts but some, or but some of their tensors (``part.key``)."""
    return {
        part: {key: value for key, value in state.items() if f"{part}.{key}" not in left_out}
        for part, state in parts.items()
        if part not in left_out
    }


def opened(path: Path, **known: Any) -> tuple[ModelCard, dict[str, nn.Module]]:
    """Card and modules, the way ``facestyle.load`` goes."""
    checkpoint = load_checkpoint(path)
    family = detect(checkpoint)
    assert family is FAMILY
    card = checkpoint.card or family.card(checkpoint, known)
    return card, family.modules(checkpoint, card)


def same_weights(modules: Mapping[str, nn.Module], parts: Mapping[str, State]) -> bool:
    """Whether every role holds exactly its part (and the FAN, where there is one)."""
    generator = modules["generator"]
    inner = generator.generator if isinstance(generator, MaskedGenerator) else generator
    states = {role: module.state_dict() for role, module in modules.items()}
    states["generator"] = inner.state_dict()
    wanted = {PART_ROLES[part]: state for part, state in parts.items() if part in PART_ROLES}
    if isinstance(generator, MaskedGenerator):
        states["fan"], wanted["fan"] = generator.fan.state_dict(), parts["fan"]
    return states.keys() == wanted.keys() and all(
        states[role].keys() == wanted[role].keys()
        and all(torch.equal(states[role][key], wanted[role][key]) for key in wanted[role])
        for role in wanted
    )


# --- Against the published program -----------------------------------------------------------


@pytest.mark.slow
def test_a_published_checkpoint_of_three_domains(plain: Golden, tmp_path: Path) -> None:
    path = saved(tmp_path / "000100_nets_ema.ckpt", without(plain.parts, "discriminator"))
    model = facestyle.load(path, domains=("cat", "dog", "wild"))
    assert model.card == ModelCard(
        family="stargan-v2",
        image_size=64,
        domains=("cat", "dog", "wild"),
        styles=("latent", "reference"),
        latent_dim=16,
        name="000100_nets_ema",
    )
    run = model.backend.run
    latent = run("mapping", plain.z, plain.y)
    reference = run("encoder", plain.reference, plain.y)
    plain.check("style_latent", latent)
    plain.check("style_reference", reference)
    plain.check("image_latent", run("generator", plain.x, latent))
    plain.check("image_reference", run("generator", plain.x, reference))


@pytest.mark.slow
def test_a_published_checkpoint_with_the_high_pass(hpf: Golden, tmp_path: Path) -> None:
    path = saved(tmp_path / "a_nets.ckpt", hpf.parts)
    card, modules = opened(path, domains=("female", "male"))
    assert (card.image_size, card.domains) == (128, ("female", "male"))
    masked = modules["generator"]
    assert isinstance(masked, MaskedGenerator)
    with torch.inference_mode():
        x, y = torch.from_numpy(hpf.x), torch.from_numpy(hpf.y)
        latent = modules["mapping"](torch.from_numpy(hpf.z), y)
        reference = modules["encoder"](torch.from_numpy(hpf.reference), y)
        masks = high_pass_masks(torch.from_numpy(standin.landmark_heatmaps(2)))
        hpf.check("style_latent", latent)
        hpf.check("style_reference", reference)
        hpf.check("mask0", masks[0])
        hpf.check("mask1", masks[1])
        hpf.check("image_latent", masked.generator(x, latent, masks))
        hpf.check("image_reference", masked.generator(x, reference, masks))
        small = F.interpolate(x, size=256, mode="bilinear") * 0.5 + 0.5
        hpf.check("fan_heatmap", masked.fan(small)[0][-1][:, :-1][:, ::14])


@pytest.mark.parametrize("name", ["plain", "hpf"])
def test_the_discriminator(name: str, request: pytest.FixtureRequest) -> None:
    golden: Golden = request.getfixturevalue(name)
    network = Discriminator(sizes_from_shapes(golden.meta["shapes"]))
    network.load_state_dict(golden.parts["discriminator"])
    with torch.inference_mode():
        golden.check("logit", network(torch.from_numpy(golden.x), torch.from_numpy(golden.y)))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("ema", [True, False])
def test_variants_of_the_file(ema: bool, prefix: str, plain: Golden, tmp_path: Path) -> None:
    content = without(plain.parts, "discriminator") if ema else plain.parts
    path = saved(tmp_path / f"000100_nets{'_ema' * ema}.ckpt", content, prefix=prefix)
    card, modules = opened(path)
    assert card.domains == ("0", "1", "2")
    assert same_weights(modules, plain.parts)


def test_a_run_begins_with_a_published_file_that_lacks_the_high_passs_constant(
    tmp_path: Path,
) -> None:
    config = Config(image_size=16, first_width=4, max_width=8, mapping_width=8, w_hpf=1.0)
    torch.manual_seed(0)
    published, task = (Task(config, 2, fan=nn.Conv2d(1, 1, 1)) for _ in range(2))
    content = without(dict(published.model_parts()), "generator.hpf.filter")
    path = saved(tmp_path / "100000_nets_ema.ckpt", content)
    found = FAMILY.parts(load_checkpoint(path))["generator"]["hpf.filter"]
    assert torch.equal(found, published.networks["generator"].get_buffer("hpf.filter"))
    adopt(task, FAMILY, FAMILY.new_card(config, ("female", "male")), path)
    for name, tensor in published.networks["generator"].state_dict().items():
        assert torch.equal(task.networks["generator"].state_dict()[name], tensor), name


@pytest.mark.slow
def test_variants_of_the_file_with_the_high_pass(hpf: Golden, tmp_path: Path) -> None:
    # As published: no discriminator, no kernel, "module." before every name, the FAN inside.
    content = without(hpf.parts, "discriminator", "generator.hpf.filter")
    path = saved(tmp_path / "100000_nets_ema.ckpt", content, prefix="module.")
    card, modules = opened(path, domains=("female", "male"))
    assert same_weights(modules, hpf.parts)

    # Saved again in our own format, without the FAN, which lies beside it.
    own = tmp_path / "own.safetensors"
    save_model(own, without(hpf.parts, "discriminator", "fan"), card)
    with pytest.raises(WeightsError) as caught:
        opened(own)
    entry = weights.index()["stargan-v2-wing"]
    assert caught.value.exit_code == 4
    assert str(entry.url) in str(caught.value)
    assert str(weights.cache_dir()) in str(caught.value)
    torch.save(hpf.parts["fan"], tmp_path / LANDMARK_FILE)
    assert same_weights(opened(own)[1], hpf.parts)
    torch.save({"state_dict": hpf.parts["fan"], "epoch": 3}, tmp_path / LANDMARK_FILE)
    assert same_weights(opened(own)[1], hpf.parts)

    # In the cache instead, under the index's name.
    weights.cache_dir().mkdir(parents=True)
    (tmp_path / LANDMARK_FILE).rename(weights.cache_dir() / entry.file)
    assert same_weights(opened(own)[1], hpf.parts)
    (weights.cache_dir() / entry.file).unlink()

    # Another network's file beside it is an error that names the first key.
    torch.save(hpf.parts["mapping_network"], tmp_path / LANDMARK_FILE)
    with pytest.raises(CheckpointError, match=f"{LANDMARK_FILE}: fan.*is missing"):
        opened(own)


def test_the_landmark_network_makes_masks_of_a_face(hpf: Golden, tmp_path: Path) -> None:
    saved(tmp_path / "a.ckpt", {"fan": hpf.parts["fan"]})
    fan = landmark_network(load_checkpoint(tmp_path / "a.ckpt"))
    x = torch.from_numpy(hpf.x[:1]).requires_grad_()
    heatmaps = landmark_heatmaps(fan, x)
    assert heatmaps.shape == (1, 98, 256, 256)
    assert not heatmaps.requires_grad
    masks = high_pass_masks(heatmaps.clone())
    for mask in masks:
        assert mask.shape == (1, 1, 256, 256)
        assert mask.min() >= 0
        assert mask.max() <= 1

    torch.manual_seed(0)
    generator = Generator(replace(SMALL, image_size=128, first_width=4, w_hpf=1.0))
    s = torch.randn(1, 64)
    with torch.inference_mode():
        found = MaskedGenerator(generator, fan)(x, s)
        assert torch.equal(found, generator(x, s, masks))
        assert not torch.equal(found, generator(x, s))


# --- Any size --------------------------------------------------------------------------------


def networks_of(sizes: Sizes) -> dict[str, nn.Module]:
    return {
        "generator": built_generator(sizes),
        "mapping_network": MappingNetwork(sizes),
        "style_encoder": StyleEncoder(sizes),
    }


def checkpoint_of(parts: Mapping[str, State], name: str = "a.ckpt") -> Checkpoint:
    return Checkpoint(path=Path(name), parts=parts, card=None)


SMALL = Sizes(image_size=32, first_width=8, max_width=16, mapping_width=24)
VARIANTS = {
    "16 px": replace(SMALL, image_size=16),
    "64 px": replace(SMALL, image_size=64),
    "128 px": replace(SMALL, image_size=128, first_width=4),
    "256 px": replace(SMALL, image_size=256, first_width=4, max_width=8),
    "512 px": replace(SMALL, image_size=512, first_width=2, max_width=4),
    "one domain": replace(SMALL, domains=1),
    "ten domains": replace(SMALL, domains=10),
    "latent width": replace(SMALL, latent_dim=5),
    "style width": replace(SMALL, style_dim=7),
    "mapping width": replace(SMALL, mapping_width=100),
    "odd width": replace(SMALL, first_width=6, max_width=20),
    "max width 64": replace(SMALL, first_width=32, max_width=64),
    "wide encoder": replace(SMALL, image_size=64, max_width=64),
    "equal widths": replace(SMALL, first_width=16, max_width=16),
    "high-pass 1": replace(SMALL, image_size=64, w_hpf=1.0),
    "high-pass 0.5": replace(SMALL, image_size=64, w_hpf=0.5),
    "high-pass 256 px": replace(SMALL, image_size=256, first_width=4, max_width=8, w_hpf=1.0),
    "painter": replace(SMALL, painter_blocks=2),
    "painter 16 px": replace(SMALL, image_size=16, painter_blocks=1),
    "painter 128 px": replace(SMALL, image_size=128, first_width=4, painter_blocks=3),
    "painter that moves": replace(SMALL, painter_blocks=1, shaper=128),
    "plain encoder": replace(SMALL, plain_encoder=True),
    "plain encoder, wide": replace(SMALL, image_size=64, max_width=64, plain_encoder=True),
    "painter, plain encoder": replace(
        SMALL, image_size=128, first_width=4, painter_blocks=3, plain_encoder=True
    ),
}


@pytest.fixture(scope="module")
def fan_state() -> State:
    """A FAN with random weights."""
    torch.manual_seed(0)
    from facestyle.families.stargan_v2 import _fan

    return dict(_fan().state_dict())


@pytest.mark.parametrize("name", list(VARIANTS))
def test_build_save_reload(name: str, fan_state: State, tmp_path: Path) -> None:
    sizes = VARIANTS[name]
    torch.manual_seed(0)
    built = networks_of(sizes)
    parts = {part: network.state_dict() for part, network in built.items()}
    if sizes.w_hpf > 0:
        torch.save(fan_state, tmp_path / LANDMARK_FILE)
    card, modules = opened(saved(tmp_path / "a.ckpt", parts))
    assert (card.image_size, len(card.domains)) == (sizes.image_size, sizes.domains)
    save_model(tmp_path / "a.safetensors", parts, card)
    again_card, again = opened(tmp_path / "a.safetensors")
    assert again_card == card

    x = torch.rand(2, 3, sizes.image_size, sizes.image_size) * 2 - 1
    z, y = torch.randn(2, sizes.latent_dim), torch.tensor([0, sizes.domains - 1])
    masks = [tuple(torch.rand(2, 1, 256, 256) for _ in range(2))] if sizes.w_hpf > 0 else []
    with torch.inference_mode():
        styles = [built["mapping_network"](z, y), built["style_encoder"](x, y)]
        fake = built["generator"](x, styles[0], *masks)
        assert fake.shape == x.shape
        for loaded in (modules, again):
            generator = loaded["generator"]
            inner = generator.generator if isinstance(generator, MaskedGenerator) else generator
            assert not generator.training
            assert torch.equal(loaded["mapping"](z, y), styles[0])
            assert torch.equal(loaded["encoder"](x, y), styles[1])
            assert torch.equal(inner(x, styles[0], *masks), fake)


def test_published_widths_without_a_style_encoder(tmp_path: Path) -> None:
    """The published rule: first width = 2^14 / image size."""
    with torch.device("meta"):
        for side in (128, 256, 512):
            for w_hpf in (0.0, 1.0):
                sizes = Sizes(image_size=side, first_width=2**14 // side, w_hpf=w_hpf)
                shapes = {
                    part: {key: tuple(value.shape) for key, value in network.state_dict().items()}
                    for part, network in networks_of(sizes).items()
                    if part != "style_encoder"
                }
                shapes["generator"].pop("hpf.filter", None)
                assert sizes_from_shapes(shapes) == sizes


def test_latent_styles_alone(tmp_path: Path) -> None:
    """A file without a style encoder offers no references; its kernel tells the high-pass."""
    sizes = replace(SMALL, image_size=64, first_width=256, max_width=256)
    torch.manual_seed(0)
    parts = {part: network.state_dict() for part, network in networks_of(sizes).items()}
    del parts["style_encoder"]
    card, modules = opened(saved(tmp_path / "a.ckpt", parts))
    assert card.styles == ("latent",)
    assert set(modules) == {"generator", "mapping"}
    compact = networks_of(replace(SMALL, image_size=64, w_hpf=0.5))
    del compact["style_encoder"]
    checkpoint = checkpoint_of({part: net.state_dict() for part, net in compact.items()})
    assert FAMILY.card(checkpoint, {}).image_size == 64


def test_parameter_counts_of_the_paper() -> None:
    def count(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    with torch.device("meta"):
        celeba, afhq = Sizes(w_hpf=1.0), Sizes(domains=3)
        assert count(Generator(celeba)) == 43_467_395
        assert count(MappingNetwork(celeba)) == 2_438_272
        assert count(StyleEncoder(celeba)) == 20_916_928
        assert count(Discriminator(celeba)) == 20_852_290
        assert count(Generator(afhq)) == 33_892_995
        assert len(Generator(celeba).encode) == len(Generator(celeba).decode) == 7
        assert len(Generator(afhq).encode) == 6


# --- What does not fit -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> dict[str, State]:
    torch.manual_seed(0)
    return {part: net.state_dict() for part, net in networks_of(SMALL).items()}


def changed(small: Mapping[str, State], part: str, key: str, value: Any) -> dict[str, State]:
    state = {name: tensor for name, tensor in small[part].items() if name != key}
    return {**small, part: state if value is None else {**state, key: value}}


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("generator", "encode.1.conv1.bias", None, "generator.encode.1.conv1.bias is missing"),
        ("generator", "decode.0.norm1.fc.bias", torch.zeros(3), r"has shape \(3,\)"),
        ("generator", "extra.weight", torch.zeros(3), "generator.extra.weight is not part"),
        ("generator", "from_rgb.weight", torch.zeros(()), "tell no sizes"),
        ("generator", "from_rgb.weight", torch.zeros(0, 3, 3, 3), "is missing|shape|tell no"),
        ("generator", "from_rgb.weight", torch.zeros(10**6, 0), "is missing|shape|tell no"),
        ("generator", "from_rgb.weight", None, "no known family"),
        ("generator", "hpf.filter", torch.zeros(3, 3), "tell no sizes"),
        ("generator", "hpf.filter", torch.ones(3, 3), "4 encode blocks|3 encode blocks"),
        ("generator", "hpf.filter", torch.ones(()), "tell no sizes"),
        ("mapping_network", "shared.0.weight", torch.zeros(24), "tell no sizes"),
        ("mapping_network", "unshared.1.6.bias", None, "unshared.1.6.bias is missing"),
        ("style_encoder", "unshared.0.bias", torch.zeros(64).long(), "holds torch.int64"),
        ("style_encoder", "shared.9.conv1.weight", torch.zeros(1), "encode blocks"),
    ],
)
def test_tensors_that_do_not_fit(
    part: str, key: str, value: Any, said: str, small: dict[str, State], tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.ckpt", changed(small, part, key, value))
    with pytest.raises(CheckpointError, match=said):
        opened(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 64},
        {"domains": ("a", "b", "c")},
        {"domains": ("a",)},
        {"latent_dim": 8},
    ],
)
def test_a_card_that_contradicts_its_tensors(
    changes: dict[str, Any], small: dict[str, State], tmp_path: Path
) -> None:
    card = FAMILY.card(checkpoint_of(small), {})
    save_model(tmp_path / "a.safetensors", small, replace(card, **changes))
    with pytest.raises(CheckpointError, match="its card says"):
        opened(tmp_path / "a.safetensors")


def test_a_card_that_offers_references_without_an_encoder(
    small: dict[str, State], tmp_path: Path
) -> None:
    card = FAMILY.card(checkpoint_of(small), {})
    published = without(small, "style_encoder")
    published["discriminator"] = Discriminator(SMALL).state_dict()
    save_model(tmp_path / "a.safetensors", published, card)
    with pytest.raises(CheckpointError, match="no part 'style_encoder'"):
        opened(tmp_path / "a.safetensors")


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a", "a")])
def test_domain_names_that_do_not_fit(
    names: tuple[str, ...], small: dict[str, State], tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.ckpt", small)
    with pytest.raises(UsageError) as caught:
        facestyle.load(path, domains=names)
    assert caught.value.exit_code == 2


# --- Arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_fast_norm_is_the_instance_norm(mean: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    fast, slow = InstanceNorm(5), nn.InstanceNorm2d(5, affine=True)
    with torch.no_grad():
        slow.weight.normal_(1, 0.1)
        slow.bias.normal_(0, 0.1)
    fast.load_state_dict(slow.state_dict())
    x = (torch.randn(3, 5, 16, 16) + mean).to(memory_format=layout)
    weight = torch.randn_like(x)

    def derivatives(norm: nn.Module) -> Iterator[Tensor]:
        inner = x.clone().requires_grad_()
        output = norm(inner)
        yield output
        first = torch.autograd.grad(
            (output.tanh() * weight).sum(), [inner, *norm.parameters()], create_graph=True
        )
        yield from first
        yield from torch.autograd.grad(first[0].square().sum(), [inner, *norm.parameters()])

    # The value's own rounding is the mean's, 100 · 2^-24, times the gain.
    tolerance = 1e-5 * max(1.0, mean / 10)
    for ours, theirs in zip(derivatives(fast), derivatives(slow), strict=True):
        error, scale = (ours - theirs).detach().abs().max(), theirs.detach().abs().max()
        assert float(error) <= tolerance * max(1.0, float(scale))


def test_the_fast_norm_where_nothing_varies() -> None:
    x = torch.full((1, 2, 4, 4), 3.0)
    shift = torch.tensor([0.5, -0.5]).view(1, 2, 1, 1)
    found = instance_norm(x, torch.ones(1, 2, 1, 1), shift)
    assert torch.allclose(found, shift.expand_as(x), atol=1e-3)


def test_memory_layout_does_not_change_a_generator() -> None:
    torch.manual_seed(0)
    sizes = replace(SMALL, image_size=64, w_hpf=1.0)
    generator, x, s = Generator(sizes), torch.randn(2, 3, 64, 64), torch.randn(2, 64)
    masks = (torch.rand(2, 1, 256, 256), torch.rand(2, 1, 256, 256))
    with torch.inference_mode():
        expected = generator(x, s, masks)
        generator.to(memory_format=torch.channels_last)
        found = generator(x.contiguous(memory_format=torch.channels_last), s, masks)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_the_high_pass_is_a_laplacian_over_its_weight() -> None:
    ramp = torch.arange(8.0).expand(1, 2, 8, 8)
    edges = HighPass(0.5)(ramp)
    assert torch.equal(edges[..., 1:-1, 1:-1], torch.zeros(1, 2, 6, 6))
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    assert HighPass(0.5)(point)[0, 0, 2, 2] == 16
    assert HighPass(0.5)(point)[0, 0, 1, 2] == -2


def reference_masks(heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The published steps, channel by channel (``reference-systems`` of the project's facts)."""
    side = heatmaps.shape[2]
    unit = side // 256

    def shift(x: np.ndarray, rows: int) -> np.ndarray:
        """(N, H, W): row r is x's row (r + rows) mod H."""
        return x[:, [(row + rows) % side for row in range(side)]]

    x = np.where(heatmaps < 0.1, 0, heatmaps).astype(np.float64)
    for n in range(len(x)):
        for c in range(98):
            low, high = x[n, c].min(), x[n, c].max()
            x[n, c] = (x[n, c] - low) / (high - low + 1e-6)
    steps: list[tuple[range, Callable[[np.ndarray], np.ndarray]]] = [
        (range(8, 25), lambda c: c**3),
        (range(33, 51), lambda c: shift(c, -7 * unit) ** 2),
        (range(55, 60), lambda c: shift(c, 8 * unit) ** 4),
        (range(77, 82), lambda c: shift(c, -8 * unit) ** 4),
        (range(83, 88), lambda c: shift(c, 8 * unit) ** 4),
        (range(88, 96), lambda c: shift(c, -2 * unit) ** 3),
        ([*range(8), *range(25, 33), 33, 46, 76, 82], np.zeros_like),  # type: ignore[list-item]
        (range(52, 55), lambda c: shift(c, 4 * unit)),
        (range(60, 76), lambda c: shift(c, -8) ** 3 + shift(c, -24)),
    ]
    for channels, change in steps:
        for channel in channels:
            x[:, channel] = change(x[:, channel].copy())
    mask0 = np.clip(np.nan_to_num(x.sum(1, keepdims=True)), 0, 1)
    x[:, [*range(8, 25), *range(76, 96), *range(33, 51)]] = 0
    return mask0, np.clip(np.nan_to_num(x.sum(1, keepdims=True)), 0, 1)


@pytest.mark.parametrize("side", [128, 256, 512])
def test_masks_at_any_side(side: int) -> None:
    heatmaps = standin.landmark_heatmaps(1, size=side)
    found = high_pass_masks(torch.from_numpy(heatmaps.copy()))
    for ours, theirs in zip(found, reference_masks(heatmaps), strict=True):
        assert np.abs(ours.numpy() - theirs).max() < 1e-5


def test_masks_leave_their_input_alone_and_forgive_nan() -> None:
    heatmaps = torch.from_numpy(standin.landmark_heatmaps(1, size=64))
    kept = heatmaps.clone()
    high_pass_masks(heatmaps)
    assert torch.equal(heatmaps, kept)
    heatmaps[0, 96] = math.nan
    for mask in high_pass_masks(heatmaps):
        assert bool(torch.isfinite(mask).all())
