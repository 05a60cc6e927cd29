"""Geometry: where landmarks land, what the mask leaves alone, what detail keeps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from facestyle.card import PASTED
from facestyle.errors import UsageError
from facestyle.faces import find_faces
from facestyle.faces.align import (
    TEMPLATES,
    AlignedFace,
    align,
    finer,
    similarity,
    template_points,
    warp,
    whole,
    with_larger_eyes,
)
from facestyle.faces.masks import MASKS, crop_mask, hair, in_crop, paste_mask, skin, soft
from facestyle.faces.paste import (
    DRAWN,
    DRAWN_FINE,
    SHADE,
    SKIN_COLOUR,
    TONE_COLOUR,
    OwnFeatures,
    as_shade,
    drawn,
    firm_lines,
    in_own_colour,
    paste,
    reshape,
    with_long_hair,
    with_own_features,
)
from facestyle.faces.registry import open_detector
from facestyle.images import read_picture

SIDE = 64
SQUARE = template_points("celeba-square")


def noise_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours with fine grain."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(40, 215, (12, 12, 3)), (width, height))
    grain = rng.normal(0, 6, (height, width, 3))
    return np.clip(coarse + grain, 0, 255).astype(np.uint8)


def landmarks(scale: float, angle: float, centre: tuple[float, float]) -> np.ndarray:
    """The FFHQ template's points, turned, enlarged to ``scale`` px a crop, and moved."""
    points = template_points("ffhq-512") - 0.5
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return scale * points @ turn + centre


@pytest.mark.parametrize("angle", [0.0, 0.5, -2.0])
def test_similarity_recovers_rotation_scale_and_shift(angle: float) -> None:
    points = landmarks(100, 0, (50, 50))
    turned = landmarks(230, angle, (400, 300))
    matrix = similarity(points, turned)
    assert np.allclose(points @ matrix[:, :2].T + matrix[:, 2], turned)
    assert np.isclose(np.linalg.det(matrix[:, :2]), 2.3**2)


def test_similarity_never_mirrors() -> None:
    points = landmarks(100, 0, (0, 0))
    matrix = similarity(points, points * (-1, 1))
    assert np.linalg.det(matrix[:, :2]) > 0


def test_a_zoomed_face_is_larger_about_the_middle() -> None:
    picture = noise_picture(400, 400)
    points = landmarks(200, 0.3, (200, 200))
    plain, zoomed = (align(picture, points, "ffhq-512", SIDE, "face", zoom) for zoom in (1.0, 1.25))
    assert np.isclose(zoomed.scale, 1.25 * plain.scale)
    middle = np.array([SIDE / 2, SIDE / 2])
    for aligned in (plain, zoomed):
        matrix = np.linalg.inv(np.vstack([aligned.to_crop_23, [0, 0, 1]]))[:2]
        assert np.allclose(matrix[:, :2] @ middle + matrix[:, 2], 200)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("scale", [30.0, 64.0, 500.0])
def test_marked_eyes_land_on_the_template(template: str, scale: float) -> None:
    # A face whose landmarks are an exact turned copy of the template, each drawn as a disc.
    turn = 0.3
    points = template_points(template) - 0.5
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    at = scale * points @ rotation + (420.3, 390.7)
    for index in range(5):
        picture = np.zeros((800, 800, 3), np.uint8)
        centre = tuple(int(v) for v in np.rint((at[index] - 0.5) * 256))  # 8 fractional bits
        cv2.circle(picture, centre, int(0.03 * scale * 256), (255, 255, 255), -1, cv2.LINE_AA, 8)
        crop = align(picture, at, template, SIDE).crop_HWC[..., 0].astype(float)
        rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
        found = np.array([(columns * crop).sum(), (rows * crop).sum()]) / crop.sum()
        wanted = template_points(template)[index] * SIDE
        assert np.abs(found - wanted).max() < 0.25, (found, wanted)


def test_a_large_face_does_not_alias() -> None:
    # One-pixel stripes average to grey in a crop ten times smaller; they must not beat.
    picture = np.zeros((1000, 1000, 3), np.uint8)
    picture[:, ::2] = 255
    crop = align(picture, landmarks(640, 0, (500, 500)), "ffhq-512", SIDE).crop_HWC
    assert np.abs(crop.astype(int) - 127).max() < 12


def test_a_face_at_the_border_is_completed_by_mirroring_and_pastes_inside() -> None:
    picture = noise_picture(300, 200)
    aligned = align(picture, landmarks(200, 0.2, (15, 40)), "ffhq-512", SIDE)
    assert aligned.crop_HWC.min() > 0  # no black beyond the border
    output = paste(picture, aligned, 255 - aligned.crop_HWC)
    assert output.shape == picture.shape
    assert (output != picture).any()


def test_a_face_outside_the_picture_changes_nothing() -> None:
    picture = noise_picture(100, 100)
    aligned = align(picture, landmarks(50, 0, (-500, -500)), "ffhq-512", SIDE)
    assert np.array_equal(paste(picture, aligned, 255 - aligned.crop_HWC), picture)


@pytest.mark.parametrize("detail", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scale", [40.0, 300.0])
@pytest.mark.parametrize("pasted", list(MASKS))
def test_pixels_outside_the_mask_are_bit_equal(scale: float, detail: float, pasted: str) -> None:
    picture = noise_picture(400, 500)
    aligned = align(picture, landmarks(scale, 0.4, (250, 200)), "ffhq-512", SIDE, pasted)
    output = paste(picture, aligned, 255 - aligned.crop_HWC, detail=detail)
    mask = paste_mask(aligned, picture)
    assert np.array_equal(output[mask == 0], picture[mask == 0])
    assert (output[mask > 0.99] != picture[mask > 0.99]).mean() > 0.8
    # Outside the mask is most of this picture: the test above looked at something.
    assert (mask == 0).mean() > 0.3


@pytest.mark.parametrize("pasted", list(MASKS))
def test_the_mask_is_whole_in_the_middle_and_gone_at_the_crops_border(pasted: str) -> None:
    mask = crop_mask(64, pasted)
    assert mask[22:44, 22:42].min() == 1
    assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) < 0.01
    assert np.abs(np.diff(mask, axis=0)).max() < 0.15  # a feather, not an edge


def test_all_of_the_crop_is_more_than_the_face() -> None:
    """Hair lies above the ellipse and beside it; a card can name every mask and no other."""
    face, skins, crop = (crop_mask(64, pasted) for pasted in ("face", "skin", "crop"))
    assert (crop >= face - 0.02).all()  # the ellipse reaches the chin, 0.03 below the centre
    assert (crop >= skins - 0.02).all()
    assert (skins >= face - 0.02).all()
    assert crop[5, 32] - face[5, 32] > 0.5
    assert crop[5, 32] - skins[5, 32] > 0.3
    assert skins[30, 6] - face[30, 6] > 0.1  # at an eye's height
    assert tuple(MASKS) == PASTED


def head_on_a_wall(wall: tuple[int, int, int], side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A crop with a face, hair about it and a wall of nearly its colour; and where the face is."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    hair = np.hypot((x - 0.5) / 0.42, (y - 0.42) / 0.42) < 1
    face = np.hypot((x - 0.5) / 0.27, (y - 0.52) / 0.36) < 1
    crop = np.where(hair[..., None], (60, 40, 30), wall)
    crop = np.where(face[..., None], (205, 160, 135), crop)
    noise = np.random.default_rng(0).normal(0, 6, crop.shape)
    return np.clip(crop + noise, 0, 255).astype(np.uint8), face


@pytest.mark.parametrize("wall", [(235, 225, 215), (20, 60, 110)])
@pytest.mark.parametrize("side", [64, 96, 256])
def test_skin_ends_at_hair_and_wall(wall: tuple[int, int, int], side: int) -> None:
    crop, face = head_on_a_wall(wall, side)
    mask = cv2.resize(skin(crop, SQUARE), (side, side), interpolation=cv2.INTER_AREA)
    away = cv2.distanceTransform(face.astype(np.uint8), cv2.DIST_L2, 5)
    beside = cv2.distanceTransform(1 - face.astype(np.uint8), cv2.DIST_L2, 5)
    feather = 0.05 * side
    assert mask[away > feather].min() > 0.9
    assert mask[beside > feather].max() < 0.1


def test_skin_of_a_photo_is_the_face_and_not_its_hair(photo: Path) -> None:
    picture = read_picture(photo).pixels_HWC
    (face,) = find_faces(picture, open_detector("builtin"))
    for template, zoom in (("anime", 1.1), ("celeba-square", 1.0), ("celeba", 1.0)):
        aligned = align(picture, face.landmarks_52, template, 96, "skin", zoom)
        mask = paste_mask(aligned, picture)
        eyes, mouth = face.landmarks_52[:2].mean(axis=0), face.landmarks_52[3:].mean(axis=0)
        down = mouth - eyes

        def at(point: np.ndarray, mask: np.ndarray = mask) -> float:
            return float(mask[tuple(np.rint(point[::-1]).astype(int))])

        assert min(at(point) for point in (*face.landmarks_52, eyes, mouth)) > 0.99
        assert at(eyes - 0.35 * down) > 0.9  # the forehead
        assert at(eyes - 1.1 * down) < 0.05  # the hair above it


def test_skin_is_the_same_whatever_was_drawn_before_and_in_any_thread() -> None:
    crop, _ = head_on_a_wall((235, 225, 215))
    expected = skin(crop, SQUARE)
    cv2.setRNGSeed(7)
    with ThreadPoolExecutor(4) as pool:
        assert all(
            np.array_equal(one, expected) for one in pool.map(skin, [crop] * 8, [SQUARE] * 8)
        )


@pytest.mark.parametrize("side", [64, 96, 256])
def test_hair_is_where_its_colours_would_differ_up_to_face_and_wall(side: int) -> None:
    crop, face = head_on_a_wall((150, 170, 190), side)
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    head = (np.hypot((x - 0.5) / 0.42, (y - 0.42) / 0.42) < 1) | face
    hair_HW = head & ~face
    # What a model makes of two colours differs there, and a little everywhere about it.
    differs = cv2.GaussianBlur(hair_HW.astype(np.float32), (0, 0), 0.04 * side)
    mask = cv2.resize(
        soft(crop, hair(crop, differs, SQUARE)), (side, side), interpolation=cv2.INTER_AREA
    )
    inner = cv2.distanceTransform(hair_HW.astype(np.uint8), cv2.DIST_L2, 5)
    outer = cv2.distanceTransform(1 - hair_HW.astype(np.uint8), cv2.DIST_L2, 5)
    feather = 0.05 * side
    assert mask[inner > feather].min() > 0.9
    assert mask[outer > feather].max() < 0.1
    assert (differs[outer > feather] > 0.05).any()  # where it reached without


def test_of_a_bald_head_the_scalp_is_coloured_and_not_the_wall() -> None:
    """What differs is a cap over both, as a model puts hair on a head that has none."""
    y, x = (np.mgrid[:96, :96] + 0.5) / 96
    head = np.hypot((x - 0.5) / 0.27, (y - 0.50) / 0.40) < 1
    crop = np.where(head[..., None], (205, 160, 135), (150, 170, 190))
    crop = (crop + np.random.default_rng(0).normal(0, 3, crop.shape)).astype(np.uint8)
    cap = (np.hypot((x - 0.5) / 0.36, (y - 0.36) / 0.34) < 1) & (y < 0.33)
    differs = cv2.GaussianBlur(cap.astype(np.float32), (0, 0), 2)
    mask = cv2.resize(
        soft(crop, hair(crop, differs, SQUARE)), (96, 96), interpolation=cv2.INTER_AREA
    )
    within, beside = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (head, ~head)
    )
    assert mask[(within > 5) & (y < 0.28)].min() > 0.9
    assert mask[beside > 5].max() < 0.1
    assert differs[beside > 5].max() > 0.9
    assert hair(crop, np.zeros_like(differs), SQUARE).max() == 0


def person_with_hair(long: bool) -> tuple[np.ndarray, np.ndarray]:
    """A photo of 400 px, 4 px to each of a crop's 48, with hair to the chin or to the chest; and
    where that is. Clothes and wall are of other colours."""
    y, x = (np.mgrid[:400, :400] + 0.5).astype(np.float32)
    face = np.hypot((x - 200) / 52, (y - 150) / 70) < 1
    hair_HW = np.hypot((x - 200) / 80, (y - 130) / 85) < 1
    strands = (np.abs(np.abs(x - 200) - 62) < 20) & (y > 130) & (y < (300 if long else 150))
    hair_HW = (hair_HW | strands) & ~face
    photo = np.where((y > 230)[..., None], (90, 120, 200), (200, 205, 210))
    photo = np.where(hair_HW[..., None], (70, 45, 30), photo)
    photo = np.where(face[..., None], (210, 165, 140), photo)
    grain = np.random.default_rng(0).normal(0, 5, (400, 400, 1))
    return np.clip(photo + grain, 0, 255).astype(np.uint8), hair_HW


@pytest.mark.parametrize("long", [True, False])
def test_long_hair_takes_its_colour_to_the_tips(long: bool) -> None:
    photo, hair_HW = person_with_hair(long)
    aligned = align(photo, 4 * 48 * SQUARE + (104, 50), "celeba-square", 48, "crop")
    differs = warp(hair_HW.astype(np.float32), aligned.to_crop_23, (48, 48), outside_is_zero=True)
    cut_HW = hair(aligned.crop_HWC, differs, SQUARE)
    aligned = aligned.only("hair", hair_HW=cut_HW)
    blond = aligned.crop_HWC.astype(int) + np.array([120, 100, 60])
    result = np.clip(blond, 0, 255).astype(np.uint8)
    longer = with_long_hair(photo, aligned, result)
    assert (longer is not None) is long
    if longer is None:
        return
    output = paste(photo, *longer, detail=1.0).astype(int)
    beyond = hair_HW.copy()
    beyond[: 50 + 4 * 48] = False  # the crop's lower border
    assert beyond.sum() > 2000
    inner = cv2.distanceTransform(beyond.astype(np.uint8), cv2.DIST_L2, 5) > 6
    change = np.median((output - photo)[inner], axis=0)
    assert change == pytest.approx([120, 100, 60], abs=15)
    away = cv2.distanceTransform(1 - hair_HW.astype(np.uint8), cv2.DIST_L2, 5) > 12
    assert np.abs(output - photo)[away].max() <= 1
    # Within the crop it is what the crop's own paste makes it.
    alone = paste(photo, aligned, result, detail=1.0).astype(int)
    middle = np.s_[70:180, 120:280]
    assert np.abs(output - alone)[middle].mean() < 2


def test_what_goes_back_together_is_as_much_as_each_alone() -> None:
    crop, _ = head_on_a_wall((150, 170, 190))
    differs = np.zeros((96, 96), np.float32)
    differs[:20, 30:60] = 1
    aligned = AlignedFace(crop_HWC=crop, to_crop_23=np.eye(2, 3), template_52=SQUARE)
    skins, hairs, both = (
        paste_mask(aligned.only(*parts, hair_HW=hair(crop, differs, SQUARE)), crop)
        for parts in (("skin",), ("hair",), ("skin", "hair"))
    )
    assert skins.max() > 0.9
    assert hairs.max() > 0.9
    assert np.array_equal(both, np.maximum(skins, hairs))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_crop_of_one_colour_is_pasted_as_far_as_the_ellipse_reaches(value: int) -> None:
    assert skin(np.full((32, 32, 3), value, np.uint8), SQUARE).min() > 0.99


def test_an_unchanged_crop_leaves_the_photo_as_it_was() -> None:
    picture = noise_picture(400, 400)
    aligned = align(picture, landmarks(300, 0.1, (200, 200)), "ffhq-512", SIDE)
    output = paste(picture, aligned, aligned.crop_HWC, detail=1.0)
    assert np.abs(output.astype(int) - picture).max() <= 1


@pytest.mark.parametrize("detail", [0.0, 0.65])
def test_a_face_keeps_its_tone_and_takes_the_features(detail: float) -> None:
    """Another skin, and a dark stripe as wide as a brow: the stripe alone comes through."""
    picture = np.full((300, 300, 3), (110, 80, 60), np.uint8)
    aligned = align(picture, landmarks(250, 0, (150, 150)), "ffhq-512", SIDE)
    result = np.full_like(aligned.crop_HWC, (200, 170, 150))
    stripe = slice(SIDE // 2, SIDE // 2 + round(0.06 * SIDE))
    result[stripe] -= 80
    rows = {
        tone: paste(picture, aligned, result, detail=detail, tone=tone)[:, 150].astype(int)
        for tone in (0.0, 0.5, 1.0)
    }
    middle = np.flatnonzero(paste_mask(aligned, picture)[:, 150] == 1)
    skin = {
        tone: float(np.median(row[middle] - picture[middle, 150])) for tone, row in rows.items()
    }
    assert abs(skin[0.0] - 90) < 3
    assert abs(skin[0.5] - 45) < 8
    assert abs(skin[1.0]) < 15
    for row in rows.values():
        assert np.median(row[middle]) - row[middle].mean(axis=1).min() > 50


def test_a_face_that_keeps_its_tone_keeps_its_colour_in_the_features_too() -> None:
    """Two stripes, one darker and one of another colour, as light as the skin."""
    picture = np.full((300, 300, 3), (140, 110, 90), np.uint8)
    aligned = align(picture, landmarks(250, 0, (150, 150)), "ffhq-512", SIDE)
    high = round(0.06 * SIDE)
    dark, tinted = (slice(at, at + high) for at in (round(0.45 * SIDE), round(0.6 * SIDE)))
    result = aligned.crop_HWC.copy()
    result[dark] -= 60
    result[tinted] += np.array([57, 0, 0], np.uint8)
    result[tinted] -= np.array([0, 29, 0], np.uint8)  # 0.299 of 57 is 0.587 of 29

    def stripes(**options: float) -> tuple[float, float]:
        """How deep the dark one is, and how red and not green the other."""
        row = paste(picture, aligned, result, detail=0, **options)[:, 150].astype(int)
        change = row - picture[:, 150]
        return float(-change.mean(axis=1).min()), float((change[:, 0] - change[:, 1]).max())

    depth, redness = stripes(tone=0.0)
    assert min(depth, redness) > 40
    for tone, left in ((1.0, TONE_COLOUR), (0.5, 0.75)):
        darker, redder = stripes(tone=tone)
        assert darker > 0.7 * depth
        assert redder == pytest.approx(left * redness, rel=0.25)
    # A drawing keeps all of it.
    drawing = drawn(finer(aligned, picture, DRAWN_FINE), result, tone=1.0).astype(int)
    change = drawing[:, DRAWN * SIDE // 2] - picture[0, 0]
    darker, redder = -change.mean(axis=1).min(), (change[:, 0] - change[:, 1]).max()
    assert redder / darker == pytest.approx(redness / depth, rel=0.25)


def test_a_brightness_change_keeps_the_fine_grain_and_detail_0_does_not() -> None:
    picture = noise_picture(600, 600)
    aligned = align(picture, landmarks(500, 0, (300, 300)), "ffhq-512", SIDE)
    brighter = np.clip(aligned.crop_HWC.astype(int) + 30, 0, 255).astype(np.uint8)
    middle = slice(250, 350)

    def grain(image: np.ndarray) -> float:
        patch = image[middle, middle].astype(np.float32)
        return float((patch - cv2.GaussianBlur(patch, (0, 0), 3)).std())

    kept = paste(picture, aligned, brighter, detail=1.0)
    smooth = paste(picture, aligned, brighter, detail=0.0)
    assert grain(kept) > 0.9 * grain(picture)
    assert grain(smooth) < 0.3 * grain(picture)
    for image in (kept, smooth):
        change = image[middle, middle].astype(int) - picture[middle, middle]
        assert 26 < change.mean() < 34


def test_the_enlarged_change_ends_at_the_photos_edge() -> None:
    # Left half dark, right half bright; the model brightens the dark half alone. A plain
    # enlargement would smear the change over some ten pixels of the bright half.
    picture = np.full((640, 640, 3), 60, np.uint8)
    picture[:, 320:] = 200
    aligned = align(picture, landmarks(640, 0, (320, 320)), "ffhq-512", SIDE)
    crop = aligned.crop_HWC.astype(int)
    edge = int(np.argmax(crop[32, :, 0] > 130))
    result = crop.copy()
    result[:, :edge] += 40
    result = result.astype(np.uint8)

    def smear(detail: float) -> float:
        row = paste(picture, aligned, result, detail=detail)[320].astype(int)
        return float(np.abs(row[322:340] - 200).mean())

    assert smear(1.0) < 0.5 * smear(0.0)


def soft_disc(side: int, width: float) -> np.ndarray:
    """A dark disc on white, floats, its edge ``width`` px wide."""
    y, x = np.mgrid[:side, :side] + 0.5
    radius = np.hypot(x - side / 2, y - side / 2)
    grey = np.clip((radius - side / 4) / width + 0.5, 0.1, 1)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.float32)


@pytest.mark.parametrize("times", [2, 4])
def test_an_enlarged_drawing_has_firm_lines_where_they_were(times: int) -> None:
    drawing = soft_disc(SIDE, 4)
    firm = firm_lines(drawing, times)[..., 0]
    soft = cv2.resize(drawing, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)[..., 0]
    assert firm.shape == soft.shape

    def between(grey: np.ndarray) -> int:
        return int(((grey > 0.3) & (grey < 0.8)).sum())

    assert between(firm) < 0.4 * between(soft)
    # The disc is as large and lies where it did, all around: edges did not wander.
    dark, was_dark = firm < 0.55, soft < 0.55
    assert (dark != was_dark).sum() < 0.02 * was_dark.sum()
    # Flat areas stay flat, and nothing is brighter or darker than it was.
    y, x = np.mgrid[: len(soft), : len(soft)] + 0.5 - len(soft) / 2
    far = np.abs(np.hypot(x, y) - len(soft) / 4) > 6 * times
    assert np.abs(firm - soft)[far].max() < 1e-4
    assert soft.min() - 1e-3 <= firm.min() <= firm.max() <= soft.max() + 1e-3


@pytest.mark.parametrize("slope", [0.2, 0.37])
def test_a_firm_line_has_no_stairs(slope: float) -> None:
    times, (y, x) = 4, np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2
    edge = np.clip(0.5 + (x - slope * y) / 4, 0.2, 0.9).astype(np.float32)
    firm = firm_lines(np.repeat(edge[..., None], 3, axis=2), times)[..., 0]
    inner = firm[8 * times : -8 * times]
    across, along = (np.abs(np.diff(inner, axis=axis)).max() for axis in (1, 0))
    assert across > 0.2  # firm: a soft edge of these has 0.06
    # Of a smooth edge a row differs from the next by the slope; a stair is the whole edge at once.
    assert along < (slope + 0.2) * across


@pytest.mark.parametrize("moved", [False, True])
def test_what_changes_in_its_own_colour_changes_its_light(moved: bool) -> None:
    crop = noise_picture(SIDE, SIDE).astype(np.float32) / 255
    flow = np.zeros((8, 8, 2), np.float32)
    flow[2:6, 2:6] = 0.05 * moved
    # Nothing was done but to move it.
    still = reshape(
        np.rint(255 * crop).astype(np.uint8),
        AlignedFace(crop_HWC=np.rint(255 * crop).astype(np.uint8), to_crop_23=np.eye(2, 3)),
        flow,
    )[1].crop_HWC
    same = still.astype(np.float32) / 255
    assert bool(np.abs(same - crop).max() > 0.1) is moved
    assert in_own_colour(same, crop, flow) == pytest.approx(same, abs=0.005)
    # Light comes whole, of a colour as light as what was there SKIN_COLOUR.
    lighter = in_own_colour(same + 0.1, crop, flow) - same
    assert lighter == pytest.approx(0.1, abs=0.005)
    tint = np.array([0.114, 0, -0.299], np.float32)
    assert in_own_colour(same + tint, crop, flow) - same == pytest.approx(
        np.broadcast_to(SKIN_COLOUR * tint, same.shape), abs=0.005
    )


def test_where_light_is_taken_is_grey_glass_and_nowhere_else() -> None:
    crop = (noise_picture(SIDE, SIDE) / 127.5 - 1).astype(np.float32)
    stained = crop + np.array([0.114, 0, -0.299], np.float32)  # as light as before
    dim = 0.95 * (crop + 1) - 1
    for other in (crop, stained, crop + 0.2, dim):
        assert as_shade(other, crop) == pytest.approx(crop, abs=1e-3)
    # All colours alike, whatever those are of what is dark.
    behind = (1 - SHADE) * (crop + 1) - 1
    for dark in (0.4 * (crop + 1) - 1, np.full_like(crop, -1), 0.4 * (stained + 1) - 1):
        assert as_shade(dark, crop) == pytest.approx(behind, abs=1e-3)
    # A pupil is dark as it is: the glass before it has no hole.
    pupil = np.s_[30:32, 30:32]
    crop[pupil] = -0.8
    result = 0.4 * (crop + 1) - 1
    result[pupil] = -0.8
    light = (as_shade(result, crop) + 1) / (crop + 1)
    assert light[20:40, 20:40].max() < 0.3
    moved = as_shade(np.full_like(crop, -1), crop, np.full((16, 16, 2), 0.05, np.float32))
    assert np.abs((moved + 1) / (1 - SHADE) - 1 - crop).max() > 0.05  # the moved face behind it


def test_a_drawing_alone_is_flat_between_its_lines() -> None:
    """Hatches of 10 grey levels go, a line of 60 stays as steep as without them."""
    hatched = np.full((SIDE, SIDE, 3), 180, np.uint8)
    hatched[::4] -= 10
    plain = np.full((SIDE, SIDE, 3), 178, np.uint8)
    for drawing in (hatched, plain):
        drawing[:, 30:34] = 118
    photo = finer(whole(plain, SIDE), plain, DRAWN_FINE)
    flat, reference = (drawn(photo, one)[..., 0].astype(int) for one in (hatched, plain))
    assert flat.shape == (DRAWN * SIDE, DRAWN * SIDE)
    beside = slice(40, 80)
    assert np.ptp(flat[40:-40, beside]) <= 4
    assert np.ptp(firm_lines(hatched.astype(np.float32), DRAWN)[40:-40, beside, 0]) >= 8
    steep, expected = (np.abs(np.diff(one[40:-40], axis=1)).max() for one in (flat, reference))
    assert steep > 0.9 * expected > 20


def test_where_only_skin_goes_back_all_else_of_a_drawing_is_the_photo_flat() -> None:
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    face = np.hypot((x - 0.5) / 0.3, (y - 0.5) / 0.4) < 1
    photo = (noise_picture(SIDE, SIDE) // 4 + np.where(face[..., None], 150, 20)).astype(np.uint8)
    white = np.full_like(photo, 255)
    alone = AlignedFace(
        crop_HWC=cv2.resize(photo, (DRAWN_FINE * SIDE,) * 2), to_crop_23=DRAWN_FINE * np.eye(2, 3),
        template_52=SQUARE, pasted=("skin",),
    )  # fmt: skip
    drawing, other = drawn(alone, white), drawn(alone, np.zeros_like(photo))
    skin_HW = cv2.resize(in_crop(alone), (DRAWN * SIDE, DRAWN * SIDE))
    reach = np.ones((6 * DRAWN + 1,) * 2, np.uint8)  # of the filters
    beyond, within = cv2.dilate(skin_HW, reach) == 0, cv2.erode(skin_HW, reach) > 0.99
    assert min(beyond.mean(), within.mean()) > 0.02
    assert np.array_equal(drawing[beyond], other[beyond])
    enlarged = cv2.resize(photo, (DRAWN * SIDE, DRAWN * SIDE)).astype(int)
    assert np.median(np.abs(drawing.astype(int) - enlarged)[beyond]) < 6
    assert drawing[within].min() > 250
    assert other[within].max() < 5
    assert drawn(replace(alone, pasted=("crop",)), white).min() > 250


def test_a_drawing_with_the_photos_own_features() -> None:
    """A photo of white spots on grey, a drawing that is grey."""
    grey = np.zeros((SIDE, SIDE, 3), np.float32)
    eyes, mouth = SIDE * SQUARE[:2], SIDE * SQUARE[3:].mean(axis=0)
    middle = eyes.mean(axis=0)
    down = mouth - middle
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5

    def features(mouth: float = 1.0, eyes: float = 1.0) -> OwnFeatures:
        return OwnFeatures(template_52=SQUARE, mouth=mouth, eyes=eyes)

    def shown(at: np.ndarray, **sizes: float) -> np.ndarray:
        """What a spot there adds to the drawing."""
        photo = grey + (np.hypot(x - at[0], y - at[1]) < 2)[..., None]
        return with_own_features(grey, photo.astype(np.float32), features(**sizes))[..., 0]

    forehead, chin, neck = middle - 0.75 * down, mouth + 0.4 * down, mouth + 0.95 * down
    cheeks = [middle + 0.5 * down + side * np.array([0.9 * down[1], 0]) for side in (-1, 1)]
    for at in (mouth, forehead, middle - 0.35 * down, neck):
        assert shown(at).max() > 0.5
    for at in (*eyes, *cheeks, chin):
        assert np.abs(shown(at)).max() < 0.25
    # It is detail that comes, finer than a face's light and shade; the mouth's is more than that.
    photo = np.full_like(grey, 0.4)
    assert with_own_features(grey, photo, features()) == pytest.approx(grey, abs=0.01)
    assert shown(mouth).max() > 1.1 * shown(forehead).max()
    # And it replaces the drawing's own.
    drawing = grey.copy()
    drawing[int(mouth[1]), int(mouth[0])] = 1
    assert np.abs(with_own_features(drawing, grey, features()) - grey).max() < 0.1

    def farthest(own: np.ndarray) -> float:
        """Of what is white, from the mouth's middle."""
        return float(np.hypot(x - mouth[0], y - mouth[1])[own > 0.3].max())

    corner = mouth + np.array([0.35 * down[1], 0])
    assert farthest(shown(corner, mouth=0.6)) < farthest(shown(corner)) - 1
    # Larger eyes raise brows.
    brow = eyes[0] - 0.4 * down

    def highest(own: np.ndarray) -> int:
        return int(np.flatnonzero((own > 0.3).any(axis=1))[0])

    assert highest(shown(brow, eyes=1.8)) < highest(shown(brow))


def test_a_ready_crop_of_the_models_size_comes_back_as_the_models_own_result() -> None:
    picture = noise_picture(SIDE, SIDE)
    ready = whole(picture, SIDE)
    assert np.array_equal(ready.crop_HWC, picture)
    result = noise_picture(SIDE, SIDE, seed=1)
    assert np.array_equal(paste(picture, ready, result), result)


@pytest.mark.parametrize(("height", "width"), [(100, 300), (300, 100), (1, 1), (7, 5)])
def test_whole_takes_the_central_square(height: int, width: int) -> None:
    picture = noise_picture(height, width)
    ready = whole(picture, SIDE)
    output = paste(picture, ready, np.zeros_like(ready.crop_HWC), detail=0)
    assert output.shape == picture.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    assert (output[top : top + side, left : left + side] < 10).all()
    changed = (output != picture).any(axis=2).sum()
    assert changed <= (side + 2) ** 2


def test_an_unknown_template_is_a_usage_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="ffhq-512"):
        template_points("mtcnn")


# --- Shape -----------------------------------------------------------------------------------


def test_a_shape_moves_in_the_picture_as_it_does_in_the_crop() -> None:
    """A dot in a turned face of three times the crop's size, moved along the crop's own axes."""
    picture = np.full((600, 560, 3), 40, np.uint8)
    cv2.circle(picture, (300, 280), 8, (250, 250, 250), -1, cv2.LINE_AA)
    aligned = align(picture, landmarks(3.0 * SIDE, 0.5, (300, 280)), "ffhq-512", SIDE)
    flow = np.zeros((16, 16, 2), np.float32)
    flow[..., 0], flow[..., 1] = 0.05, -0.03
    output, moved = reshape(picture, aligned, flow)

    def place(pixels_HWC: np.ndarray, dark: int) -> np.ndarray:
        weight = pixels_HWC[..., 0].astype(float) - dark
        rows, columns = np.mgrid[: len(weight), : weight.shape[1]] + 0.5
        return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()

    before, after = (place(one.crop_HWC, 40) for one in (aligned, moved))
    wanted = SIDE * np.array([-0.05, 0.03])
    assert after - before == pytest.approx(wanted, abs=0.05)
    in_picture = cv2.invertAffineTransform(aligned.to_crop_23)[:, :2] @ wanted
    assert place(output, 40) - place(picture, 40) == pytest.approx(in_picture, abs=0.3)
    # As sharp as it was: nothing has gone through the crop's few pixels.
    assert np.abs(np.diff(output[..., 0].astype(int))).max() > 150


def test_no_flow_moves_nothing_and_none_reaches_beyond_the_crop() -> None:
    picture = noise_picture(400, 500)
    aligned = align(picture, landmarks(120, 0.4, (40, 200)), "ffhq-512", SIDE)
    same, still = reshape(picture, aligned, np.zeros((16, 16, 2), np.float32))
    assert np.array_equal(same, picture)
    assert np.array_equal(still.crop_HWC, aligned.crop_HWC)
    output, _ = reshape(picture, aligned, np.full((16, 16, 2), 0.05, np.float32))
    reach = paste_mask(replace(aligned, pasted=("crop",)), picture)
    assert np.array_equal(output[reach == 0], picture[reach == 0])
    assert (output[reach == 1] != picture[reach == 1]).mean() > 0.9
    away = replace(aligned, to_crop_23=aligned.to_crop_23 + np.array([[0, 0, 5e3], [0, 0, 0]]))
    assert np.array_equal(reshape(picture, away, np.full((16, 16, 2), 0.05))[0], picture)


@pytest.mark.parametrize("times", [1.2, 1.8, 3.0])
def test_eyes_come_back_to_the_size_they_had(times: float) -> None:
    face_HWC = cv2.GaussianBlur(noise_picture(192, 192).astype(np.float32), (0, 0), 6)
    larger = with_larger_eyes(face_HWC, template_points("anime"), times)
    back = with_larger_eyes(larger, template_points("anime"), 1 / times)
    assert np.abs(back - face_HWC).max() < 0.1 * np.abs(larger - face_HWC).max()
