"""prepare: what is set aside and why, where the rest goes, and that no stop can spoil it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from facestyle.cli import app
from facestyle.cli.prepare import prepare as command
from facestyle.errors import FacestyleError, InputError, UsageError
from facestyle.faces import find_faces
from facestyle.faces.align import template_points
from facestyle.faces.registry import open_detector
from facestyle.images import read_picture
from facestyle.training import prepare
from facestyle.training.attributes import parse_attributes, read_attributes
from facestyle.training.collection import (
    MAX_MEMBER_BYTES,
    domains_by_folder,
    open_collection,
    parse_by,
    rows_by_picture,
)
from facestyle.training.prepare import Outcome, Settings

READY = Settings(align="none", detector="", size=32, val=0.3)


def pattern(number: int, side: int = 64) -> Image.Image:
    """A sharp picture like no other number's."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    large = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).astype(int)
    noisy = large + rng.integers(-40, 40, (side, side, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def fill(folder: Path, numbers: Sequence[int]) -> Path:
    """``folder/<even or odd>/<number>.png``."""
    for number in numbers:
        target = folder / ("even", "odd")[number % 2] / f"{number:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        pattern(number).save(target)
    return folder


def run(source: Path, out: Path, settings: Settings = READY, workers: int = 1) -> Outcome:
    plan = prepare.plan(source, out, settings)
    prepare.measure(plan, workers)
    return prepare.settle(plan)


def tree(out: Path) -> dict[str, bytes]:
    """All that a user gets."""
    files = (p for p in out.rglob("*") if p.is_file() and prepare.WORK not in p.parts)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}


def rows(out: Path) -> dict[str, dict[str, str]]:
    """The report by picture; of several faces the last."""
    with (out / "report.csv").open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def facestyle(*arguments: object) -> Result:
    """The command in this process; bugs surface as exceptions."""
    result = CliRunner().invoke(app, ["prepare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- lists of attributes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "2\nMale Young \na.jpg  1 -1\nb c.jpg -1  1\n",
        "image_id,Male,Young\na.jpg,1,-1\nb c.jpg,-1,1\n",
        "\ufefffile;Male;Young\r\na.jpg;1;0\r\n\r\nb c.jpg;0;1\r\n",
        'file, Male, Young\n"a.jpg", True, false\n"b c.jpg", FALSE, true\n',
    ],
)
def test_all_forms_of_a_list_say_the_same(text: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(text, encoding="utf-8", newline="")
    names, files = read_attributes(path)
    assert names == ("Male", "Young")
    assert {file: label.tolist() for file, label in files.items()} == {
        "a.jpg": [1, 0],
        "b c.jpg": [0, 1],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no attributes"),
        (b"\n", "names no attributes"),
        (b"12\n", "names no attributes"),
        (b"\xff\xd8\xff", "is not text"),
        (b"file,Male,Male\n", "an attribute twice"),
        (b"file,Male\na.jpg,1\nb.jpg,35\n", "line 3 has the value '35', expected 1, 0"),
        (b"file,Male\na.jpg,1,1\n", "line 2 has 2 values, expected 1"),
        (b"1\nMale Young\na.jpg 1\n", "line 3 has 1 values, expected 2"),
        (b"file,Male\na.jpg,1\na.jpg,1\n", "names a.jpg for the second time"),
        (b"file,Male\n" + b"x" * 200_000 + b",1\n", "short lines"),
    ],
)
def test_a_broken_list_is_told_by_its_line(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_attributes(content, "list.csv")


def test_only_the_columns_asked_for_have_to_make_sense() -> None:
    content = b"file,age,Male\na.jpg,35,1\n"
    assert parse_attributes(content, "list.csv", only=["Male"])[1]["a.jpg"].tolist() == [1]
    with pytest.raises(UsageError, match=r"no attribute 'male'; did you mean 'Male'\?"):
        parse_attributes(content, "list.csv", only=["male"])
    with pytest.raises(InputError, match="No such file"):
        read_attributes(Path("nowhere.csv"))


# --- collections ------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_what_is_a_picture_and_of_which_domain(tmp_path: Path) -> None:
    members = ["b/x.JPG", "b/deep/x.png", "a/y.webp", "a/.hidden.png", "a/notes.txt", "list.csv"]
    collection = open_collection(
        zipped(tmp_path / "a.zip", {f"top/{m}": b"?" for m in members} | {"__MACOSX/a.png": b"?"})
    )
    assert collection.names == ("top/a/y.webp", "top/b/deep/x.png", "top/b/x.JPG")
    assert collection.others == ("top/a/notes.txt", "top/list.csv")
    assert list(domains_by_folder(collection.names).values()) == ["a", "b", "b"]
    assert domains_by_folder(["a.png", "b.png"]) == {"a.png": "", "b.png": ""}
    assert domains_by_folder(["only/a.png", "only/b.png"]) == {
        "only/a.png": "only",
        "only/b.png": "only",
    }
    with pytest.raises(
        InputError, match=r"1 pictures lie beside the domain folders, such as x\.png"
    ):
        domains_by_folder(["a/1.png", "x.png"])


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/a.png", "a/../../b.png", "..\\a.png", "C:\\a.png"]
)
def test_a_zip_that_points_outside_of_itself_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside of itself"):
        open_collection(zipped(tmp_path / "a.zip", {name: b"?"}))


def test_a_bomb_in_a_zip_is_one_unreadable_picture(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"bomb.png": bytes(2**25), "fine.png": b"fine"})
    collection = open_collection(path)
    assert collection.content("fine.png") == b"fine"
    with pytest.raises(InputError, match="to 33554432 bytes"):
        collection.content("bomb.png")
    # One that lies about its size is read no further than it admits to.
    member = collection.members["bomb.png"]  # type: ignore[attr-defined]
    member.file_size = 100
    with pytest.raises(InputError, match="cannot be unpacked"):
        collection.content("bomb.png")
    member.file_size = MAX_MEMBER_BYTES + 1
    member.compress_size = MAX_MEMBER_BYTES
    with pytest.raises(InputError, match="too many"):
        collection.content("bomb.png")


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty", "none"])
def test_what_is_no_collection_is_told(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    content = bytearray(zipped(path, {"a/1.png": os.urandom(500)}).read_bytes())
    if damage == "flip":
        content[100] ^= 1  # in the picture's own bytes: the zip opens, its checksum is wrong
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be unpacked"):
            open_collection(path).content("a/1.png")
        return
    path.unlink()
    if damage != "none":
        path.write_bytes({"cut": content[:300], "text": b"hello"}.get(damage, b""))
    with pytest.raises(InputError, match="does not exist" if damage == "none" else "neither"):
        open_collection(path)


def test_rows_are_found_by_path_or_by_name() -> None:
    assert rows_by_picture(
        ["in/a.jpg", "b.jpg", "c.jpg"], {"a.jpg": 1, "b.jpg": 2, "z.jpg": 3}
    ) == {
        "in/a.jpg": 1,
        "b.jpg": 2,
    }
    assert rows_by_picture(["x/a.jpg", "y/a.jpg"], {"x/a.jpg": 1, "y/a.jpg": 2})["y/a.jpg"] == 2
    with pytest.raises(InputError, match=r"several pictures are called a\.jpg"):
        rows_by_picture(["x/a.jpg", "y/a.jpg"], {"a.jpg": 1})
    with pytest.raises(InputError, match="none of the 1 files"):
        rows_by_picture(["a.jpg"], {"b.jpg": 1})


@pytest.mark.parametrize(
    "text", ["Male", "Male:a", "Male:a,a", "Male:a,b,c", "Male:../a,b", ":a,b"]
)
def test_by_is_an_attribute_and_two_names(text: str) -> None:
    with pytest.raises(UsageError, match="such as Male:male,female"):
        parse_by(text)


# --- what is set aside ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Path:
    """Copies of one photo in every state, prepared."""
    folder = tmp_path_factory.mktemp("mixed")
    here = folder / "in" / "a"
    here.mkdir(parents=True)
    picture = Image.open(photo).convert("RGB")
    pixels = np.asarray(picture)
    (face,) = find_faces(pixels, open_detector("builtin"))
    left, top, right, bottom = face.box
    side = right - left
    picture.save(here / "good.png")
    picture.save(here / "same.bmp")
    picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(here / "smaller.jpg")
    mirrored = pixels[:, ::-1]
    Image.fromarray(cv2.GaussianBlur(mirrored, (0, 0), 0.03 * side)).save(here / "soft.png")
    small = np.asarray(picture.resize((picture.width // 2, picture.height)))
    Image.fromarray(np.hstack([mirrored, small])).save(here / "two.png")
    picture.crop((int(left), int(top), int(right), int(bottom))).save(here / "tight.png")
    picture.resize((picture.width // 6, picture.height // 6)).save(here / "tiny.png")
    pattern(1, 200).save(here / "nobody.png")
    (here / "broken.jpg").write_bytes(photo.read_bytes()[:2000])
    (here / "page.png").write_bytes(b"<html><body>404</body></html>")
    other = folder / "in" / "b"
    other.mkdir()
    picture.save(other / "again.jpg", quality=60)
    run(folder / "in", folder / "out", Settings(size=64, detector="builtin", val=0))
    return folder / "out"


@pytest.mark.parametrize(
    ("file", "reason", "detail"),
    [
        ("a/good.png", "", ""),
        ("a/same.bmp", "duplicate", "of a/good.png, the same pixels"),
        ("a/smaller.jpg", "duplicate", "of a/good.png, .* of 256 bits differ"),
        ("b/again.jpg", "duplicate", "of a/good.png in domain a, .* of 256 bits differ"),
        ("a/two.png", "", ""),
        ("a/soft.png", "blurred", r"sharpness 1\.\d\d, at least 2.2"),
        ("a/tight.png", "cut off", "beyond the picture, at most 25%"),
        ("a/tiny.png", "too small", r"enlarged \d\.\d\d times, at most 2"),
        ("a/nobody.png", "no face", r"best score \d\.\d\d, threshold 0.60"),
        ("a/broken.jpg", "unreadable", "cut off"),
        ("a/page.png", "unreadable", "a web page"),
    ],
)
def test_the_report_says_what_became_of_each_picture(
    mixed: Path, file: str, reason: str, detail: str
) -> None:
    row = rows(mixed)[file]
    assert row["reason"] == reason
    assert re.search(detail, row["detail"]), row["detail"]
    assert row["status"] == ("set aside" if reason else "train")
    assert (mixed / row["output"]).is_file() == (not reason)


def test_only_what_the_report_names_is_there(mixed: Path) -> None:
    named = {row["output"] for row in rows(mixed).values() if row["output"]}
    assert set(tree(mixed)) == named | {"report.csv", "prepare.json"}
    assert int(rows(mixed)["a/two.png"]["faces"]) > 1 == int(rows(mixed)["a/good.png"]["faces"])
    assert not (mixed / "train" / "b").exists()  # a domain that lost all its pictures


def test_crops_are_aligned_to_the_template(mixed: Path, photo: Path) -> None:
    crop = read_picture(mixed / rows(mixed)["a/good.png"]["output"]).pixels_HWC
    assert crop.shape == (64, 64, 3)
    large = cv2.resize(crop, (256, 256), interpolation=cv2.INTER_CUBIC)
    (face,) = find_faces(large, open_detector("builtin"))
    wanted = template_points("celeba-square") * 256
    assert np.abs(face.landmarks_52 - wanted).mean() < 0.03 * 256


def test_all_faces_of_a_picture_can_be_taken(tmp_path: Path, photo: Path) -> None:
    pixels = np.asarray(Image.open(photo).convert("RGB"))
    (tmp_path / "in").mkdir()
    Image.fromarray(np.hstack([pixels, pixels[:, ::-1] // 2])).save(tmp_path / "in" / "two.png")
    settings = Settings(size=64, detector="builtin", val=0, face="all")
    outcome = run(tmp_path / "in", tmp_path / "out", settings)
    assert (outcome.total, outcome.several) == (2, 0)
    outcome = run(tmp_path / "in", tmp_path / "one", replace(settings, face="largest"))
    assert (outcome.total, outcome.several) == (1, 1)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = pattern(5).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
    picture.save(tmp_path / "in" / "half.png")
    run(tmp_path / "in", tmp_path / "out", replace(READY, size=64, val=0))
    (path,) = (tmp_path / "out" / "train").iterdir()
    pixels = read_picture(path).pixels_HWC
    assert (pixels[:, :30] == 255).all()
    assert np.array_equal(pixels[:, 33:], np.asarray(pattern(5))[:, 33:])


def test_of_two_alike_the_larger_is_kept_in_any_order_of_names(tmp_path: Path) -> None:
    for name, side in (("a", 64), ("b", 96), ("c", 80)):
        (tmp_path / "in" / name).mkdir(parents=True)
        pattern(7, 96).resize((side, side), Image.Resampling.LANCZOS).save(
            tmp_path / "in" / name / "x.png"
        )
    run(tmp_path / "in", tmp_path / "out")
    kept = [file for file, row in rows(tmp_path / "out").items() if not row["reason"]]
    assert kept == ["b/x.png"]


@pytest.mark.slow
def test_thresholds_tell_real_pictures_from_spoilt_ones(shared: Path, tmp_path: Path) -> None:
    for folder in ("clean", "blurred"):
        (tmp_path / folder).mkdir()
    with zipfile.ZipFile(shared / "faces" / "celeba10k.zip") as archive:
        names = [n for n in archive.namelist() if n.endswith(".jpg")][:80]
        for name in names:
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            file = Path(name).stem + ".png"
            Image.fromarray(pixels).save(tmp_path / "clean" / file)
            # The square of this template has 72 px in these pictures: 1.5 % of it.
            blurred = cv2.GaussianBlur(pixels, (0, 0), 0.015 * 72)
            Image.fromarray(blurred).save(tmp_path / "blurred" / file)
            Image.fromarray(pixels).save(tmp_path / "clean" / f"{file}.jpg", quality=60)
    settings = Settings(size=64, detector="builtin", val=0)
    outcome = run(tmp_path / "clean", tmp_path / "kept", settings)
    assert outcome.set_aside["duplicate"] >= 0.8 * len(names)
    assert outcome.total >= len(names) - 2  # nobody is taken for somebody else
    assert "blurred" not in outcome.set_aside
    outcome = run(tmp_path / "blurred", tmp_path / "spoilt", settings)
    assert outcome.set_aside["blurred"] >= 0.95 * len(names)


# --- split, stop and go on --------------------------------------------------------------------


def test_the_split_is_by_content_and_stays_when_pictures_are_added(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", range(40))
    first = run(source, tmp_path / "out")
    assert 4 <= sum(first.kept["val"].values()) <= 20  # 12 are expected of 40
    before = rows(tmp_path / "out")
    fill(source, range(40, 60))
    (source / "odd" / "001.png").rename(source / "odd" / "renamed.png")
    run(source, tmp_path / "out")
    after = rows(tmp_path / "out")
    assert len(after) == 60
    assert after.pop("odd/renamed.png")["status"] == before.pop("odd/001.png")["status"]
    assert all(after[file] == row for file, row in before.items())
    run(source, tmp_path / "other", replace(READY, seed=1))
    assert any(
        rows(tmp_path / "other")[file]["status"] != row["status"] for file, row in before.items()
    )


def test_the_result_depends_on_neither_processes_nor_zip_nor_order(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", range(12))
    shutil.copy(source / "odd" / "001.png", source / "even" / "zzz.png")
    run(source, tmp_path / "one")
    outcome = run(source, tmp_path / "two", workers=2)
    assert outcome.set_aside == {"duplicate": 1}
    files = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*.png")}
    run(zipped(tmp_path / "in.zip", dict(reversed(files.items()))), tmp_path / "three")
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "three")


class StopError(Exception):
    """Stands for a kill."""


def stopping(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> list[object]:
    """Let ``prepare.<name>`` raise from its n-th call on; returns what it was called with."""
    real, seen = getattr(prepare, name), []

    def stopped(*arguments: object) -> object:
        seen.append(arguments)
        if len(seen) > calls:
            raise StopError
        return real(*arguments)

    monkeypatch.setattr(prepare, name, stopped)
    return seen


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("cut_picture", 0),
        ("cut_picture", 7),
        ("_forget_stale", 0),
        ("_move", 0),
        ("_move", 5),
        ("_duplicates", 0),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end(
    name: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "in", range(12))
    shutil.copy(source / "odd" / "001.png", source / "even" / "zzz.png")
    run(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopping(patch, name, calls)
        with pytest.raises(StopError):
            run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "report.csv").exists()
    # What a kill can leave besides: a torn line, and files that were never finished.
    work = tmp_path / "out" / prepare.WORK
    with (work / prepare.JOURNAL).open("a") as journal:
        journal.write('{"file": "odd/0')
    for folder in (work, work.parent, work.parent / "train"):
        (folder / ".facestyle-0123.part").write_bytes(b"half")
    with monkeypatch.context() as patch:
        measured = stopping(patch, "cut_picture", 1000)
        run(source, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    done = calls if name == "cut_picture" else 0 if name == "_forget_stale" else 13
    assert len(measured) == 13 - done  # what was done is not redone


def test_a_second_run_follows_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "in", range(12))
    out = tmp_path / "out"
    run(source, out)
    first = tree(out)
    measured = stopping(monkeypatch, "cut_picture", 1000)
    run(source, out)
    assert tree(out) == first
    assert not measured
    # Gone, changed, moved to the other domain, and a crop that somebody deleted.
    (source / "odd" / "001.png").unlink()
    pattern(77).save(source / "odd" / "003.png")
    (source / "odd" / "005.png").rename(source / "even" / "005.png")
    (out / rows(out)["odd/007.png"]["output"]).unlink()
    run(source, out)
    assert len(measured) == 3
    run(source, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_better_copy_that_is_added_takes_the_place(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", range(6)), tmp_path / "out"
    run(source, out)
    better = source / "even" / "better.png"
    pattern(1).resize((96, 96), Image.Resampling.BICUBIC).save(better)
    run(source, out)
    assert rows(out)["odd/001.png"]["reason"] == "duplicate"
    better.unlink()
    run(source, out)
    assert rows(out)["odd/001.png"]["status"] in prepare.SPLITS
    run(source, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_folder_keeps_one_way_of_making_it(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", range(4))
    run(source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"was made with --size 32, not 48; give the same"):
        run(source, tmp_path / "out", replace(READY, size=48))
    with pytest.raises(UsageError, match="no work of facestyle prepare"):
        run(source / "odd", source)
    with pytest.raises(UsageError, match="lies in"):
        run(source, source / "crops")


def test_a_full_disk_is_told_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "in", range(4))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((prepare.os, "replace"), (prepare.json, "dumps")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(FacestyleError, match="disk full"):
                run(source, tmp_path / "out")
    run(source, tmp_path / "out")
    run(source, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


# --- attributes -------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A zip of pictures with a list inside, which does not know the last one."""
    members = {}
    for number in range(10):
        file = io.BytesIO()
        pattern(number).save(file, "PNG")
        members[f"images/{number}.png"] = file.getvalue()
    members["list.csv"] = (
        "file,Odd,Small\n" + "".join(f"{n}.png,{n % 2},{-1 if n > 4 else 1}\n" for n in range(9))
    ).encode()
    return zipped(tmp_path / "listed.zip", members)


def test_domains_by_an_attribute(listed: Path, tmp_path: Path) -> None:
    settings = replace(READY, attributes="list.csv", by="Odd:odd,even")
    outcome = run(listed, tmp_path / "out", settings)
    counts = [outcome.kept["train"][d] + outcome.kept["val"][d] for d in ("odd", "even")]
    assert counts == [4, 5]
    assert outcome.set_aside == {"not listed": 1}
    report = rows(tmp_path / "out")
    assert report["images/9.png"]["reason"] == "not listed"
    assert all(
        row["domain"] == ("even", "odd")[int(file[7]) % 2]
        for file, row in report.items()
        if not row["reason"]
    )


def test_attributes_stay_labels_without_by(listed: Path, tmp_path: Path) -> None:
    run(listed, tmp_path / "out", replace(READY, attributes="list.csv"))
    report = rows(tmp_path / "out")
    seen = 0
    for half in ("train", "val"):
        names, files = read_attributes(tmp_path / "out" / half / "attributes.csv")
        assert names == ("Odd", "Small")
        pictures = {p.name for p in (tmp_path / "out" / half).glob("*.png")}
        assert set(files) == pictures
        for file, row in report.items():
            if row["status"] == half:
                number = int(Path(file).stem)
                assert files[Path(row["output"]).name].tolist() == [number % 2, number <= 4]
                seen += 1
    assert seen == 9


# --- the command ------------------------------------------------------------------------------


def test_the_commands_defaults_are_the_librarys() -> None:
    given = signature(command).parameters
    for name, value in vars(Settings()).items():
        assert given[name].default == value, name


def test_the_command_prints_the_folder_and_counts_the_rest(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", range(12)), tmp_path / "out"
    (source / "odd" / "notes.txt").write_text("?")
    (source / "odd" / "broken.png").write_text("?")
    options = ("--align", "none", "--size", 32, "--val", 0.3, "--workers", 1)
    dry = facestyle(source, out, *options, "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, "even: 6 pictures\nodd: 7 pictures\n")
    assert not out.exists()
    result = facestyle(source, out, *options, "--face", "all")
    assert (result.exit_code, result.stdout) == (0, f"{out}/train\n")
    for words in ("set aside 1: 1 unreadable", "left out 1 files", "--face: no effect", "val: "):
        assert words in result.stderr
    again = facestyle(source, out, *options, "--json")
    assert again.stderr == ""
    told = json.loads(again.stdout)
    assert told["set_aside"] == {"unreadable": 1}
    assert sum(n for half in told["kept"].values() for n in half.values()) == 12
    quiet = facestyle(source, out, *options, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--size", 300], 5, "2 too small .*report.csv.*\n.*smaller --size"),
        (["--align", "ffhq"], 2, "unknown alignment 'ffhq'"),
        (["--by", "Odd:odd,even"], 2, "give --attributes"),
        (["--attributes", "no.csv"], 5, "cannot read the attributes no.csv"),
        (["--face", "3"], 2, "use largest or all"),
        (["--detector", "best"], 2, "unknown detector"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[object], code: int, words: str, tmp_path: Path
) -> None:
    source = fill(tmp_path / "in", range(2))
    align = [] if {"--align", "--face", "--detector"} & set(arguments) else ["--align", "none"]
    result = facestyle(source, tmp_path / "out", *align, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert re.search(words, result.stderr), result.stderr
    assert len(result.stderr.splitlines()) <= 3


@pytest.fixture
def slow_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command on enough pictures to be stopped in the middle, in a session of its own."""
    for path in fill(tmp_path / "in", range(20)).rglob("*.png"):
        for copy in range(12):
            shutil.copy(path, path.with_stem(f"{path.stem}-{copy}"))
    options = ["--align", "none", "--size", "64", "--workers", "2"]
    child = subprocess.Popen(
        [sys.executable, "-m", "facestyle", "prepare", "in", "out", *options],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    journal = tmp_path / "out" / prepare.WORK / prepare.JOURNAL
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 10):
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    yield child
    if child.poll() is None:
        child.kill()
    child.communicate()


def alone(session: int) -> bool:
    """Whether no process of a session is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes_and_a_second_run_completes(
    number: signal.Signals, slow_run: subprocess.Popen[str], tmp_path: Path
) -> None:
    if number == signal.SIGINT:
        os.killpg(slow_run.pid, number)  # as a terminal does
    else:
        slow_run.send_signal(number)
    stdout, stderr = slow_run.communicate(timeout=30)
    wanted = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert (slow_run.returncode, stdout) == (wanted[number], "")
    assert "Traceback" not in stderr
    if number != signal.SIGKILL:
        assert "the same command goes on" in stderr
    for _ in itertools.takewhile(lambda _: not alone(slow_run.pid), range(100)):
        time.sleep(0.05)
    assert alone(slow_run.pid)
    settings = Settings(align="none", detector="", size=64)
    outcome = run(tmp_path / "in", tmp_path / "out", settings)
    assert outcome.total == 20
    assert sum(outcome.set_aside.values()) == 240
    assert not list((tmp_path / "out").rglob("*.part"))
    run(tmp_path / "in", tmp_path / "fresh", settings)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_the_helps_example_runs(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "photos" / "people").mkdir(parents=True)
    shutil.copy(photo, tmp_path / "photos" / "people")
    out = tmp_path / "crops"
    result = facestyle(tmp_path / "photos", out, "--size", 128, "--workers", 1)
    assert result.exit_code == 0, result.stderr
    (crop,) = out.glob("*/people/*.png")
    assert read_picture(crop).pixels_HWC.shape == (128, 128, 3)
    assert json.loads((out / "prepare.json").read_text())["detector"] == "builtin"
