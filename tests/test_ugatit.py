"""U-GAT-IT: published files load as they are, and give the published program's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
from facestyle.card import ModelCard
from facestyle.checkpoint import Checkpoint, load_checkpoint, save_model
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import detect, families
from facestyle.families.ugatit import FAMILY
from facestyle.families.ugatit.networks import (
    ILN,
    AdaLIN,
    Attention,
    Discriminator,
    Generator,
    InstanceNorm,
    Sizes,
    SpectralConv,
    SpectralLinear,
    Trainee,
    attend,
    layer_instance_norm,
    sizes_from_shapes,
)
from facestyle.families.ugatit.objective import (
    Config,
    Task,
    attention_loss,
    coarse,
    l1,
    learning_rate,
    noised,
    realness_loss,
)
from facestyle.nn.adversarial import R1_EVERY

GOLDENS = Path(__file__).parent / "goldens"
OUTPUT_TOLERANCE = 1e-4  # of an output's largest absolute value (goldens' own rule)
LOSS_TOLERANCE = 1e-3  # relative, likewise

State = dict[str, Tensor]


def stand_in(part: str, shapes: Mapping[str, Any]) -> State:
    return {
        key: torch.from_numpy(np.asarray(standin.tensor_for(f"{part}.{key}", shape)))
        for key, shape in shapes.items()
    }


def saved(path: Path, content: Mapping[str, Any], *, prefix: str = "") -> Path:
    """A published file: every network's keys behind ``prefix``."""
    torch.save(
        {
            part: {prefix + key: value for key, value in state.items()}
            for part, state in content.items()
        },
        path,
    )
    return path


# --- Against the published program -----------------------------------------------------------


@pytest.mark.parametrize("name", ["ugatit_full_64", "ugatit_light_128"])
def test_a_published_checkpoint(name: str, tmp_path: Path) -> None:
    meta = json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
    expected = np.load(GOLDENS / f"{name}.npz")
    generators = {p: stand_in(p, meta["shapes"][p]) for p in ("genA2B", "genB2A")}
    path = saved(tmp_path / "selfie2anime_params_latest.pt", generators)
    side = meta["img_size"]
    model = facestyle.load(path, domains=("selfie", "anime"))
    path.unlink()  # pytest keeps the folders of its last runs
    assert model.card == ModelCard(
        family="ugatit",
        # A light network takes any size; its file tells none.
        image_size=256 if meta["light"] else side,
        domains=("selfie", "anime"),
        styles=("fixed",),
        pasted="crop",
        name="selfie2anime_params_latest",
    )
    x = standin.image(11, 2, side)

    def check(output: str, found: np.ndarray) -> None:
        stride = meta.get("stride", {}).get(output, 1)
        found = found[..., ::stride, ::stride] if found.ndim == 4 else found
        assert found.shape == expected[output].shape
        worst = np.abs(found - expected[output]).max() / np.abs(expected[output]).max()
        assert worst <= OUTPUT_TOLERANCE, f"{output} is off by {worst:.1e}"

    for part, domain in (("genA2B", "anime"), ("genB2A", "selfie")):
        check(f"{part}_image", model.backend.run(f"generator.{domain}", x))
        check(f"{part}_heatmap", model.backend.run(f"attention.{domain}", x))
        generator = model.backend.modules[f"generator.{domain}"]  # type: ignore[attr-defined]
        with torch.inference_mode():
            check(f"{part}_cam_logit", Trainee(generator)(torch.from_numpy(x))[1].numpy())


def test_a_published_training_step() -> None:
    meta = json.loads((GOLDENS / "train_ugatit_light.json").read_text("utf-8"))
    task = Task(Config(image_size=128, width=16, blocks=2, light=True))
    for part, network in task.networks.items():
        network.load_state_dict(stand_in(part, meta["shapes"][part]))
    for i, losses in enumerate(meta["losses"]):
        batch = {
            name: torch.from_numpy(standin.image(100 * (i + 1) + k, 1, 128))
            for k, name in ((1, "A"), (2, "B"))
        }
        found = task.step(batch)
        assert found.keys() == losses.keys()
        for name, loss in losses.items():
            assert found[name] == pytest.approx(loss, rel=LOSS_TOLERANCE), name
    for part, sums in meta["after"].items():
        weights = [weight.detach().double() for weight in task.networks[part].parameters()]
        squares = sum(float(weight.square().sum()) for weight in weights)
        mean_abs = np.mean([float(weight.abs().mean()) for weight in weights])
        # A thousandth of a weight's whole change, two steps of 1e-4, would be seen.
        assert squares == pytest.approx(sums["sum_sq"], rel=1e-5)
        assert mean_abs == pytest.approx(sums["mean_abs"], rel=1e-6)


def test_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        for sizes, parameters in ((Sizes(), 278_959_808), (Sizes(image_size=None), 10_589_888)):
            assert sum(p.numel() for p in Generator(sizes).parameters()) == parameters
    assert FAMILY.new_card(FAMILY.config(), ("A", "B")).image_size == 256


# --- Files of any size -----------------------------------------------------------------------

SMALL = Sizes(width=3, blocks=1, image_size=None)
VARIANTS = {
    "light": SMALL,
    "full, 16 px": replace(SMALL, image_size=16),
    "full, 100 px": replace(SMALL, image_size=100),
    "one channel": replace(SMALL, width=1),
    "wide": replace(SMALL, width=8),
    "six blocks": replace(SMALL, blocks=6),
    "eleven blocks": replace(SMALL, blocks=11, image_size=32),
}


def networks_of(sizes: Sizes) -> dict[str, nn.Module]:
    """All that a published checkpoint holds."""
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {p: Generator(sizes) for p in ("genA2B", "genB2A")}
    for part in ("disGA", "disGB", "disLA", "disLB"):
        networks[part] = Discriminator(2, 7 if part[3] == "G" else 5)
    return networks


def states_of(sizes: Sizes) -> dict[str, State]:
    return {part: network.state_dict() for part, network in networks_of(sizes).items()}


@pytest.fixture(scope="module")
def small() -> dict[str, State]:
    return states_of(SMALL)


def opened(path: Path, **known: Any) -> tuple[ModelCard, dict[str, nn.Module]]:
    """Card and modules, the way ``facestyle.load`` goes."""
    checkpoint = load_checkpoint(path)
    assert detect(checkpoint) is FAMILY
    card = checkpoint.card or FAMILY.card(checkpoint, known)
    return card, FAMILY.modules(checkpoint, card)


def same_weights(module: nn.Module, state: State) -> bool:
    found = module.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_build_save_reload(name: str, tmp_path: Path) -> None:
    sizes = VARIANTS[name]
    built = networks_of(sizes)
    parts = {part: network.state_dict() for part, network in built.items()}
    shapes = {key: tuple(value.shape) for key, value in parts["genA2B"].items()}
    assert sizes_from_shapes(shapes) == sizes

    card, modules = opened(saved(tmp_path / "x_params_0000100.pt", parts), image_size=32)
    assert card.image_size == (sizes.image_size or 32)
    save_model(tmp_path / "own.safetensors", {p: parts[p] for p in ("genA2B", "genB2A")}, card)
    again_card, again = opened(tmp_path / "own.safetensors")
    assert again_card == card

    x = torch.rand(2, 3, card.image_size, card.image_size) * 2 - 1
    with torch.inference_mode():
        for part, domain in (("genA2B", "B"), ("genB2A", "A")):
            picture = built[part](x)
            assert picture.shape == x.shape
            assert picture.abs().max() <= 1
            for loaded in (modules, again):
                assert not loaded[f"generator.{domain}"].training
                assert torch.equal(loaded[f"generator.{domain}"](x), picture)
                heatmap = loaded[f"attention.{domain}"](x)
                assert heatmap.shape == (2, 1, card.image_size // 4, card.image_size // 4)
                assert torch.equal(heatmap, Attention(built[part])(x))  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_variants_of_the_file(prefix: str, small: dict[str, State], tmp_path: Path) -> None:
    both = {part: small[part] for part in ("genA2B", "genB2A")}
    for content in (small, both):
        card, modules = opened(saved(tmp_path / "a_params_latest.pt", content, prefix=prefix))
        assert card.domains == ("A", "B")
        assert set(modules) == {"generator.A", "generator.B", "attention.A", "attention.B"}
        assert same_weights(modules["generator.B"], small["genA2B"])
        assert same_weights(modules["generator.A"], small["genB2A"])

    # One direction alone: in its dict, and as a plain state dict.
    one_way = {"genA2B": small["genA2B"]}
    plain = {prefix + key: value for key, value in small["genA2B"].items()}
    saved(tmp_path / "one.pt", one_way, prefix=prefix)
    torch.save(plain, tmp_path / "plain.pt")
    for name in ("one.pt", "plain.pt"):
        card, modules = opened(tmp_path / name)
        assert card.domains == ("B",)
        assert set(modules) == {"generator.B", "attention.B"}
        assert same_weights(modules["generator.B"], small["genA2B"])
        model = facestyle.load(tmp_path / name, domains=("anime",))
        assert model.backend.roles == ("generator.anime", "attention.anime")
    # Saved again in our own format, as it came.
    save_model(tmp_path / "own.safetensors", {"": small["genA2B"]}, card)
    assert same_weights(opened(tmp_path / "own.safetensors")[1]["generator.B"], small["genA2B"])


def test_a_model_translates_to_each_of_its_domains(small: dict[str, State], tmp_path: Path) -> None:
    model = facestyle.load(saved(tmp_path / "a.pt", small), domains=("selfie", "anime"))
    x = standin.image(1, 1, 32)
    for domain, part in (("anime", "genA2B"), ("selfie", "genB2A")):
        generator = Generator(SMALL)
        generator.load_state_dict(small[part])
        with torch.inference_mode():
            expected = generator(torch.from_numpy(x)).numpy()
        found = model.translate(x, model.style(domain))
        assert np.abs(found - expected).max() < 1e-5
    with pytest.raises(UsageError, match="seed has no effect"):
        model.style("anime", seed=1)


def test_published_files_load_back_equal(small: dict[str, State], tmp_path: Path) -> None:
    generators = {part: small[part] for part in ("genA2B", "genB2A")}
    for parts, kept in (
        (FAMILY.parts(Checkpoint(path=Path("a"), parts=small, card=None)), generators),
        (small, small),
        ({"": small["genA2B"]}, {"genA2B": small["genA2B"]}),
        (
            FAMILY.parts(Checkpoint(path=Path("a"), parts={"": small["genA2B"]}, card=None)),
            {"genA2B": small["genA2B"]},
        ),
    ):
        ((name, content),) = FAMILY.published(parts, 1234).items()
        assert name == "facestyle_params_0001234.pt"
        assert content.keys() == kept.keys()
        torch.save(content, tmp_path / name)
        checkpoint = load_checkpoint(tmp_path / name)
        for part, state in kept.items():
            assert checkpoint.parts[part].keys() == state.keys()
            assert all(torch.equal(checkpoint.parts[part][k], state[k]) for k in state)
        opened(tmp_path / name)


def test_others_networks_are_no_ugatit(small: dict[str, State], tiny_model: Path) -> None:
    def misfit(parts: Mapping[str, State]) -> str | None:
        return FAMILY.misfit(Checkpoint(path=Path("a"), parts=parts, card=None).shapes())

    generator = small["genA2B"]
    assert misfit({"": generator}) is None
    assert "no part 'genA2B'" in str(misfit({"genB2A": generator}))
    assert "no part 'genA2B'" in str(misfit({p: small[p] for p in ("disGA", "disLA")}))
    assert "no tensor" in str(misfit({"": small["disGA"]}))
    assert "no tensor" in str(misfit({"genA2B": small["disGA"]}))
    assert "no tensor" in str(misfit({"": {"model.1.weight": torch.zeros(4, 3, 7, 7)}}))
    assert "no part" in str(misfit(load_checkpoint(tiny_model).parts))
    # photo2cartoon, a descendant: an hourglass in place of the first blocks, other norms.
    cartoon = {
        key.replace("DownBlock", "ConvBlock").replace("UpBlock1", "DecodeBlock"): value
        for key, value in generator.items()
    }
    assert "no tensor 'DownBlock.1.weight'" in str(misfit({"genA2B": cartoon}))


def test_no_other_family_takes_these_networks(small: dict[str, State]) -> None:
    for parts in (small, {"genA2B": small["genA2B"]}, {"": small["genA2B"]}):
        shapes = Checkpoint(path=Path("a"), parts=parts, card=None).shapes()
        fitting = [name for name, family in families().items() if family.misfit(shapes) is None]
        assert fitting == ["ugatit"]


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("genA2B", "gamma.weight", None, "genA2B.gamma.weight is missing"),
        ("genB2A", "gamma.weight", None, "genB2A.gamma.weight is missing"),
        ("genA2B", "UpBlock2.8.rho", torch.zeros(3), r"UpBlock2.8.rho has shape \(3,\)"),
        ("genA2B", "extra.weight", torch.zeros(3), "genA2B.extra.weight is not part"),
        ("genA2B", "UpBlock1_3.norm1.rho", torch.zeros(1, 12, 1, 1), "is missing"),
        ("genA2B", "FC.0.weight", torch.zeros(12, 13), "tell no sizes.*13 inputs"),
        ("genA2B", "FC.0.weight", torch.zeros(12, 24), "tell no sizes"),
        ("genA2B", "FC.0.weight", torch.zeros(12, 0), "tell no sizes"),
        ("genA2B", "FC.0.weight", torch.zeros(()), "tell no sizes"),
        ("genA2B", "DownBlock.1.weight", torch.zeros(0, 3, 7, 7), "tell no sizes"),
        ("genA2B", "DownBlock.1.weight", torch.zeros(4, 3, 7, 7), "tell no sizes"),
        ("genA2B", "DownBlock.1.weight", torch.zeros(3, 3, 5, 5), "DownBlock.1.weight has shape"),
        ("genA2B", "FC.2.weight", torch.zeros(12, 12).long(), "FC.2.weight holds torch.int64"),
    ],
)
def test_tensors_that_do_not_fit(
    part: str, key: str, value: Any, said: str, small: dict[str, State], tmp_path: Path
) -> None:
    state = {name: tensor for name, tensor in small[part].items() if name != key}
    changed = {**small, part: state if value is None else {**state, key: value}}
    with pytest.raises(CheckpointError, match=said):
        opened(saved(tmp_path / "a.pt", changed))


@pytest.mark.parametrize(
    ("sizes", "changes", "said"),
    [
        (SMALL, {"domains": ("a",)}, r"says 256 px and 1 domain\(s\), its tensors 256 and 2"),
        (SMALL, {"domains": ("a", "b", "c")}, "its card says"),
        (SMALL, {"image_size": 30}, "expected a multiple of 4"),
        (replace(SMALL, image_size=16), {"image_size": 32}, "says 32 px.*its tensors 16"),
    ],
)
def test_a_card_that_contradicts_its_tensors(
    sizes: Sizes, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    parts = {part: state for part, state in states_of(sizes).items() if part.startswith("gen")}
    card = FAMILY.card(Checkpoint(path=Path("a.pt"), parts=parts, card=None), {})
    save_model(tmp_path / "a.safetensors", parts, replace(card, **changes))
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path / "a.safetensors")


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a", "a")])
def test_domain_names_that_do_not_fit(
    names: tuple[str, ...], small: dict[str, State], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="domain"):
        facestyle.load(saved(tmp_path / "a.pt", small), domains=names)
    if len(names) > 1:
        one_way = saved(tmp_path / "b.pt", {"genA2B": small["genA2B"]})
        with pytest.raises(UsageError, match="domain"):
            facestyle.load(one_way, domains=names)


# --- Arithmetic ------------------------------------------------------------------------------


def plain_layer_instance_norm(x: Tensor, rho: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Equation 1 of the paper with unbiased variances, term by term."""

    def normed(dims: tuple[int, ...]) -> Tensor:
        variance = x.var(dim=dims, keepdim=True, unbiased=True)
        return (x - x.mean(dim=dims, keepdim=True)) / torch.sqrt(variance + 1e-5)

    return (rho * normed((2, 3)) + (1 - rho) * normed((1, 2, 3))) * gamma + beta


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_the_fast_norm_is_the_plain_formula(mean: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    # Channels of different means and widths, so that the two norms differ.
    x = torch.randn(3, 5, 6, 7) * torch.rand(1, 5, 1, 1) + torch.randn(1, 5, 1, 1) + mean
    x = x.to(memory_format=layout)
    rho, gamma, beta = torch.rand(1, 5, 1, 1), torch.randn(3, 5, 1, 1), torch.randn(3, 5, 1, 1)
    weight = torch.randn_like(x)
    results = []
    for norm in (layer_instance_norm, plain_layer_instance_norm):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, rho, gamma, beta)]
        output = norm(*inputs)
        results.append([output, *torch.autograd.grad((output.tanh() * weight).sum(), inputs)])
    # The value's own rounding is the mean's, 100 · 2^-24, times the gain.
    tolerance = 1e-5 * max(1.0, mean)
    for ours, theirs in zip(*results, strict=True):
        error, scale = (ours - theirs).detach().abs().max(), theirs.detach().abs().max()
        assert float(error) <= tolerance * max(1.0, float(scale))


def test_the_ends_of_rho_are_instance_and_layer_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8) * 3 + torch.randn(1, 4, 1, 1)
    adalin, iln = AdaLIN(4), ILN(4)
    assert torch.equal(adalin.rho, torch.full((1, 4, 1, 1), 0.9))
    layer = iln(x)  # rho starts at 0
    assert torch.allclose(layer.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-6)
    assert torch.allclose(layer.var(dim=(1, 2, 3)), torch.ones(2), atol=1e-4)
    with torch.no_grad():
        adalin.rho.fill_(1)
    gamma, beta = torch.full((2, 4, 1, 1), 2.0), torch.full((2, 4, 1, 1), -1.0)
    instance = adalin(x, gamma, beta)
    assert torch.allclose(instance.mean(dim=(2, 3)), torch.full((2, 4), -1.0), atol=1e-5)
    assert torch.allclose(instance.std(dim=(2, 3)), torch.full((2, 4), 2.0), atol=1e-4)
    assert torch.allclose(InstanceNorm()(x), F.instance_norm(x), atol=1e-5)


def test_folded_attention_is_the_published_formula() -> None:
    torch.manual_seed(0)
    x, gap, gmp = torch.randn(2, 6, 5, 5), torch.randn(1, 6), torch.randn(1, 6)
    mix = nn.Conv2d(12, 6, 1)
    maps = torch.cat([x * gap[:, :, None, None], x * gmp[:, :, None, None]], dim=1)
    assert torch.allclose(attend(x, gap, gmp, mix), mix(maps), atol=1e-5)


def test_spectral_norm_divides_by_the_largest_singular_value() -> None:
    torch.manual_seed(0)
    conv, linear = SpectralConv(3, 5, stride=2), SpectralLinear(7, 1)
    for layer, x in ((conv, torch.randn(2, 3, 10, 10)), (linear, torch.randn(2, 7))):
        matrix = layer.weight_orig.detach().flatten(1)
        first_u = layer.weight_u.clone()
        layer(x)
        # One power iteration: v from the old u, then u from the new v.
        v = F.normalize(matrix.T @ first_u, dim=0)
        assert torch.allclose(layer.weight_v, v, atol=1e-6)
        assert torch.allclose(layer.weight_u, F.normalize(matrix @ v, dim=0), atol=1e-6)
        for _ in range(200):
            layer(x)
        largest = torch.linalg.matrix_norm(matrix, 2)
        assert torch.isclose(layer.singular_value().detach(), largest, rtol=1e-4)
    expected = F.conv2d(
        x_conv := torch.randn(2, 3, 10, 10),
        conv.weight_orig / torch.linalg.matrix_norm(conv.weight_orig.flatten(1), 2),
        conv.bias,
        stride=2,
    )
    conv.eval()
    u = conv.weight_u.clone()
    assert torch.allclose(conv(x_conv), expected, atol=1e-4)
    assert torch.equal(conv.weight_u, u)  # not refined in use


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spectral_norms_gradient_is_the_plain_formulas(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = SpectralConv(3, 4, stride=1).to(memory_format=layout)
    x, target = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 5, 5)
    loss = (layer(x) * target).sum()
    found = torch.autograd.grad(loss, [layer.weight_orig, layer.bias])
    weight = layer.weight_orig.detach().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    # The singular vectors, refined by the pass above, count as constants.
    sigma = layer.weight_u @ weight.flatten(1) @ layer.weight_v
    plain = (F.conv2d(x, weight / sigma, bias) * target).sum()
    assert torch.isclose(loss, plain, rtol=1e-4)
    for ours, theirs in zip(found, torch.autograd.grad(plain, [weight, bias]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_discriminator_may_judge_twice_before_it_learns() -> None:
    """Two passes refine the singular vectors; backward needs those of each."""
    torch.manual_seed(0)
    plain, x = Discriminator(2, 4), torch.randn(2, 1, 3, 16, 16)
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    results = []
    for network in (plain, torch.compile(plain, backend="aot_eager", dynamic=False)):
        plain.load_state_dict(state)
        plain.zero_grad()
        loss = sum(realness_loss(logits, True) for one in x for logits in network(one))
        loss.backward()  # type: ignore[union-attr]
        results.append([loss.detach(), *(p.grad.clone() for p in plain.parameters())])  # type: ignore[union-attr]
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_discriminators_paddings_fit_any_size_that_is_allowed() -> None:
    for side in (32, 48, 64, 96, 100, 128):
        most = max(
            layers
            for layers in range(3, 12)
            if _is_allowed(Config(image_size=side, global_layers=layers, local_layers=3))
        )
        logits, cam = Discriminator(1, most)(torch.zeros(1, 3, side, side))
        assert min(logits.shape[2:]) >= 1
        assert cam.shape == (1, 2)
        with pytest.raises(RuntimeError):
            Discriminator(1, most + 1)(torch.zeros(1, 3, side, side))


def _is_allowed(config: Config) -> bool:
    try:
        FAMILY.check(replace(config, load_size=config.image_size))
    except UsageError:
        return False
    return True


def test_memory_layout_and_neighbours_do_not_change_a_picture() -> None:
    torch.manual_seed(0)
    generator = Generator(replace(SMALL, width=8, image_size=32))
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = generator(x)
        assert torch.allclose(generator(x[1:2]), expected[1:2], atol=1e-5)
        generator.to(memory_format=torch.channels_last)
        found = generator(x.contiguous(memory_format=torch.channels_last))
    assert float((found - expected).abs().max()) < 1e-4


def test_a_light_generator_takes_any_size() -> None:
    torch.manual_seed(0)
    generator = Generator(SMALL)
    with torch.inference_mode():
        assert generator(torch.randn(1, 3, 20, 36)).shape == (1, 3, 20, 36)


# --- Training --------------------------------------------------------------------------------

TINY = Config(
    image_size=32, load_size=36, width=4, blocks=1, light=True, global_layers=5, local_layers=4
)  # fmt: skip


def batches(number: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {name: torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for name in "AB"}
        for _ in range(number)
    ]


def fresh(config: Config = TINY, **options: Any) -> Task:
    torch.manual_seed(0)
    return FAMILY.task(config, 2, device="cpu", **{"bf16": False, "compile": False, **options})


def test_losses_by_hand() -> None:
    logits = torch.tensor([0.5, 2.0])
    assert float(realness_loss(logits, True)) == pytest.approx((0.25 + 1) / 2)
    assert float(realness_loss(logits, False)) == pytest.approx((0.25 + 4) / 2)
    assert float(l1(torch.tensor([1.0, -1]), torch.tensor([0.0, 1]))) == pytest.approx(1.5)
    source, target = torch.randn(3, 2), torch.randn(3, 2)
    expected = F.binary_cross_entropy_with_logits(source, torch.ones(3, 2))
    expected = expected + F.binary_cross_entropy_with_logits(target, torch.zeros(3, 2))
    assert torch.isclose(attention_loss(source, target), expected)


def test_the_learning_rate_falls_to_zero_over_the_second_half() -> None:
    config = Config(lr=1.0, lr_fall_from=4, lr_fall_to=8)
    rates = [learning_rate(config, step) for step in range(10)]
    assert rates == [1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    assert learning_rate(replace(config, lr_fall_to=4), 3) == 1
    assert learning_rate(replace(config, lr_fall_to=4), 4) == 0
    task = fresh(replace(TINY, lr_fall_from=0, lr_fall_to=1))
    before = {key: value.clone() for key, value in task.networks["genA2B"].state_dict().items()}
    task.step(batches(1)[0])
    assert same_weights(task.networks["genA2B"], before)


def test_an_iteration_trains_every_network_and_keeps_rho_a_mixture() -> None:
    task = fresh(replace(TINY, lr=0.2))
    before = {
        part: {name: p.detach().clone() for name, p in network.named_parameters()}
        for part, network in task.networks.items()
    }
    first, second = batches(2)
    losses = task.step(first)
    weights = {"cycle": 10, "identity": 10, "cam": 1000}
    total = sum(
        weights.get(name.removeprefix("G/").split("_")[0], 1) * value
        for name, value in losses.items()
        if name.startswith("G/") and name != "G/total"
    )
    assert losses["G/total"] == pytest.approx(total, rel=1e-5)
    for part, network in task.networks.items():
        still = [n for n, p in network.named_parameters() if torch.equal(p, before[part][n])]
        assert not still, f"{part}: {still}"
    task.step(second)
    rhos = [
        p.detach()
        for part in ("genA2B", "genB2A")
        for name, p in task.networks[part].named_parameters()
        if name.endswith("rho")
    ]
    assert len(rhos) == 8
    assert all(float(rho.min()) >= 0 and float(rho.max()) <= 1 for rho in rhos)
    # Steps of 0.2 down from 0 and up from 0.9 were cut off.
    assert any(bool((rho == 0).any()) for rho in rhos)
    assert task.step_index == 2


JUDGED = replace(TINY, judge="domains", judge_width=4)


def test_first_the_judge_learns_alone_then_both() -> None:
    task = fresh(replace(JUDGED, warmup_steps=2))
    assert set(task.networks) == {"genA2B", "genB2A", "judge"}
    before = {
        part: {name: p.detach().clone() for name, p in network.named_parameters()}
        for part, network in task.networks.items()
    }
    data = batches(9)
    losses = [task.step(batch) for batch in data[:2]]
    assert all(name.startswith("D/") for step in losses for name in step)
    assert same_weights(task.networks["genA2B"], before["genA2B"])
    assert not same_weights(task.networks["judge"], before["judge"])
    losses += [task.step(batch) for batch in data[2:]]
    assert not same_weights(task.networks["genA2B"], before["genA2B"])
    assert ["D/r1" in step for step in losses] == [i % R1_EVERY == 0 for i in range(9)]
    assert {"G/dis_A", "G/dis_B", "G/cycle_A", "G/total"} <= losses[-1].keys()
    assert task.ailments(losses[-1]) == []
    (line,) = task.ailments({"D/real": 0.001, "D/fake": 0.002})
    assert "tell every fake" in line


def lit(brightness: float, noise: torch.Generator) -> Tensor:
    """Four pictures of nothing but noise about a brightness."""
    return 0.6 * (torch.rand(4, 3, 32, 32, generator=noise) - 0.5) + brightness


@pytest.mark.slow
def test_a_judge_by_domain_teaches_both_generators() -> None:
    """A is dark and B is bright; with next to no cycle and no identity only the judge says so."""
    config = replace(
        JUDGED, lr=2e-3, cycle=0.5, identity=0.0, cam=0.0, warmup_steps=20, lr_fall_from=10**6
    )
    task, noise = fresh(replace(config, lr_fall_to=10**6)), torch.Generator().manual_seed(0)

    for _ in range(120):
        task.step({"A": lit(-0.5, noise), "B": lit(0.5, noise)})
    with torch.inference_mode():
        assert float(task.networks["genA2B"](lit(-0.5, noise)).mean()) > 0.2
        assert float(task.networks["genB2A"](lit(0.5, noise)).mean()) < -0.2


def test_pictures_of_the_other_domain_keep_the_judge_knowing_both() -> None:
    """Every fake is a real picture of its domain, so nothing else tells the domains apart."""
    config = replace(JUDGED, warmup_steps=10**6, lr=2e-3, lr_fall_from=10**6, lr_fall_to=10**6)
    knows, guesses = fresh(replace(config, mismatch=1.0)), fresh(config)
    noise = torch.Generator().manual_seed(0)

    for task in (knows, guesses):
        # Sources, then pictures of the target: turned about, they are what the generator makes.
        task._trainees = {
            part: lambda x: (x.roll(4, 0), x.new_zeros(len(x), 2)) for part in ("genA2B", "genB2A")
        }
    for _ in range(60):
        batch = {"A": lit(-0.5, noise), "B": lit(0.5, noise)}
        losses, none = knows.step(batch), guesses.step(batch)
    assert losses["D/mismatch"] < 0.2  # a guess is 0.69
    parts = losses["D/real"] + losses["D/fake"] + losses["D/mismatch"]
    parts += config.r1 * R1_EVERY * losses.get("D/r1", 0)
    assert losses["D/total"] == pytest.approx(parts, rel=1e-6)
    assert "D/mismatch" not in none
    a, b = lit(-0.5, noise), lit(0.5, noise)
    x, own_N = torch.cat([a, b]), torch.tensor([0] * 4 + [1] * 4)
    with torch.inference_mode():
        sure, unsure = (
            (task.networks["judge"](x, own_N) - task.networks["judge"](x, 1 - own_N)).mean()
            for task in (knows, guesses)
        )
    assert float(sure) > 1 > abs(float(unsure))


@pytest.mark.slow
def test_a_judge_of_shapes_sees_no_colours_and_a_loss_holds_them() -> None:
    """A is red and B is blue, and alike but for that: a judge of shapes can only guess."""
    config = replace(JUDGED, warmup_steps=10**6, lr=2e-3, mismatch=1.0)
    sees, shapes = fresh(config), fresh(replace(config, recolour=True))
    noise = torch.Generator().manual_seed(0)

    def pictures(hue: int) -> Tensor:
        x = 0.6 * (torch.rand(4, 1, 32, 32, generator=noise) - 0.5).repeat(1, 3, 1, 1)
        x[:, hue] += 0.6
        return x

    for _ in range(60):
        batch = {"A": pictures(0), "B": pictures(2)}
        told, guessed = sees.step(batch), shapes.step(batch)
    assert told["D/mismatch"] < 0.2 < 0.5 < guessed["D/mismatch"]  # a guess is 0.69

    batch = batches(1)[0]
    plain, held = fresh().step(batch), fresh(replace(TINY, colour=2.0)).step(batch)
    assert held.keys() - plain.keys() == {"G/colour_A", "G/colour_B"}
    expected = plain["G/total"] + 2 * (held["G/colour_A"] + held["G/colour_B"])
    assert held["G/colour_A"] > 0 < held["G/colour_B"]
    assert held["G/total"] == pytest.approx(expected, rel=1e-5)
    fine = torch.ones(1, 3, 96, 96)
    fine[..., ::2] = -1
    assert float(l1(coarse(fine), coarse(-fine))) == 0  # a pattern has no coarse colour


def test_what_lies_above_the_brows_may_be_no_matter_to_the_judge() -> None:
    """Two fringes are one to it, two chins are not; the generators' other losses see both."""
    config = replace(TINY, judge="domains", unseen=0.34)
    batch = batches(1)[0]
    fringe, chin = ({n: x.clone() for n, x in batch.items()} for _ in range(2))
    fringe["B"][:, :, :8, 10:22] = 1
    chin["B"][:, :, 24:, 10:22] = 1
    told, with_fringe, with_chin = (fresh(config).step(one) for one in (batch, fringe, chin))
    assert with_fringe["D/real"] == pytest.approx(told["D/real"], abs=1e-6)
    assert abs(with_chin["D/real"] - told["D/real"]) > 1e-4
    assert abs(with_fringe["G/identity_B"] - told["G/identity_B"]) > 1e-3


def test_mirrored_sources_may_be_held_to_mirrored_results() -> None:
    batch = batches(1)[0]
    plain, held = fresh().step(batch), fresh(replace(TINY, mirror=2.0)).step(batch)
    assert held.keys() - plain.keys() == {"G/mirror_A", "G/mirror_B"}
    assert held["G/mirror_A"] > 0 < held["G/mirror_B"]
    expected = plain["G/total"] + 2 * (held["G/mirror_A"] + held["G/mirror_B"])
    assert held["G/total"] == pytest.approx(expected, rel=1e-5)

    def judged(painted: Callable[[Tensor], Tensor]) -> float:
        task = fresh(replace(TINY, mirror=2.0))
        for part, network in task.generators.items():
            anchor = next(network.parameters())  # what is stepped must have a gradient
            task._trainees[part] = lambda x, anchor=anchor: (
                painted(x) + 0 * anchor.sum(),
                x.new_zeros(len(x), 2) + 0 * anchor.sum(),
            )
        return task.step(batch)["G/mirror_B"]

    assert judged(lambda x: -x) == 0
    ramp_W = torch.linspace(-1, 1, 32)  # one side darker, whatever the picture
    assert judged(lambda x: x + ramp_W) == pytest.approx(2 * float(ramp_W.abs().mean()), rel=1e-5)


def pooled(batch: dict[str, Tensor], swap: float, slot: int = 0) -> dict[str, Tensor]:
    """The batch with what its replay pools will do: all of its items the same."""
    size = len(batch["A"])
    return batch | {
        f"pool_{name}_{what}": torch.full((size,), value)
        for name in "AB"
        for what, value in (("swap", swap), ("slot", slot))
    }


@pytest.mark.parametrize("config", [TINY, replace(TINY, judge="domains", judge_width=4)])
def test_the_discriminators_may_be_shown_earlier_results(config: Config) -> None:
    """The generators stand still, so what is shown is all that can differ."""
    config = replace(config, warmup_steps=10**6, lr=1e-9)
    without, task = fresh(config), fresh(replace(config, pool=2))
    first, second = batches(2)
    assert len(first["A"]) == 2
    # While it fills, what comes in is shown; then, without a swap, again.
    assert task.step(pooled(first, 1.0)) == without.step(first)
    kept = {name: pool.pictures_KCHW.clone() for name, pool in task.pools.items()}
    assert kept["A"].shape == kept["B"].shape == (2, 3, 32, 32)
    assert not torch.equal(kept["A"], kept["B"])
    new, old = without.step(second), task.step(pooled(second, 0.0))
    assert {name: old[name] for name in new} == pytest.approx(new, rel=1e-4)
    # Swapped twice with one slot: an earlier result is shown, then the first of these, which
    # took its place. The discriminators judge other fakes, and the same real pictures.
    swapped = task.step(pooled(second, 1.0, slot=1))
    fake = next(name for name in new if name.startswith("D/fake") or name.endswith("/adv"))
    assert swapped[fake] != pytest.approx(new[fake], rel=1e-4)
    assert torch.equal(task.pools["A"].pictures_KCHW[0], kept["A"][0])
    assert not torch.equal(task.pools["A"].pictures_KCHW[1], kept["A"][1])


def test_the_discriminators_may_learn_faster() -> None:
    task = fresh(replace(TINY, lr=1e-3, d_lr_factor=3.0, lr_fall_from=0, lr_fall_to=2))
    for left in (0.5, 0.0):
        task.step(batches(1)[0])
        rates = task.optimisers.learning_rates()
        assert rates == pytest.approx({"generators": left * 1e-3, "discriminators": left * 3e-3})


def test_noise_drowns_what_a_result_hides_and_nothing_else() -> None:
    """A result that is taken back is noisy; the judge, and the other losses, see it as it is."""
    plain, noisy = (fresh(replace(TINY, cycle_noise=amount)) for amount in (0.0, 0.2))
    before, after = plain.step(batches(1)[0]), noisy.step(batches(1)[0])
    apart = {name for name, value in before.items() if after[name] != value}
    assert apart == {"G/cycle_A", "G/cycle_B", "G/total"}
    x = torch.zeros(2, 3, 64, 64)
    assert noised(x, 0.0) is x
    hidden = 0.1 * torch.sign(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    read = torch.sign(noised(x + hidden, 1.0)) == torch.sign(hidden)
    assert 0.5 < float(read.float().mean()) < 0.56  # a guess is a half


def test_identity_may_begin_from_a_spoilt_picture_and_ends_at_the_picture() -> None:
    """The other losses, the judges' among them, know nothing of it."""
    batch = batches(1)[0]
    before, after = (fresh(replace(TINY, restore=on)).step(batch) for on in (False, True))
    names = {name for name, value in before.items() if after[name] != value}
    # A classifier tells sources from what the domain is already, which is the spoilt picture.
    assert names == {"G/identity_A", "G/identity_B", "G/cam_A", "G/cam_B", "G/total"}

    task, given = fresh(replace(TINY, restore=True)), {}
    for part, network in task.generators.items():
        anchor = next(network.parameters())

        def same(x: Tensor, part: str = part, anchor: Tensor = anchor) -> tuple[Tensor, Tensor]:
            given.setdefault(part, x.detach())
            return x + 0 * anchor.sum(), x.new_zeros(len(x), 2) + 0 * anchor.sum()

        task._trainees[part] = same
    losses = task.step(batch)
    for part, source, own in (("genA2B", "A", "B"), ("genB2A", "B", "A")):
        first, second = given[part].chunk(2)
        assert torch.equal(first, batch[source])
        assert float(second.var()) < 0.5 * float(batch[own].var())
        expected = float(l1(second, batch[own]))
        assert losses[f"G/identity_{own}"] == pytest.approx(expected, rel=1e-5)


def test_full_mode_trains_too() -> None:
    losses = fresh(replace(TINY, light=False)).step(batches(1)[0])
    assert all(np.isfinite(value) for value in losses.values())


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    task = fresh()
    before = {part: dict(network.named_parameters()) for part, network in task.networks.items()}
    kept = {part: {n: p.detach().clone() for n, p in ps.items()} for part, ps in before.items()}
    task.step({name: torch.full((1, 3, 32, 32), float("nan")) for name in "AB"})
    assert task.optimisers.skipped == 2
    for part, parameters in before.items():
        assert all(torch.equal(p, kept[part][name]) for name, p in parameters.items())


def test_bfloat16_is_near_the_published_arithmetic() -> None:
    exact, rounded = fresh().step(batches(1)[0]), fresh(bf16=True).step(batches(1)[0])
    for name, value in exact.items():
        assert rounded[name] == pytest.approx(value, rel=0.1, abs=0.05), name


@pytest.mark.parametrize("pool", [0, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(pool: int, tmp_path: Path) -> None:
    config = replace(TINY, pool=pool)
    data = [pooled(batch, i / 3, slot=i % 3) for i, batch in enumerate(batches(4))]
    one = fresh(config)
    for batch in data:
        last = one.step(batch)
    two = fresh(config)
    for batch in data[:2]:
        two.step(batch)
    torch.save(two.state_dict(), tmp_path / "state.pt")
    three = FAMILY.task(config, 2, device="cpu", bf16=False, compile=False)  # other weights
    three.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert three.step_index == 2
    for batch in data[2:]:
        resumed = three.step(batch)
    assert resumed == last
    for part, network in one.networks.items():
        assert same_weights(three.networks[part], dict(network.state_dict()))
    state = two.state_dict()
    del state["networks"]["disGA"]["conv.weight_u"]
    with pytest.raises(RuntimeError, match="Missing key"):
        three.load_state_dict(state)


def test_a_trained_model_loads_as_the_networks_that_were_trained(tmp_path: Path) -> None:
    task = fresh()
    task.step(batches(1)[0])
    card = FAMILY.new_card(TINY, ("photo", "anime"))
    assert (card.image_size, card.domains, card.styles) == (32, ("photo", "anime"), ("fixed",))
    parts = task.model_parts()
    assert set(parts) == {"genA2B", "genB2A"}
    save_model(tmp_path / "model.safetensors", parts, card)
    model = facestyle.load(tmp_path / "model.safetensors")
    x = standin.image(1, 1, 32)
    for part, domain in (("genB2A", "photo"), ("genA2B", "anime")):
        with torch.inference_mode():
            expected = task.networks[part](torch.from_numpy(x)).numpy()
        assert np.abs(model.backend.run(f"generator.{domain}", x) - expected).max() < 1e-4


def test_a_sample_is_a_picture_of_each_domain() -> None:
    class Pictures:
        def jittered(
            self, domain: int, rng: np.random.Generator, side: int, load_side: int
        ) -> np.ndarray:
            assert (side, load_side) == (32, 36)
            return np.full((3, side, side), domain + rng.random() / 2, np.float32)

    def draw(seed: int, config: Config = TINY) -> dict[str, np.ndarray]:
        return FAMILY.sample(Pictures(), config, np.random.default_rng(seed))  # type: ignore[arg-type]

    one, same, other = draw(1), draw(1), draw(2)
    assert one.keys() == {"A", "B"}
    assert 0 <= one["A"].max() < 0.5 < 1 <= one["B"].min()
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["A"], other["A"])
    draws = [draw(seed, replace(TINY, pool=5)) for seed in range(20)]
    assert draws[1].keys() - one.keys() == {
        f"pool_{name}_{what}" for name in "AB" for what in ("swap", "slot")
    }
    assert np.array_equal(draws[1]["A"], one["A"])  # the same pictures as without
    assert {int(item["pool_B_slot"]) for item in draws} == set(range(5))


def test_ailments_are_told_from_the_losses() -> None:
    task = fresh()
    assert task.ailments(task.step(batches(1)[0])) == []
    won = {f"D/dis{kind}/adv": 0.001 for kind in ("GA", "GB", "LA", "LB")}
    (line,) = task.ailments(won)
    assert "discriminators" in line


@pytest.mark.parametrize("preset", ["paper", "light", "compact"])
def test_presets_are_usable(preset: str) -> None:
    changes = FAMILY.presets[preset]
    assert set(changes) <= {"run", "ugatit"}
    config = replace(FAMILY.config(), **changes["ugatit"])
    FAMILY.check(config)
    # The learning rate falls over the second half, and is used up at the end.
    steps = changes["run"]["steps"]
    assert (config.lr_fall_from, config.lr_fall_to) == (steps // 2, steps)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 66, "load_size": 70}, "nearest: 64"),
        ({"image_size": 2048, "load_size": 2048}, "nearest: 1024"),
        ({"load_size": 30}, "load_size is 30, expected 32 or more"),
        ({"global_layers": 7}, "global_layers is 7, expected 3 to 5 at 32 px"),
        ({"local_layers": 2}, "local_layers is 2"),
        ({"width": 0}, "width is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"beta1": 1.0}, "beta1 is 1"),
        ({"cam": -1.0}, "cam is -1"),
        ({"lr_fall_to": 10}, "lr_fall_to is 10, expected 500000 or more"),
        ({"d_lr_factor": 0.0}, "d_lr_factor is 0.0, expected more than 0"),
        ({"recolour": True}, "recolour is on, and these discriminators see pictures as they are"),
        ({"pool": -1}, "pool is -1, expected 0 or more"),
        ({"mirror": -1.0}, "mirror is -1.0, expected 0 or more"),
        ({"unseen": 1.0}, "unseen is 1.0, expected 0 to below 1"),
        ({"unseen": 0.3}, "unseen is 0.3, and these discriminators see all of a picture"),
        (
            {"restore": True, "identity": 0.0},
            "restore is on, and the identity loss it is of is off",
        ),
        ({"judge_levels": 2}, "judge_levels is 2, and these discriminators see one size"),
        (
            {"judge": "domains", "judge_levels": 5},
            "judge_levels is 5, expected 1 to 4 at 32 px",
        ),
        ({"colour": -1.0}, "colour is -1.0, expected 0 or more"),
        ({"judge": "domains", "mismatch": -1.0}, "mismatch is -1.0, expected 0 or more"),
        ({"mismatch": 1.0}, "mismatch is 1.0, and these discriminators know one domain each"),
    ],
)
def test_settings_that_do_not_go(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        FAMILY.check(replace(TINY, **changes))
    FAMILY.check(TINY)
