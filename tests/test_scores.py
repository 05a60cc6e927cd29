"""The measures behind the scores of models (recipes/measures.py, recipes/judges.py)."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import judges
import measures
import numpy as np
import pytest
import reports
import torch

from facestyle.backends.on_torch import TorchBackend
from facestyle.card import ModelCard
from facestyle.faces import find_faces
from facestyle.faces.align import align, template_points
from facestyle.faces.masks import paste_mask
from facestyle.faces.registry import open_detector
from facestyle.images import read_picture
from facestyle.nn.painter import Painter
from facestyle.pipeline import restyle
from facestyle.translator import Style, Translator


def features(seed: int, count: int = 200, shift: float = 0, turn: float = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, turn, (count, 16))


def crops(seed: int, count: int) -> np.ndarray:
    shape = (count, judges.SIDE, judges.SIDE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def coloured(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((judges.SIDE, judges.SIDE, 3), colour, np.uint8)


# --- Measures --------------------------------------------------------------------------


def test_kid_is_without_bias_on_two_draws_of_one_distribution() -> None:
    found = [measures.kid(features(2 * i, 20), features(2 * i + 1, 30)) for i in range(200)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error
    assert min(found) < 0 < max(found)


def test_kid_grows_with_a_shift_and_sees_a_change_of_spread() -> None:
    real = features(0)
    kids = [measures.kid(features(1, shift=shift), real) for shift in (0, 0.2, 0.5, 1)]
    assert kids == sorted(kids)
    assert kids[1] > 3 * abs(kids[0])
    assert measures.kid(features(1, turn=2), real) > 3 * abs(kids[0])
    assert measures.kid(real, features(1)) == pytest.approx(measures.kid(features(1), real))


def test_kid_is_the_formula_summed_pair_by_pair() -> None:
    x, y = features(0, 4), features(1, 3)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 16 + 1) ** 3

    own_x = np.mean([kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
    own_y = np.mean([kernel(y[i], y[j]) for i in range(3) for j in range(3) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert measures.kid(x, y) == pytest.approx(own_x + own_y - 2 * across)


def test_a_seam_is_1_where_nothing_was_pasted_and_grows_with_a_step(photo: Path) -> None:
    picture = read_picture(photo).pixels_HWC
    points = template_points("celeba-square") * 120 + (180, 60)
    mask = paste_mask(align(picture, points, "celeba-square", 64), picture)

    def stepped(levels: int) -> float:
        brighter = np.where(mask[..., None] > 0.5, picture.astype(int) + levels, picture)
        return measures.seam(brighter.clip(0, 255).astype(np.uint8), picture, mask)

    def feathered(levels: int) -> float:
        brighter = picture + levels * mask[..., None]
        return measures.seam(brighter.clip(0, 255).astype(np.uint8), picture, mask)

    assert measures.seam(picture, picture, mask) == 1
    assert 1.02 < stepped(15) < stepped(40)
    assert feathered(40) < stepped(40)


def test_what_a_model_moves_is_no_seam(photo: Path) -> None:
    """A painter that moves much and paints nothing, with the mask that ends where the face does."""
    torch.manual_seed(0)
    painter = Painter(vector=4, width=4, widest=8, blocks=1, depth=2, shaper=8).eval()
    assert painter.shaper is not None
    torch.nn.init.normal_(painter.shaper.flow.weight, std=0.3)
    card = ModelCard(
        family="stargan-v2", image_size=64, domains=judges.GENDERS, styles=("latent",),
        latent_dim=4, alignment="celeba-square", pasted="skin",
    )  # fmt: skip
    model = Translator(card, TorchBackend({"generator": painter, "flow": painter.shaper}, "cpu"))
    style = Style(domain="male", code_NS=np.ones((1, 4), np.float32), drawn=True, origin="a test")
    picture = read_picture(photo).pixels_HWC
    (face,) = find_faces(picture, open_detector("builtin"))
    crop = judges.cut(picture, face.landmarks_52)
    person = judges.Portrait(
        name="a", domain="female", pixels_HWC=picture, face=face, crop_HWC=crop
    )
    bench = reports.Bench(
        model=model,
        people=[person],
        detector=judges.KnownFace(face),
        embed=lambda crop_HWC: np.ones(1),
        options=argparse.Namespace(detail=None, tone=None, thumbnail=32),
    )
    knows_nothing = judges.Classifier(
        subject=judges.GENDER, network=torch.nn.Flatten(), held_out={}
    )
    result = bench.result(person, style, knows_nothing)
    moved = restyle(picture, model, style, detector=judges.KnownFace(face))
    unmoved = align(picture, face.landmarks_52, "celeba-square", 64, "skin")
    assert measures.seam(moved, picture, paste_mask(unmoved, picture)) > 1.2
    assert result.seam < 1.05


def test_change_is_the_distance_of_colours_and_looks_at_the_inner_face_alone() -> None:
    grey, lighter = coloured((119, 119, 119)), coloured((143, 143, 143))  # L* 50 and 59.3
    assert measures.change(grey, grey) == 0
    assert measures.change(grey, lighter) == pytest.approx(9.3, abs=0.3)
    framed = grey.copy()
    framed[: measures.INNER[0].start] = 0
    assert measures.change(grey, framed) == 0


def test_following_tells_results_with_the_references_colour_from_those_without() -> None:
    rng = np.random.default_rng(0)
    photos = rng.uniform(0, 60, (12, 1, 3)).repeat(3, axis=1)
    references = rng.uniform(0, 60, (12, 3, 3))

    def follow(results: np.ndarray) -> measures.Scores:
        return measures.following(list(np.stack([results, references, photos], axis=2)))

    perfect = follow(references)
    assert (perfect["r_L"], perfect["own_nearest"], perfect["distance"]) == (1, 1, 0)
    # A photo's own colour, however near to its references', is none that follows.
    blind = follow(photos + rng.normal(0, 1, photos.shape))
    assert abs(blind["r_L"]) < 0.5
    assert blind["own_nearest"] < 0.7
    assert blind["distance"] == pytest.approx(blind["of_source"], rel=0.1)
    assert perfect["count"] == 36


def test_diversity_compares_styles_of_one_photo_only() -> None:
    one, other = np.eye(2)
    dark, light = coloured((100, 100, 100)), coloured((110, 110, 110))
    same = [(one, dark)] * 3
    found = measures.diversity([same, [(other, light)] * 2])
    assert found == {"count": 4, "embedding": 0, "pixels": 0}
    found = measures.diversity([[(one, dark), (other, light)]])
    assert found == {"count": 1, "embedding": 1, "pixels": 10}


def test_strangers_leaves_out_each_ones_likeness_to_itself() -> None:
    assert measures.strangers(np.eye(3)) == 0
    assert measures.strangers(np.array([[1.0, 0], [1, 0], [0, 1]])) == pytest.approx(
        1 / 3, abs=1e-4
    )


def test_apart_does_not_wrap_around() -> None:
    assert measures.apart(coloured((250, 0, 0)), coloured((0, 0, 250))) == pytest.approx(
        500 / 3, 1e-3
    )


# --- Judges ----------------------------------------------------------------------------


def test_a_cut_puts_the_landmarks_on_the_template_and_a_wide_one_shows_more(photo: Path) -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    points = judges.POINTS_52 * 1.5 + (40, 60)
    for x, y in points:
        cv2.circle(picture, (round(x), round(y)), 4, (255, 255, 255), -1)
    for zoom in (1, judges.WIDE):
        crop = judges.cut(picture, points, zoom=zoom)
        middle = judges.SIDE / 2
        for x, y in (judges.POINTS_52 - middle) * zoom + middle:
            assert crop[round(y), round(x)].min() > 200


def test_a_template_cut_finds_the_face_where_the_models_crops_have_it() -> None:
    square = np.zeros((128, 128, 3), np.uint8)
    x, y = template_points("celeba-square")[0] * 128
    cv2.circle(square, (round(x), round(y)), 4, (255, 255, 255), -1)
    crop = judges.cut_template(square, "celeba-square")
    assert crop[52, 38].min() > 200
    assert judges.cut_template(square, "none").shape == crop.shape


def test_shares_hold_a_classifier_against_answering_always_the_same() -> None:
    labels = np.array([1, 0, 0, 0])
    found = judges.shares(np.array([0.9, 0.1, 0.8, 0.2]), labels, ("without", "with"))
    assert found == {"count": 4, "accuracy": 0.75, "majority": 0.75, "without": 0.6667, "with": 1}


@pytest.mark.slow
def test_a_classifier_learns_several_answers_keeps_them_and_notices_other_data(
    tmp_path: Path,
) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (256, 2))
    faces = crops(1, 256) // 4 + 60
    faces[labels[:, 0] == 1, 50:] += 80  # below: the one answer; how fine it is: the other
    for i in np.flatnonzero(labels[:, 1]):
        faces[i] = cv2.blur(faces[i], (9, 9))
    subject = judges.Subject(questions={"low": ("no", "yes"), "soft": ("no", "yes")}, epochs=12)

    def unread() -> judges.Lessons:
        raise LookupError

    first = judges.taught(subject, tmp_path / "it.pt", 0, ["a"], lambda: (faces, labels))
    again = judges.taught(subject, tmp_path / "it.pt", 0, ["a"], unread)
    assert first.held_out == again.held_out
    np.testing.assert_array_equal(first.answers(faces[:4]), again.answers(faces[:4]))
    assert first.held_out["low sharp"]["accuracy"] > 0.9
    assert set(first.held_out) == {"low sharp", "soft sharp", "low softened", "soft softened"}
    for source, seed in (("b", 0), ("a", 1)):
        with pytest.raises(LookupError):
            judges.taught(subject, tmp_path / "it.pt", seed, [source], unread)
