"""StarGAN: published files load as they are, and give the published program's numbers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
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
from facestyle.checkpoint import Checkpoint, load_checkpoint, save_model
from facestyle.convert import convert
from facestyle.edits import Edit
from facestyle.errors import CheckpointError, UsageError
from facestyle.families import detect
from facestyle.families.stargan import FAMILY
from facestyle.families.stargan.networks import (
    Classifier,
    Discriminator,
    Generator,
    discriminator_sizes,
    generator_sizes,
)
from facestyle.families.stargan.objective import (
    Config,
    Task,
    ailments,
    classification_loss,
    gradient_penalty,
    judged,
    learning_rate_factor,
    one_changed,
)
from facestyle.nn.adversarial import R1_EVERY
from facestyle.nn.painter import Painter
from facestyle.training.config import resolve

GOLDENS = Path(__file__).parent / "goldens"
OUTPUT_TOLERANCE = 1e-4  # of an output's largest absolute value (goldens' own rule)
LOSS_TOLERANCE = 1e-3  # relative (goldens' own rule)
CELEBA = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
RAFD = ("angry", "contemptuous", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
HAIR = "Black_Hair,Blond_Hair,Brown_Hair"

State = dict[str, Tensor]


def golden(name: str) -> tuple[dict[str, Any], dict[str, State]]:
    """What a golden says, and its stand-in weights by part."""
    meta = json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
    parts = {
        part: {
            key: torch.from_numpy(np.asarray(standin.tensor_for(f"{part}.{key}", shape)))
            for key, shape in shapes.items()
        }
        for part, shapes in meta["shapes"].items()
    }
    return meta, parts


def written(folder: Path, parts: Mapping[str, State], prefix: str = "") -> Path:
    """The published program's files; the generator's path."""
    for part, state in parts.items():
        torch.save({prefix + key: t for key, t in state.items()}, folder / f"200000-{part}.ckpt")
    return folder / "200000-G.ckpt"


def opened(path: Path, **known: Any) -> tuple[ModelCard, dict[str, nn.Module]]:
    """Card and modules, the way ``facestyle.load`` goes."""
    checkpoint = load_checkpoint(path)
    assert FAMILY.misfit(checkpoint.shapes()) is None
    card = checkpoint.card or FAMILY.card(checkpoint, known)
    return card, FAMILY.modules(checkpoint, card)


def tiny(
    labels: int = 5, attributes: int | None = None, *, blocks: int = 1, kernel: int = 2
) -> dict[str, State]:
    """Both networks' random weights; 16 px unless the kernel is another."""
    torch.manual_seed(0)
    generator = Generator(labels=labels, width=4, blocks=blocks)
    discriminator = Discriminator(attributes=attributes or labels, width=4, layers=3, kernel=kernel)
    return {"G": dict(generator.state_dict()), "D": dict(discriminator.state_dict())}


def checkpoint_of(parts: Mapping[str, State]) -> Checkpoint:
    return Checkpoint(path=Path("a.safetensors"), parts=parts, card=None)


def shapes_of(parts: Mapping[str, State]) -> dict[str, dict[str, tuple[int, ...]]]:
    return checkpoint_of(parts).shapes()


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Iterator[None]:
    """pytest keeps the folders of its last runs; the published files have some 200 MB."""
    yield
    shutil.rmtree(tmp_path)


# --- Against the published program -----------------------------------------------------------


@pytest.mark.slow
def test_the_published_files(tmp_path: Path) -> None:
    meta, parts = golden("stargan_128_celeba5")
    outputs = np.load(GOLDENS / "stargan_128_celeba5.npz")
    model = facestyle.load(written(tmp_path, parts), domains=CELEBA)
    assert model.card == ModelCard(
        family="stargan",
        image_size=128,
        domains=CELEBA,
        styles=("attributes",),
        exclusive=(HAIR,),
        pasted="crop",
        name="200000-G",
    )

    x = standin.image(21, 2, 128)
    label = (standin.noise(22, 2, 5) > 0).astype(np.float32)
    stride = meta["stride"]["image"]
    found = {
        "image": model.backend.run("generator", x, label)[..., ::stride, ::stride],
        "cls": model.backend.run("classifier", x),
    }
    discriminator = Discriminator(**discriminator_sizes(meta["shapes"]["D"]))
    discriminator.load_state_dict(parts["D"])
    with torch.inference_mode():
        found["src"] = discriminator(torch.from_numpy(x))[0].numpy()
    for name, array in found.items():
        assert array.shape == outputs[name].shape
        worst = np.abs(array - outputs[name]).max() / np.abs(outputs[name]).max()
        assert worst <= OUTPUT_TOLERANCE, f"{name} is off by {worst:.1e}"


def test_the_published_training_step() -> None:
    meta, parts = golden("train_stargan_celeba")
    config = Config(
        image_size=meta["img_size"],
        g_width=meta["conv_dim"],
        d_width=meta["conv_dim"],
        g_blocks=meta["g_repeat"],
        d_layers=meta["d_repeat"],
        n_critic=1,
    )
    task = Task(config, meta["c_dim"])
    for part, network in task.networks.items():
        network.load_state_dict(parts[part])
    for index, expected in enumerate(meta["losses"]):
        b = 100 * (index + 1)
        alpha = np.random.RandomState(b + 4).uniform(0, 1, (2, 1, 1, 1))
        found = task.step(
            {
                "x_NCHW": torch.from_numpy(standin.image(b + 1, 2, meta["img_size"])),
                "label_NA": torch.from_numpy((standin.noise(b + 2, 2, 5) > 0).astype(np.float32)),
                "target_NA": torch.from_numpy((standin.noise(b + 3, 2, 5) > 0).astype(np.float32)),
                "alpha_N111": torch.from_numpy(alpha.astype(np.float32)),
            }
        )
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=LOSS_TOLERANCE), f"{name} at {index}"
    for part, sums in meta["after"].items():
        weights = [p.detach().double() for p in task.networks[part].parameters()]
        mean_abs = float(np.mean([float(w.abs().mean()) for w in weights]))
        assert mean_abs == pytest.approx(sums["mean_abs"], rel=1e-5)
        assert sum(float((w**2).sum()) for w in weights) == pytest.approx(sums["sum_sq"], rel=1e-5)


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        generator = Generator(labels=5, width=64, blocks=6)
    assert sum(p.numel() for p in generator.parameters()) == 8_430_528


# --- Files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("labels", [1, 5, 40])
def test_any_number_of_attributes_and_blocks(
    labels: int, blocks: int, prefix: str, tmp_path: Path
) -> None:
    parts = tiny(labels, blocks=blocks)
    path = written(tmp_path, parts, prefix)
    assert detect(load_checkpoint(path)) is FAMILY
    card, modules = opened(path)
    assert card.domains == tuple(map(str, range(labels)))
    assert (card.styles, card.image_size, card.exclusive) == (("attributes",), 16, ())
    x, label = torch.rand(2, 3, 16, 16) * 2 - 1, torch.eye(2, labels)
    generator = Generator(**generator_sizes(shapes_of(parts)["G"]))
    generator.load_state_dict(parts["G"])
    discriminator = Discriminator(**discriminator_sizes(shapes_of(parts)["D"]))
    discriminator.load_state_dict(parts["D"])
    with torch.inference_mode():
        assert torch.equal(modules["generator"](x, label), generator(x, label))
        assert torch.equal(modules["classifier"](x), discriminator(x)[1])
        assert modules["classifier"](x).shape == (2, labels)


def test_a_generator_alone(tmp_path: Path) -> None:
    """Any side that is a multiple of 4 fits it: the published one unless somebody knows."""
    path = written(tmp_path, {"G": tiny()["G"]})
    card, modules = opened(path, domains=CELEBA)
    assert card.image_size == 128
    assert set(modules) == {"generator"}
    assert opened(path, image_size=256)[0].image_size == 256
    with pytest.raises(CheckpointError, match="says 130 px"):
        opened(path, image_size=130)


def test_the_side_is_the_discriminators(tmp_path: Path) -> None:
    """Its kernel covers the last map; what is lost in the halvings may be known."""
    path = written(tmp_path, tiny(kernel=3))
    assert opened(path)[0].image_size == 24
    assert opened(path, image_size=28)[0].image_size == 28
    assert opened(path, image_size=64)[0].image_size == 24
    card, modules = opened(path, image_size=28)
    with torch.inference_mode():
        assert modules["classifier"](torch.zeros(1, 3, 28, 28)).shape == (1, 5)
    checkpoint = load_checkpoint(path)
    with pytest.raises(CheckpointError, match="says 64 px, its networks take 24"):
        FAMILY.modules(checkpoint, replace(card, image_size=64))


@pytest.mark.parametrize("name", ["100_20_G.pth", "G.ckpt", "a-G.pt"])
def test_the_discriminators_file_is_found_by_name(name: str, tmp_path: Path) -> None:
    parts = tiny()
    torch.save(parts["G"], tmp_path / name)
    assert set(opened(tmp_path / name)[1]) == {"generator"}
    torch.save(parts["D"], tmp_path / name.replace("G.", "D."))
    assert set(opened(tmp_path / name)[1]) == {"generator", "classifier"}


def test_a_discriminator_alone_is_refused(tmp_path: Path) -> None:
    parts = tiny()
    written(tmp_path, parts)
    with pytest.raises(CheckpointError, match=r"give the generator's file, <iterations>-G\.ckpt"):
        facestyle.load(tmp_path / "200000-D.ckpt")
    assert "discriminator" in str(FAMILY.misfit(shapes_of({"D": parts["D"]})))


@pytest.mark.parametrize(
    "change",
    [
        {"main.0.weight": (64, 8, 3, 3)},  # no 7 × 7 convolution
        {"main.0.weight": (64, 3, 7, 7)},  # takes no labels
        {"main.0.weight": (64,)},
        {"main.0.weight": ()},
        {"main.1.weight": None},  # no norm
        {"main.3.weight": (64,)},
        {"main.6.weight": None},
    ],
)
def test_strangers(change: dict[str, Any]) -> None:
    shapes: dict[str, Any] = shapes_of({"": tiny()["G"]})
    assert FAMILY.misfit(shapes) is None
    shapes[""] = {key: shape for key, shape in (shapes[""] | change).items() if shape is not None}
    assert FAMILY.misfit(shapes)
    assert FAMILY.misfit({"generator": shapes[""]})
    assert FAMILY.misfit({})


@pytest.mark.parametrize("dropped", ["num_batches_tracked", "running_mean", "running"])
def test_statistics_that_a_file_may_lack(dropped: str, tmp_path: Path) -> None:
    """Torch before 0.4.1 wrote no ``num_batches_tracked``; none of them is ever used."""
    parts = tiny()
    lacking = {key: t for key, t in parts["G"].items() if dropped not in key}
    assert len(lacking) < len(parts["G"])
    x, label = torch.rand(1, 3, 16, 16), torch.ones(1, 5)
    with torch.inference_mode():
        found = opened(written(tmp_path, {"G": lacking}))[1]["generator"](x, label)
        expected = opened(written(tmp_path, parts))[1]["generator"](x, label)
    assert torch.equal(found, expected)


def test_running_statistics_are_never_used(tmp_path: Path) -> None:
    """The published program never calls ``eval()``: a picture's own statistics, always."""
    parts = tiny()
    garbage = {
        key: t + 7 if "running" in key or "tracked" in key else t for key, t in parts["G"].items()
    }
    label = torch.ones(2, 5)
    x = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        clean = opened(written(tmp_path, parts))[1]["generator"](x, label)
        generator = opened(written(tmp_path, {"G": garbage}))[1]["generator"]
        assert torch.equal(generator(x, label), clean)
        assert torch.equal(generator.train()(x, label), clean)
    # Kept in the file's names all the same, as they were.
    assert all(torch.equal(generator.state_dict()[key], garbage[key]) for key in garbage)


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("G", "main.4.bias", None, "G.ckpt: main.4.bias is missing"),
        ("G", "main.9.main.3.weight", None, "main.9.main.3.weight is missing"),
        ("G", "main.4.running_var", None, "main.4.running_var is missing"),
        ("G", "main.4.num_batches_tracked", None, "num_batches_tracked is missing"),
        ("G", "main.9.main.3.weight", torch.zeros(2, 2, 3, 3), "main.9.main.3.weight has shape"),
        ("G", "main.99.weight", torch.zeros(2, 2, 3, 3), "main.99.weight is not part"),
        ("G", "main.1.bias", torch.zeros(4).long(), "main.1.bias holds torch.int64"),
        ("D", "main.2.bias", None, "D.ckpt: main.2.bias is missing"),
        ("D", "conv1.weight", torch.zeros(1, 2, 3, 3), "D.ckpt: conv1.weight has shape"),
        ("D", "conv3.weight", torch.zeros(1), "conv3.weight is not part"),
        ("D", "conv2.weight", torch.zeros(5), "sizes of a StarGAN's D"),
        ("D", "conv2.weight", torch.zeros(5, 16, 0, 0), "sizes of a StarGAN's D"),
        ("D", "conv2.weight", None, "sizes of a StarGAN's D"),
        ("D", "conv2.weight", torch.zeros(6, 16, 2, 2), "from one run"),
        ("D", "conv2.weight", torch.zeros(4, 16, 2, 2), "from one run"),
    ],
)
def test_tensors_that_do_not_fit(
    part: str, key: str, value: Tensor | None, said: str, tmp_path: Path
) -> None:
    parts = tiny()
    parts[part].pop(key, None)
    if value is not None:
        parts[part][key] = value
    with pytest.raises(CheckpointError, match=said):
        facestyle.load(written(tmp_path, parts))


def test_huge_widths_take_no_memory(tmp_path: Path) -> None:
    parts = {"G": tiny()["G"]}
    parts["G"]["main.0.weight"] = torch.zeros(10**5, 8, 7, 7, dtype=torch.bool)
    with pytest.raises(CheckpointError, match=r"main\.\d"):
        opened(written(tmp_path, parts))


# --- What the entries of a label vector mean ---------------------------------------------------


def card_of(labels: int, attributes: int | None, **known: Any) -> ModelCard:
    parts = tiny(labels, attributes)
    if attributes is None:
        del parts["D"]
    return FAMILY.card(checkpoint_of(parts), known)


def test_exclusive_attributes_by_name() -> None:
    assert card_of(5, 5, domains=CELEBA).exclusive == (HAIR,)
    assert card_of(8, 8, domains=RAFD).exclusive == (",".join(RAFD),)
    assert card_of(3, 3, domains=("Male", "Blond_Hair", "Young")).exclusive == ()
    assert card_of(2, 2, domains=("a", "b"), exclusive=("a,b",)).exclusive == ("a,b",)
    # The index's groups say nothing of other names.
    assert card_of(2, 2, domains=("c", "d"), exclusive=("a,b",)).exclusive == ()


@pytest.mark.parametrize("attributes", [None, 13])
def test_the_published_joint_model(attributes: int | None) -> None:
    """CelebA's 5, RaFD's 8 and a mask of 2 (section 3.2)."""
    card = card_of(15, attributes, domains=CELEBA + RAFD)
    assert card.domains == CELEBA + RAFD
    assert card.attribute_sets == (",".join(CELEBA), ",".join(RAFD))
    assert card.exclusive == (HAIR, ",".join(RAFD))


def test_a_joint_model_whose_attributes_nobody_named() -> None:
    card = card_of(15, 13)
    assert card.attribute_sets == ("0,1,2,3,4", "5,6,7,8,9,10,11,12")
    assert card.exclusive == ("5,6,7,8,9,10,11,12",)
    # Without the discriminator nothing tells labels from mask.
    assert len(card_of(15, None).domains) == 15
    with pytest.raises(UsageError, match="trained on 2 data sets together") as caught:
        card_of(7, 5)
    assert "|" in str(caught.value.hint)


@pytest.mark.parametrize("attributes", [None, 5])
def test_where_one_data_set_ends(attributes: int | None) -> None:
    sets = ("Male,Young", "a,b,c")
    for known in (
        {"attribute_sets": sets},
        {"attribute_sets": sets, "domains": ("Male", "Young", "a", "b", "c")},
        {"domains": ("Male", "Young|a", "b", "c")},
    ):
        card = card_of(7, attributes, **known)
        assert card.domains == ("Male", "Young", "a", "b", "c")
        assert card.attribute_sets == sets
    renamed = card_of(7, attributes, attribute_sets=sets, domains=("p", "q", "r", "s", "t"))
    assert renamed.attribute_sets == ("p,q", "r,s,t")
    three = card_of(9, None, domains=("a", "b|c", "d|e", "f"))
    assert three.attribute_sets == ("a,b", "c,d", "e,f")


@pytest.mark.parametrize(
    ("labels", "attributes", "names"),
    [
        (5, 5, ("a",)),
        (5, 5, ("a", "b", "c", "d", "e", "f")),
        (5, 5, ("a", "b", "c", "d", "d")),
        (5, 5, ("a", "b", "c", "d", "")),
        (7, None, ("a", "b", "c", "d", "e")),
        (7, 5, ("a", "b", "c", "d", "e")),
        (15, 13, CELEBA + RAFD + ("x", "y")),
        (15, 15, CELEBA + RAFD),
        (7, None, ("a", "b|c", "d")),
        (7, None, ("a", "b|", "c", "d", "e")),
    ],
)
def test_names_that_do_not_fit(labels: int, attributes: int | None, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        card_of(labels, attributes, domains=names)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"domains": CELEBA[:4]},
        {"domains": (*CELEBA, "more")},
        {"attribute_sets": ("Black_Hair", "Male")},
        {"image_size": 32},
    ],
)
def test_a_card_that_contradicts_its_tensors(changes: dict[str, Any], tmp_path: Path) -> None:
    parts = tiny()
    card = replace(FAMILY.card(checkpoint_of(parts), {"domains": CELEBA}), **changes)
    save_model(tmp_path / "a.safetensors", parts, card)
    with pytest.raises(CheckpointError, match="its card says"):
        opened(tmp_path / "a.safetensors")


def test_a_joint_model_is_told_whose_labels_hold(tmp_path: Path) -> None:
    """The label vector of an edit, through the path a user takes."""
    model = facestyle.load(written(tmp_path, tiny(15, 13)), domains=CELEBA + RAFD)
    x = standin.image(1, 2, 16)
    seen = model.backend.run("classifier", x)
    style = model.edited(Edit(on=("happy",)))
    label = np.zeros((2, 15), np.float32)
    label[:, [len(CELEBA) + RAFD.index("happy"), 14]] = 1
    assert np.array_equal(model.labels(x, Edit(on=("happy",))), label)
    assert np.array_equal(model.translate(x, style), model.backend.run("generator", x, label))

    found = model.labels(x, Edit(on=("Blond_Hair",), flip=("Male",)))
    male, young = seen[:, CELEBA.index("Male")] > 0, seen[:, CELEBA.index("Young")] > 0
    expected = np.zeros((2, 15), np.float32)
    expected[:, 1], expected[:, 3], expected[:, 4], expected[:, 13] = 1, ~male, young, 1
    assert np.array_equal(found, expected)


def test_what_is_hair_and_what_skin_follows_other_names(tmp_path: Path) -> None:
    parts = tiny()
    card = FAMILY.card(checkpoint_of(parts), {"domains": CELEBA})
    card = replace(card, on_hair=CELEBA[:3], on_skin=CELEBA[3:])
    save_model(tmp_path / "a.safetensors", parts, card)
    names = ("schwarz", "blond", "braun", "Mann", "jung")
    model = facestyle.load(tmp_path / "a.safetensors", domains=names)
    assert (model.card.on_hair, model.card.on_skin) == (names[:3], names[3:])
    x = standin.image(1, 2, 16)
    assert np.array_equal(
        model.hair_colours(x), facestyle.load(tmp_path / "a.safetensors").hair_colours(x)
    )


def test_a_model_of_differences_is_told_what_changes_and_nothing_else(tmp_path: Path) -> None:
    parts = tiny()
    whole = FAMILY.card(checkpoint_of(parts), {"domains": CELEBA})
    save_model(tmp_path / "a.safetensors", parts, replace(whole, relative=True))
    model = facestyle.load(tmp_path / "a.safetensors")
    assert model.card.relative
    x = standin.image(1, 2, 16)

    def told(**edit: Any) -> list[list[float]]:
        return model.labels(x, Edit(**edit)).tolist()  # type: ignore[no-any-return]

    # Black, blond and brown hair, male, young; of the others nothing is told, whatever they are.
    assert (
        told(on=("Male",)) == told(on=("Male",), source=("Male", "Young")) == [[0, 0, 0, 1, 0]] * 2
    )
    assert told(off=("Young",)) == [[0, 0, 0, 0, -1]] * 2
    assert told(flip=("Male",), source=("Male", "Young")) == [[0, 0, 0, -1, 0]] * 2
    assert told(on=("Blond_Hair",), source=("Brown_Hair",)) == [[0, 1, -1, 0, 0]] * 2
    seen = model.backend.run("classifier", x) > 0
    assert told(flip=("Young",)) == [[0, 0, 0, 0, -1 if young else 1] for young in seen[:, 4]]
    # A file without a card could not say what it wants to be told.
    with pytest.raises(UsageError, match="differences"):
        convert(tmp_path / "a.safetensors", tmp_path / "published", layout="published")
    assert not (tmp_path / "published").exists()
    # Without eyes it still does what depends on nothing that the face has.
    save_model(tmp_path / "b.safetensors", {"G": parts["G"]}, replace(whole, relative=True))
    blind = facestyle.load(tmp_path / "b.safetensors")
    assert blind.translate(x, blind.edited(Edit(on=("Male",)))).shape == x.shape
    for unseen in (Edit(flip=("Male",)), Edit(on=("Black_Hair",))):
        with pytest.raises(UsageError, match="cannot see"):
            blind.edited(unseen)
    # Whichever of a group a face lacks, to set one and to flip another may call for both.
    with pytest.raises(UsageError, match="Blond_Hair and Black_Hair exclude each other"):
        blind.edited(Edit(on=("Blond_Hair",), flip=("Black_Hair",), source=()))


def test_the_label_reaches_every_pixel_through_the_border() -> None:
    """With zero padding, and by that alone: a label is constant, and norms take that away."""
    torch.manual_seed(0)
    generator = Generator(labels=2, width=8, blocks=2)
    x, on, off = torch.rand(1, 3, 16, 16), torch.ones(1, 2), torch.zeros(1, 2)
    with torch.inference_mode():
        assert float((generator(x, on) - generator(x, off)).abs().amax(1).min()) > 0
        for module in generator.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = "reflect"
                width = module.padding[0]
                module._reversed_padding_repeated_twice = [width] * 4
        assert float((generator(x, on) - generator(x, off)).abs().max()) < 1e-4


# --- Arithmetic ------------------------------------------------------------------------------


def test_classification_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    label = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # Probabilities 1/2 and 3/4, then 3/4 and 1/2: summed over attributes, mean over pictures.
    wanted = (math.log(2) + math.log(4) + math.log(4 / 3) + math.log(2)) / 2
    assert float(classification_loss(logits, label, one_hot=False)) == pytest.approx(wanted)
    # Softmax 1/4 and 3/4.
    wanted = (math.log(4) + math.log(4 / 3)) / 2
    assert float(classification_loss(logits, label, one_hot=True)) == pytest.approx(wanted)


def test_gradient_penalty_by_hand() -> None:
    x = torch.rand(2, 3, 4, 4).requires_grad_()
    # Realness of two patches each, 48 pixels: gradients of length 3 and 0.5 for the two pictures.
    slopes = torch.tensor([3.0, 0.5]).view(2, 1, 1, 1) / math.sqrt(48)
    realness = (slopes * x).sum(dim=(1, 2, 3), keepdim=True).expand(2, 1, 1, 2) / 2
    assert float(gradient_penalty(realness, x)) == pytest.approx((4 + 0.25) / 2, rel=1e-5)


def test_learning_rates_fall_over_the_second_half() -> None:
    factors = [learning_rate_factor(100, 50, step) for step in (0, 99, 100, 125, 149, 150, 999)]
    assert factors == pytest.approx([1, 1, 1, 0.5, 0.02, 0, 0])
    assert learning_rate_factor(100, 0, 999) == 1


def test_what_losses_tell() -> None:
    usual = {"D/real": -1.0, "D/fake": 0.5, "D/cls": 1.2, "D/gp": 0.02, "G/cls": 1.5}
    guessing = 5 * math.log(2)
    assert ailments(usual, guessing) == []
    assert ailments({}, guessing) == []
    (blind,) = ailments(usual | {"D/cls": 3.46, "G/cls": 3.6}, guessing)
    assert "labels" in blind
    (unlearned,) = ailments(usual | {"G/cls": 4.0}, guessing)
    assert "results do not show" in unlearned
    (steep,) = ailments(usual | {"D/gp": 2.5}, guessing)
    assert "d_lr" in steep


# --- Training --------------------------------------------------------------------------------

SMALL = Config(image_size=16, g_width=4, g_blocks=1, d_width=4, d_layers=2, n_critic=2)


def batch_of(step: int, size: int = 2) -> dict[str, Tensor]:
    """As the loop stacks it: pictures in channels_last."""
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(size, 3, 16, 16, generator=generator) * 2 - 1
    labels = torch.eye(3)[torch.randint(3, (2, size), generator=generator)]
    return {
        "x_NCHW": x.contiguous(memory_format=torch.channels_last),
        "label_NA": labels[0],
        "target_NA": labels[1],
        "alpha_N111": torch.rand(size, 1, 1, 1, generator=generator),
    }


def task_of(config: Config = SMALL, **hardware: Any) -> Task:
    torch.manual_seed(0)
    task: Task = FAMILY.task(
        config, 3, **({"device": "cpu", "bf16": False, "compile": False} | hardware)
    )
    return task


def weights_of(task: Task, part: str) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.networks[part].parameters()])


def test_the_generator_steps_every_fifth_time() -> None:
    task = task_of(replace(SMALL, n_critic=5))
    for step in range(10):
        before = {part: weights_of(task, part) for part in ("G", "D")}
        losses = task.step(batch_of(step))
        moved = {part for part in before if not torch.equal(weights_of(task, part), before[part])}
        assert moved == ({"G", "D"} if step in (4, 9) else {"D"})
        assert ("G/rec" in losses) == (step in (4, 9))
    assert task.step_index == 10


def test_learning_rates_are_a_function_of_the_step() -> None:
    task = task_of(replace(SMALL, g_lr=1e-3, d_lr=1e-2, constant_steps=1, decay_steps=2))
    for factor in (1, 1, 0.5, 0):
        task.step(batch_of(0))
        rates = task.optimisers.learning_rates()
        assert rates == pytest.approx({"G": 1e-3 * factor, "D": 1e-2 * factor})


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("labels", ["attributes", "one-hot"])
def test_resuming_changes_nothing(labels: str, bf16: bool, tmp_path: Path) -> None:
    config = replace(SMALL, labels=labels)
    straight = task_of(config, bf16=bf16)
    losses = [straight.step(batch_of(step)) for step in range(5)]
    first = task_of(config, bf16=bf16)
    for step in range(2):
        first.step(batch_of(step))
    assert first.step(batch_of(2)) == losses[2]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = FAMILY.task(config, 3, device="cpu", bf16=bf16, compile=False)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.step(batch_of(step)) for step in (3, 4)] == losses[3:]
    for part in ("G", "D"):
        assert torch.equal(weights_of(second, part), weights_of(straight, part))


def test_bf16_is_near_float32() -> None:
    exact, rough = (task_of(bf16=bf16).step(batch_of(0)) for bf16 in (False, True))
    for name, value in exact.items():
        assert rough[name] == pytest.approx(value, rel=0.05, abs=0.02), name


@pytest.mark.slow
def test_it_learns_to_make_what_it_is_told() -> None:
    """Bright where the label says so: attributes as plain as can be, a hundred steps."""
    config = replace(SMALL, g_width=8, d_width=8, g_lr=2e-3, d_lr=2e-3, constant_steps=400)
    torch.manual_seed(0)
    task = FAMILY.task(config, 1, device="cpu", bf16=False, compile=False)
    noise = torch.Generator().manual_seed(0)

    def pictures(label_NA: Tensor) -> Tensor:
        grain = torch.rand(len(label_NA), 3, 16, 16, generator=noise) - 0.5
        return 0.8 * grain + 0.5 * (2 * label_NA[:, :, None, None] - 1)

    for _ in range(120):
        label, target = torch.randint(2, (2, 8, 1), generator=noise).float()
        losses = task.step(
            {
                "x_NCHW": pictures(label),
                "label_NA": label,
                "target_NA": target,
                "alpha_N111": torch.rand(8, 1, 1, 1, generator=noise),
            }
        )
    label = torch.tensor([[0.0], [1.0]])
    with torch.inference_mode():
        x = pictures(label)
        assert torch.equal(Classifier(task.networks["D"])(x) > 0, label > 0.5)
        made = task.networks["G"](x, 1 - label).mean(dim=(1, 2, 3))
    assert float(made[0]) > 0.2
    assert float(made[1]) < -0.2
    assert task.ailments(losses) == []


@pytest.mark.parametrize("half", [False, True])
def test_own_file_and_published_files_load_back(half: bool, tmp_path: Path) -> None:
    task = task_of()
    for step in range(2):
        task.step(batch_of(step))
    card = FAMILY.new_card(SMALL, ("a", "b", "Male")).at_step(2)
    save_model(tmp_path / "a.safetensors", task.model_parts(), card, half=half)
    loaded, modules = opened(tmp_path / "a.safetensors")
    assert loaded == card

    parts = FAMILY.parts(load_checkpoint(tmp_path / "a.safetensors"))
    files = FAMILY.published(parts, 2)
    assert set(files) == {"2-G.ckpt", "2-D.ckpt"}
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    published_card, published = opened(tmp_path / "2-G.ckpt", domains=card.domains)
    assert replace(published_card, name="", steps=2) == card
    x, label = torch.rand(2, 3, 16, 16), torch.eye(2, 3)
    with torch.inference_mode():
        expected = task.networks["G"](x, label)
        for found in (modules, published):
            difference = float((found["generator"](x, label) - expected).abs().max())
            assert difference <= (0.01 if half else 1e-5)
            assert torch.equal(found["classifier"](x), modules["classifier"](x))
    # The published program loads strictly: every statistic is there, unused or not.
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert {key.split(".")[-1] for key in files["2-G.ckpt"] if "main.1." in key} == norm


class FakePictures:
    """What ``sample`` asks of the attributes layout."""

    domains = CELEBA

    def load_labelled(
        self, rng: np.random.Generator, side: int, crop: int, *, even: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        assert crop == 178
        return rng.random((3, side, side), np.float32), self.label(rng, even=even)

    def label(self, rng: np.random.Generator, *, even: bool = False) -> np.ndarray:
        return np.ones(5, np.float32) if even else rng.integers(2, size=5).astype(np.float32)


def test_an_item_is_a_function_of_its_random_stream() -> None:
    first, again, other = (
        FAMILY.sample(FakePictures(), SMALL, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert {name: (a.shape, a.dtype.name) for name, a in first.items()} == {
        "x_NCHW": ((3, 16, 16), "float32"),
        "label_NA": ((5,), "float32"),
        "target_NA": ((5,), "float32"),
        "alpha_N111": ((1, 1, 1), "float32"),
    }
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)
    assert 0 <= first["alpha_N111"].item() < 1
    even = FAMILY.sample(FakePictures(), replace(SMALL, even=True), np.random.default_rng(1))
    assert even["label_NA"].all()
    assert even["target_NA"].all()


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 130},
        {"image_size": 4},
        {"image_size": 32, "d_layers": 6},
        {"labels": "both"},
        {"n_critic": 0},
        {"g_width": 0},
        {"g_blocks": -1},
        {"crop": -1},
        {"judge": "nobody"},
        {"warmup_steps": -1},
        {"mismatch": -1.0, "judge": "attributes"},
        {"mismatch": 1.0, "judge": "whole"},
        {"mirror": -1.0},
        {"reconstruct_every": 0},
        {"warp": -1.0, "roughness": 1.0},
        {"warp": 1.0},
        {"warp_steps": 9},
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        FAMILY.check(replace(Config(), **changes))
    assert next(iter(changes)) in str(caught.value) or "labels" in changes


@pytest.mark.parametrize("preset", list(FAMILY.presets))
def test_presets_build(preset: str) -> None:
    run, config = resolve(FAMILY, preset, {})
    assert run.steps == config.constant_steps + config.decay_steps
    with torch.device("meta"):
        networks = (
            Generator(labels=5, width=config.g_width, blocks=config.g_blocks),
            Discriminator(
                attributes=5,
                width=config.d_width,
                layers=config.d_layers,
                kernel=config.image_size >> config.d_layers,
            ),
        )
        x = torch.zeros(2, 3, config.image_size, config.image_size)
        assert networks[0](x, torch.zeros(2, 5)).shape == x.shape
        assert networks[1](x)[1].shape == (2, 5)


def test_the_papers_settings() -> None:
    run, config = resolve(FAMILY, "paper", {})
    assert (run.steps, run.batch_size, config.image_size, config.crop) == (200_000, 16, 128, 178)
    assert (config.classify, config.reconstruct, config.penalty) == (1, 10, 10)
    assert run.domains.split(",") == list(CELEBA)
    card = FAMILY.new_card(config, CELEBA)
    assert (card.exclusive, card.attribute_sets, card.styles) == ((HAIR,), (), ("attributes",))
    one_hot = FAMILY.new_card(replace(config, labels="one-hot"), ("a", "b"))
    assert one_hot.exclusive == ("a,b",)


# --- Judged by attribute ---------------------------------------------------------------------


def by_attribute(**changes: Any) -> Config:
    """Small, a painter, judged by attribute."""
    settings: dict[str, Any] = {
        "image_size": 16, "g_width": 4, "g_blocks": 1, "d_width": 4, "d_layers": 2,
        "n_critic": 1, "roughness": 1.0, "judge": "attributes", "constant_steps": 400,
    }  # fmt: skip
    return replace(Config(), **settings | changes)


def labelled_batch(count: int = 2) -> dict[str, Tensor]:
    """Two pictures with two attributes, of each of which one is to change."""
    random = torch.Generator().manual_seed(0)
    return {
        "x_NCHW": torch.rand(count, 3, 16, 16, generator=random) * 2 - 1,
        "label_NA": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        "target_NA": torch.tensor([[1.0, 1.0], [1.0, 1.0]]),
        "alpha_N111": torch.rand(count, 1, 1, 1, generator=random),
    }


def test_one_attribute_changes_and_of_a_group_one_is_on() -> None:
    rng = np.random.default_rng(0)
    before = np.array([0, 1, 0, 0, 1], np.float32)  # the first three are one group
    after = np.stack([one_changed(before, [[0, 1, 2]], rng) for _ in range(200)])
    assert (before == (0, 1, 0, 0, 1)).all()
    alone = (after[:, :3] == before[:3]).all(axis=1)
    assert ((after[alone][:, 3:] != before[3:]).sum(axis=1) == 1).all()
    assert (after[:, :3].sum(axis=1) == 1).all()
    assert (after[~alone][:, 3:] == before[3:]).all()
    assert {tuple(row) for row in after[~alone][:, :3]} == {(1, 0, 0), (0, 0, 1)}
    # Nobody has one of the group yet: any of them may come.
    bald = np.zeros(5, np.float32)
    came = {tuple(one_changed(bald, [[0, 1, 2]], rng)[:3]) for _ in range(100)}
    assert came == {(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_of_one_hot_labels_one_stays_on() -> None:
    class OneHot(FakePictures):
        def label(self, rng: np.random.Generator, *, even: bool = False) -> np.ndarray:
            return np.eye(5, dtype=np.float32)[rng.integers(5)]

    config = by_attribute(labels="one-hot", crop=178)
    items = [FAMILY.sample(OneHot(), config, np.random.default_rng(seed)) for seed in range(40)]
    assert all(item["target_NA"].sum() == 1 for item in items)
    assert sum((item["target_NA"] != item["label_NA"]).any() for item in items) > 20


def test_each_attribute_has_two_judgements() -> None:
    # Of two attributes: lacks a, lacks b, has a, has b; patches are averaged.
    realness = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None, None].repeat(2, 1, 2, 2)
    realness[:, :, 0] += 1
    realness[:, :, 1] -= 1
    label = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert judged(realness, label).tolist() == [[1.0, 4.0], [3.0, 2.0]]


def test_first_the_judge_learns_alone_then_both() -> None:
    torch.manual_seed(0)
    task = Task(by_attribute(warmup_steps=2, reconstruct_every=2), 2)
    batch, before = labelled_batch(), weights_of_task(task)
    losses = [task.step(batch) for _ in range(2)]
    assert all(name.startswith("D/") for step in losses for name in step)
    assert torch.equal(weights_of_task(task)["G"], before["G"])
    assert not torch.equal(weights_of_task(task)["D"], before["D"])
    losses += [task.step(batch) for _ in range(7)]
    assert not torch.equal(weights_of_task(task)["G"], before["G"])
    assert ["D/r1" in step for step in losses] == [i % R1_EVERY == 0 for i in range(9)]
    assert ["G/rec" in step for step in losses] == [False, False, False, *[True, False] * 3]


def test_mirrored_faces_may_be_held_to_mirrored_results() -> None:
    batch = labelled_batch()
    x, target = batch["x_NCHW"], batch["target_NA"]

    def losses(weight: float, steps: int) -> list[float]:
        torch.manual_seed(0)
        task = Task(by_attribute(mirror=weight, g_lr=1e-3), 2)
        generator = task.networks["G"]
        assert isinstance(generator, Painter)
        torch.nn.init.normal_(generator.painted.weight, std=0.3)
        with torch.inference_mode():
            apart = generator(x, target) - generator(x.flip(3), target).flip(3)
        found = [task.step(batch)["G/mirror"] for _ in range(steps)]
        assert found[0] == pytest.approx(float(apart.abs().mean()), rel=1e-4)
        return found

    free, held = losses(1e-6, 40), losses(10.0, 40)
    assert held[0] > 0.05
    assert held[-1] < 0.5 * min(held[0], free[-1])


def weights_of_task(task: Task) -> dict[str, Tensor]:
    """Each network's weights in one row."""
    return {
        part: torch.cat([p.detach().reshape(-1) for p in network.parameters()])
        for part, network in task.networks.items()
    }


def test_pictures_under_contrary_labels_teach_the_attributes_alone() -> None:
    """Fakes are the pictures themselves, rightly labelled, so nothing else tells real from made."""
    config = by_attribute(
        d_width=8, d_lr=2e-3, beta1=0.0, warmup_steps=100, classify=0.0, penalty=0.1, mismatch=1.0
    )
    torch.manual_seed(0)
    task, blind = Task(config, 2), Task(replace(config, mismatch=0.0), 2)
    noise = torch.Generator().manual_seed(0)
    for _ in range(60):
        label = torch.randint(2, (8, 2), generator=noise).float()
        grain = torch.rand(8, 3, 16, 16, generator=noise) - 0.5
        red_blue = 2 * label.repeat_interleave(torch.tensor([2, 1]), dim=1)[:, [0, 1, 2]] - 1
        x = 0.6 * grain + 0.5 * red_blue[:, :, None, None]
        batch = {"x_NCHW": x, "label_NA": label, "target_NA": label}
        losses, none = task.step(batch), blind.step(batch)
    assert losses["D/mismatch"] < 0.2  # a guess is 0.69
    assert "D/mismatch" not in none

    def sure(one: Task) -> float:
        realness = one.networks["D"](x)[0]
        return float((judged(realness, label) - judged(realness, 1 - label)).min())

    with torch.inference_mode():
        assert sure(task) > 0 > sure(blind)


@pytest.mark.slow
@pytest.mark.parametrize("relative", [False, True])
def test_a_judge_by_attribute_teaches_it_too(relative: bool) -> None:
    """Bright where the label says so: no classification at all."""
    config = by_attribute(
        relative=relative,
        g_width=8, d_width=8, g_lr=2e-3, d_lr=2e-3, beta1=0.0, beta2=0.99, warmup_steps=40,
        classify=0.0, reconstruct=2.0, penalty=0.1, roughness=0.01,
    )  # fmt: skip
    torch.manual_seed(0)
    task = Task(config, 1)
    noise = torch.Generator().manual_seed(0)

    def pictures(label_NA: Tensor) -> Tensor:
        grain = torch.rand(len(label_NA), 3, 16, 16, generator=noise) - 0.5
        return 0.6 * grain + 0.5 * (2 * label_NA[:, :, None, None] - 1)

    for _ in range(200):
        label, target = torch.randint(2, (2, 8, 1), generator=noise).float()
        task.step({"x_NCHW": pictures(label), "label_NA": label, "target_NA": target})
    label = torch.tensor([[0.0], [1.0]])
    with torch.inference_mode():
        told = 1 - 2 * label if relative else 1 - label
        made = task.networks["G"](pictures(label), told).mean(dim=(1, 2, 3))
        x = pictures(label)
        kept = task.networks["G"](x, torch.zeros_like(label) if relative else label) - x
    assert float(made[0]) > 0.2
    assert float(made[1]) < -0.2
    assert float(kept.mean(dim=(1, 2, 3)).abs().max()) < 0.2


def discs(label_NA: Tensor, noise: torch.Generator) -> Tensor:
    """A bright disc of 32 px pictures, wide where the label is 1, in many a brightness: what they
    have in common is its size."""
    count = len(label_NA)
    along = torch.arange(32) - 15.5
    away_HW = torch.hypot(along[:, None], along[None])
    radius = 7 + 3 * label_NA[:, :, None, None]
    light = 0.3 + 0.7 * torch.rand(count, 1, 1, 1, generator=noise)
    grain = 0.2 * torch.rand(count, 3, 32, 32, generator=noise)
    return light * (2 * torch.sigmoid(2 * (radius - away_HW)) - 1) + grain - 0.1


@pytest.mark.slow
def test_first_a_painter_learns_to_move_then_to_paint() -> None:
    """It is told what is wide by the judge alone, and has nothing but displacement to make it."""
    config = by_attribute(
        image_size=32, relative=True, d_width=8, d_layers=3, g_lr=1e-3, d_lr=2e-3, beta1=0.0,
        warmup_steps=80, classify=0.0, reconstruct=0.1, penalty=0.1, mismatch=1.0, warp=0.3,
        warp_steps=100,
    )  # fmt: skip
    torch.manual_seed(0)
    task, noise = Task(config, 1), torch.Generator().manual_seed(0)
    generator = task.networks["G"]
    assert isinstance(generator, Painter)
    assert generator.shaper is not None

    def step() -> dict[str, float]:
        label, target = torch.randint(2, (2, 8, 1), generator=noise).float()
        return task.step({"x_NCHW": discs(label, noise), "label_NA": label, "target_NA": target})

    for _ in range(180):
        losses = step()
    assert losses["G/warp"] > 0
    assert not generator.painted.weight.any()
    assert task.optimisers.learning_rates()["G"] < 0.02 * config.g_lr
    label = torch.tensor([[0.0], [1.0]])
    with torch.inference_mode():
        x = discs(label, noise)
        wide = [(p > 0.1).float().mean(dim=(1, 2, 3)) for p in (x, generator(x, 1 - 2 * label))]
    narrow_is_wider, wide_is_narrower = (wide[1] / wide[0]).tolist()
    assert narrow_is_wider > 1.4
    assert wide_is_narrower < 0.7
    shape = {name: t.clone() for name, t in generator.shaper.state_dict().items()}
    for _ in range(3):
        step()
    assert generator.painted.weight.any()
    assert all(torch.equal(t, shape[name]) for name, t in generator.shaper.state_dict().items())


@pytest.mark.parametrize("judge", ["whole", "attributes"])
def test_a_painter_is_known_by_its_tensors(judge: str, tmp_path: Path) -> None:
    """Trained, saved, loaded, with its discriminator or alone."""
    config = by_attribute(judge=judge)
    torch.manual_seed(0)
    task, batch = Task(config, 2), labelled_batch()
    assert task.step(batch)["G/rough"] == 0  # it begins with no change
    assert task.step(batch)["G/rough"] > 0
    path = tmp_path / "model.safetensors"
    save_model(path, task.model_parts(), FAMILY.new_card(config, ("a", "b")))
    checkpoint = load_checkpoint(path)
    modules = FAMILY.modules(checkpoint, checkpoint.card)  # type: ignore[arg-type]
    x, target = batch["x_NCHW"], batch["target_NA"]
    for network in task.networks.values():
        network.to(memory_format=torch.contiguous_format)  # in which files are loaded
    with torch.inference_mode():
        assert torch.equal(modules["generator"](x, target), task.networks["G"](x, target))
        assert torch.equal(modules["classifier"](x), task.networks["D"](x)[1])
    assert "G/rough" not in Task(replace(config, roughness=0.0), 2).step(batch)


def test_a_generator_of_no_pictures_is_refused(tmp_path: Path) -> None:
    state = Generator(labels=2, width=4, blocks=1).state_dict()
    state["main.16.weight"] = torch.zeros(5, 4, 7, 7)
    path = tmp_path / "1000-G.ckpt"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="5 channels"):
        facestyle.load(path)
