"""The commands as a user meets them: outputs, streams, exit codes, what is left on disk."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from facestyle.cli import app
from facestyle.cli.report import Reporter, reporting
from facestyle.images import read_picture, read_recipe
from facestyle.weights import index

ROOT = Path(__file__).resolve().parents[1]


def facestyle(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run a command in this process; bugs surface as exceptions."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    command = [sys.executable, "-m", "facestyle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def here(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one photo, a.jpg."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copy(photo, folder / "a.jpg")
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def assert_one_clear_error(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, (result.exit_code, result.stderr)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) <= 3, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, (word, result.stderr)


# --- help, version, usage -------------------------------------------------------------------


def test_help_loads_nothing_heavy_and_has_no_escape_codes() -> None:
    code = (
        "import sys\n"
        "from facestyle.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'numpy', 'cv2', 'torch', 'onnxruntime', 'PIL', 'torchvision', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "translate" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("flags", [["--help"], ["-h"], ["--version"], ["translate", "-h"]])
def test_help_and_version_exit_0_on_stdout(flags: list[str]) -> None:
    result = facestyle(*flags)
    assert result.exit_code == 0
    assert result.stdout.strip()
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["translat", "a.jpg"], "translate"),
        (["translate", "a.jpg", "--domian", "male"], "--domain"),
        (["translate"], "inputs"),
        (["translate", "a.jpg", "--domain", "male", "--seed", "x"], "seed"),
        (["translate", "a.jpg", "--domain", "male", "-n", "0"], "count"),
    ],
)
def test_a_usage_error_exits_2_on_stderr_with_a_suggestion(
    arguments: list[str], suggestion: str
) -> None:
    result = facestyle(*arguments)
    assert_one_clear_error(result, 2, suggestion, "--help")
    result = facestyle(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (2, "")
    assert suggestion in json.loads(result.stdout)["error"]


@pytest.mark.parametrize("arguments", [[], ["models"]])
def test_no_arguments_at_all_give_the_help_as_a_usage_error(arguments: list[str]) -> None:
    result = facestyle(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: ")
    assert "Commands:" in result.stderr


def test_shell_completion_is_there_and_asks_nothing() -> None:
    done = process("--show-completion", "bash", stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert "complete" in done.stdout


@pytest.mark.slow
def test_every_command_has_an_example_and_each_example_runs(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy("a.jpg", "photo.jpg")
    shutil.copy("a.jpg", "style.jpg")
    for domain in ("female", "male"):
        (here / "faces" / domain).mkdir(parents=True)
        for number in range(6):
            Image.effect_noise((80, 80), 50).convert("RGB").save(f"faces/{domain}/{number}.png")
    (here / "photos" / "people").mkdir(parents=True)
    shutil.copy("a.jpg", "photos/people/")
    commands = [["translate"], ["reference"], ["prepare"], ["train"], ["train-report"], ["doctor"]]
    commands += [["models", name] for name in ("list", "info", "pull", "verify", "path", "convert")]
    # Compiling takes minutes; the example is about the command, not about speed.
    monkeypatch.setattr("torch.nn.Module.compile", lambda self, **_: None)
    for command in commands:
        help_text = facestyle(*command, "--help").stdout
        found = re.search(r"Example: facestyle (.+?)\n\n", help_text, re.DOTALL)
        assert found, command
        result = facestyle(*found[1].split())
        assert result.exit_code == 0, (command, result.stderr)


# --- translate and reference ------------------------------------------------------------------


def test_translate_writes_beside_the_photo_and_prints_the_path(
    here: Path, tiny_model: Path
) -> None:
    before = (here / "a.jpg").read_bytes()
    result = facestyle("translate", "a.jpg", "--domain", "female", "-m", tiny_model)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "a.female.png\n"
    assert "seed 0" in result.stderr
    assert "builtin" in result.stderr  # no YuNet file here, and it says so
    assert files(here) == {"a.jpg", "a.female.png"}
    assert (here / "a.jpg").read_bytes() == before
    source, restyled = (read_picture(Path(f)).pixels_HWC for f in ("a.jpg", "a.female.png"))
    assert source.shape == restyled.shape
    changed = (source != restyled).any(axis=2)
    assert 0.01 < changed.mean() < 0.5
    assert not changed[:20].any()  # the astronaut's face is not at the border


def test_the_output_carries_the_mark_and_the_recipe(here: Path, tiny_model: Path) -> None:
    facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--seed", 5)
    # Another seed is another picture: its name says so, or the next one would be skipped.
    recipe = read_recipe(Path("a.male-5.png"))
    assert recipe is not None
    assert (recipe["domain"], recipe["style"]) == ("male", "seed 5, psi 1")
    assert re.fullmatch("[0-9a-f]{64}", str(recipe["model_sha256"]))
    content = Path("a.male-5.png").read_bytes()
    assert b"compositeWithTrainedAlgorithmicMedia" in content
    facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--no-mark", "-o", "b.png")
    assert b"lgorithmicMedia" not in Path("b.png").read_bytes()


def test_same_seed_same_bytes_other_seed_other_picture(here: Path, tiny_model: Path) -> None:
    for name, seed in (("1.png", 3), ("2.png", 3), ("3.png", 4)):
        facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--seed", seed, "-o", name)
    assert Path("1.png").read_bytes() == Path("2.png").read_bytes()
    one, three = (read_picture(Path(f)).pixels_HWC for f in ("1.png", "3.png"))
    assert (one != three).any()


def test_n_gives_that_many_styles_each_like_its_own_seed(here: Path, tiny_model: Path) -> None:
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "-n", 3, "--seed", 7)
    names = ["a.male-7.png", "a.male-8.png", "a.male-9.png"]
    assert result.stdout.split() == names
    pixels = [read_picture(Path(name)).pixels_HWC for name in names]
    assert (pixels[0] != pixels[1]).any()
    assert (pixels[1] != pixels[2]).any()
    facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--seed", 8, "-o", "x.png")
    assert np.array_equal(read_picture(Path("x.png")).pixels_HWC, pixels[1])


def test_an_existing_output_is_skipped_and_reported_until_overwrite(
    here: Path, tiny_model: Path
) -> None:
    Path("a.male.png").write_bytes(b"mine")
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model)
    assert result.exit_code == 0
    assert "skipped" in result.stderr
    assert Path("a.male.png").read_bytes() == b"mine"
    facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--overwrite")
    assert read_picture(Path("a.male.png"))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.avif", "x.tif", "new/x.png"])
def test_o_names_the_file_and_its_extension_the_format(
    here: Path, tiny_model: Path, name: str
) -> None:
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "-o", name)
    assert result.stdout.strip() == name
    expected = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "avif": "AVIF", "tif": "TIFF"}
    with Image.open(name) as image:
        assert image.format == expected[name.rsplit(".", 1)[1]]


def test_the_input_is_never_overwritten(here: Path, tiny_model: Path) -> None:
    before = Path("a.jpg").read_bytes()
    result = facestyle(
        "translate", "a.jpg", "-d", "male", "-m", tiny_model, "-o", "./a.jpg", "--overwrite"
    )
    assert_one_clear_error(result, 2, "never overwritten")
    assert Path("a.jpg").read_bytes() == before


def test_stdin_to_stdout(here: Path, tiny_model: Path) -> None:
    result = facestyle(
        "translate", "-", "-d", "male", "-m", tiny_model, "-o", "-", "--format", "webp",
        stdin=Path("a.jpg").read_bytes(),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    with Image.open(io.BytesIO(result.stdout_bytes)) as image:
        assert (image.format, image.size) == ("WEBP", (512, 512))
    assert "seed 0" in result.stderr
    assert files(here) == {"a.jpg"}
    result = facestyle("translate", "-", "-d", "male", "-m", tiny_model, stdin=b"")
    assert_one_clear_error(result, 2, "-o")


def test_psi_0_is_the_domains_mean_whatever_the_seed(here: Path, tiny_model: Path) -> None:
    crop = ("-d", "male", "-m", tiny_model, "--align", "none", "--psi", 0)
    for seed in (1, 2):
        facestyle("translate", "a.jpg", *crop, "--seed", seed, "-o", f"{seed}.png")
    one, two = (read_picture(Path(f)).pixels_HWC for f in ("1.png", "2.png"))
    assert np.array_equal(one, two)


def test_reference_takes_a_style_and_finds_its_domain(here: Path, tiny_model: Path) -> None:
    shutil.copy("a.jpg", "ref.jpg")
    result = facestyle("reference", "a.jpg", "ref.jpg", "-m", tiny_model)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "a.ref.png\n"
    assert read_recipe(Path("a.ref.png"))["style"] == "reference ref.jpg"  # type: ignore[index]
    chosen = facestyle(
        "reference", "a.jpg", "ref.jpg", "-m", tiny_model, "-d", "male", "-o", "m.png"
    )
    assert "male, reference ref.jpg" in chosen.stderr


def test_crop_only_writes_the_models_crop(here: Path, tiny_model: Path) -> None:
    facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--crop-only")
    assert read_picture(Path("a.male.png")).pixels_HWC.shape == (32, 32, 3)


@pytest.fixture
def drawing_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny one, whose men are drawings."""
    from dataclasses import replace

    from facestyle.checkpoint import load_checkpoint, save_model

    model = load_checkpoint(tiny_model)
    assert model.card is not None
    path = tmp_path / "drawing.safetensors"
    save_model(path, model.parts, replace(model.card, drawings=("male",)))
    return path


def test_a_drawing_is_written_alone_unless_it_is_to_be_pasted(
    here: Path, drawing_model: Path
) -> None:
    common = ("translate", "a.jpg", "-m", drawing_model)

    def written(domain: str, *options: object) -> tuple[tuple[int, ...], dict[str, object], str]:
        result = facestyle(*common, "-d", domain, "--overwrite", *options)
        assert result.exit_code == 0, result.stderr
        path = Path(f"a.{domain}.png")
        recipe = read_recipe(path)
        assert recipe is not None
        return read_picture(path).pixels_HWC.shape, recipe, result.stderr

    photo = read_picture(Path("a.jpg")).pixels_HWC.shape
    shape, recipe, said = written("male")
    assert (shape, recipe["crop_only"]) == ((128, 128, 3), True)
    assert "--paste puts it into the photo" in said
    for domain, options in (("male", ["--paste"]), ("male", ["--face", "all"]), ("female", [])):
        shape, recipe, said = written(domain, *options)
        assert (shape, recipe["crop_only"]) == (photo, False)
        assert "--paste" not in said
    said = written("male", "--tone", 0, "--detail", 1)[2]
    assert "--detail: no effect on a crop alone" in said
    said = written("male", "--paste", "--detail", 1)[2]
    assert "--detail: no effect on a drawing" in said


def test_a_picture_in_which_nothing_changed_is_told(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--overwrite")
    assert "nothing changed" not in facestyle(*common).stderr
    monkeypatch.setattr("facestyle.pipeline.paste_all", lambda picture_HWC, *_, **__: picture_HWC)
    assert "a.jpg: nothing changed" in facestyle(*common).stderr


def test_align_none_needs_no_face_and_gives_the_generators_own_picture(
    here: Path, tiny_model: Path
) -> None:
    import facestyle as api
    from facestyle.images import from_model, to_model

    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("crop.png")
    result = facestyle("translate", "crop.png", "-d", "male", "-m", tiny_model, "--align", "none")
    assert result.exit_code == 0, result.stderr
    model = api.load(tiny_model)
    style = model.sample_style("male", seed=0)
    expected = from_model(model.translate(to_model(pixels[None]), style))[0]
    assert np.array_equal(read_picture(Path("crop.male.png")).pixels_HWC, expected)


def test_a_folder_keeps_its_structure_below_o(here: Path, tiny_model: Path) -> None:
    Path("in/sub").mkdir(parents=True)
    shutil.copy("a.jpg", "in/x.jpg")
    shutil.copy("a.jpg", "in/sub/y.jpg")
    common = ("-d", "male", "-m", tiny_model)
    assert facestyle("translate", "in", *common, "-o", "out/").stdout.split() == ["out/x.male.png"]
    facestyle("translate", "in", *common, "-o", "out/", "--recursive")
    assert files(here / "out") == {"x.male.png", "sub/y.male.png"}


@pytest.mark.parametrize("options", [[], ["--no-mark"], ["-n", 2]])
def test_a_second_run_over_a_folder_does_not_restyle_the_results_of_the_first(
    here: Path, tiny_model: Path, options: list[object]
) -> None:
    common = ("-m", tiny_model, "--crop-only", *options)
    first = facestyle("translate", ".", "-d", "male", *common)
    before = files(here)
    second = facestyle("translate", ".", "-d", "male", *common)
    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert "left out" in second.stderr
    assert files(here) == before


def test_results_of_another_domain_and_in_the_output_folder_are_left_out_too(
    here: Path, tiny_model: Path
) -> None:
    common = ("-m", tiny_model, "--crop-only")
    facestyle("translate", ".", "-d", "male", *common)
    assert facestyle("translate", ".", "-d", "female", *common).stdout == "a.female.png\n"
    assert facestyle("translate", "*", "-d", "female", *common).stdout == "a.female.png\n"
    for _ in range(2):
        facestyle("translate", ".", "-d", "male", *common, "-r", "-o", "out/")
    assert files(here) == {"a.jpg", "a.male.png", "a.female.png", "out/a.male.png"}
    # What is no result of a picture beside it is a picture like any other, and so is what is named.
    shutil.copy("a.jpg", "a.edited.jpg")
    written = facestyle("translate", ".", "-d", "female", *common).stdout.split()
    assert sorted(written) == ["a.edited.female.png", "a.female.png"]
    named = facestyle("translate", "a.male.png", "-d", "male", "--align", "none", "-m", tiny_model)
    assert named.stdout == "a.male.male.png\n"


def test_pictures_of_one_stem_do_not_write_one_file(here: Path, tiny_model: Path) -> None:
    Image.open("a.jpg").save("a.webp")
    result = facestyle("translate", ".", "-d", "male", "-m", tiny_model, "--crop-only", "-o", "o/")
    assert result.stdout.split() == ["o/a.jpg.male.png", "o/a.webp.male.png"]
    Path("in").mkdir()
    shutil.copy("a.jpg", "in/a.jpg")
    result = facestyle("translate", "a.jpg", "in", "-d", "male", "-m", tiny_model, "-o", "p/")
    assert_one_clear_error(result, 2, "both write p/a.jpg.male.png")


def test_o_without_an_extension_is_a_folder_for_a_folder(here: Path, tiny_model: Path) -> None:
    result = facestyle("translate", ".", "-d", "male", "-m", tiny_model, "--crop-only", "-o", "out")
    assert result.stdout == "out/a.male.png\n"
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "-o", "name")
    assert_one_clear_error(result, 2, "name", ".png")


@pytest.mark.parametrize("name", ["sp ace/ünï 女.JPG", "-dash.jpg", "[x]*.jpg", "e\x1b[31m\n.jpg"])
def test_any_file_name_will_do_and_none_commands_the_terminal(
    here: Path, tiny_model: Path, name: str
) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    shutil.copy("a.jpg", name)
    result = facestyle("translate", "-d", "male", "-m", tiny_model, "--crop-only", "--", name)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == name[:-4] + ".male.png\n"
    assert Path(name[:-4] + ".male.png").is_file()
    assert "\x1b" not in result.stderr


def test_a_name_that_is_no_utf8_is_printed_as_its_own_bytes(here: Path, tiny_model: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    shutil.copy("a.jpg", name)
    command = ("translate", name, "-d", "male", "-m", tiny_model, "--crop-only")
    assert facestyle(*command).stdout_bytes == b"\xff.male.png\n"
    told = json.loads(facestyle(*command, "--overwrite", "--json").stdout)
    assert told["output"] == os.fsdecode(b"\xff.male.png")


def test_an_option_without_effect_is_said_to_have_none(here: Path, tiny_model: Path) -> None:
    common = ("translate", "a.jpg", "-d", "male", "-m", tiny_model)
    said = facestyle(*common, "--align", "none", "--face", 2, "--min-score", 0.5).stderr
    assert "--face, --min-score: no effect" in said
    said = facestyle(*common, "--crop-only", "--detail", 0.5, "--tone", 0, "--overwrite").stderr
    assert "--detail, --tone: no effect" in said
    assert "no effect" not in facestyle(*common, "--overwrite").stderr


def test_detail_and_tone_are_the_pipelines_own_unless_given(here: Path, tiny_model: Path) -> None:
    from facestyle.faces.paste import DETAIL

    told = " ".join(facestyle("translate", "-h").stdout.split())
    assert f"(default: {DETAIL}; 0.5 for changes of hair; 0 for drawings)" in told
    common = ("translate", "a.jpg", "-d", "male", "-m", tiny_model)
    for name, options in (
        ("1.png", []),
        ("2.png", ["--detail", DETAIL]),
        ("3.png", ["--detail", 0]),
        ("4.png", ["--tone", 1]),
        ("5.png", ["--tone", 0.5]),
    ):
        facestyle(*common, *options, "-o", name)
    one, two, three, four, five = (Path(f"{n}.png").read_bytes() for n in range(1, 6))
    assert one == two == four
    assert len({one, three, five}) == 3


def test_json_lines_for_results_and_errors(here: Path, tiny_model: Path) -> None:
    Path("bad.jpg").write_bytes(b"<html>")
    result = facestyle("translate", "a.jpg", "bad.jpg", "-d", "male", "-m", tiny_model, "--json")
    assert result.exit_code == 7
    assert result.stderr == ""
    good, bad, whole = [json.loads(line) for line in result.stdout.splitlines()]
    assert (good["status"], good["output"], good["faces"]) == ("written", "a.male.png", 1)
    assert (bad["input"], bad["exit_code"]) == ("bad.jpg", 5)
    assert whole["exit_code"] == 7


def test_quiet_is_silent(here: Path, tiny_model: Path) -> None:
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_dry_run_tells_all_and_writes_nothing(here: Path, tiny_model: Path) -> None:
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--dry-run")
    assert result.exit_code == 0
    assert "a.jpg -> a.male.png" in result.stdout
    assert str(tiny_model) in result.stdout
    assert "device c" in result.stdout  # cpu or cuda: what auto took
    assert files(here) == {"a.jpg"}
    common = ("translate", "a.jpg", "b.jpg", "-d", "male", "--dry-run")
    told = facestyle(*common, "-m", "stargan-v2-celeba-hq", "--detector", "yunet", "--json").stdout
    run, _, absent = [json.loads(line) for line in told.splitlines()]
    assert set(run["would_fetch"]) == {"stargan-v2-celeba-hq", "stargan-v2-wing", "yunet"}
    assert all(url.startswith("https://") for url in run["would_fetch"].values())
    assert "no such file" in absent["status"]
    assert_one_clear_error(facestyle(*common, "-m", "femal-male"), 4, "did you mean 'female-male'")
    # What a real run would refuse.
    common = ("translate", "a.jpg", "-m", tiny_model, "--dry-run")
    assert_one_clear_error(
        facestyle(*common, "-d", "cat"), 2, "unknown domain 'cat'", "female, male"
    )
    assert_one_clear_error(facestyle(*common, "--set", "Young"), 2, "cannot change attributes")
    assert_one_clear_error(facestyle(*common, "-d", "male", "--cam"), 2, "cannot show attention")
    assert files(here) == {"a.jpg"}


def test_a_resumed_run_has_its_own_settings(here: Path) -> None:
    for words in (["--family", "ugatit"], ["--preset", "paper"], ["--runs", "x", "--name", "y"]):
        result = facestyle("train", "--resume", "run", *words)
        told = ", ".join(word for word in words if word.startswith("--"))
        assert_one_clear_error(result, 2, "the run's own settings", f"drop {told}")


def test_domains_are_not_called_what_cannot_be(here: Path, tiny_model: Path) -> None:
    common = ("translate", "a.jpg", "-d", "a", "-m", tiny_model)
    for names, said in (("a,a", "names a domain twice"), ("a/b,a", "no usable")):
        assert_one_clear_error(facestyle(*common, "--domains", names), 2, said)
        result = facestyle(
            "models", "convert", tiny_model, "-o", "x.safetensors", "--domains", names
        )
        assert_one_clear_error(result, 2, said)
    assert files(here) == {"a.jpg"}


def test_too_long_a_name_is_one_line_and_fails_alone(here: Path, tiny_model: Path) -> None:
    common = ("translate", "-d", "male", "-m", tiny_model)
    assert_one_clear_error(facestyle(*common, "x" * 300 + ".jpg"), 1, "name is too long")
    long = "y" * 248 + ".jpg"  # its result's name would be too long
    shutil.copy("a.jpg", long)
    result = facestyle(*common, "a.jpg", long)
    assert result.exit_code == 7, result.output
    assert "1 of 2 pictures failed; 1 written" in result.stderr
    assert "Traceback" not in result.output
    assert files(here) == {"a.jpg", "a.male.png", long}


def test_a_report_replaces_no_picture(here: Path) -> None:
    before = Path("a.jpg").read_bytes()
    result = facestyle("train-report", "runs/run-1", "-o", "a.jpg")
    assert_one_clear_error(result, 2, "a.jpg is no HTML file", "a.html")
    assert Path("a.jpg").read_bytes() == before


def test_what_a_picture_has_is_told_for_something_to_change(here: Path) -> None:
    result = facestyle("translate", "a.jpg", "-d", "male", "--source", "Young")
    assert_one_clear_error(result, 2, "--source says what a picture has", "--flip")


def test_a_path_beyond_stdouts_code_page_is_told(
    photo: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copy(photo, tmp_path / "写真.jpg")
    words = ["translate", "写真.jpg", "-d", "male", "-m", tiny_model]
    done = subprocess.run(
        [sys.executable, "-m", "facestyle", *words],
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        cwd=tmp_path, capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == rb"\u5199\u771f.male.png"


def test_a_device_that_is_not_here_is_said_by_a_dry_run_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("facestyle.backends.on_onnx.gpu", lambda: False)
    for more in ([], ["--runtime", "onnx"], ["--runtime", "openvino"]):
        result = facestyle(
            "translate", "a.jpg", "-d", "male", "--dry-run", "--device", "cuda", *more
        )
        assert_one_clear_error(result, 2, "device 'cuda' was asked for", "--device auto")


@pytest.mark.parametrize("words", [["", "-d", "male"], ["a.jpg", "-d", "male", "-o", ""]])
def test_an_empty_name_is_no_folder(words: list[str], here: Path, tiny_model: Path) -> None:
    result = facestyle("translate", *words, "-m", tiny_model)
    assert_one_clear_error(result, 2, "without a name", "empty shell variable")
    assert files(here) == {"a.jpg"}


def test_every_result_of_many_is_told(here: Path) -> None:
    """With the model that ships, whose networks the threads open."""
    for name in "bcdef":
        shutil.copy(here / "a.jpg", here / f"{name}.jpg")
    done = process("translate", ".", "-d", "male", "-o", "out/", "--workers", "3")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [f"out/{name}.male.png" for name in "abcdef"]


def test_info_describes_what_is_not_here(here: Path) -> None:
    result = facestyle("models", "info", "yunet")
    assert result.exit_code == 0, result.stderr
    assert "not fetched" in result.stdout
    assert "MIT" in result.stdout


def test_pictures_that_nobody_reads_are_named(here: Path, tiny_model: Path) -> None:
    (here / "b.HEIC").write_bytes(b"")
    (here / "deep").mkdir()
    (here / "deep" / "c.dng").write_bytes(b"")
    for more, number in ([], 1), (["-r", "--overwrite"], 2):
        result = facestyle("translate", ".", "-d", "male", "-m", tiny_model, *more)
        assert result.exit_code == 0, result.stderr
        assert f"left out {number} pictures of kinds that are not read" in result.stderr
        assert "b.HEIC" in result.stderr
    (here / "b.HEIC").unlink()
    assert "not read" not in facestyle("translate", ".", "-d", "male", "-m", tiny_model).stderr


def test_hidden_pictures_of_a_folder_are_left_out(here: Path, tiny_model: Path) -> None:
    (here / "._a.jpg").write_bytes(b"macOS")
    result = facestyle("translate", ".", "-d", "male", "-m", tiny_model)
    assert result.exit_code == 0, result.stderr
    assert files(here) == {"a.jpg", "a.male.png", "._a.jpg"}


def test_without_a_model_the_shipped_one_that_knows_the_domain_is_taken(here: Path) -> None:
    told = facestyle("translate", "a.jpg", "-d", "male", "--dry-run", "--json").stdout
    assert json.loads(told.splitlines()[0])["model"] == "female-male"
    for words in (["-d", "cat"], ["--set", "Bald"]):
        result = facestyle("translate", "a.jpg", *words)
        assert_one_clear_error(result, 2, f"no model that ships knows {words[1]}", "female, male")
    assert files(here) == {"a.jpg"}


def test_attributes_are_told_in_one_option_or_in_several(here: Path) -> None:
    """The last of several was the only one that counted."""
    names = {
        facestyle("translate", "a.jpg", *words, "--source", "Young", "--dry-run", "--json").stdout
        for words in (
            ("--set", "Blond_Hair,Eyeglasses", "--flip", "Male,Young"),
            ("--set", "Blond_Hair", "--set", "Eyeglasses", "--flip", "Male", "--flip", "Young"),
        )
    }
    assert len(names) == 1
    assert "a.Blond_Hair-Eyeglasses-flip-Male-flip-Young.png" in names.pop()


# --- bad input ------------------------------------------------------------------------------


def test_one_bad_picture_does_not_stop_a_batch_but_fail_fast_does(
    here: Path, tiny_model: Path
) -> None:
    Path("0-bad.jpg").write_bytes(b"")
    result = facestyle("translate", "0-bad.jpg", "a.jpg", "-d", "male", "-m", tiny_model)
    assert result.exit_code == 7
    assert result.stdout == "a.male.png\n"
    assert "0-bad.jpg" in result.stderr
    Path("a.male.png").unlink()
    result = facestyle(
        "translate", "0-bad.jpg", "a.jpg", "-d", "male", "-m", tiny_model, "--fail-fast"
    )
    assert result.exit_code == 5
    assert files(here) == {"0-bad.jpg", "a.jpg"}


def test_no_face_is_exit_3_with_the_score_and_a_way_on(here: Path, tiny_model: Path) -> None:
    Image.new("RGB", (300, 200), (90, 120, 60)).save("meadow.png")
    result = facestyle("translate", "meadow.png", "-d", "male", "-m", tiny_model)
    assert_one_clear_error(result, 3, "meadow.png", "no face", "threshold", "--")
    assert files(here) == {"a.jpg", "meadow.png"}


def make_bad_picture(kind: str) -> Path:
    path = Path("bad.png")
    whole = Path("a.jpg").read_bytes()
    contents = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "text": b"hello",
        "html": b"<!DOCTYPE html><html></html>",
        "header": whole[:20],
    }
    if kind == "folder":
        path.mkdir()
    elif kind == "enormous":
        Image.new("1", (20000, 6000)).save(path)
    elif kind in contents:
        path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "truncated", "text", "html", "header", "folder", "enormous"]
)
def test_a_bad_picture_is_exit_5_with_one_clear_line(
    here: Path, tiny_model: Path, kind: str
) -> None:
    path = make_bad_picture(kind)
    before = files(here)
    result = facestyle("translate", path, "-d", "male", "-m", tiny_model)
    assert_one_clear_error(result, 5, "bad.png")
    assert files(here) == before
    reference = facestyle("reference", "a.jpg", path, "-m", tiny_model)
    assert_one_clear_error(reference, 5, "bad.png")


@pytest.mark.parametrize(
    "kind", ["cmyk", "grey", "16-bit", "alpha", "animated", "rotated", "wrong extension"]
)
def test_an_unusual_picture_is_restyled_all_the_same(
    here: Path, tiny_model: Path, kind: str
) -> None:
    photo = Image.open("a.jpg")
    size = photo.size
    path = Path("u.png")
    if kind == "cmyk":
        path = Path("u.jpg")
        photo.convert("CMYK").save(path)
    elif kind == "grey":
        photo.convert("L").save(path)
    elif kind == "16-bit":
        deep = np.asarray(photo.convert("L"), np.uint16) * 257
        Image.fromarray(deep).save(path)
    elif kind == "alpha":
        photo.putalpha(200)
        photo.save(path)
    elif kind == "animated":
        path = Path("u.gif")
        photo.save(path, save_all=True, append_images=[photo.rotate(90)])
    elif kind == "rotated":
        path = Path("u.jpg")
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn to the right
        photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    else:
        photo.save(path, format="JPEG")
    result = facestyle("translate", path, "-d", "male", "-m", tiny_model)
    assert result.exit_code == 0, result.stderr
    output = read_picture(Path(result.stdout.strip()))
    assert output.pixels_HWC.shape == (size[1], size[0], 3)
    assert (output.alpha_HW is not None) == (kind == "alpha")


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (5, 7)])
def test_a_tiny_picture_has_no_face(here: Path, tiny_model: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save("tiny.png")
    result = facestyle("translate", "tiny.png", "-d", "male", "-m", tiny_model)
    assert_one_clear_error(result, 3, "tiny.png")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-d", "mal"], 2, ["female, male"]),
        (["-d", "male", "--face", "biggest"], 2, ["largest"]),
        (["-d", "male", "--face", "9"], 2, ["face 9", "found"]),
        (["-d", "male", "--detector", "haar"], 2, ["yunet"]),
        (["-d", "male", "--align", "mtcnn"], 2, ["ffhq-512"]),
        (["-d", "male", "--device", "tpu"], 2, ["cuda"]),
        (["-d", "male", "--precision", "int8"], 2, ["fp32"]),
        (["-d", "male", "--format", "heic"], 2, ["png"]),
        (["-d", "male", "-o", "x.heic"], 2, ["png"]),
        (["-d", "male", "--domains", "a,b,c"], 2, ["3 domain names"]),
        (["-d", "male", "--detector", "yunet"], 4, ["yunet", "offline"]),
        (["-d", "male", "-n", "2", "-o", "x.png"], 2, ["folder"]),
        (["-d", "male", "--format", "webp", "-o", "x.png"], 2, ["disagree"]),
        (["-d", "male", "--domains", "female,,male"], 2, ["without a name"]),
        (["-d", "male", "--crop-only", "--face", "all"], 2, ["--face N"]),
        (["-d", "male", "--min-score", "1.5"], 2, ["--min-score"]),
        (["-d", "male", "--offline", "-m", "stargan-v2-afhq"], 4, ["https://", "stargan_v2_afhq"]),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_clear_line(
    here: Path, tiny_model: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    result = facestyle("translate", "a.jpg", "-m", tiny_model, *arguments)
    assert_one_clear_error(result, code, *words)
    assert files(here) == {"a.jpg"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--face", "biggest"], 2), (["--align", "mtcnn"], 2), (["--detector", "yunet"], 4)],
)
def test_what_is_wrong_for_every_picture_of_a_batch_is_said_once(
    here: Path, tiny_model: Path, arguments: list[str], code: int
) -> None:
    shutil.copy("a.jpg", "b.jpg")
    result = facestyle("translate", "a.jpg", "b.jpg", "-d", "male", "-m", tiny_model, *arguments)
    assert_one_clear_error(result, code)
    assert files(here) == {"a.jpg", "b.jpg"}


def test_an_error_in_a_batch_names_its_picture(here: Path, tiny_model: Path) -> None:
    shutil.copy("a.jpg", "b.jpg")
    common = ("translate", "a.jpg", "b.jpg", "-d", "male", "-m", tiny_model)
    result = facestyle(*common, "--face", "2")
    assert result.exit_code == 7
    assert "error: a.jpg: face 2 was asked for, found 1" in result.stderr
    assert "error: b.jpg: face 2 was asked for, found 1" in result.stderr


def test_offline_opens_no_socket(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket", refuse)
    monkeypatch.setenv("FACESTYLE_OFFLINE", "0")
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", "stargan-v2-afhq", "--offline")
    assert_one_clear_error(result, 4, "https://", "stargan_v2_afhq.ckpt")


def test_json_and_a_picture_do_not_share_stdout(here: Path, tiny_model: Path) -> None:
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "-o", "-", "--json")
    assert result.exit_code == 2
    assert "stdout" in json.loads(result.stdout)["error"]


def test_an_output_that_is_no_regular_file_is_refused(here: Path, tiny_model: Path) -> None:
    os.mkfifo("pipe.png")
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "-o", "pipe.png")
    assert_one_clear_error(result, 1, "not a regular file", "-o -")


def test_the_input_behind_a_link_is_never_overwritten(here: Path, tiny_model: Path) -> None:
    os.symlink("a.jpg", "link.jpg")
    before = Path("a.jpg").read_bytes()
    for source, target in (("a.jpg", "link.jpg"), ("link.jpg", "a.jpg")):
        result = facestyle(
            "translate", source, "-d", "male", "-m", tiny_model, "-o", target, "--overwrite"
        )
        assert_one_clear_error(result, 2, "never overwritten")
    assert Path("a.jpg").read_bytes() == before


def test_a_missing_cuda_device_is_an_error_never_a_silent_cpu(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "--device", "cuda")
    assert_one_clear_error(result, 2, "cuda", "not available")


def test_an_unwritable_place_is_said_before_anything_is_left(here: Path, tiny_model: Path) -> None:
    Path("file").write_text("not a folder")
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model, "-o", "file/x.png")
    assert_one_clear_error(result, 1, "file")
    assert files(here) == {"a.jpg", "file"}


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", 6), (b"<html></html>" * 9, 6), (b"PK\x03\x04" + b"0" * 99, 6), (None, 4)],
)
def test_a_bad_model_has_its_exit_code(here: Path, content: bytes | None, code: int) -> None:
    if content is not None:
        Path("m.ckpt").write_bytes(content)
    result = facestyle("translate", "a.jpg", "-d", "male", "-m", "./m.ckpt")
    assert_one_clear_error(result, code, "m.ckpt")


def test_debug_shows_the_traceback_of_an_expected_error(here: Path, tiny_model: Path) -> None:
    result = facestyle("translate", "a.jpg", "-d", "mal", "-m", tiny_model, "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_a_bug_keeps_its_traceback(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("facestyle.pipeline.align", broken)
    with pytest.raises(ZeroDivisionError):
        facestyle("translate", "a.jpg", "-d", "male", "-m", tiny_model)


# --- processes, signals, streams --------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_an_extension_turns_into_an_import_error_is_still_a_signal(
    number: int,
) -> None:
    def load_torch() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException:
            raise ImportError("initialization failed") from None  # as torch and cv2 do

    with pytest.raises(typer.Exit) as caught, reporting():
        load_torch()
    assert caught.value.exit_code == 128 + number
    with pytest.raises(ImportError), reporting():
        raise ImportError("a real one")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_streams_that_take_nothing_are_no_bug() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "facestyle", "models", "path"]
        done = subprocess.run([*command, "builtin"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "No space left" in done.stderr
        assert subprocess.run([*command, "nothing"], stderr=full).returncode == 4


def test_a_closed_stdin_is_bad_input(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facestyle.cli.session.sys", SimpleNamespace(stdin=None, stdout=None))
    result = facestyle("translate", "-", "-d", "male", "-m", tiny_model, "-o", "x.png")
    assert_one_clear_error(result, 5, "stdin is closed")


@pytest.mark.parametrize(
    ("settings", "options", "bar"),
    [
        ({}, {}, True),
        ({}, {"quiet": True}, False),
        ({}, {"as_json": True}, False),
        ({"CI": "1"}, {}, False),
        ({"NO_COLOR": "1"}, {}, False),
        ({"TERM": "dumb"}, {}, False),
    ],
)
def test_a_bar_is_drawn_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], options: dict[str, bool], bar: bool
) -> None:
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert not Reporter(**options).shows_progress  # pytest's stderr is no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert Reporter(**options).shows_progress is bar


@pytest.mark.slow
def test_on_a_terminal_the_bar_goes_to_stderr_and_the_paths_stay_on_stdout(
    here: Path, tiny_model: Path
) -> None:
    shutil.copy("a.jpg", "b.jpg")
    terminal, its_end = os.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")}
    command = [sys.executable, "-m", "facestyle", "translate", "a.jpg", "b.jpg", "-d", "male"]
    done = subprocess.run(
        [*command, "-m", tiny_model], stdout=subprocess.PIPE, stderr=its_end,
        env={**environment, "TERM": "xterm"}, timeout=120,
    )  # fmt: skip
    os.close(its_end)
    shown = os.read(terminal, 1 << 20)
    os.close(terminal)
    assert done.stdout == b"a.male.png\nb.male.png\n"
    assert b"restyling" in shown
    assert b"fetching" not in shown  # nothing was fetched


@pytest.mark.slow
def test_as_a_process_no_escape_codes_reach_a_pipe(here: Path, tiny_model: Path) -> None:
    done = process("translate", "a.jpg", "-d", "male", "-m", tiny_model, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout == "a.male.png\n"


# --- models, doctor -------------------------------------------------------------------------


def test_models_info_names_family_sizes_domains_licence_and_sha256(tiny_model: Path) -> None:
    result = facestyle("models", "info", tiny_model, "--json")
    info = json.loads(result.stdout)
    assert info["family"] == "stargan-v2"
    assert info["image_size"] == 32
    assert info["domains"] == ["female", "male"]
    assert info["licence"].startswith("none")
    assert len(info["sha256"]) == 64
    assert info["parameters"]["generator"] > 0
    assert "stargan-v2" in facestyle("models", "info", tiny_model).stdout


def test_models_list_knows_the_default_and_the_published_ones() -> None:
    entries = [
        json.loads(line) for line in facestyle("models", "list", "--json").stdout.splitlines()
    ]
    states = {entry["name"]: entry["state"] for entry in entries}
    assert states["female-male"] == "shipped"
    assert states["stargan-v2-celeba-hq"] == "not fetched"


def test_models_verify_and_path_of_what_ships() -> None:
    for name in ("female-male", "builtin"):
        assert facestyle("models", "verify", name).stdout.startswith("verified")
        assert Path(facestyle("models", "path", name).stdout.strip()).is_file()


def test_models_info_of_a_detector_says_what_it_is() -> None:
    info = json.loads(facestyle("models", "info", "builtin", "--json").stdout)
    assert (info["name"], info["kind"]) == ("builtin", "detector")
    assert info["licence"]


def test_models_verify_tells_missing_and_damaged_in_one_json_line_each(tmp_path: Path) -> None:
    result = facestyle("models", "verify", "yunet", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["status"] == "missing"
    cache = tmp_path / "facestyle-home" / "weights"
    cache.mkdir(parents=True)
    (cache / "face_detection_yunet_2023mar.onnx").write_bytes(b"other")
    result = facestyle("models", "verify", "yunet", "--json")
    assert result.exit_code == 6
    assert json.loads(result.stdout)["status"] == "mismatch"
    assert_one_clear_error(facestyle("models", "verify", "yunet"), 6, "expected", "models pull")


def test_models_pull_offline_names_url_and_path() -> None:
    result = facestyle("models", "pull", "yunet")
    assert_one_clear_error(result, 4, "https://", "yunet")
    assert_one_clear_error(facestyle("models", "pull", "yunett"), 4, "yunet")


def test_doctor_finds_no_trouble_here() -> None:
    result = facestyle("doctor", "--json")
    facts = json.loads(result.stdout.splitlines()[0])
    assert facts["troubles"] == []
    shipped = [name for name, entry in index().items() if entry.shipped]
    assert {"female-male", "female-male-onnx", "builtin"} <= set(shipped)
    assert facts["weights"] == dict.fromkeys(shipped, "verified")
    assert {"torch", "numpy", "pillow"} <= set(facts["packages"])


def test_doctor_names_two_opencv_wheels_in_one_json_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheels = {"opencv-python", "opencv-python-headless"}
    monkeypatch.setattr("facestyle.cli.doctor._installed", lambda: wheels)
    result = facestyle("doctor", "--json")
    assert result.exit_code == 1
    (trouble,) = json.loads(result.stdout)["troubles"]
    assert "opencv-python-headless" in trouble
    assert "uninstall both" in trouble


def test_doctor_names_only_the_providers_that_start() -> None:
    import torch

    providers = json.loads(facestyle("doctor", "--json").stdout.splitlines()[0])["providers"]
    assert "CPUExecutionProvider" in providers
    assert "CUDAExecutionProvider" not in providers or torch.cuda.is_available()
