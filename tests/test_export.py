"""Export and the runtimes without torch: what a bundle holds, refuses, computes and costs."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from typer.testing import CliRunner

from facestyle.backends import Backend
from facestyle.backends.on_onnx import OnnxBackend
from facestyle.backends.on_openvino import OpenVinoBackend
from facestyle.backends.on_torch import TorchBackend
from facestyle.backends.watched import Watched
from facestyle.bundle import is_onnx, load_bundle, parse_bundle, refers_to_files, sealed
from facestyle.card import METADATA_KEY, ModelCard
from facestyle.checkpoint import save_model
from facestyle.errors import CheckpointError, FacestyleError, UsageError, WeightsError
from facestyle.export import export_model
from facestyle.families import ModelFamily, families
from facestyle.families.stargan_v2.networks import (
    Generator,
    MappingNetwork,
    MaskedGenerator,
    Sizes,
)
from facestyle.opening import open_translator
from facestyle.translator import Translator

ROOT = Path(__file__).resolve().parents[1]
CARD = ModelCard(
    family="toy", image_size=8, domains=("A", "B"), styles=("fixed",), licence="none"
)  # fmt: skip

# --- toy models: an export of these takes a second ------------------------------------------


class Toy(nn.Module):
    """Picture → picture, with the operations that GANs are made of."""

    def __init__(self, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = shared or nn.Conv2d(3, 8, 3, padding=1)
        self.decoder = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h = self.encoder(x_NCHW)
        variance, mean = torch.var_mean(h, dim=(2, 3), correction=0, keepdim=True)
        return torch.tanh(self.decoder(torch.relu((h - mean) * torch.rsqrt(variance + 1e-5))))


class Heat(nn.Module):
    """The attention of a toy: shares its encoder."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.toy.encoder(x_NCHW).sum(dim=1, keepdim=True)


def toy_model(card: ModelCard = CARD, **more: nn.Module) -> Translator:
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {"generator.A": Toy(), "generator.B": Toy()}
    modules |= {role.replace("_", "."): module for role, module in more.items()}
    return Translator(card, TorchBackend({role: net.eval() for role, net in modules.items()}))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two generators."""
    path = tmp_path_factory.mktemp("toy") / "toy.onnx"
    export_model(toy_model(), path)
    return path


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in float16."""
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    export_model(toy_model(), path, "fp16")
    return path


def picture(count: int = 1, side: int = 8) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, 3, side, side)).astype(np.float32)


# --- what is in the file --------------------------------------------------------------------


def test_a_bundle_is_one_valid_onnx_file_with_card_and_roles(toy: Path) -> None:
    content = toy.read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == ["generator.A", "generator.B"]
    assert [value.name for value in model.graph.input] == [
        "generator.A.image",
        "generator.B.image",
    ]
    batch, _, height, width = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param for size in (batch, height, width)] == [
        f"generator.A.{name}" for name in ("batch", "height", "width")
    ]
    # Any ONNX program finds the card.
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    card = session.get_modelmeta().custom_metadata_map[METADATA_KEY]
    assert ModelCard.from_json(card) == CARD == load_bundle(toy).card


def test_a_bundle_tells_nothing_of_the_machine_that_made_it(toy: Path) -> None:
    content = toy.read_bytes()
    for trace in (b".py", b"/home", str(ROOT).encode(), b"site-packages", b"torch"):
        assert trace not in content


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    export_model(toy_model(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == toy.read_bytes()


@pytest.mark.slow
def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    model = toy_model()
    toys = model.backend.modules  # type: ignore[attr-defined]
    model = toy_model(attention_A=Heat(toys["generator.A"]))
    export_model(model, tmp_path / "m.onnx")
    weights = onnx.load(tmp_path / "m.onnx").graph.initializer
    kernels = [tuple(weight.dims) for weight in weights if len(weight.dims) == 4]
    assert kernels.count((8, 3, 3, 3)) == 2, "one encoder for each generator, none for attention"
    heat = OnnxBackend(load_bundle(tmp_path / "m.onnx")).run("attention.A", picture())
    np.testing.assert_allclose(heat, model.backend.run("attention.A", picture()), atol=1e-5)


def test_weights_that_float16_holds_exactly_are_stored_so(toy: Path, tmp_path: Path) -> None:
    model = toy_model()
    for module in model.backend.modules.values():  # type: ignore[attr-defined]
        module.half().float()  # as a model that was saved in float16 comes back
    exported = export_model(model, tmp_path / "small.onnx")
    assert max(exported.differences.values()) < 1e-6
    kinds = {w.data_type for w in onnx.load(tmp_path / "small.onnx").graph.initializer if w.dims}
    assert TensorProto.FLOAT16 in kinds
    assert (tmp_path / "small.onnx").stat().st_size < toy.stat().st_size


@pytest.mark.slow
def test_a_network_of_one_size_says_so(tmp_path: Path) -> None:
    class Fixed(Toy):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            return super().forward(x_NCHW) * self.gain

    class Branching(Toy):
        # torch.export takes the branch of the size that it saw for the only one.
        def forward(self, x_NCHW: Tensor) -> Tensor:
            return super().forward(x_NCHW) * (2.0 if x_NCHW.shape[2] == 8 else 1.0)

    fixed = Fixed()
    fixed.register_buffer("gain", torch.ones(1, 3, 8, 8))
    model = toy_model(generator_A=fixed, generator_B=Branching())
    exported = export_model(model, tmp_path / "m.onnx")
    assert exported.any_size == ()
    backend = OnnxBackend(load_bundle(tmp_path / "m.onnx"))
    for role in model.backend.roles:
        found = backend.run(role, picture(2))
        np.testing.assert_allclose(found, model.backend.run(role, picture(2)), atol=1e-5)


def test_what_onnx_cannot_hold_is_left_out_and_said(tmp_path: Path) -> None:
    card = replace(CARD, styles=("fixed", "dropout"))
    model = toy_model(card, sampler_B=Toy())
    exported = export_model(model, tmp_path / "m.onnx")
    bundle = load_bundle(tmp_path / "m.onnx")
    assert exported.left_out == ("sampler.B",)
    assert bundle.roles == ("generator.A", "generator.B")
    assert bundle.card.styles == ("fixed",), "a seed must be refused, not fail"


def test_an_export_that_differs_from_torch_is_not_written(tmp_path: Path) -> None:
    class Other(Toy):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            return super().forward(x_NCHW) + (0.002 if torch.compiler.is_exporting() else 0)

    with pytest.raises(FacestyleError, match=r"generator.B differs from torch by 0.002") as raised:
        export_model(toy_model(generator_B=Other()), tmp_path / "m.onnx")
    assert raised.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


# --- what it computes -----------------------------------------------------------------------


def test_roles_run_as_in_torch_for_any_batch_and_size(toy: Path) -> None:
    model, backend = toy_model(), OnnxBackend(load_bundle(toy))
    assert backend.about == "onnxruntime on cpu, fp32"
    for count, side in ((1, 8), (5, 8), (2, 20)):
        x_NCHW = picture(count, side)
        found = backend.run("generator.B", x_NCHW)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model.backend.run("generator.B", x_NCHW), atol=1e-5)
    with pytest.raises(UsageError, match=r"no role 'encoder'"):
        backend.run("encoder", picture())


def test_a_float16_bundle_is_smaller_and_keeps_its_float32_twin(toy: Path, half: Path) -> None:
    bundle, x_NCHW = load_bundle(half), picture(3)
    assert bundle.precisions == ("fp16", "fp32")
    onnx.checker.check_model(onnx.load_from_string(half.read_bytes()), full_check=True)
    wanted = toy_model().backend.run("generator.A", x_NCHW)
    backend = OnnxBackend(bundle, "cpu", "fp16")
    reduced = backend.run("generator.A", x_NCHW)
    exact = backend.exact().run("generator.A", x_NCHW)
    assert backend.precision == "fp16"
    assert backend.exact().about == "onnxruntime on cpu, fp32"
    assert 0 < np.abs(exact - wanted).max() < 0.01
    assert 0 < np.abs(reduced - wanted).max() < 0.01
    assert not np.array_equal(reduced, exact)
    # Nothing but the weights of one precision is in either network.
    for network in (bundle.network("generator.A", name) for name in ("fp16", "fp32")):
        assert {len(w.dims) for w in onnx.load_from_string(network).graph.initializer} <= {0, 1, 4}
        assert len(network) < half.stat().st_size


def test_what_is_asked_for_and_missing_is_an_error(toy: Path) -> None:
    bundle = load_bundle(toy)
    with pytest.raises(UsageError, match="computes in fp32, not in fp16"):
        OnnxBackend(bundle, "cpu", "fp16")
    with pytest.raises(UsageError, match="computes in fp32, not in bf16"):
        OnnxBackend(bundle, "cpu", "bf16")
    with pytest.raises(UsageError, match="does not run on 'mps'"):
        OnnxBackend(bundle, "mps")
    if not torch.cuda.is_available():
        # onnxruntime itself would go on in silence on the CPU.
        with pytest.raises(UsageError, match="'cuda' was asked for"):
            OnnxBackend(bundle, "cuda")
        assert OnnxBackend(bundle, "auto").device == "cpu"


def test_domains_can_be_renamed(toy: Path) -> None:
    bundle = load_bundle(toy)
    renamed = bundle.with_card(replace(bundle.card, domains=("cat", "dog")))
    assert renamed.roles == ("generator.cat", "generator.dog")
    found = OnnxBackend(renamed).run("generator.dog", picture())
    assert np.array_equal(found, OnnxBackend(bundle).run("generator.B", picture()))


def test_openvino_computes_the_same(toy: Path, half: Path) -> None:
    pytest.importorskip("openvino")
    wanted = toy_model().backend.run("generator.B", picture(2))
    backend = OpenVinoBackend(load_bundle(toy))
    assert backend.about == "openvino on cpu, fp32"
    np.testing.assert_allclose(backend.run("generator.B", picture(2)), wanted, atol=1e-4)
    from_half = OpenVinoBackend(load_bundle(half)).run("generator.B", picture(2))
    np.testing.assert_allclose(from_half, wanted, atol=0.01)
    with pytest.raises(UsageError, match="does not compute in fp8"):
        OpenVinoBackend(load_bundle(toy), "cpu", "fp8")
    with pytest.raises(UsageError, match="does not run on 'cuda'"):
        OpenVinoBackend(load_bundle(toy), "cuda")
    with pytest.raises(UsageError, match="no role 'encoder'"):
        backend.run("encoder", picture())


def test_openvino_missing_is_an_error(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match="not installed"):
        OpenVinoBackend(load_bundle(toy))


def test_opening_networks_in_threads_leaves_stdout_alone(toy: Path) -> None:
    """Sessions open when first used, side by side, while results are told."""
    before = sys.stdout
    seen: list[object] = []

    def opened(_: int) -> None:
        backend = OnnxBackend(load_bundle(toy), "cpu")
        for role in backend.roles:
            backend._session(role)
            seen.append(sys.stdout)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(opened, range(32)))
    assert sys.stdout is before
    assert all(one is before for one in seen)


class Flaky:
    """A backend whose second result is spoilt by its reduced precision."""

    roles = ("generator",)
    about = "flaky"
    device = "cuda"
    precision = "fp16"

    def __init__(self, spoilt: float) -> None:
        self.spoilt = spoilt
        self.exact_runs = 0

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        results = arrays[0] * np.float32(0.5)
        results[1] = self.spoilt
        return results

    def exact(self) -> Any:
        parent = self

        class Exact(Flaky):
            precision = "fp32"

            def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
                parent.exact_runs += 1
                return arrays[0] * np.float32(0.25)

        return Exact(0)


@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf, -1.0])
def test_a_broken_picture_is_done_again_in_float32(spoilt: float) -> None:
    flaky, said, x_NCHW = Flaky(spoilt), [], np.ones((3, 3, 4, 4), np.float32)
    results = Watched(flaky, said.append).run("generator", x_NCHW)
    assert results[:, 0, 0, 0].tolist() == [0.5, 0.25, 0.5]
    assert said == [
        "generator: 1 of 3 came out not finite or black in fp16, done again in fp32"
    ]  # fmt: skip


def test_a_sound_picture_is_left_alone() -> None:
    flaky, said = Flaky(0.1), []
    Watched(flaky, said.append).run("generator", np.ones((2, 3, 4, 4), np.float32))
    assert (flaky.exact_runs, said) == (0, [])


# --- what is refused ------------------------------------------------------------------------


def test_onnx_files_are_told_by_their_first_bytes(toy: Path, tiny_model: Path) -> None:
    assert is_onnx(toy)
    assert is_onnx(ROOT / "weights" / "face_detector.onnx")
    assert not is_onnx(tiny_model)
    assert not is_onnx(toy.parent)
    assert not is_onnx(toy.with_name("missing"))


def test_a_missing_or_foreign_file_is_refused(toy: Path) -> None:
    with pytest.raises(WeightsError, match="cannot read"):
        load_bundle(toy.with_name("missing.onnx"))
    with pytest.raises(CheckpointError, match="no model card, expected an ONNX file of 'facest"):
        load_bundle(ROOT / "weights" / "face_detector.onnx")


def test_damage_anywhere_is_caught(toy: Path) -> None:
    content, rng = toy.read_bytes(), random.Random(0)
    for _ in range(100):
        with pytest.raises(CheckpointError):
            parse_bundle(content[: rng.randrange(len(content))], toy)
    for _ in range(300):
        with pytest.raises(CheckpointError):
            parse_bundle(flipped(content, rng), toy)
    with pytest.raises(CheckpointError):
        parse_bundle(content + b"\x00", toy)


def test_malice_under_a_right_digest_is_an_error_all_the_same(toy: Path) -> None:
    content, rng = toy.read_bytes(), random.Random(1)
    body = content[: len(content) - (len(sealed(content)) - len(content))]
    outcomes = [outcome_of(sealed(flipped(body, rng)), toy) for _ in range(200)]
    # Most flips fall into weights; of the others nothing but our own errors may come.
    assert {code for code in outcomes if code is not None} == {6}


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def outcome_of(content: bytes, path: Path) -> int | None:
    """The exit code that opening and running a file leads to, None where it runs."""
    try:
        OnnxBackend(parse_bundle(content, path)).run("generator.A", picture())
    except FacestyleError as error:
        return error.exit_code
    return None


def external(name: str, location: str) -> TensorProto:
    tensor = helper.make_tensor(name, TensorProto.FLOAT, [4], [0.0] * 4)
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def poisoned(toy: Path, place: str, location: str) -> bytes:
    """The toy's bundle with a tensor in it that is kept in another file."""
    model = onnx.load_from_string(toy.read_bytes())
    del model.metadata_props[-1]  # the digest
    tensor = external("stolen", location)
    constant = helper.make_node("Constant", [], ["stolen"], value=tensor)
    if place == "weight":
        model.graph.initializer.append(tensor)
    elif place == "node":
        model.graph.node.insert(0, constant)
    else:
        output = helper.make_tensor_value_info("stolen", TensorProto.FLOAT, [4])
        branch = helper.make_graph([constant], "branch", [], [output])
        model.graph.node.insert(
            0, helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)
        )
    return sealed(model.SerializeToString())


@pytest.mark.parametrize("place", ["weight", "node", "branch"])
@pytest.mark.parametrize("how", ["../secret", "absolute", "link"])
def test_no_other_file_is_ever_read(toy: Path, tmp_path: Path, place: str, how: str) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    folder.mkdir()
    secret.write_bytes(bytes(16))
    (folder / "link").symlink_to(secret)
    os.utime(secret, (1, 1))
    location = str(secret) if how == "absolute" else how
    path = folder / "m.onnx"
    path.write_bytes(poisoned(toy, place, location))
    with pytest.raises(CheckpointError, match="is refused: it keeps weights in other files"):
        load_bundle(path)
    assert secret.stat().st_atime == 1


@pytest.mark.parametrize("length", [b"\x08", b"\x88\x00", b"\x88\x80\x00", b"\x88\x80\x80\x80\x00"])
def test_no_spelling_of_a_length_hides_a_reference(length: bytes) -> None:
    assert refers_to_files(b"name: location" + b"\x0a" + length + b"location")
    assert not refers_to_files(b"\x0a\x12generator.location\x08a location")


@pytest.mark.slow
def test_a_domain_may_be_called_location(tmp_path: Path) -> None:
    card = replace(CARD, domains=("A", "location"))
    export_model(toy_model(card), tmp_path / "m.onnx")
    assert load_bundle(tmp_path / "m.onnx").card == card


# --- the way that a user takes --------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The tiny StarGAN v2 exported by the command, and what the command said."""
    from facestyle.cli.export import export as command

    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    result = run(command, tiny_model, "-o", path)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}\n"
    return path, result.stderr


def run(command: Callable[..., None], *arguments: object) -> Any:
    import typer

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_export_says_how_far_from_torch_each_role_is(exported: tuple[Path, str]) -> None:
    path, said = exported
    for role in ("generator", "mapping", "encoder"):
        assert f"{role}: differs from torch by " in said
    assert "largest difference from torch: " in said
    bundle = load_bundle(path)
    assert bundle.roles == ("generator", "mapping", "encoder")
    assert bundle.card.name == "tiny"


def test_export_checks_names_before_it_works(exported: tuple[Path, str], tmp_path: Path) -> None:
    from facestyle.cli.export import export as command

    for output, words in (
        (exported[0], "--overwrite replaces it"),
        (tmp_path / "m.pt", "no name of an ONNX file"),
        (tmp_path / "none" / "m.onnx", "no folder"),
    ):
        result = run(command, "female-male", "-o", output)
        assert result.exit_code == 2
        assert words in result.stderr


def test_an_unknown_precision_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot export in 'int4'"):
        export_model(open_translator(tiny_model), tmp_path / "m.onnx", "int4")


def test_the_bundle_translates_as_torch_does(exported: tuple[Path, str], tiny_model: Path) -> None:
    bundle = load_bundle(exported[0])
    model, other = open_translator(tiny_model), Translator(bundle.card, OnnxBackend(bundle))
    faces_NCHW = picture(3, 32)
    for wanted, found in (
        (model.sample_style("male", 3, 0.7), other.sample_style("male", 3, 0.7)),
        (
            model.style_of(faces_NCHW[:1], "female"),
            other.style_of(faces_NCHW[:1], "female"),
        ),
    ):
        np.testing.assert_allclose(found.code_NS, wanted.code_NS, atol=1e-5)
        np.testing.assert_allclose(
            other.translate(faces_NCHW, found), model.translate(faces_NCHW, wanted), atol=1e-4
        )
    assert model.likely_domain(faces_NCHW[:1]) == other.likely_domain(faces_NCHW[:1])


def test_a_bundle_needs_no_torch(exported: tuple[Path, str], photo: Path) -> None:
    code = f"""
import sys
for name in ("torch", "onnx", "safetensors", "onnxscript"):
    sys.modules[name] = None  # importing it raises ImportError
from pathlib import Path
import numpy as np
from facestyle.backends.on_onnx import OnnxBackend
from facestyle.bundle import load_bundle
from facestyle.images import read_picture
from facestyle.pipeline import reference_style, restyle
from facestyle.translator import Translator

bundle = load_bundle(Path({str(exported[0])!r}))
model = Translator(bundle.card, OnnxBackend(bundle))
one_HWC = read_picture({str(photo)!r}).pixels_HWC
two_HWC = np.concatenate([one_HWC, one_HWC[:, ::-1]], axis=1)
style = model.sample_style("male", seed=1)
for style in (style, reference_style(one_HWC, model, None)):
    changed_HW = (restyle(two_HWC, model, style, "all") != two_HWC).any(axis=2)
    half = changed_HW.shape[1] // 2
    assert changed_HW[:, :half].any() and changed_HW[:, half:].any(), "one face was left out"
    assert not changed_HW.all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- every family ---------------------------------------------------------------------------

# What makes each family's networks small; more than one row where their structure differs.
SMALL: Mapping[str, list[dict[str, Any]]] = {
    "stargan-v2": [
        {"image_size": 16, "first_width": 8, "max_width": 16, "mapping_width": 32,
         "roughness": roughness, "warp": warp}
        for roughness, warp in ((0.0, 0.0), (1.0, 1.0), (1.0, 0.0))
    ],
    "ugatit": [
        {"image_size": 32, "width": 4, "blocks": 1, "light": light, "global_layers": 4,
         "local_layers": 3}
        for light in (True, False)
    ],
    "cyclegan": [
        {"image_size": 32, "generator_width": 8, "blocks": 2, "discriminator_width": 8}
    ],
    "pix2pix": [
        {"image_size": 64, "width": 8, "judge_width": 8},
        {"image_size": 32, "width": 8, "judge_width": 8, "norm": "instance", "dropout": False},
    ],
    "stargan": [
        {"image_size": 32, "g_width": 8, "g_blocks": 2, "d_width": 8, "d_layers": 4,
         "roughness": roughness, "warp": warp}
        for roughness, warp in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    ],
    "bicyclegan": [
        {"image_size": 32, "generator_width": 8, "encoder_width": 8, "discriminator_width": 8,
         "discriminator_layers": 1},
        {"image_size": 32, "generator_width": 8, "encoder_width": 8, "discriminator_width": 8,
         "discriminator_layers": 1, "where_add": "input", "upsample": "bilinear",
         "encoder": "conv"},
    ],
}  # fmt: skip
ROLES = {
    "stargan-v2": {"generator", "mapping", "encoder"},
    "ugatit": {"generator.A", "generator.B", "attention.A", "attention.B"},
    "cyclegan": {"generator.A", "generator.B"},
    "pix2pix": {"generator.B"},
    "stargan": {"generator", "classifier"},
    "bicyclegan": {"generator", "encoder"},
}
DOMAINS = {"pix2pix": ("B",), "bicyclegan": ("B",), "stargan": ("Black_Hair", "Male", "Young")}


def small_model(family: ModelFamily, settings: Mapping[str, Any], path: Path) -> Translator:
    """A random model of a family, through the file that training would write."""
    torch.manual_seed(0)
    domains = DOMAINS.get(family.name, ("A", "B"))
    config = replace(family.config(), **settings)
    task = family.task(config, len(domains), device="cpu", bf16=False, compile=False)
    parts = task.model_parts()
    for state in parts.values():
        if "shaper.flow.weight" in state:  # a fresh one moves nothing
            torch.nn.init.normal_(state["shaper.flow.weight"], std=0.1)
    save_model(path, parts, family.new_card(config, domains))
    return open_translator(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "precision"),
    [
        *((name, settings, "fp32") for name, rows in SMALL.items() for settings in rows),
        # Between them these have every operation that may or may not be done in float16.
        *((name, SMALL[name][-1], "fp16") for name in ("stargan-v2", "bicyclegan", "cyclegan")),
    ],
)
def test_every_family_can_be_exported(
    name: str, settings: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    model = small_model(families()[name], settings, tmp_path / "m.safetensors")
    made = export_model(model, tmp_path / "m.onnx", precision)
    bundle = load_bundle(tmp_path / "m.onnx")
    roles = ROLES[name] | ({"flow"} if settings.get("warp") else set())
    assert set(bundle.roles) == roles
    assert set(made.left_out) == set(model.backend.roles) - roles
    assert max(made.differences.values()) < (1e-4 if precision == "fp32" else 0.02)
    side, domain = model.card.image_size, model.card.domains[-1]
    faces_NCHW = picture(2, side)
    wanted = model.translate(faces_NCHW, model.style(domain))
    backends: list[Backend] = [OnnxBackend(bundle, "cpu", precision)]
    if importlib.util.find_spec("openvino"):
        # Which has no float16 on a CPU: it computes the bundle's weights in float32.
        backends.append(OpenVinoBackend(bundle, "cpu", "fp32"))
    for backend in backends:
        other = Translator(bundle.card, backend)
        found = other.translate(faces_NCHW, other.style(domain))
        assert np.abs(wanted - found).max() < (1e-4 if precision == "fp32" else 0.05), backend.about


class SmallLandmarks(nn.Module):
    """In place of the 98-landmark FAN: heatmaps at a quarter of the side."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 99, 5, 4, 2), nn.Sigmoid())

    def forward(self, x_NCHW: Tensor) -> tuple[list[Tensor], None]:
        return [self.layers(x_NCHW)], None


@pytest.mark.slow
def test_the_high_pass_and_its_landmark_network_go_with_the_generator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = Sizes(image_size=64, first_width=4, max_width=8, mapping_width=16, w_hpf=1.0)
    modules: dict[str, nn.Module] = {
        "generator": MaskedGenerator(Generator(sizes), SmallLandmarks()),
        "mapping": MappingNetwork(sizes),
    }
    card = replace(CARD, family="stargan-v2", image_size=64, styles=("latent",), latent_dim=16)
    model = Translator(card, TorchBackend({role: net.eval() for role, net in modules.items()}))
    made = export_model(model, tmp_path / "m.onnx")
    assert made.any_size == (), "which features pass the high-pass hangs on their size"
    assert max(made.differences.values()) < 1e-4


def test_no_family_is_forgotten() -> None:
    assert set(SMALL) == set(families())
