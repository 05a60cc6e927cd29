"""The three detectors: what they find, where, and what they say to a wrong file.

The photographs and the weights of other projects lie beside the checkout (``../shared``);
a test that wants them skips where they are missing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from facestyle.errors import CheckpointError
from facestyle.faces import Detector, Face, find_faces
from facestyle.faces.builtin import BuiltinDetector
from facestyle.faces.yunet import YuNetDetector

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FILES = {
    "builtin": ROOT / "weights" / "face_detector.onnx",
    "yunet": SHARED / "weights" / "face_detection_yunet_2026may.onnx",
    "retinaface": SHARED / "weights" / "detection_mobilenet0.25_Final.pth",
}
PORTRAITS = sorted((SHARED / "photos").glob("*male_*.jpg"))

needs_photos = pytest.mark.skipif(not PORTRAITS, reason=f"no photographs in {SHARED / 'photos'}")


def _retinaface(path: Path) -> Detector:
    pytest.importorskip("facexlib")
    from facestyle.faces.retinaface import RetinaFaceDetector

    return RetinaFaceDetector(path)


MAKERS: dict[str, Callable[[Path], Detector]] = {
    "builtin": BuiltinDetector,
    "yunet": YuNetDetector,
    "retinaface": _retinaface,
}


@cache
def _detector(name: str) -> Detector:
    if not FILES[name].is_file():
        pytest.skip(f"{FILES[name]} is missing")
    return MAKERS[name](FILES[name])


@pytest.fixture(params=["builtin", "yunet", pytest.param("retinaface", marks=pytest.mark.slow)])
def detector(request: pytest.FixtureRequest) -> Detector:
    return _detector(request.param)


@pytest.fixture(params=[0, 7, 14, 21], ids=lambda n: PORTRAITS[n].stem if PORTRAITS else str(n))
def portrait_HWC(request: pytest.FixtureRequest) -> np.ndarray:
    if not PORTRAITS:
        pytest.skip(f"no photographs in {SHARED / 'photos'}")
    return _read(PORTRAITS[request.param])


def _read(path: Path) -> np.ndarray:
    picture_HWC = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert picture_HWC is not None
    return picture_HWC


def _eye_distance(face: Face) -> float:
    return float(np.linalg.norm(face.landmarks_52[1] - face.landmarks_52[0]))


def _off(found: Face, expected_52: np.ndarray) -> float:
    """Mean distance of the landmarks from where they should be, in eye distances."""
    away_5 = np.linalg.norm(found.landmarks_52 - expected_52, axis=1)
    return float(away_5.mean() / np.linalg.norm(expected_52[1] - expected_52[0]))


def _overlap(one: Face, two: Face) -> float:
    one_22, two_22 = np.reshape(one.box, (2, 2)), np.reshape(two.box, (2, 2))
    inner_2 = np.minimum(one_22[1], two_22[1]) - np.maximum(one_22[0], two_22[0])
    inner = float(np.maximum(inner_2, 0).prod())
    return inner / (one.area + two.area - inner)


# --- What they find --------------------------------------------------------------------


@needs_photos
def test_builtin_agrees_with_yunet_on_portraits() -> None:
    builtin, yunet = _detector("builtin"), _detector("yunet")
    found, false, eye_errors = 0, 0, []
    for path in PORTRAITS:
        picture_HWC = _read(path)
        truth = find_faces(picture_HWC, yunet)
        faces = [
            face for face in builtin.candidates(picture_HWC) if face.score >= builtin.threshold
        ]
        false += sum(all(_overlap(face, true) < 0.3 for true in truth) for face in faces)
        face = max(faces, key=lambda one: _overlap(one, truth[0]), default=None)
        if face is not None and _overlap(face, truth[0]) > 0.5:
            found += 1
            away_2 = np.linalg.norm(face.landmarks_52[:2] - truth[0].landmarks_52[:2], axis=1)
            eye_errors.extend(away_2 / _eye_distance(truth[0]))
    assert len(PORTRAITS) == 24
    assert found >= 20
    assert false <= 2
    # YuNet's own answers for a picture and for its half-size copy differ by some 6 %.
    assert np.median(eye_errors) < 0.08


@needs_photos
@pytest.mark.parametrize("name", ["yunet", pytest.param("retinaface", marks=pytest.mark.slow)])
def test_the_published_counts(name: str) -> None:
    one = find_faces(_read(SHARED / "photos" / "astronaut.png"), _detector(name))
    many = find_faces(_read(SHARED / "photos" / "astronauts_group.jpg"), _detector(name))
    assert (len(one), len(many)) == (1, 23)


@needs_photos
def test_builtin_finds_most_of_a_group() -> None:
    """Faces of 25 to 40 px, by a network that never saw a photograph of a group."""
    picture_HWC = _read(SHARED / "photos" / "astronauts_group.jpg")
    truth = find_faces(picture_HWC, _detector("yunet"))
    faces = find_faces(picture_HWC, _detector("builtin"))
    hit = [face for face in faces if max(_overlap(face, true) for true in truth) > 0.35]
    assert len(hit) >= 18
    assert len(faces) - len(hit) <= 3


def test_candidates_are_in_order_and_well_formed(
    detector: Detector, portrait_HWC: np.ndarray
) -> None:
    before_HWC = portrait_HWC.copy()
    faces = detector.candidates(portrait_HWC)
    assert np.array_equal(portrait_HWC, before_HWC)
    scores = [face.score for face in faces]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] <= 1
    best = faces[0]
    assert best.score >= detector.threshold
    assert best.landmarks_52.shape == (5, 2)
    assert best.landmarks_52.dtype == np.float32
    assert all(isinstance(side, float) for side in best.box)
    # All five points lie in the box; eyes above nose above mouth, left before right.
    left, top, right, bottom = best.box
    x_5, y_5 = best.landmarks_52.T
    assert left < x_5.min()
    assert x_5.max() < right
    assert top < y_5.min()
    assert y_5.max() < bottom
    assert y_5[:2].max() < y_5[2] < y_5[3:].min()
    assert x_5[0] < x_5[2] < x_5[1]
    assert x_5[3] < x_5[4]


# --- Where they find it ----------------------------------------------------------------

CLOSE = 0.15
"""In eye distances; two sizes of one picture differ by up to some 0.1 in any detector, while
a wrong scale, offset or order of the points makes 0.5 and more."""


def test_a_picture_half_as_large_has_landmarks_at_half(
    detector: Detector, portrait_HWC: np.ndarray
) -> None:
    whole = detector.candidates(portrait_HWC)[0]
    half_HWC = cv2.resize(portrait_HWC, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    half = detector.candidates(half_HWC)[0]
    assert _off(half, whole.landmarks_52 / 2) < CLOSE
    assert half.area == pytest.approx(whole.area / 4, rel=0.25)


def test_a_moved_picture_has_moved_landmarks(detector: Detector, portrait_HWC: np.ndarray) -> None:
    small_HWC = cv2.resize(portrait_HWC, (301, 303), interpolation=cv2.INTER_AREA)
    alone = detector.candidates(small_HWC)[0]
    canvas_HWC = np.full((611, 733, 3), 127, np.uint8)
    canvas_HWC[205 : 205 + 303, 390 : 390 + 301] = small_HWC
    moved = detector.candidates(canvas_HWC)[0]
    assert _off(moved, alone.landmarks_52 + np.array([390, 205])) < CLOSE


def test_a_mirrored_picture_has_mirrored_landmarks(
    detector: Detector, portrait_HWC: np.ndarray
) -> None:
    face = detector.candidates(portrait_HWC)[0]
    mirrored = detector.candidates(np.ascontiguousarray(portrait_HWC[:, ::-1]))[0]
    expected_52 = face.landmarks_52[[1, 0, 2, 4, 3]] * np.array([-1, 1])
    expected_52[:, 0] += portrait_HWC.shape[1]
    assert _off(mirrored, expected_52) < CLOSE
    assert mirrored.landmarks_52[0, 0] < mirrored.landmarks_52[1, 0]


def test_a_tilted_head_has_tilted_eyes(detector: Detector, portrait_HWC: np.ndarray) -> None:
    height, width = portrait_HWC.shape[:2]
    level = detector.candidates(portrait_HWC)[0]
    turn_23 = cv2.getRotationMatrix2D((width / 2, height / 2), 20, 1.0)
    turned_HWC = cv2.warpAffine(portrait_HWC, turn_23, (width, height), borderValue=(127,) * 3)
    tilted = detector.candidates(turned_HWC)[0]
    assert _off(tilted, level.landmarks_52 @ turn_23[:, :2].T + turn_23[:, 2]) < CLOSE


# --- Sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", [96, 1500])
def test_a_face_that_fills_the_picture(
    detector: Detector, portrait_HWC: np.ndarray, side: int
) -> None:
    left, top, right, bottom = (int(side) for side in detector.candidates(portrait_HWC)[0].box)
    face_HWC = portrait_HWC[max(top, 0) : bottom, max(left, 0) : right]
    scale = side / max(face_HWC.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    filled_HWC = cv2.resize(face_HWC, None, fx=scale, fy=scale, interpolation=how)
    faces = find_faces(filled_HWC, detector)
    assert len(faces) == 1
    assert faces[0].area > 0.5 * filled_HWC.shape[0] * filled_HWC.shape[1]


@pytest.mark.parametrize("shape", [(517, 333), (333, 517), (97, 641), (801, 1283)])
def test_any_size_of_canvas(detector: Detector, shape: tuple[int, int]) -> None:
    if not PORTRAITS:
        pytest.skip(f"no photographs in {SHARED / 'photos'}")
    side = min(shape) - 1
    canvas_HWC = np.full((*shape, 3), 200, np.uint8)
    portrait_HWC = cv2.resize(_read(PORTRAITS[3]), (side, side), interpolation=cv2.INTER_AREA)
    canvas_HWC[-side:, -side:] = portrait_HWC
    (face,) = find_faces(canvas_HWC, detector)
    assert shape[1] - side < face.landmarks_52[2, 0] < shape[1]


@pytest.mark.parametrize("shape", [(1, 10000), (10000, 1), (1, 1), (7, 3), (2000, 3000)])
def test_no_face_where_there_is_none(detector: Detector, shape: tuple[int, int]) -> None:
    noise_HWC = np.random.default_rng(0).integers(90, 160, (*shape, 3), np.uint8)
    assert not [f for f in detector.candidates(noise_HWC) if f.score >= detector.threshold]
    assert detector.candidates(np.full_like(noise_HWC, 255)) == []


@needs_photos
def test_every_face_of_a_montage(detector: Detector) -> None:
    tiles = [cv2.resize(_read(path), (256, 256)) for path in PORTRAITS[::4]]
    montage_HWC = np.vstack([np.hstack(tiles[:3]), np.hstack(tiles[3:])])
    faces = find_faces(montage_HWC, detector)
    tile_of = sorted((int(y // 256), int(x // 256)) for x, y in (f.landmarks_52[2] for f in faces))
    assert tile_of == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


# --- Files -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("damage", ["missing", "empty", "html", "half", "another model"])
def test_a_wrong_file_is_one_clear_error(
    name: str, damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if not FILES[name].is_file():
        pytest.skip(f"{FILES[name]} is missing")
    path = tmp_path / "weights"
    whole = FILES[name].read_bytes()
    other = FILES["yunet" if name == "builtin" else "builtin"]
    if damage == "another model" and not other.is_file():
        pytest.skip(f"{other} is missing")
    if damage != "missing":
        path.write_bytes(
            {
                "empty": lambda: b"",
                "html": lambda: b"<!DOCTYPE html><title>404 Not Found</title>",
                "half": lambda: whole[: len(whole) // 2],
                "another model": other.read_bytes,
            }[damage]()
        )
    capfd.readouterr()
    with pytest.raises(CheckpointError) as caught:
        MAKERS[name](path)
    assert str(path) in caught.value.message
    assert "expected" in caught.value.message
    assert caught.value.hint is not None
    assert capfd.readouterr() == ("", "")


def test_retinaface_names_the_first_tensor_that_does_not_fit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    _detector("retinaface")
    weights = torch.load(FILES["retinaface"], map_location="cpu", weights_only=True)
    weights["module.fpn.merge1.0.weight"] = torch.zeros(7)
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"fpn\.merge1\.0\.weight: found \(7,\)"):
        _retinaface(tmp_path / "weights.pth")


def test_the_shipped_file_says_what_it_is() -> None:
    import onnxruntime

    path = FILES["builtin"]
    assert path.stat().st_size <= 1_000_000
    notes = onnxruntime.InferenceSession(path.read_bytes()).get_modelmeta().custom_metadata_map
    assert "research only" in notes["licence"]
    assert {"name", "trained_on", "seed", "steps", "command", "input", "output"} <= notes.keys()


def test_builtin_and_yunet_do_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "import facestyle.faces.retinaface, facestyle.faces.yunet\n"
        "from facestyle.faces.builtin import BuiltinDetector\n"
        "assert 'onnxruntime' not in sys.modules\n"
        f"print(BuiltinDetector({str(FILES['builtin'])!r}).candidates(np.zeros((9, 9, 3), 'u1')))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")
