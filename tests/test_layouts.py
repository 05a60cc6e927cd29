"""How training pictures lie in folders: what is listed, how it is cut, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facestyle.errors import InputError, UsageError
from facestyle.families import family_named
from facestyle.training.data import (
    LAYOUTS,
    AttributePictures,
    LabelledPictures,
    LargerEyes,
    attribute_pictures,
    digest,
    labelled_folders,
    middle,
    paired_pictures,
    read_layout,
    unpaired_folders,
)
from facestyle.training.preview import Previewer


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def mean_colour(picture_CHW: np.ndarray) -> list[int]:
    return [round(float(v)) for v in (picture_CHW.mean(axis=(1, 2)) + 1) * 127.5]


RED, BLUE = (200, 0, 0), (0, 0, 200)


# --- unpaired ---------------------------------------------------------------------------------


def test_the_published_folders_trainA_and_trainB_are_domains_a_and_b(tmp_path: Path) -> None:
    for folder in ("trainA", "trainB", "testA", "testB"):
        paint(tmp_path / folder / "1.png", RED if folder.endswith("A") else BLUE)
    pictures = unpaired_folders(tmp_path)
    assert pictures.domains == ("A", "B")
    assert pictures.counts() == {"A": 1, "B": 1}
    rng = np.random.default_rng(0)
    assert mean_colour(pictures.jittered(1, rng, 8, 10)) == [0, 0, 200]


@pytest.mark.parametrize("names", [("x",), ("x", "y", "z")])
def test_trainA_and_trainB_have_two_names_or_none(tmp_path: Path, names: tuple[str, ...]) -> None:
    for folder in ("trainA", "trainB"):
        paint(tmp_path / folder / "1.png", RED)
    with pytest.raises(UsageError, match=rf"{len(names)} names \({', '.join(names)}\), expected 2"):
        unpaired_folders(tmp_path, names)
    assert unpaired_folders(tmp_path, ("x", "y")).domains == ("x", "y")


def test_two_named_folders_are_two_domains_and_their_order_can_be_chosen(tmp_path: Path) -> None:
    for name in ("anime", "portrait", "other"):
        paint(tmp_path / name / "1.png", RED)
    assert unpaired_folders(tmp_path, ("portrait", "anime")).domains == ("portrait", "anime")
    with pytest.raises(UsageError, match="holds 3 domains"):
        unpaired_folders(tmp_path)


def test_jitter_cuts_and_mirrors_at_random_and_the_same_for_the_same_stream(
    tmp_path: Path,
) -> None:
    ramp = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (25, 1))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.stack([ramp, ramp.T, ramp * 0], axis=2)).save(tmp_path / name / "1.png")
    pictures = unpaired_folders(tmp_path)
    cuts = [pictures.jittered(0, np.random.default_rng(seed), 16, 25) for seed in range(20)]
    again = pictures.jittered(0, np.random.default_rng(3), 16, 25)
    assert np.array_equal(cuts[3], again)
    assert {cut.shape for cut in cuts} == {(3, 16, 16)}
    rising = {bool(cut[0, 0, -1] > cut[0, 0, 0]) for cut in cuts}
    assert rising == {True, False}  # some are mirrored
    assert all(cut[1, -1, 0] > cut[1, 0, 0] for cut in cuts)  # none upside down
    assert len({float(cut[1, 0, 0]) for cut in cuts}) > 5  # cut at many heights


def test_photos_are_learned_with_larger_eyes_and_drawings_as_they_are(tmp_path: Path) -> None:
    """White eyes on grey; what a translator enlarges by itself is listed as it is."""
    template_52 = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.75], [0.65, 0.75]])
    y, x = np.mgrid[:64, :64] + 0.5
    eyes = [np.hypot(x - 64 * a, y - 64 * b) < 4 for a, b in template_52[:2]]
    grey = np.where(np.any(eyes, axis=0), 255, 64).astype(np.uint8)
    for name in ("anime", "portrait"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.stack([grey] * 3, axis=2)).save(tmp_path / name / "1.png")
    larger = LargerEyes(times=1.5, template_52=template_52, drawings=("anime",))
    pictures = replace(labelled_folders(tmp_path), larger_eyes=larger)

    def white(picture_CHW: np.ndarray) -> int:
        return int((picture_CHW[0] > 0.25).sum())

    with Image.open(tmp_path / "anime" / "1.png") as picture:
        true, stream = white(middle(picture, 64)), np.random.default_rng

    def is_seen(picture_CHW: np.ndarray, larger: bool) -> bool:
        grown = white(picture_CHW) / true  # in the middle by 1.5 squared, less away from it
        return 1.5 < grown <= 1.5**2 if larger else grown == 1

    assert is_seen(pictures.jittered(0, stream(0), 64, 64), larger=False)
    assert is_seen(pictures.jittered(1, stream(0), 64, 64), larger=True)
    assert is_seen(pictures.load(1, stream(4), 64), larger=True)  # a stream that does not cut
    for seed in range(8):
        seen, label_D = pictures.load_labelled(stream(seed), 64, 0)
        assert is_seen(seen, larger=bool(label_D[1]))
    assert all(white(one) == true for one in pictures.sources(2, 64))
    assert white(pictures.members("portrait", 1, 64)[0]) == true


# --- paired -----------------------------------------------------------------------------------


def test_pairs_side_by_side_are_cut_in_the_middle_and_jittered_alike(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    ramp = np.linspace(0, 255, 20).astype(np.uint8)
    pixels[:, :20, 0] = ramp  # the input rises from left to right in red
    pixels[:, 20:, 2] = ramp  # so does the target in blue
    (tmp_path / "train").mkdir()
    Image.fromarray(pixels).save(tmp_path / "train" / "1.png")
    pictures = paired_pictures(tmp_path)
    assert pictures.domains == ("B",)
    for seed in range(8):
        a, b = pictures.load_pair(np.random.default_rng(seed), 16, 20)
        assert np.array_equal(a[0], b[2])  # the same crop and mirror for both
    (source,), (target,) = pictures.sources(1, 20), pictures.members("B", 1, 20)
    assert source[2].max() == -1
    assert target[0].max() == -1
    assert np.array_equal(paired_pictures(tmp_path, ("A",)).sources(1, 20)[0], target)


def test_pairs_in_two_folders_meet_by_name(tmp_path: Path) -> None:
    for name, number in (("edges", "1"), ("edges", "2"), ("faces", "1"), ("faces", "2")):
        paint(tmp_path / name / f"{number}.png", RED if name == "edges" else BLUE)
    pictures = paired_pictures(tmp_path)
    assert pictures.domains == ("faces",)
    assert len(pictures.files) == 2
    other = paired_pictures(tmp_path, ("faces", "edges"))
    assert mean_colour(other.sources(1, 8)[0]) == [0, 0, 200]
    (tmp_path / "faces" / "2.png").unlink()
    with pytest.raises(InputError, match="2 is in only one of edges and faces"):
        paired_pictures(tmp_path)


def test_of_pairs_in_two_folders_the_one_that_is_named_alone_is_the_target(tmp_path: Path) -> None:
    for name, colour in (("A", RED), ("B", BLUE)):
        paint(tmp_path / name / "1.png", colour)
    for names, target, source in (((), "B", RED), (("B",), "B", RED), (("A",), "A", BLUE)):
        pictures = paired_pictures(tmp_path, names)
        assert pictures.domains == (target,)
        assert mean_colour(pictures.sources(1, 8)[0]) == list(source)


def test_folders_of_pairs_that_are_in_doubt_are_refused(tmp_path: Path) -> None:
    for name in ("A", "B"):
        paint(tmp_path / name / "1.png", RED)
    for names, found, remedy in (
        (("x",), "has no folder x", "there are A, B"),
        (("A", "x"), "has no folder x", "there are A, B"),
        (("A", "B", "x"), r"3 names \(A, B, x\), expected 1 or 2", "the target alone"),
    ):
        with pytest.raises(UsageError, match=f"{found}.*{remedy}"):
            paired_pictures(tmp_path, names)
    paint(tmp_path / "C" / "1.png", RED)
    for names in ((), ("B",)):
        with pytest.raises(UsageError, match=r"holds 3 folders \(A, B, C\), expected 2.*name two"):
            paired_pictures(tmp_path, names)
    assert paired_pictures(tmp_path, ("C", "A")).domains == ("A",)


# --- attributes ---------------------------------------------------------------------------------


@pytest.fixture
def attributed(tmp_path: Path) -> Path:
    """Three red pictures that smile, two blue ones that do not, one that nobody listed."""
    for number in range(6):
        paint(tmp_path / f"{number}.png", RED if number < 3 else BLUE, (20, 30))
    rows = [f"{n}.png,{int(n < 3)},{n % 2}" for n in range(5)]
    (tmp_path / "attributes.csv").write_text("file,Smiling,Odd\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_attributes_follow_their_pictures(attributed: Path) -> None:
    pictures = attribute_pictures(attributed, ("Smiling",))
    assert isinstance(pictures, AttributePictures)
    assert pictures.counts() == {"Smiling": 3}
    assert len(pictures.files) == 5
    rng = np.random.default_rng(0)
    for _ in range(20):
        picture, label = pictures.load_labelled(rng, 8, 16)
        assert picture.shape == (3, 8, 8)
        assert (mean_colour(picture)[0] > 100) == bool(label[0])
    assert [mean_colour(p) for p in pictures.members("Smiling", 9, 8)] == [[200, 0, 0]] * 3
    assert {tuple(attribute_pictures(attributed).label(rng)) for _ in range(50)} == {
        (1, 0), (1, 1), (0, 1), (0, 0)
    }  # fmt: skip


def test_one_label_for_two_pictures_of_one_name_is_refused(attributed: Path) -> None:
    """One of them would get the other's label; by their paths, or beside a picture that the list
    names by its own, nothing is in doubt."""
    paint(attributed / "p" / "7.png", RED)
    paint(attributed / "q" / "7.png", BLUE)
    paint(attributed / "q" / "0.png", BLUE)
    paint(attributed / "q" / "1.png", BLUE)
    listed = attributed / "attributes.csv"
    before = listed.read_text()
    listed.write_text(before + "p/7.png,1,0\nq/7.png,0,0\nq/0.png,0,1\n")
    pictures = attribute_pictures(attributed, ("Smiling",))
    assert isinstance(pictures, AttributePictures)
    named = {path.relative_to(attributed).as_posix(): path for path in pictures.files}
    found = dict(zip(named, pictures.labels_NA[:, 0], strict=True))
    assert [found[name] for name in ("0.png", "p/7.png", "q/7.png", "q/0.png")] == [1, 1, 0, 0]
    assert "q/1.png" not in found
    listed.write_text(before + "7.png,1,0\n")
    with pytest.raises(InputError, match=r"several pictures are called 7\.png.*by its path"):
        attribute_pictures(attributed)


def test_what_is_rare_is_drawn_more_often_where_that_is_asked_for(tmp_path: Path) -> None:
    for number in range(20):
        paint(tmp_path / f"{number:02}.png", RED, (8, 8))
    rows = [f"{n:02}.png,{int(n == 3)},{int(n < 10)},1" for n in range(20)]
    (tmp_path / "attributes.csv").write_text("file,Rare,Half,Always\n" + "\n".join(rows) + "\n")
    pictures = attribute_pictures(tmp_path)
    rng = np.random.default_rng(0)
    plain, even, shown = (
        np.mean([draw() for _ in range(3000)], axis=0)
        for draw in (
            lambda: pictures.label(rng),
            lambda: pictures.label(rng, even=True),
            lambda: pictures.load_labelled(rng, 8, 0, even=True)[1],
        )
    )
    assert plain == pytest.approx([0.05, 0.5, 1], abs=0.03)
    # A third of the draws is by each, and half of a third has it. The rare one is one of the ten
    # that have the second; nobody lacks the third, which leaves everybody to be drawn.
    expected = [(1 / 2 + 1 / 20 + 1 / 20) / 3, ((1 / 2 + 9 / 38) + 1 / 2 + 1 / 2) / 3, 1]
    assert even == pytest.approx(expected, abs=0.04)
    assert shown == pytest.approx(expected, abs=0.04)


def test_an_attribute_that_the_list_lacks_is_refused_with_those_it_has(attributed: Path) -> None:
    with pytest.raises(UsageError, match=r"no attribute 'Male'") as caught:
        attribute_pictures(attributed, ("Male",))
    assert "Smiling, Odd" in str(caught.value.hint)


def test_without_a_list_folders_are_one_hot_labels(tmp_path: Path) -> None:
    paint(tmp_path / "happy" / "1.png", RED)
    paint(tmp_path / "sad" / "1.png", BLUE)
    pictures = attribute_pictures(tmp_path)
    assert isinstance(pictures, LabelledPictures)
    rng = np.random.default_rng(0)
    labels = {tuple(pictures.load_labelled(rng, 8, 0)[1]) for _ in range(20)}
    assert labels == {(1.0, 0.0), (0.0, 1.0)}


# --- as large as they are learned ---------------------------------------------------------------


def disc(path: Path, size: tuple[int, int] = (64, 64)) -> None:
    """White on black in the middle, of half the shorter side."""
    y, x = (np.mgrid[: size[1], : size[0]].T + 0.5 - np.array(size[::-1]) / 2).T
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = np.hypot(x, y) < min(size) / 4
    Image.fromarray(np.repeat(255 * inside.astype(np.uint8)[..., None], 3, axis=2)).save(path)


def area(picture_CHW: np.ndarray) -> float:
    """Of the disc, as a share of the picture's."""
    return float((picture_CHW.mean() + 1) / 2)


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
@pytest.mark.parametrize("folders", [True, False])
def test_what_stargan_crops_is_as_large_on_its_card_and_in_previews(
    folders: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    for name in ("a/1.png", "b/1.png"):
        disc(tmp_path / name, size)
    if not folders:
        (tmp_path / "attributes.csv").write_text("file,a,b\na/1.png,1,0\nb/1.png,0,1\n")
    pictures, family = attribute_pictures(tmp_path), family_named("stargan")
    config = family.settled(replace(family.config(), image_size=32, crop=40), pictures)
    card = family.new_card(config, pictures.domains)
    assert card.zoom == pytest.approx(64 / 40, abs=0.02)
    learned = area(family.sample(pictures, config, np.random.default_rng(0))["x_NCHW"])
    assert learned == pytest.approx(np.pi / 16 * (64 / 40) ** 2, rel=0.05)
    shown = Previewer(family, None, card, pictures, tmp_path)  # type: ignore[arg-type]
    for faces_NCHW in (shown.sources, *shown.members.values(), *shown.scored.values()):
        assert [area(face) for face in faces_NCHW] == pytest.approx(
            [learned] * len(faces_NCHW), rel=0.05
        )
    # Nothing is left out, or pictures of several sizes tell nothing.
    whole = family.settled(replace(config, crop=64, crop_from=0), pictures)
    assert family.new_card(whole, pictures.domains).zoom == 1
    disc(tmp_path / "b" / "1.png", (48, 48))
    assert family.settled(replace(config, crop_from=0), pictures).crop_from == 0


@pytest.mark.parametrize("name", ["cyclegan", "ugatit", "pix2pix", "bicyclegan"])
def test_previews_show_faces_as_large_as_they_are_learned(name: str, tmp_path: Path) -> None:
    for half in ("a", "b"):
        disc(tmp_path / half / "1.png")
    family = family_named(name)
    pictures = LAYOUTS[family.layout](tmp_path, ())
    config = replace(family.config(), image_size=64, load_size=80)
    item = family.sample(pictures, config, np.random.default_rng(0))
    learned = area(next(value for value in item.values() if value.ndim == 3))
    assert learned == pytest.approx(np.pi / 16 * (80 / 64) ** 2, rel=0.05)
    card = family.new_card(config, pictures.domains)
    shown = Previewer(family, None, card, pictures, tmp_path)  # type: ignore[arg-type]
    for faces_NCHW in (shown.sources, *shown.members.values()):
        assert [area(face) for face in faces_NCHW] == pytest.approx(
            [learned] * len(faces_NCHW), rel=0.05
        )


# --- halves -----------------------------------------------------------------------------------


def test_of_prepared_data_the_train_half_is_read(tmp_path: Path) -> None:
    for half, count in (("train", 3), ("val", 1)):
        for domain in ("female", "male"):
            for number in range(count):
                paint(tmp_path / half / domain / f"{number}.png", RED)
    assert read_layout("labelled", tmp_path).counts() == {"female": 3, "male": 3}


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    for domain in "ab":
        paint(tmp_path / domain / "1.png", RED)
        (tmp_path / domain / "._1.png").write_bytes(b"macOS")
    assert labelled_folders(tmp_path).counts() == {"a": 1, "b": 1}


def test_the_digest_is_of_files_their_order_and_their_labels(tmp_path: Path) -> None:
    files = (tmp_path / "a" / "1.png", tmp_path / "a" / "2.png")
    one = AttributePictures(domains=("x",), files=files, labels_NA=np.float32([[1], [0]]))
    told = digest(one)
    assert digest(replace(one, labels_NA=np.float32([[1], [0]]))) == told
    assert digest(replace(one, files=files[::-1])) != told
    assert digest(replace(one, labels_NA=np.float32([[0], [1]]))) != told
    halves = LabelledPictures(domains=("x", "y"), files=(files[:1], files[1:]))
    assert digest(halves) != digest(replace(halves, files=(files, ())))


def test_domains_can_be_chosen_and_ordered(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        paint(tmp_path / name / "1.png", RED)
    assert labelled_folders(tmp_path, ("c", "a")).domains == ("c", "a")
    with pytest.raises(InputError, match="no folder"):
        labelled_folders(tmp_path, ("c", "x"))
    with pytest.raises(UsageError, match=r"domains names a alone.*there are a, b, c"):
        labelled_folders(tmp_path, ("a",))
    for names in (("a", ""), ("a", "b", "a")):  # "" would be all of the folder
        with pytest.raises(UsageError, match=f"domains is '{','.join(names)}', expected names"):
            read_layout("labelled", tmp_path, names)
