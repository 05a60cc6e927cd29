"""Weights files, good, damaged and hostile: what loads, what is refused, and in which words."""

from __future__ import annotations

import builtins
import codecs
import errno
import functools
import importlib
import io
import json
import operator
import os
import pathlib
import pickle
import random
import runpy
import shutil
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facestyle.card import METADATA_KEY, ModelCard, card_from
from facestyle.checkpoint import (
    WHOLE,
    Checkpoint,
    check_fit,
    load_checkpoint,
    save_model,
    write_atomically,
)
from facestyle.errors import CheckpointError, FacestyleError, WeightsError
from facestyle.families import detect

CARD = ModelCard(
    family="stargan-v2",
    image_size=64,
    domains=("female", "male"),
    styles=("latent",),
    latent_dim=4,
    scores={"fid": 12.5},
)


def parts() -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return {
        "generator": {"w": torch.randn(3, 4, generator=draw), "b": torch.randn(3, generator=draw)},
        "mapping_network": {"n": torch.tensor(7), "e": torch.zeros(0, 2)},
    }


def refusal(path: Path) -> CheckpointError:
    """The error of loading (and recognising) a file that must not load; fit to be shown."""
    with pytest.raises(CheckpointError) as caught:
        detect(load_checkpoint(path))
    error = caught.value
    assert error.exit_code == 6
    lines = [error.message, *([error.hint] if error.hint else [])]
    assert all(line.isprintable() and len(line) <= 250 for line in lines), lines
    assert not any(word in str(error) for word in ("weights_only", "safe_globals", "allowlist"))
    return error


# --- Hostile pickles -------------------------------------------------------------------------


class Call:
    """Pickles as a call of ``function`` with ``arguments``, filled with ``items``, then
    given its ``state``."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None, **items: Any) -> None:
        self.made = (function, arguments, state, None, iter(items.items()))

    def __reduce__(self) -> Any:
        return self.made


class Named:
    """Pickles as the bare global ``module.name``, whatever that is."""

    def __init__(self, module: str, name: str) -> None:
        self.line = f"c{module}\n{name}\n".encode()


class Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Writes ``Named`` and a persistent id of any kind."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(obj.line)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, Persistent) else None

    def save_reduce(self, func: Any, args: Any, *rest: Any, **named: Any) -> None:
        if isinstance(func, Named | Call):
            self.save(func)
            self.save(args)
            self.write(pickle.REDUCE)
        else:
            super().save_reduce(func, args, *rest, **named)


class Persistent:
    def __init__(self, id: Any) -> None:
        self.id = id


def gadgets(marker: Path) -> dict[str, Any]:
    """Objects that make ``marker`` (or take all memory) when unpickled without care."""
    touch = f"touch {marker}"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    module = "facestyle_gadget"
    return {
        "os.system": Call(os.system, touch),
        "os.popen": Call(os.popen, touch),
        "posix.system": Call(Named("posix", "system"), touch),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", str(marker)]),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "python2 eval": Call(Named("__builtin__", "eval"), code),
        "open": Call(builtins.open, str(marker), "w"),
        "import": Call(builtins.__import__, module),
        "import_module": Call(importlib.import_module, module),
        "getattr": Call(Call(builtins.getattr, Call(builtins.__import__, "os"), "system"), touch),
        "partial": Call(functools.partial, os.system, touch),
        "called partial": Call(Call(functools.partial, os.system), touch),
        "reduce": Call(functools.reduce, os.system, [touch]),
        "map": Call(builtins.list, Call(builtins.map, os.system, [touch])),
        "attrgetter": Call(Call(operator.attrgetter, "system"), Call(builtins.__import__, "os")),
        "methodcaller": Call(Call(operator.methodcaller, "touch"), pathlib.Path(marker)),
        "codecs": Call(codecs.open, str(marker), "w"),
        "codecs to exec": Call(builtins.exec, Call(codecs.decode, code, "rot13")),
        "pathlib": Call(pathlib.Path.touch, pathlib.Path(marker)),
        "shutil": Call(shutil.copy, "/dev/null", str(marker)),
        "runpy": Call(runpy.run_path, str(marker.with_name("gadget.py"))),
        "nested": OrderedDict(a={"b": [(Call(os.system, touch),)]}),
        "dotted name": Call(Named("os", "path.os.system"), touch),
        "torch module's os": Call(Named("torch.serialization", "os.system"), touch),
        "torch.hub": Call(Named("torch.hub", "load"), str(marker.parent), "model", "local"),
        "torch.hub download": Call(Named("torch.hub", "download_url_to_file"), "file:x", "y"),
        "torch.load": Call(Named("torch", "load"), str(marker.with_name("inner.pt"))),
        "torch._utils._import_dotted_name": Call(
            Named("torch._utils", "_import_dotted_name"), "os.system"
        ),
        "torch.ops.load_library": Call(Named("torch._ops", "load_library"), str(marker)),
        "tensor subclass": Call(
            Named("torch._tensor", "_rebuild_from_type_v2"), os.system, str, (touch,), {}
        ),
        "numpy.load": Call(np.load, str(marker.with_name("inner.npy")), None, True),
        "numpy fromfile": Call(np.fromfile, str(marker)),
        "build": Call(types.SimpleNamespace, state={"__setstate__": os.system}),
        "build ordered": Call(OrderedDict, state={"items": Call(os.system, touch)}),
        "persistent id, text": Persistent(touch),
        "persistent id, code": Persistent(("storage", Call(os.system, touch), "0", "cpu", 1)),
        "persistent id, module": Persistent(("module", os.system, touch, "cpu", 1)),
        "memory": Call(builtins.bytearray, 1 << 36),
        "memory, tensor": Call(Named("torch", "Tensor"), 1 << 18, 1 << 18),
    }


def pickled(content: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol=protocol).dump(content)
    return stream.getvalue()


def zipped(path: Path, pickle_bytes: bytes, **records: bytes) -> Path:
    """A torch zip archive around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for name, record in records.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", record)
    return path


def legacy(path: Path, pickle_bytes: bytes) -> Path:
    """A file in torch's format before 1.6 around a pickle."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "type_sizes": {}}]
    start = b"".join(pickle.dumps(item, protocol=2) for item in head)
    path.write_bytes(start + pickle_bytes + pickle.dumps([], protocol=2))
    return path


def bare(path: Path, pickle_bytes: bytes) -> Path:
    """A pickle and nothing else."""
    path.write_bytes(pickle_bytes)
    return path


GADGETS = sorted(gadgets(Path("/x")))


@pytest.mark.parametrize("name", GADGETS)
def test_no_gadget_runs(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "gadget.py").write_text(f"open({str(marker)!r}, 'w')")
    for protocol in (2, 4):
        content = {"generator": {"w": gadgets(marker)[name]}}
        for number, wrap in enumerate((zipped, legacy, bare)):
            error = refusal(wrap(tmp_path / f"{protocol}{number}.pt", pickled(content, protocol)))
            assert "refused" in error.message or name.startswith("persistent"), error.message
            assert not marker.exists()


def test_there_are_enough_gadgets_and_they_work(tmp_path: Path) -> None:
    """A gadget that would not run anyway proves nothing."""
    marker = tmp_path / "marker"
    working = 0
    for name in ("os.system", "eval", "exec", "nested", "pathlib", "getattr", "shutil"):
        pickle.loads(pickled(gadgets(marker)[name]))
        working += marker.exists()
        marker.unlink(missing_ok=True)
    assert working == 7
    assert len(GADGETS) >= 20


def test_a_refusal_names_what_it_found(tmp_path: Path) -> None:
    error = refusal(zipped(tmp_path / "a.pt", pickled({"w": Call(os.system, "true")})))
    assert "pickled code (posix.system)" in error.message


def test_replaced_methods_of_a_dict_are_not_called(tmp_path: Path) -> None:
    shadows = dict.fromkeys(("items", "get", "values", "keys", "__iter__", "__len__"), 7)
    state = Call(OrderedDict, state=shadows, w=tensor_of(4, (4,), (1,)))
    content = pickled(Call(OrderedDict, state=shadows, generator=state))
    path = zipped(tmp_path / "a.pt", content, _0=b"\0" * 16)
    assert same(load_checkpoint(path).parts, {"generator": {"w": torch.zeros(4)}})


# --- Claims of memory ------------------------------------------------------------------------


def tensor_of(elements: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    """Pickles as a tensor on a float32 storage that says it has so many elements."""
    storage = Persistent(("storage", Named("torch", "FloatStorage"), "0", "cpu", elements))
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, 0, shape, stride, False, OrderedDict())


def claiming(elements: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    return pickled({"w": tensor_of(elements, shape, stride)})


@pytest.mark.parametrize("elements", [5, 10**6, 10**12, 1 << 62, -1])
def test_a_storage_that_claims_more_than_the_file_has(elements: int, tmp_path: Path) -> None:
    content = claiming(elements, (max(elements, 1),), (1,))
    refusal(zipped(tmp_path / "zip.pt", content, _0=b"\0" * 16))
    refusal(legacy(tmp_path / "legacy.pt", content))


def test_a_stride_that_claims_more_than_its_storage(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.pt", claiming(4, (10**7, 10**7), (0, 0)), _0=b"\0" * 16)
    assert "plain tensor" in refusal(path).message


def test_a_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({"w": 1}))
        archive.writestr("archive/data/0", b"\0" * 10**7)
    assert "compressed" in refusal(tmp_path / "a.pt").message


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.empty(10**6, 10**6, device="meta"),
        torch.zeros(4).to(torch.float8_e4m3fn),
    ],
    ids=["sparse", "complex", "meta", "float8"],
)
def test_an_unusual_tensor(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"generator": {"w": tensor}}, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


# --- Damage ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small model in the three formats."""
    folder = tmp_path_factory.mktemp("formats")
    save_model(folder / "own.safetensors", parts(), CARD)
    torch.save(parts(), folder / "zip.ckpt")
    torch.save(parts(), folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["own", "zip", "legacy"])
def test_truncation_anywhere_is_caught(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    content = files[kind].read_bytes()
    for size in {len(content) * i // 200 for i in range(200)}:
        (tmp_path / "cut").write_bytes(content[:size])
        refusal(tmp_path / "cut")


def flipped(content: bytes, seed: int) -> bytes:
    bit = random.Random(seed).randrange(8 * len(content))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_every_bit_flip_in_our_own_file_is_caught(files: dict[str, Path], tmp_path: Path) -> None:
    content, path = files["own"].read_bytes(), tmp_path / "flipped"
    for seed in range(1000):
        path.write_bytes(flipped(content, seed))
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_bit_flips_in_published_files(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    """A zip archive has checksums of names, pickle and weights, not of its own padding; the
    older format has none. Whatever is caught is a CheckpointError."""
    content, path, original = files[kind].read_bytes(), tmp_path / "flipped", parts()
    caught = unnoticed = 0
    for seed in range(400):
        path.write_bytes(flipped(content, seed))
        try:
            loaded = load_checkpoint(path).parts
        except CheckpointError:
            caught += 1
        else:
            unnoticed += not same(loaded, original)
    assert caught > 0
    assert kind == "legacy" or unnoticed == 0


def same(a: Any, b: Any) -> bool:
    return {part: set(state) for part, state in a.items()} == {
        part: set(state) for part, state in b.items()
    } and all(torch.equal(a[part][name], b[part][name]) for part in b for name in b[part])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds 0 bytes"),
        (b"short", "holds 5 bytes"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\n  <html><head></head></html>          ", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01", "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 32, "PNG"),
        (b"\x08\x08\x12\x07pytorch\x1a\x012.15.0\x3a\x80\x01", "ONNX"),
        (b"just some notes about a model, nothing more\n", "something else"),
        (b"\0" * 100, "something else"),
        (b"\x80\x02" + b"\xff" * 100, "corrupt"),
        (b"PK\x03\x04" + b"\0" * 100, "corrupt"),
        (struct.pack("<Q", 20) + b'{"a": {"dtype": "F32"}}', "corrupt"),
        (struct.pack("<Q", 1 << 62) + b"{" * 100, "corrupt"),
        (struct.pack("<Q", 2) + b"{}" + b"\0" * 20, "corrupt"),
        (struct.pack("<Q", 8) + b"{}      ", "no tensor"),
    ],
)
def test_files_of_another_kind(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    assert said in refusal(tmp_path / "model.ckpt").message


def test_a_zip_archive_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "no weights here")
    assert "zip archive" in refusal(tmp_path / "a.zip").message


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path).message
    (tmp_path / "best.safetensors").touch()
    assert refusal(tmp_path).hint == "give a file in it: best.safetensors"
    with pytest.raises(WeightsError, match="no weights file") as caught:
        load_checkpoint(tmp_path / "none.ckpt")
    assert caught.value.exit_code == 4


def test_an_unreadable_file(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(WeightsError, match="Permission denied"):
        load_checkpoint(files["own"])


# --- Files of the wrong content --------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "optimisers": (
        lambda: {
            name: {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}
            for name in ("generator", "mapping_network", "style_encoder")
        },
        "no network",
    ),
    "classifier": (
        lambda: {
            "conv1.weight": torch.zeros(64, 3, 7, 7),
            "bn1.num_batches_tracked": torch.tensor(0),
            "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3),
            "fc.weight": torch.zeros(10, 512),
        },
        "of no known family",
    ),
    "generator alone": (
        lambda: {"generator": {"from_rgb.weight": torch.zeros(64, 3, 3, 3)}},
        "of no known family",
    ),
    "whole numbers as keys": (lambda: {0: torch.zeros(2), 1: torch.zeros(2)}, "no text"),
    "tuples as keys": (lambda: {"generator": {(1, 2): torch.zeros(2)}}, "no text"),
    "nested": (lambda: {"a": {"b": {"c": {"d": torch.zeros(2)}}}}, "no network"),
    "list": (lambda: [torch.zeros(2)], "no dict"),
    "tensor": (lambda: torch.zeros(2), "no dict"),
    "empty": (lambda: {}, "no dict"),
    "text": (lambda: {"state_dict": "none"}, "no network"),
    "rude key": (lambda: {"\x1b[31m\n" + "x" * 1000: 1}, "no network"),
    "rude tensor": (
        lambda: {"generator": {"\x1b[31m\n" + "x" * 999: torch.tensor(torch.nan)}},
        "NaN",
    ),
    # A training checkpoint's own keys, of which a flipped bit or another program made these.
    "card alone": (lambda: {METADATA_KEY: CARD.to_json()}, "no dict"),
    "card that is none": (lambda: {METADATA_KEY: "{", "model": parts()}, "card is not JSON"),
    "model that is none": (lambda: {METADATA_KEY: CARD.to_json(), "model": {"a": 1}}, "no network"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_torch_files_without_a_model(name: str, tmp_path: Path) -> None:
    content, said = WRONG[name]
    for new in (True, False):
        path = tmp_path / f"{new}.pt"
        torch.save(content(), path, _use_new_zipfile_serialization=new)
        assert said in refusal(path).message


def test_a_detector_is_no_model(shared: Path) -> None:
    path = shared / "weights" / "detection_mobilenet0.25_Final.pth"
    if not path.is_file():
        pytest.skip("the detector's file is not here")
    assert "of no known family" in refusal(path).message


def test_a_whole_module(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "pickled code" in refusal(tmp_path / "module.pt").message


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_name_the_first_key(value: float, tmp_path: Path) -> None:
    broken = parts()
    broken["generator"]["b"][1] = value
    torch.save(broken, tmp_path / "a.ckpt")
    save_model(tmp_path / "b.safetensors", broken, CARD)
    for file in ("a.ckpt", "b.safetensors"):
        assert "generator.b has NaN or infinite" in refusal(tmp_path / file).message


def test_the_first_key_that_does_not_fit_is_named() -> None:
    wanted, path = parts()["generator"], Path("a.ckpt")
    for change, said in (
        ({"w": None}, "generator.w is missing"),
        ({"w": torch.zeros(4, 3)}, r"generator.w has shape \(4, 3\), expected \(3, 4\)"),
        ({"w": torch.zeros(3, 4, dtype=torch.int64)}, "generator.w holds torch.int64"),
        ({"x": torch.zeros(1)}, "generator.x is not part of this network"),
    ):
        state = {k: v for k, v in {**wanted, **change}.items() if v is not None}
        with pytest.raises(CheckpointError, match=said):
            check_fit(path, "generator", state, wanted)
    check_fit(path, "generator", wanted, wanted)


def test_layouts_in_use(tmp_path: Path) -> None:
    def loaded(content: Any) -> Checkpoint:
        torch.save(content, tmp_path / "a.pt")
        return load_checkpoint(tmp_path / "a.pt")

    state = parts()["generator"]
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    for content in (state, {"state_dict": state}, {"state_dict": parallel, "epoch": 3}):
        assert same(loaded(content).parts, {WHOLE: state})
    content = {"generator": OrderedDict(parallel), "step": 3, "none": {}}
    assert same(loaded(content).parts, {"generator": state})
    # "module." is DataParallel's only where it stands before every name.
    assert set(loaded({"module.a": state["w"], "a": state["b"]}).parts[WHOLE]) == {"module.a", "a"}
    half = {"w": torch.nn.Parameter(state["w"].half())}
    assert loaded(half).parts[WHOLE]["w"].dtype == torch.float32
    assert type(loaded(half).parts[WHOLE]["w"]) is torch.Tensor


# --- Our own format --------------------------------------------------------------------------


def test_a_model_comes_back_bit_equal(files: dict[str, Path]) -> None:
    loaded = load_checkpoint(files["own"])
    assert same(loaded.parts, parts())
    assert loaded.card == CARD
    assert loaded.shapes()["generator"]["w"] == (3, 4)


def test_half_precision(tmp_path: Path) -> None:
    model = parts()
    model["generator"]["large"] = torch.tensor([1e6, 1.0])
    save_model(tmp_path / "a.safetensors", model, CARD, half=True)
    loaded = load_checkpoint(tmp_path / "a.safetensors").parts
    for name in ("w", "b"):
        assert loaded["generator"][name].dtype == torch.float32
        assert torch.allclose(
            loaded["generator"][name], model["generator"][name], rtol=2**-11, atol=2**-24
        )
    assert torch.equal(loaded["generator"]["large"], model["generator"]["large"])
    assert torch.equal(loaded["mapping_network"]["n"], torch.tensor(7))


def test_equal_models_are_equal_files(files: dict[str, Path], tmp_path: Path) -> None:
    """safetensors alone writes the two metadata keys in an order left to chance."""
    for _ in range(10):
        save_model(tmp_path / "again.safetensors", parts(), CARD)
        assert (tmp_path / "again.safetensors").read_bytes() == files["own"].read_bytes()


def test_a_card_changed_by_hand_is_noticed(files: dict[str, Path], tmp_path: Path) -> None:
    content = files["own"].read_bytes()
    assert content.count(b"female") == 1
    (tmp_path / "a").write_bytes(content.replace(b"female", b"famele"))
    assert "sha256" in refusal(tmp_path / "a").message


@pytest.mark.parametrize("where", ["fsync", "write", "replace", "torch.save"])
def test_a_full_disk_leaves_the_old_file(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, parts(), CARD)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> Any:
        if where == "torch.save":
            torch.save(parts(), "/dev/full")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where in ("fsync", "replace"):
            patch.setattr(os, where, full)
        with pytest.raises(FacestyleError, match="disk full") as caught:
            write_atomically(path, full if where in ("write", "torch.save") else Path.touch)
    assert caught.value.exit_code == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_no_part(tmp_path: Path) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", interrupted)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FacestyleError, match="cannot write"):
        save_model(tmp_path / "none" / "a.safetensors", parts(), CARD)


def test_a_file_has_the_permissions_that_the_user_gives_files(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("Windows has no umask")
    for mask, mode in ((0o077, 0o600), (0o022, 0o644)):
        before = os.umask(mask)
        try:
            write_atomically(tmp_path / "x", lambda path: path.write_text("x"))
        finally:
            os.umask(before)
        assert (tmp_path / "x").stat().st_mode & 0o777 == mode


# --- The card --------------------------------------------------------------------------------


def test_a_card_comes_back() -> None:
    full = replace(
        CARD, about="Gesichter – ünïcode\u3000\u00a0\u200d", command="facestyle train\n",
        seed=0, steps=9, pasted="crop", domains=tuple("abcdef"), drawings=tuple("abcde"),
        on_skin=("b",), as_shade=("c", "d"), on_hair=("e", "f"), styles=("attributes",),
        alignment="anime", eyes=1.8, mouth=0.85, both_ways=True,
    )  # fmt: skip
    assert ModelCard.from_json(full.to_json()) == full
    assert full.at_step(10).steps == 10
    assert full.to_json() == ModelCard.from_json(full.to_json()).to_json()


def test_a_card_whose_eyes_would_change_from_photo_to_photo_is_refused() -> None:
    fields = {"alignment": "anime", "eyes": 1.8, "drawings": ("anime",)}
    two = replace(CARD, domains=("photo", "anime"), **fields)
    assert ModelCard.from_json(two.to_json()) == two
    three = replace(two, domains=("female", "male", "anime"))
    with pytest.raises(CheckpointError, match="more than one domain is of photos"):
        ModelCard.from_json(three.to_json())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", "64"),
        ("image_size", 64.0),
        ("image_size", True),
        ("image_size", -1),
        ("image_size", 10**9),
        ("image_size", None),
        ("domains", "female"),
        ("domains", []),
        ("domains", ["a", 1]),
        ("domains", ["a", "a"]),
        ("domains", ["../../etc/passwd", "a"]),
        ("domains", ["\x1b[31m", "a"]),
        ("domains", {"a": 1}),
        ("styles", "latent"),
        ("styles", ["telepathy"]),
        ("styles", []),
        ("load_size", "72"),
        ("load_size", 8),
        ("pasted", "hair"),
        ("drawings", "a"),
        ("drawings", ["no domain"]),
        ("on_skin", ["no domain"]),
        ("as_shade", ["no domain"]),
        ("on_skin", [CARD.domains[0]] * 2),  # a domain goes back in one way
        ("on_hair", ["no domain"]),
        ("on_hair", list(CARD.domains)),  # of a model without attributes
        ("both_ways", 1),
        ("eyes", 0.5),
        ("eyes", 3.5),
        ("eyes", True),
        ("eyes", 1.8),  # of a model without drawings
        ("mouth", 0.85),
        ("mouth", 1.2),
        ("mouth", -0.5),
        ("latent_dim", "16"),
        ("latent_dim", None),
        ("latent_dim", 0),
        ("scores", [1, 2]),
        ("scores", {"fid": "low"}),
        ("seed", 1.5),
        ("steps", "many"),
        ("family", None),
        ("family", 3),
        ("name", ["a"]),
        ("licence", "\x1b]0;rude\x07"),
        ("about", 7),
        ("colour", "red"),
        ("a\x1b[31m", "red"),
    ],
)
def test_a_card_with_a_wrong_field(field: str, value: Any, tmp_path: Path) -> None:
    values = {**json.loads(CARD.to_json()), field: value}
    with pytest.raises(CheckpointError) as caught:
        card_from(values)
    assert str(caught.value).isprintable()
    # In a file it is the same error, with the file's name.
    (tmp_path / "a.safetensors").write_bytes(_with_card(json.dumps(values)))
    assert "a.safetensors" in refusal(tmp_path / "a.safetensors").message


@pytest.mark.parametrize("field", ["family", "image_size", "domains", "styles"])
def test_a_card_without_a_field(field: str) -> None:
    values = json.loads(CARD.to_json())
    del values[field]
    with pytest.raises(CheckpointError, match=f"no {field}"):
        card_from(values)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 10**5, "9" * 10**5])
def test_a_card_that_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        ModelCard.from_json(text)
    (tmp_path / "a").write_bytes(_with_card(text))
    refusal(tmp_path / "a")


def _with_card(text: str) -> bytes:
    """A safetensors file of ours whose digest fits, with any text for a card."""
    import safetensors.torch

    from facestyle.checkpoint import DIGEST_KEY, _digest

    flat = {"generator/w": torch.zeros(2)}
    metadata = {METADATA_KEY: text, DIGEST_KEY: _digest(flat, text)}
    return bytes(safetensors.torch.save(flat, metadata))


@pytest.fixture(autouse=True)
def _nothing_imported() -> Iterator[None]:
    yield
    assert "facestyle_gadget" not in sys.modules
