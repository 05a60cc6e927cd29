"""restyle() and Translator, with a detector and a backend whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import pytest

from facestyle.batch import translate_together
from facestyle.card import PASTED, ModelCard
from facestyle.edits import Edit
from facestyle.errors import NoFaceError, UsageError
from facestyle.faces import Face, choose_faces, find_faces
from facestyle.faces.align import (
    EYE_REACH,
    AlignedFace,
    align,
    finer,
    template_points,
    whole,
    with_larger_eyes,
)
from facestyle.faces.masks import hair, paste_mask, soft
from facestyle.faces.paste import DETAIL, DRAWN, DRAWN_FINE, SHADE, SKIN_COLOUR, drawn, paste
from facestyle.images import to_model
from facestyle.pipeline import (
    Made,
    Restyled,
    aligned_faces,
    alone,
    laid_out,
    parts_changed,
    paste_all,
    reference_style,
    restyle,
    restyled,
    translate_crops,
    usual_detail,
    usual_tone,
)
from facestyle.translator import Style, Translator

SIDE = 64


def face_at(x: float, y: float, size: float, score: float = 0.9) -> Face:
    points = size * (template_points("celeba") - 0.5) + (x, y)
    half = size / 4
    return Face(box=(x - half, y - half, x + half, y + half), landmarks_52=points, score=score)


@dataclass
class FakeDetector:
    """Finds the faces it was given, in any picture."""

    faces: list[Face]
    name: str = "fake"
    threshold: float = 0.6

    def candidates(self, picture_HWC: np.ndarray) -> list[Face]:
        return sorted(self.faces, key=lambda face: -face.score)


@dataclass
class FakeBackend:
    """mapping: code = z + 10·domain; encoder: code = mean colour; generator: brightness + code."""

    roles: tuple[str, ...] = ("generator", "mapping", "encoder")
    device: str = "cpu"
    calls: list[str] = field(default_factory=list)

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        self.calls.append(role)
        first, second = arrays
        if role == "mapping":
            return first + 10 * second[:, None]
        if role == "encoder":
            return np.repeat(first.mean(axis=(1, 2, 3))[:, None], 4, axis=1) + second[:, None]
        return first + 0.3 * np.sign(second[:, :1, None, None])


def fake_model(styles: tuple[str, ...] = ("latent", "reference")) -> Translator:
    card = ModelCard(
        family="fake",
        image_size=SIDE,
        domains=("dark", "bright"),
        styles=styles,
        latent_dim=4,
        alignment="celeba",
    )
    return Translator(card, FakeBackend())


@pytest.fixture
def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(60, 150, (300, 400, 3), dtype=np.uint8)


@pytest.mark.parametrize("pasted", PASTED)
def test_restyle_changes_what_the_card_says_and_nothing_else(
    picture: np.ndarray, pasted: str
) -> None:
    face = face_at(150, 140, 120)
    model = fake_model()
    model = Translator(replace(model.card, pasted=pasted), model.backend)
    output = restyle(
        picture, model, model.sample_style("bright", seed=1), detector=FakeDetector([face]), tone=0
    )
    aligned = align(picture, face.landmarks_52, "celeba", SIDE, pasted)
    mask = paste_mask(aligned, picture)
    assert np.array_equal(output[mask == 0], picture[mask == 0])
    change = output.astype(int) - picture
    assert 30 < change[mask > 0.99].mean() < 45  # 0.3 in [-1, 1] is 38 in [0, 255]
    # As users get it, a seed brings no brighter skin; with hair, all of it.
    usual = restyle(
        picture, model, model.sample_style("bright", seed=1), detector=FakeDetector([face])
    )
    change = usual.astype(int)[mask > 0.99] - picture[mask > 0.99]
    assert bool(abs(change.mean()) < 3) is (pasted != "crop")


def test_of_a_change_of_skin_alone_no_more_goes_back(picture: np.ndarray) -> None:
    card = replace(fake_model().card, pasted="crop", on_skin=("bright",))
    cut = align(picture, face_at(200, 150, 100).landmarks_52, "celeba", SIDE, "crop")
    ready = whole(picture, SIDE)
    ones_NCHW = np.ones((1, 3, SIDE, SIDE), np.float32)
    for named, edit, pasted in (
        ("bright", None, "skin"),
        ("dark", None, "crop"),
        ("bright", Edit(on=("bright",)), "skin"),
        ("bright", Edit(off=("bright",)), "skin"),
        ("bright", Edit(on=("bright",), flip=("dark",)), "crop"),
    ):
        style = Style(domain=named, edit=edit, origin="test")
        for one in (cut, ready):
            (face,) = restyled([one], Made(images_NCHW=ones_NCHW), card, style)
            mask = paste_mask(face.aligned, picture)
            assert np.array_equal(mask, paste_mask(replace(one, pasted=(pasted,)), picture))
        assert mask[:, 200].min() == 1  # of a ready crop all goes back, always


class ColouringBackend:
    """Paints the top of a crop as bright as the labels ask for; its face is what it may be."""

    roles: tuple[str, ...] = ("generator", "classifier")
    device: str = "cpu"
    precision: str = "fp32"

    def exact(self) -> ColouringBackend:
        return self

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        if role == "classifier":
            return np.tile(np.array([[1.0, -1.0, -1.0, -1.0]], np.float32), (len(arrays[0]), 1))
        faces_NCHW, label_NA = arrays
        painted = faces_NCHW.copy()
        shade_N = label_NA @ np.array([-0.3, 0.3, 0.0, 0.0], np.float32)
        painted[:, :, : SIDE // 4, SIDE // 4 : -SIDE // 4] += shade_N[:, None, None, None]
        return painted + 0.2 * label_NA[:, 2:3, None, None]


def colouring_model() -> Translator:
    card = ModelCard(
        family="fake", image_size=SIDE, domains=("black", "blond", "smile", "glasses"),
        styles=("attributes",), exclusive=("black,blond",), alignment="celeba", pasted="crop",
        on_skin=("smile",), on_hair=("black", "blond"),
    )  # fmt: skip
    return Translator(card, ColouringBackend())


def test_hair_is_looked_for_where_its_colours_differ(picture: np.ndarray) -> None:
    model = colouring_model()
    picture[121:134, 187:213] = (30, 20, 20)  # hair, where the backend paints
    aligned = [align(picture, face_at(200, 150, 60).landmarks_52, "celeba", SIDE, "crop")]
    faces_NCHW = to_model(aligned[0].crop_HWC[None])
    found_NHW = model.hair_colours(faces_NCHW)
    assert found_NHW.shape == (1, SIDE, SIDE)
    painted = np.zeros((SIDE, SIDE), bool)
    painted[: SIDE // 4, SIDE // 4 : -SIDE // 4] = True
    assert found_NHW[0][~painted].max() == 0
    assert found_NHW[0][painted].min() > 0.2  # 0.6, but where black is clipped

    def of(**edit: tuple[str, ...]) -> Restyled:
        (face,) = translate_crops(aligned, model, model.edited(Edit(**edit)))
        return face

    def mask(face: Restyled) -> np.ndarray:
        return paste_mask(face.aligned, picture)

    blond, smiling, neither = of(on=("blond",)), of(on=("smile",)), mask(of(on=("glasses",)))
    assert smiling.aligned.hair_HW is None
    assert np.array_equal(neither, paste_mask(aligned[0], picture))
    assert 0 < mask(blond).sum() < neither.sum()
    both, all_of_it = of(on=("blond", "smile")), of(on=("blond", "glasses"))
    assert np.array_equal(mask(both), np.maximum(mask(blond), mask(smiling)))
    assert mask(all_of_it) == pytest.approx(neither, abs=0.05)

    # Each by itself: the smile makes all of the face brighter, and of blond hair nothing more.
    crop = aligned[0].crop_HWC
    found_HW = soft(crop, hair(crop, found_NHW[0], template_points("celeba")))
    found_HW = cv2.resize(found_HW, (SIDE, SIDE))
    for place, expected in ((found_HW > 0.99, blond), (found_HW == 0, smiling)):
        assert place.any()
        assert np.array_equal(both.result_HWC[place], expected.result_HWC[place])
    assert not np.array_equal(
        blond.result_HWC[found_HW > 0.99], smiling.result_HWC[found_HW > 0.99]
    )


class MixingBackend(ColouringBackend):
    """Asked for a smile and glasses at once, it turns faces black; it moves what smiles."""

    roles = ("generator", "classifier", "flow")

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        if role == "flow":
            return 0.1 * np.tile(arrays[1][:, 2:3, None, None], (1, 4, 4, 2))
        made = super().run(role, *arrays)
        if role == "generator":
            label_NA = arrays[1]
            made = made - 0.1 * label_NA[:, 3:, None, None]
            made[(label_NA[:, 2:] != 0).all(axis=1)] = -1
        return made


def test_of_several_differences_each_is_made_by_itself() -> None:
    faces_NCHW = np.zeros((2, 3, SIDE, SIDE), np.float32)
    edit = Edit(on=("smile", "glasses"), source=())
    model = Translator(replace(colouring_model().card, relative=True), MixingBackend())
    assert model.translate(faces_NCHW, model.edited(edit)) == pytest.approx(0.1)
    assert model.flow(faces_NCHW, model.edited(edit)) == pytest.approx(0.1)
    # Of an exclusive group one comes and another goes: that is one difference.
    blond = model.edited(Edit(on=("blond",), source=("black",)))
    both = model.edited(Edit(on=("blond",), off=("black",), source=("black",)))
    assert np.array_equal(*(model.translate(faces_NCHW, style) for style in (blond, both)))
    # A generator that is given the label wanted is given all of it.
    model = Translator(colouring_model().card, MixingBackend())
    assert model.translate(faces_NCHW, model.edited(edit)).max() == -1


class StainingBackend(ColouringBackend):
    """Whatever comes reddens the face, as light as it was."""

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        made = super().run(role, *arrays)
        if role == "generator":
            made[:, 0] += 0.114
            made[:, 2] -= 0.299
        return made


def test_what_is_done_to_skin_hardly_stains_it(picture: np.ndarray) -> None:
    picture = np.rint(60 + picture * 0.5).astype(np.uint8)  # nothing is clipped
    model = Translator(colouring_model().card, StainingBackend())
    aligned = [align(picture, face_at(200, 150, 60).landmarks_52, "celeba", SIDE, "crop")]
    before = aligned[0].crop_HWC.astype(float)

    def stain(crops: list[AlignedFace], *on: str) -> np.ndarray:
        (face,) = translate_crops(crops, model, model.edited(Edit(on=on, source=())))
        change = face.result_HWC - before
        return (change[..., 0] - change[..., 2])[SIDE // 2 :] / 127.5

    full = pytest.approx(0.413, abs=0.01)
    assert stain(aligned, "smile") == pytest.approx(SKIN_COLOUR * 0.413, abs=0.01)
    assert stain(aligned, "glasses") == full  # no attribute of the skin
    both = pytest.approx((1 + SKIN_COLOUR) * 0.413, abs=0.02)
    assert stain(aligned, "smile", "glasses") == both  # each as it is alone
    assert stain([replace(aligned[0], template_52=None)], "smile") == full  # a ready crop
    # With a colour of hair, where no hair is.
    found = stain(aligned, "smile", "blond")
    assert np.median(found) == pytest.approx(SKIN_COLOUR * 0.413, abs=0.01)


def model_of(card: ModelCard) -> Translator:
    return Translator(card, ColouringBackend())


def test_glasses_may_be_grey_glass(picture: np.ndarray) -> None:
    picture = np.rint(60 + picture * 0.5).astype(np.uint8)
    picture[..., 0] += 40
    card = replace(colouring_model().card, as_shade=("glasses",))
    aligned = [align(picture, face_at(200, 150, 60).landmarks_52, "celeba", SIDE, "crop")]

    class DarkeningBackend(StainingBackend):
        def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
            made = super().run(role, *arrays)
            return made - 0.9 * arrays[1][:, 3:, None, None] if role == "generator" else made

    def below(*on: str) -> np.ndarray:
        """The lower half, where glasses are."""
        model = Translator(card, DarkeningBackend())
        (face,) = translate_crops(aligned, model, model.edited(Edit(on=on, source=())))
        return face.result_HWC[SIDE // 2 :].astype(float)

    before = aligned[0].crop_HWC[SIDE // 2 :].astype(float)
    dark, smiling = below("glasses"), below("smile")
    assert dark == pytest.approx((1 - SHADE) * before, abs=1)
    # What takes them off makes nothing dark.
    model = Translator(card, DarkeningBackend())
    style = model.edited(Edit(off=("glasses",), source=("glasses",)))
    (face,) = translate_crops(aligned, model, style)
    plain = Translator(replace(card, as_shade=()), DarkeningBackend())
    (other,) = translate_crops(aligned, plain, style)
    assert np.array_equal(face.result_HWC, other.result_HWC)
    # They go back onto the face's skin alone, as all else of ``on_skin`` does.
    both = model_of(card).edited(Edit(on=("glasses", "smile"), source=()))
    assert parts_changed(replace(card, on_skin=("smile",)), both) == ("skin",)
    assert parts_changed(replace(card, on_skin=()), both) == (card.pasted,)
    # A smile beside them is behind them.
    assert np.abs(smiling - before).max() > 20
    assert below("smile", "glasses") == pytest.approx((1 - SHADE) * smiling, abs=2)


class OneSidedBackend(MixingBackend):
    """What it makes of a face and where it moves it, it does to the left half alone."""

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        made = super().run(role, *arrays)
        if role == "flow":
            made[:, :, 2:] = 0
        elif role == "generator":
            made[..., SIDE // 2 :] = arrays[0][..., SIDE // 2 :]
        return made


def test_what_is_done_to_one_side_alone_is_half_as_strong_both_ways() -> None:
    rng = np.random.default_rng(0)
    faces_NCHW = rng.uniform(-0.5, 0.5, (2, 3, SIDE, SIDE)).astype(np.float32)
    one, both = (
        Translator(replace(colouring_model().card, both_ways=both), OneSidedBackend())
        for both in (False, True)
    )
    style = one.edited(Edit(on=("smile",), source=()))
    once, mean = (model.translate(faces_NCHW, style) - faces_NCHW for model in (one, both))
    assert once[..., : SIDE // 2] == pytest.approx(0.2, abs=1e-6)
    assert once[..., SIDE // 2 :].max() == 0
    assert mean == pytest.approx(0.1, abs=1e-6)
    once, mean = (model.flow(faces_NCHW, style) for model in (one, both))
    assert once[:, :, :2] == pytest.approx(0.1)
    # To the right in the mirror is to the left.
    assert mean[..., 1] == pytest.approx(0.05)
    assert mean[:, :, :2, 0] == pytest.approx(0.05)
    assert mean[:, :, 2:, 0] == pytest.approx(-0.05)


def test_a_ready_crop_goes_back_whole_whatever_is_asked_for(picture: np.ndarray) -> None:
    model = colouring_model()
    (face,) = translate_crops([whole(picture, SIDE)], model, model.edited(Edit(on=("blond",))))
    assert face.aligned.hair_HW is None
    assert paste_mask(face.aligned, picture)[:, 200].min() == 1
    # Neither a hair colour nor another attribute of a part looks for that part.
    card = replace(model.card, on_skin=("smile",))
    model = Translator(card, model.backend)
    for on in (("blond",), ("blond", "smile"), ("smile",)):
        style = model.edited(Edit(on=on, source=()))
        pasted = paste_all(picture, translate_crops([whole(picture, SIDE)], model, style), detail=0)
        assert np.abs(pasted.astype(int) - picture)[:, 200].max() > 0


def test_only_the_domain_of_drawings_is_drawn(picture: np.ndarray) -> None:
    face = face_at(200, 150, 250)
    model = fake_model()
    drawing = Translator(replace(model.card, drawings=("bright",)), model.backend)
    for domain, alike in (("dark", True), ("bright", False)):
        photo, pasted = (
            restyle(
                picture, one, one.sample_style(domain, seed=1), detector=FakeDetector([face]),
                detail=0, crop_only=False,
            )
            for one in (model, drawing)
        )  # fmt: skip
        assert np.array_equal(photo, pasted) is alike


def test_a_drawing_is_a_picture_of_its_own_and_a_face_goes_back(picture: np.ndarray) -> None:
    detector = FakeDetector([face_at(200, 150, 250), face_at(60, 60, 50)])
    model = fake_model()
    model = Translator(replace(model.card, drawings=("bright",)), model.backend)

    def of(domain: str, face: str = "largest", **settings: float | bool) -> np.ndarray:
        style = model.sample_style(domain, seed=1)
        return restyle(picture, model, style, face, detector=detector, **settings)

    drawing, crop_HWC = of("bright"), aligned_faces(picture, model, detector=detector)[0].crop_HWC
    assert drawing.shape == (DRAWN * SIDE, DRAWN * SIDE, 3)
    assert np.array_equal(drawing, of("bright", crop_only=True, tone=1))
    # Its skin tone and light are the photo's, unless it is asked for the drawing's own.
    light = crop_HWC.astype(float).mean()
    assert abs(drawing.mean() - light) < 4
    assert of("bright", tone=0).mean() - light > 20

    # All faces are no one crop, and a photo's face goes back unless it is asked for alone.
    for pasted in (of("bright", "all"), of("bright", crop_only=False), of("dark")):
        assert pasted.shape == picture.shape
    assert of("dark", crop_only=True).shape == (SIDE, SIDE, 3)
    with pytest.raises(UsageError, match="one crop"):
        of("dark", "all", crop_only=True)


def test_a_drawing_has_the_photos_mouth_where_its_card_says_so(picture: np.ndarray) -> None:
    model = fake_model()
    card = replace(model.card, alignment="anime", drawings=("bright",), eyes=1.5, mouth=0.8)
    aligned = align(picture, face_at(200, 150, 60).landmarks_52, "anime", SIDE)
    ready = whole(picture, SIDE)  # nobody knows its landmarks: it is taken to be cut as others

    def made(domain: str, face: AlignedFace, **told: None) -> Restyled:
        one = Translator(replace(card, **told), model.backend)
        return translate_crops([face], one, one.sample_style(domain, seed=1))[0]

    for face in (aligned, ready):
        without = made("bright", face, mouth=None)
        assert without.features is None
        features = made("bright", face).features
        assert features is not None
        assert np.array_equal(features.template_52, template_points("anime", card.zoom))
        assert (features.mouth, features.eyes) == (0.8, 1.5)
        its_own = alone(picture, without)
        assert np.array_equal(its_own, alone(picture, replace(without, features=None)))
        expected = drawn(finer(face, picture, DRAWN_FINE), without.result_HWC, features=features)
        assert np.abs(expected.astype(int) - its_own).max() > 10
        assert np.array_equal(alone(picture, made("bright", face)), expected)
    assert made("dark", aligned).features is None  # no drawing


def test_a_drawing_is_pasted_as_it_is_alone() -> None:
    picture = np.full((300, 400, 3), 120, np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    disc = np.clip((np.hypot(x - SIDE / 2, y - SIDE / 2) - 10) / 8, 0, 1)[..., None]
    result = np.rint(200 * disc * np.ones(3)).astype(np.uint8)

    def pasted(scale: float, *, drawing: bool) -> tuple[np.ndarray, Restyled]:
        aligned = align(picture, face_at(200, 150, scale).landmarks_52, "celeba", SIDE)
        face = Restyled(aligned=aligned, result_HWC=result, drawing=drawing)
        output = paste_all(picture, [face], detail=0)
        outside = paste_mask(aligned, picture) == 0
        assert np.array_equal(output[outside], picture[outside])
        return output, face

    def steepest(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image[120:180, :, 0].astype(int), axis=1)).max())

    (large, face), (photo, _) = pasted(250, drawing=True), pasted(250, drawing=False)
    assert steepest(large) > 1.3 * steepest(photo)
    # All of it, enlarged as it is, and none of the photo's detail however much is asked for.
    size = finer(face.aligned, picture, DRAWN)
    assert np.array_equal(large, paste(picture, size, alone(picture, face), detail=0))
    assert np.array_equal(large, paste_all(picture, [face], detail=1))
    # A small face has no lines to speak of, and no more is drawn than it shows.
    (small, face), (other, _) = pasted(60, drawing=True), pasted(60, drawing=False)
    assert np.abs(small.astype(int) - other).mean() < 1
    own = alone(picture, face, times=1)
    assert own.shape == (SIDE, SIDE, 3)
    assert np.array_equal(small, paste(picture, face.aligned, own, detail=0))


def test_a_drawing_is_of_the_photo_and_not_of_the_drawing_beside_it(picture: np.ndarray) -> None:
    def drawing(x: float, shade: int) -> Restyled:
        aligned = align(picture, face_at(x, 150, 150).landmarks_52, "celeba", SIDE)
        result = np.full((SIDE, SIDE, 3), shade, np.uint8)
        return Restyled(aligned=aligned, result_HWC=result, drawing=True)

    left, white, black = drawing(150, 120), drawing(190, 255), drawing(190, 0)
    ((aligned, _),) = laid_out(picture, left)[1]
    within = paste_mask(aligned, picture) == 1
    beside_white, beside_black = (
        paste_all(picture, [other, left], tone=1)[within] for other in (white, black)
    )
    assert np.array_equal(beside_white, beside_black)


class SeeingBackend(FakeBackend):
    """Keeps what the generator was shown."""

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        if role == "generator":
            self.shown_NCHW = arrays[0]
        return super().run(role, *arrays)


@pytest.mark.parametrize("load_size", [None, 5 * SIDE // 4])
def test_what_becomes_a_drawing_is_shown_with_larger_eyes(load_size: int | None) -> None:
    """A disc for each eye where the template has them, on grey."""
    card = replace(
        fake_model().card, alignment="anime", load_size=load_size, drawings=("bright",), eyes=1.5
    )
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    eyes_22 = template_points("anime", card.zoom)[:2] * SIDE
    away_2HW = np.stack([np.hypot(x - eye[0], y - eye[1]) for eye in eyes_22])
    radius = 4.0
    face_HW = np.where((away_2HW < radius).any(axis=0), 1.0, -0.5).astype(np.float32)
    faces_NCHW = np.repeat(face_HW[None, None], 3, axis=1).repeat(2, axis=0)
    backend = SeeingBackend()
    model = Translator(card, backend)

    def as_they_are(domain: str) -> np.ndarray:
        """What becomes of the faces without eyes on the card."""
        style = model.sample_style(domain)
        return Translator(replace(card, eyes=None), FakeBackend()).translate(faces_NCHW, style)

    result_NCHW = model.translate(faces_NCHW, model.sample_style("dark"))
    assert np.array_equal(backend.shown_NCHW, faces_NCHW)
    # A photo made of a drawing has the drawing's large eyes until they are made small.
    smaller = with_larger_eyes(
        as_they_are("dark")[0].transpose(1, 2, 0), template_points("anime", card.zoom), 1 / 1.5
    )
    assert np.allclose(result_NCHW[0].transpose(1, 2, 0), smaller)
    assert np.abs(result_NCHW - as_they_are("dark")).max() > 0.1
    model.translate(faces_NCHW, model.sample_style("bright"))
    shown = backend.shown_NCHW
    assert shown.dtype == np.float32
    assert np.array_equal(shown[0], shown[1])
    reach = EYE_REACH * float(np.hypot(*(eyes_22[1] - eyes_22[0])))
    far = (away_2HW > reach + 1).all(axis=0)
    assert far.any()
    assert np.array_equal(shown[0, 0][far], face_HW[far])
    for here in away_2HW == away_2HW.min(axis=0):  # each eye's half
        grown = (shown[0, 0][here] > 0.25).sum() / (face_HW[here] > 0.25).sum()
        assert 1.5 < grown < 1.5**2 + 0.1  # as much in the middle, less away from it


def test_eyes_are_enlarged_where_the_faces_own_template_has_them(picture: np.ndarray) -> None:
    """A template may be asked for that is not the card's."""
    card = replace(fake_model().card, alignment="anime", drawings=("bright",), eyes=1.5)
    backend = SeeingBackend()
    model = Translator(card, backend)
    style, noise = model.sample_style("bright"), np.random.default_rng(0)
    picture = noise.integers(0, 256, picture.shape, np.uint8)
    aligned = aligned_faces(
        picture, model, detector=FakeDetector([face_at(200, 150, 200)]), template="ffhq-512"
    )
    face_HWC = to_model(aligned[0].crop_HWC[None])[0].transpose(1, 2, 0)
    card_s, own = (
        with_larger_eyes(face_HWC, template_points(name), 1.5).transpose(2, 0, 1)
        for name in ("anime", "ffhq-512")
    )
    translate_crops(aligned, model, style)
    assert np.array_equal(backend.shown_NCHW[0], own)
    assert not np.array_equal(backend.shown_NCHW[0], card_s)
    backend.device = "cuda"  # crops of several pictures at once
    translate_together([[], aligned], model, style)
    assert all(np.array_equal(shown, own) for shown in backend.shown_NCHW)
    model.translate(face_HWC.transpose(2, 0, 1)[None], style)
    assert np.array_equal(backend.shown_NCHW[0], card_s)


def test_a_face_is_cut_as_large_as_training_saw_it(picture: np.ndarray) -> None:
    face = face_at(200, 150, 100)
    model = fake_model()
    seen_larger = Translator(replace(model.card, load_size=5 * SIDE // 4), model.backend)
    plain, larger = (
        aligned_faces(picture, one, detector=FakeDetector([face]))[0]
        for one in (model, seen_larger)
    )
    assert plain.crop_HWC.shape == larger.crop_HWC.shape
    assert np.isclose(larger.scale, 1.25 * plain.scale)


class MovingBackend(FakeBackend):
    """The generator moves all by 3 of 64 px to the left and paints nothing; flow says so."""

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        if role == "flow":
            flow_NHW2 = np.zeros((len(arrays[0]), 16, 16, 2), np.float32)
            flow_NHW2[..., 0] = 3 / SIDE
            return flow_NHW2
        return np.roll(arrays[0], -3, axis=3) if role == "generator" else super().run(role, *arrays)


def test_what_a_model_moves_is_moved_in_the_photos_own_pixels() -> None:
    picture = np.full((400, 400, 3), 120, np.uint8)
    picture[:, 200:202] = 20  # a line far finer than the crop's pixels
    face = face_at(200, 200, 320)
    roles = ("generator", "mapping", "encoder", "flow")
    model = Translator(fake_model().card, MovingBackend(roles=roles))
    style = model.sample_style("bright")
    output = restyle(picture, model, style, detector=FakeDetector([face]))
    aligned = align(picture, face.landmarks_52, "celeba", SIDE)
    moved_by = round(3 / aligned.scale)
    middle = output[200, :, 0].astype(int)
    assert moved_by >= 10
    assert abs(int(middle.argmin()) - (200 - moved_by)) <= 1
    assert middle.min() < 50  # as dark as it was: the crop would have blurred it to grey
    assert (np.abs(middle[195:210] - 120) < 12).all()
    crop = paste_mask(replace(aligned, pasted=("crop",)), picture)
    assert np.array_equal(output[crop == 0], picture[crop == 0])


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((50, 50, 4), np.uint8), np.zeros((50, 50), np.uint8), np.zeros((50, 50, 3)),
        np.zeros((50, 50, 3), np.uint16), "photo.jpg",
    ],
    ids=["RGBA", "grey", "float", "16 bit", "path"],
)  # fmt: skip
def test_what_is_no_picture_is_refused_as_such(wrong: Any) -> None:
    model = fake_model()
    with pytest.raises(UsageError, match="the picture is ") as caught:
        restyle(wrong, model, model.sample_style("bright"))
    assert "uint8" in str(caught.value.hint)


def test_a_face_may_be_chosen_by_a_number_and_a_seed_is_none_below_0(picture: np.ndarray) -> None:
    model, detector = fake_model(), FakeDetector([face_at(200, 150, 100)])
    style = model.sample_style("bright")
    one, same = (restyle(picture, model, style, face, detector=detector) for face in (1, "1"))
    assert np.array_equal(one, same)
    with pytest.raises(UsageError, match="the seed is -1"):
        model.sample_style("bright", seed=-1)


def test_what_stays_of_the_photo_follows_from_what_is_pasted() -> None:
    face = fake_model().card
    crop, drawn = replace(face, pasted="crop"), replace(face, drawings=("bright",))
    model = fake_model()
    seeded, fixed = model.sample_style("bright"), Style(domain="bright", origin="fixed")
    assert usual_detail(face, "celeba", fixed) == DETAIL > usual_detail(crop, "celeba", fixed) > 0
    assert usual_detail(replace(face, pasted="skin"), "celeba", fixed) == DETAIL
    assert usual_detail(face, "none", fixed) == usual_detail(crop, "none", fixed) == 0
    assert usual_detail(drawn, "celeba", fixed) == 0
    assert usual_detail(replace(drawn, pasted="crop"), "none", fixed) == 0
    # A colour of hair alone keeps every strand of the photo's.
    colouring = colouring_model()
    hair, hair_and_more = (colouring.edited(Edit(on=on)) for on in (("blond",), ("blond", "smile")))
    assert usual_detail(colouring.card, "celeba", hair) == 1
    assert usual_detail(colouring.card, "celeba", hair_and_more) == usual_detail(
        crop, "celeba", fixed
    )
    read = replace(seeded, drawn=False, origin="reference")
    for style in (seeded, fixed, read):
        assert usual_tone(drawn, "celeba", style) == 1
        assert usual_tone(crop, "celeba", style) == usual_tone(drawn, "none", style) == 0
    assert usual_tone(face, "celeba", seeded) == 1
    assert 0 < usual_tone(face, "celeba", read) < 1
    assert usual_tone(face, "celeba", fixed) == 0


def test_largest_all_and_number_choose_faces(picture: np.ndarray) -> None:
    small, large = face_at(70, 70, 80), face_at(250, 180, 160)
    model = fake_model()
    style = model.sample_style("bright")
    detector = FakeDetector([small, large])

    def changed(which: str) -> tuple[bool, bool]:
        output = restyle(picture, model, style, which, detector=detector, tone=0)
        return tuple(bool((output[y, x] != picture[y, x]).any()) for x, y in ((70, 70), (250, 180)))

    assert changed("largest") == (False, True)
    assert changed("1") == (False, True)
    assert changed("2") == (True, False)
    assert changed("all") == (True, True)


@pytest.mark.parametrize("which", ["3", "0", "-1", "biggest", "1.5", ""])
def test_a_face_choice_that_does_not_exist_is_a_usage_error(which: str) -> None:
    with pytest.raises(UsageError):
        choose_faces([face_at(0, 0, 10), face_at(0, 0, 9)], which)


def test_no_face_says_best_score_threshold_and_what_to_try(picture: np.ndarray) -> None:
    detector = FakeDetector([face_at(100, 100, 50, score=0.41)])
    with pytest.raises(NoFaceError, match=r"best score 0\.41, threshold 0\.60.*--min-score 0\.4"):
        find_faces(picture, detector)
    assert len(find_faces(picture, detector, min_score=0.4)) == 1
    with pytest.raises(NoFaceError, match=r"best score 0\.00.*--align none"):
        find_faces(picture, FakeDetector([]))


def test_faces_come_largest_first(picture: np.ndarray) -> None:
    faces = [face_at(0, 0, size, score) for size, score in ((10, 0.9), (30, 0.7), (20, 0.8))]
    areas = [face.area for face in find_faces(picture, FakeDetector(faces))]
    assert areas == sorted(areas, reverse=True)


def test_the_same_seed_gives_the_same_style_and_another_seed_another() -> None:
    model = fake_model()
    first, again = (model.sample_style("dark", seed=7).code_NS for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, model.sample_style("dark", seed=8).code_NS)


def test_truncation_moves_to_the_domains_own_mean_style() -> None:
    model = fake_model()
    full = model.sample_style("bright", seed=3, psi=1).code_NS
    half = model.sample_style("bright", seed=3, psi=0.5).code_NS
    mean = model.sample_style("bright", seed=3, psi=0).code_NS
    assert np.abs(mean - 10).max() < 0.05  # the fake's mean: 10·domain, within 10,000 samples
    assert np.allclose(half, (full + mean) / 2, atol=1e-5)


def test_an_unknown_domain_names_the_valid_ones() -> None:
    with pytest.raises(UsageError, match="dark, bright"):
        fake_model().sample_style("briht")


def test_what_a_model_cannot_do_is_refused_with_the_reason(picture: np.ndarray) -> None:
    with pytest.raises(UsageError, match="cannot take the style of a reference"):
        fake_model(("latent",)).style_of(np.zeros((1, 3, SIDE, SIDE), np.float32), "dark")
    with pytest.raises(UsageError, match="cannot sample a style"):
        fake_model(("reference",)).sample_style("dark")


def test_a_reference_style_is_read_from_the_face_not_the_picture() -> None:
    picture = np.full((200, 200, 3), 255, np.uint8)
    picture[60:140, 60:140] = 0
    detector = FakeDetector([face_at(100, 100, 60)])
    style = reference_style(picture, fake_model(), "dark", detector=detector)
    assert style.code_NS is not None
    assert np.allclose(style.code_NS, -1)  # black face on white


def test_a_model_without_alignment_needs_no_detector(picture: np.ndarray) -> None:
    model = fake_model()
    model.card = ModelCard(
        family="fake", image_size=SIDE, domains=("dark", "bright"), styles=("latent",), latent_dim=4
    )
    output = restyle(picture, model, model.sample_style("bright"))
    assert output.shape == picture.shape
    assert (output != picture).mean() > 0.7  # the central square, 300 of 400 columns


def test_several_faces_run_through_the_generator_as_one_batch(picture: np.ndarray) -> None:
    model = fake_model()
    style = model.sample_style("bright")
    model.backend.calls.clear()
    restyle(
        picture,
        model,
        style,
        "all",
        detector=FakeDetector([face_at(70, 70, 60), face_at(250, 180, 90)]),
    )
    assert model.backend.calls == ["generator"]
