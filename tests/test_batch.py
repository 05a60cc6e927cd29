"""Many pictures at once: same bytes, same words, same order for any number of workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from facestyle import batch, engine_ray
from facestyle.backends.on_torch import TorchBackend
from facestyle.card import ModelCard
from facestyle.cli import app
from facestyle.edits import Edit
from facestyle.errors import FacestyleError
from facestyle.faces.align import TEMPLATES, AlignedFace
from facestyle.faces.masks import hair
from facestyle.images import read_picture, to_model
from facestyle.translator import Style, Translator


def facestyle(*arguments: object) -> Result:
    """Run a command in this process; bugs surface as exceptions."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- the crew ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_nothing_is_begun_far_ahead(workers: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(40):
            begun.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    taken = []
    with batch.Crew(workers) as crew:
        for result in crew.ordered(work, items(), ahead=2):
            taken.append(result)
            assert len(begun) - len(taken) <= workers + 2
    assert taken == [number * number for number in range(40)]


def test_one_worker_is_the_caller_and_more_are_at_work_at_once() -> None:
    with batch.Crew(1) as crew:
        assert list(crew.ordered(lambda _: threading.current_thread(), [0])) == [
            threading.current_thread()
        ]
    together = threading.Barrier(3, timeout=20)
    with batch.Crew(3) as crew:
        list(crew.ordered(lambda _: together.wait(), range(3)))  # one alone would wait for ever


def test_left_early_it_ends_at_the_next_checkpoint_and_begins_no_more() -> None:
    begun: list[int] = []
    crew = batch.Crew(2)

    def work(number: int) -> None:
        begun.append(number)
        for _ in range(60_000):
            time.sleep(0.001)
            crew.checkpoint()

    def interrupted() -> None:
        with crew:
            results = crew.ordered(work, range(50), ahead=50)
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            next(results)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert begun == [0, 1]


def test_settings_of_torch_opencv_and_warnings_are_as_before_afterwards() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads(), list(warnings.filters)
    torch.set_num_threads(2)
    with batch.side_by_side():
        assert torch.get_num_threads() == 1
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before[0])
    assert (cv2.getNumThreads(), list(warnings.filters)) == before[1:]


# --- folders ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``in`` with eleven pictures: small portraits, two bad files, one without a face."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    portrait = Image.open(photo)
    for number in range(8):
        side = 130 + 9 * number
        portrait.resize((side, side)).save(f"in/{number}.jpg")
    Path("in/1-bad.jpg").write_bytes(b"")
    Path("in/5-bad.png").write_bytes(b"<html>")
    Image.new("RGB", (64, 64), (90, 120, 60)).save("in/3-meadow.png")
    return tmp_path


def run(model: Path, out: str, *options: object, code: int = 7) -> tuple[str, str]:
    """What it said, with ``OUT`` for the folder's name."""
    result = facestyle("translate", "in", "-d", "male", "-m", model, "-o", f"{out}/", *options)
    assert result.exit_code == code, result.stderr
    return result.stdout.replace(f"{out}/", "OUT/"), result.stderr.replace(f"{out}/", "OUT/")


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(params=["processor", "accelerator"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An accelerator as far as a backend's word goes: crops of several pictures together."""
    if request.param == "accelerator":
        monkeypatch.setattr(TorchBackend, "device", property(lambda self: "cuda:0"))
    return str(request.param)


@pytest.mark.parametrize("options", [[], ["--json", "--face", "all"], ["-n", 2, "--crop-only"]])
def test_bytes_words_and_order_do_not_follow_the_workers(
    folder: Path, tiny_model: Path, device: str, options: list[object]
) -> None:
    said = run(tiny_model, "one", "--workers", 1, *options)
    made = contents("one")
    assert len(made) == (16 if "-n" in options else 8)
    for workers in (2, 5):
        assert run(tiny_model, f"w{workers}", "--workers", workers, *options) == said
        assert contents(f"w{workers}") == made
    if "--json" in options:
        told = [json.loads(line) for line in said[0].splitlines()]
        inputs = [one["input"] for one in told[:-1]]
        assert inputs == sorted(inputs)
        assert [one["input"] for one in told if one.get("exit_code") == 5] == [
            "in/1-bad.jpg", "in/5-bad.png"
        ]  # fmt: skip


def test_a_picture_does_not_depend_on_its_neighbours(
    folder: Path, tiny_model: Path, device: str
) -> None:
    run(tiny_model, "out", "--workers", 2)
    made = contents("out")
    for name in ("0.male.png", "6.male.png"):
        Path("out", name).unlink()
    said, _ = run(tiny_model, "out", "--workers", 2)
    assert contents("out") == made
    assert len(said.splitlines()) == 8  # those that exist are named too
    for path in Path("in").glob("*[1-7]*"):
        path.unlink()
    shutil.copy("in/0.jpg", "in/z.jpg")
    run(tiny_model, "few", "--workers", 2, code=0)
    assert contents("few")["z.male.png"] == contents("few")["0.male.png"] == made["0.male.png"]


def test_an_accelerator_sees_full_calls_of_one_size(
    folder: Path, tiny_model: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = TorchBackend.run

    def watched(self: TorchBackend, role: str, *arrays: np.ndarray) -> np.ndarray:
        if role == "generator":
            sizes.append(len(arrays[0]))
        return original(self, role, *arrays)

    monkeypatch.setattr(TorchBackend, "run", watched)
    run(tiny_model, "out", "--workers", 3)
    # Eleven files: two chunks, with five and three good pictures.
    assert sizes == ([1] * 8 if device == "processor" else [batch.TOGETHER] * 2)


def test_numbers_that_are_none_are_blamed_on_their_own_picture(
    folder: Path, tiny_model: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TorchBackend.run

    def broken(self: TorchBackend, role: str, *arrays: np.ndarray) -> np.ndarray:
        result = original(self, role, *arrays)
        if role == "generator":  # the picture that is all black
            result[np.abs(arrays[0] + 1).max(axis=(1, 2, 3)) < 0.1] = np.nan
        return result

    monkeypatch.setattr(TorchBackend, "run", broken)
    for name in ("1-bad.jpg", "5-bad.png", "3-meadow.png"):
        Path("in", name).unlink()
    Image.new("RGB", (32, 32)).save("in/4-black.png")
    _, stderr = run(tiny_model, "out", "--workers", 2, "--align", "none")
    assert stderr.count("error:") == 2  # the picture, and the whole
    assert "error: in/4-black.png: the model returned NaN" in stderr
    assert len(contents("out")) == 8


def test_drawn_noise_stays_within_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:

    sizes = []

    class Noisy:
        roles = ("generator.b", "sampler.b")
        device = "cuda:0"

        def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
            sizes.append((role, len(arrays[0])))
            return arrays[0]

    card = ModelCard(
        family="pix2pix", image_size=8, domains=("a", "b"), styles=("dropout",), drawings=("b",)
    )
    model = Translator(card, Noisy())
    crops = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    faces = [AlignedFace(crop_HWC=crop, to_crop_23=np.eye(2, 3)) for crop in crops]
    groups = [faces[:2], faces[2:]]
    drawn = batch.translate_together(groups, model, Style(domain="b", noise_seed=1, origin="s"))
    fixed = batch.translate_together(groups, model, Style(domain="b", origin="fixed"))
    assert sizes == [("sampler.b", 2), ("sampler.b", 1), ("generator.b", batch.TOGETHER)]
    for results in (drawn, fixed):
        assert [len(one) for one in results] == [2, 1]  # type: ignore[arg-type]
        made = [face for one in results for face in one]  # type: ignore[union-attr]
        assert np.array_equal([face.result_HWC for face in made], crops)
        assert [face.aligned for face in made] == faces
        assert all(face.drawing for face in made)


def test_together_on_an_accelerator_each_face_keeps_its_own_hair() -> None:
    class Painting:
        roles = ("generator", "classifier")
        device = "cuda:0"

        def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
            if role == "classifier":
                return np.ones((len(arrays[0]), 2), np.float32)
            return arrays[0] * arrays[1][:, :1, None, None]  # one colour leaves all, one is grey

    card = ModelCard(
        family="stargan", image_size=8, domains=("a", "b"), styles=("attributes",),
        alignment="celeba", pasted="crop", on_hair=("a", "b"), exclusive=("a,b",),
    )  # fmt: skip
    model = Translator(card, Painting())
    crops = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    template_52 = np.array(TEMPLATES["celeba"])
    faces = [
        AlignedFace(crop_HWC=crop, to_crop_23=np.eye(2, 3), template_52=template_52)
        for crop in crops
    ]
    results = batch.translate_together([faces[:2], faces[2:]], model, model.edited(Edit(on=("a",))))
    assert [len(one) for one in results] == [2, 1]  # type: ignore[arg-type]
    made = [face for one in results for face in one]  # type: ignore[union-attr]
    for face, crop in zip(made, crops, strict=True):
        assert face.aligned.pasted == ("hair",)
        expected = np.abs(to_model(crop[None])[0]).mean(axis=0)
        own = hair(crop, expected, template_52)
        assert np.array_equal(face.aligned.hair_HW, own)
        assert own.any()
    assert not np.array_equal(made[0].aligned.hair_HW, made[1].aligned.hair_HW)


def test_a_bug_in_a_worker_keeps_its_traceback(
    folder: Path, tiny_model: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("facestyle.pipeline.align", broken)
    with pytest.raises(ZeroDivisionError):
        run(tiny_model, "out", "--workers", 2)


def test_threads_do_not_share_a_detector_that_holds_a_size(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facestyle.faces import registry

    opened: list[threading.Thread] = []
    original = registry.open_detector

    def watched(name: str = "auto", **options: object) -> object:
        opened.append(threading.current_thread())
        detector = original("builtin")
        detector.name = "yunet"
        return detector

    monkeypatch.setattr(registry, "open_detector", watched)
    _, stderr = run(tiny_model, "out", "--workers", 3)
    assert "1 face by yunet" in stderr
    assert len(opened) == len(set(opened))
    assert 2 <= len(opened) <= 4  # the first is opened before any picture, then one a thread


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", 2, "--fail-fast"], "one picture to the next"),
        (["--engine", "ray", "--fail-fast"], "do not go together"),
        (["--engine", "spark"], "known: local, ray"),
        (["--workers", 0], "--workers"),
    ],
)
def test_what_does_not_go_together_is_said(
    folder: Path, tiny_model: Path, options: list[object], words: str
) -> None:
    _, stderr = run(tiny_model, "out", *options, code=2)
    assert words in stderr
    assert not Path("out").exists()


def test_workers_have_no_effect_on_one_picture_and_it_is_said(
    folder: Path, tiny_model: Path
) -> None:
    result = facestyle("translate", "in/0.jpg", "-d", "male", "-m", tiny_model, "--workers", 3)
    assert result.exit_code == 0
    assert "--workers: no effect on a single picture" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["--workers", "4"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_batch_within_5_s_and_leaves_no_partial_file(
    tmp_path: Path, photo: Path, tiny_model: Path, number: int, code: int, workers: list[str]
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(300):
        os.link(photo, tmp_path / f"in/{index:03d}.jpg")
    command = [sys.executable, "-m", "facestyle", "translate", "in", "-d", "male", "-o", "out/"]
    child = subprocess.Popen(
        [*command, "-m", str(tiny_model), *workers],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(number)
    sent = time.monotonic()
    _, stderr = child.communicate(timeout=30)
    assert time.monotonic() - sent < 5
    assert child.returncode == code
    assert "Traceback" not in stderr
    written = sorted((tmp_path / "out").iterdir())
    assert 0 < len(written) < 300
    assert all(path.suffix == ".png" for path in written)  # no temporary file
    for path in written:
        assert read_picture(path)


# --- other machines ---------------------------------------------------------------------------


def test_a_task_with_a_gpu_asks_for_no_more_cores_than_one_machine_has() -> None:
    def node(cpus: int, gpus: int, alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}}

    for nodes, cores in (
        ([node(64, 0), node(8, 1)], 8),
        ([node(16, 4), node(16, 2)], 4),
        ([node(2, 4)], 1),
        ([node(1, 1, alive=False), node(6, 2)], 3),
    ):
        assert engine_ray._cores_beside_a_gpu(nodes) == cores


def test_without_ray_it_says_how_to_get_it(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    _, stderr = run(tiny_model, "out", "--engine", "ray", code=2)
    assert "pip install 'facestyle[ray]'" in stderr


def test_an_item_that_kills_its_process_is_found_and_fails_alone() -> None:
    """By a stand-in for Ray whose processes die of the item 5."""

    class Crashed(Exception):
        pass

    class exceptions:
        RayTaskError = type("RayTaskError", (Exception,), {})
        WorkerCrashedError = NodeDiedError = OutOfMemoryError = Crashed

    class Ray:
        @staticmethod
        def get(part: list[int]) -> list[int]:
            if 5 in part:
                raise Crashed
            return [10 * item for item in part]

    Ray.exceptions = exceptions  # type: ignore[attr-defined]

    class Task:
        @staticmethod
        def remote(_: object, part: list[int]) -> list[int]:
            return part

    def failed(item: int, error: FacestyleError) -> str:
        return f"{item}: {error.message}"

    found = list(engine_ray._results(Ray, Task, None, failed, [4, 5, 6], [4, 5, 6]))
    assert found == [40, "5: its process died 4 times", 60]


def descendants(pid: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rsplit(")")[-1].split()[1]
                )
            except OSError:
                continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_ray_gives_the_same_as_one_process_though_a_worker_is_killed(
    folder: Path, tiny_model: Path
) -> None:
    pytest.importorskip("ray")
    for index in range(100, 180):
        os.link("in/7.jpg", f"in/{index}.jpg")
    said = run(tiny_model, "one", "--json")
    command = [sys.executable, "-m", "facestyle", "translate", "in", "-d", "male", "-o", "ray/"]
    child = subprocess.Popen(
        [*command, "-m", str(tiny_model), "--engine", "ray", "--workers", "2", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(folder.glob("ray/*.png")) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    at_work = [pid for pid in descendants(child.pid) if title(pid).startswith(b"ray::_run")]
    assert at_work, "no worker at work"
    os.kill(at_work[0], signal.SIGKILL)
    before = len(list(folder.glob("ray/*.png")))
    stdout, stderr = child.communicate(timeout=240)
    assert before < 88  # there was work left
    assert child.returncode == 7, stderr
    assert stdout.replace("ray/", "OUT/") == said[0]
    assert {n: b for n, b in contents("ray").items() if n.endswith(".png")} == contents("one")
