"""What judges a model's results: faces cut to one template, an embedding, classifiers.

None of it is part of the model that is judged, and nothing here knows what a model is.

``open_embedding``  MobileFaceNet, a face recogniser made for photos: its cosine says whether
                    two photos show one person. Of drawings it sees shapes and shades: it keeps
                    two drawings apart and drawings from photos, but its cosine between drawings,
                    or a drawing and a photo, says little about persons.
``taught``          a small network for yes-or-no questions on a crop, trained here, apart from
                    the model, and kept in a file. Right on what it has not seen as often as it
                    says itself: ``Classifier.held_out`` belongs beside whatever it is used for.

    crop_HWC  uint8 RGB, 112 px, aligned by five landmarks
    p_NA, labels_NA  of N crops the answers to A questions, as probability and as 0 or 1
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from measures import INNER, Scores, mean
from torch import Tensor, nn
from torch.nn import functional as F

from facestyle.faces import Detector, Face, find_faces
from facestyle.faces.align import similarity, template_points
from facestyle.images import read_picture
from facestyle.training.attributes import parse_attributes

GENDERS = ("female", "male")
KINDS = ("portrait", "anime")
WATCHED = (  # attributes that are to stay where another one is changed
    "Black_Hair", "Blond_Hair", "Brown_Hair", "Eyeglasses", "Male", "Smiling", "Young",
)  # fmt: skip
SIDE = 112  # px of an aligned crop
POINTS_52 = np.array(  # where its landmarks lie, px: ArcFace's template, which the embedding wants
    [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
)
WIDE = 0.68  # zoom of a crop with the hair in it; the most that CelebA's pictures fill
SQUARES = {  # left, top, side of templates in CelebA's pictures at half size
    "celeba-square": (8, 24, 72),
    "anime": (4, 23, 80),
}

INPUT = 64  # px of a classifier's input
SOFT = 48  # px to which crops are softened as a test; a 64 px model has 55 for a crop
BATCH, RATE = 64, 2e-3
VALIDATION = 10  # one picture in so many is kept from training

Pixels = np.ndarray  # uint8 RGB, HWC
Embed = Callable[[Pixels], np.ndarray]  # crop_HWC → embedding_E of length 1
Groups = dict[str, Scores]
Lessons = tuple[np.ndarray, np.ndarray]  # crops_NHWC, labels_NA


def sha256(content: bytes) -> str:
    """In hex."""
    return hashlib.sha256(content).hexdigest()


# --- Faces -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Portrait:
    """A photo with its one face."""

    name: str
    domain: str
    pixels_HWC: Pixels
    face: Face
    crop_HWC: Pixels


class KnownFace:
    """A ``Detector`` that knows the answer, so that results are compared in the same place."""

    name = "known"
    threshold = 0.0

    def __init__(self, face: Face) -> None:
        self.face = face

    def candidates(self, picture_HWC: Pixels) -> list[Face]:
        """See ``Detector``."""
        return [self.face]


def cut(
    picture_HWC: Pixels,
    points_52: np.ndarray,
    side: int = SIDE,
    zoom: float = 1,
    border: int = cv2.BORDER_REPLICATE,
) -> Pixels:
    """The face on the template; ``zoom`` below 1 shows more around it."""
    target_52 = ((POINTS_52 / SIDE - 0.5) * zoom + 0.5) * side
    times = int(np.clip(1 / np.hypot(*similarity(points_52, target_52)[:, 0]), 1, 8))
    to_fine_23 = similarity(points_52, target_52 * times)
    size, white = (side * times, side * times), (255, 255, 255)
    fine_HWC = cv2.warpAffine(picture_HWC, to_fine_23, size, None, cv2.INTER_LINEAR, border, white)
    return np.asarray(cv2.resize(fine_HWC, (side, side), interpolation=cv2.INTER_AREA))


def cut_found(pictures: Sequence[Pixels], detector: Detector, zoom: float = 1) -> np.ndarray:
    """crops_NHWC of pictures that a face fills; median landmarks serve where none is found."""
    found: list[np.ndarray | None] = []
    for picture_HWC in pictures:
        margin = len(picture_HWC) // 4
        padded_HWC = np.pad(picture_HWC, ((margin, margin), (margin, margin), (0, 0)), "edge")
        faces = [f for f in detector.candidates(padded_HWC) if f.score >= detector.threshold]
        found.append(faces[0].landmarks_52 - margin if faces else None)
    usual_52 = np.median([points_52 for points_52 in found if points_52 is not None], axis=0)
    pairs = zip(pictures, found, strict=True)
    return np.stack([cut(pic, usual_52 if p is None else p, zoom=zoom) for pic, p in pairs])


def cut_template(square_HWC: Pixels, template: str, zoom: float = 1.0) -> Pixels:
    """crop_HWC of a square that is aligned to a template; all of it where that is ``none``."""
    if template == "none":
        return np.asarray(cv2.resize(square_HWC, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return cut(square_HWC, template_points(template, zoom) * len(square_HWC))


def softened(picture_HWC: Pixels, side: int = SOFT) -> Pixels:
    """Reduced to ``side`` px and enlarged again."""
    small_HWC = cv2.resize(picture_HWC, (side, side), interpolation=cv2.INTER_AREA)
    size = picture_HWC.shape[1::-1]
    return np.asarray(cv2.resize(small_HWC, size, interpolation=cv2.INTER_CUBIC))


def portraits(folder: Path, detector: Detector) -> list[Portrait]:
    """Every ``female_*`` and ``male_*`` picture of a folder with its largest face."""
    found = []
    for path in sorted(path for domain in GENDERS for path in folder.glob(f"{domain}_*")):
        pixels_HWC = read_picture(path).pixels_HWC
        face = find_faces(pixels_HWC, detector)[0]
        crop_HWC = cut(pixels_HWC, face.landmarks_52)
        found.append(Portrait(path.stem, path.stem.split("_")[0], pixels_HWC, face, crop_HWC))
    return found


def open_embedding(path: Path) -> Embed:
    """MobileFaceNet."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def embed(crop_HWC: Pixels) -> np.ndarray:
        values_NCHW = ((crop_HWC.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        embedding_E = session.run(None, {name: values_NCHW})[0][0]
        return np.asarray(embedding_E / np.linalg.norm(embedding_E))

    return embed


# --- Classifiers -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a classifier is taught."""

    questions: Mapping[str, tuple[str, str]]
    """By name, what no and what yes mean."""
    epochs: int
    """Times that it sees every picture."""
    zoom: float = 1
    """Of the crops that it looks at, see ``cut``."""
    window: tuple[slice, slice] = (slice(0, SIDE), slice(0, SIDE))
    """Rows and columns of them."""
    evened: float = 0
    """How far the weights of no and yes even out that one is rare in the data: 0 not at all, 1
    wholly. The rare one is recognised the more often, and falsely seen the more often too."""


GENDER = Subject(questions={"gender": GENDERS}, epochs=14, window=INNER)
KIND = Subject(questions={"kind": KINDS}, epochs=3)


def attributes(names: Sequence[str]) -> Subject:
    """CelebA's attributes, hair among them: a wide view. Half evened, because celebrities are
    young: at 0 most older people on the portraits pass for young too, at 1 it sees glasses on
    5 of 24 portraits, where there are none."""
    questions = dict.fromkeys(names, ("without", "with"))
    return Subject(questions=questions, epochs=14, zoom=WIDE, evened=0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A taught network."""

    subject: Subject
    """What it answers."""
    network: nn.Module
    """x_NCHW → logits_NA."""
    held_out: Groups
    """Its accuracy on pictures kept from training."""

    def view(self, picture_HWC: Pixels, face: Face) -> Pixels:
        """The crop that it wants of a photo."""
        return cut(picture_HWC, face.landmarks_52, zoom=self.subject.zoom)

    def answers(self, crops: Sequence[Pixels]) -> np.ndarray:
        """p_NA, from the mean over a crop and its mirror image."""
        size, window = (INPUT, INPUT), self.subject.window
        x_NCHW = _tensor([cv2.resize(c[window], size, interpolation=cv2.INTER_AREA) for c in crops])
        with torch.inference_mode():
            logits = [(self.network(x) + self.network(x.flip(3))) / 2 for x in x_NCHW.split(BATCH)]
        return torch.sigmoid(torch.cat(logits)).numpy()

    def accuracy(self, crops: Sequence[Pixels], labels_NA: np.ndarray) -> Groups:
        """Shares of crops that are recognised, sharp and softened."""
        table = {}
        for name, shown in (("sharp", crops), ("softened", [softened(crop) for crop in crops])):
            p_NA = self.answers(shown)
            for i, (question, ends) in enumerate(self.subject.questions.items()):
                row = f"{question} {name}" if len(self.subject.questions) > 1 else name
                table[row] = shares(p_NA[:, i], labels_NA[:, i], ends)
        return table


def shares(p_N: np.ndarray, labels_N: np.ndarray, ends: tuple[str, str]) -> Scores:
    """Of right answers to one question: of all, and of those whose answer is no, and yes; the
    ``majority`` is what answering always the same would reach."""
    right_N = (p_N > 0.5) == labels_N
    return {
        "count": len(right_N),
        "accuracy": mean(right_N),
        "majority": mean([max(labels_N.mean(), 1 - labels_N.mean())]),
        **{end: mean(right_N[labels_N == i]) for i, end in enumerate(ends)},
    }


def taught(
    subject: Subject,
    path: Path,
    seed: int,
    sources: Sequence[Path | str],
    read: Callable[[], Lessons],
    precision: str = "bf16",
) -> Classifier:
    """The classifier in ``path``; one that is not there, or is another, is taught first.

    Args:
        sources: the files behind ``read``, and what else it depends on.
        read: the crops and labels to learn from, and to test on those kept from training.
        precision: ``bf16``, or ``fp32`` for a CPU that only imitates it.
    """
    count = len(subject.questions)
    key = [sha256(s.read_bytes()) if isinstance(s, Path) else s for s in sources]
    key += [repr(subject), str(seed), precision]
    if path.is_file() and (saved := torch.load(path, weights_only=True)).get("key") == key:
        network: nn.Module = _network(count).eval()
        network.load_state_dict(saved["network"])
        return Classifier(subject=subject, network=network, held_out=saved["held_out"])
    crops_NHWC, labels_NA = read()
    held_N = np.zeros(len(labels_NA), bool)
    held_N[np.random.default_rng(seed).permutation(len(labels_NA))[::VALIDATION]] = True
    network = _trained(subject, crops_NHWC[~held_N], labels_NA[~held_N], seed, precision)
    classifier = Classifier(subject=subject, network=network, held_out={})
    held_out = classifier.accuracy(list(crops_NHWC[held_N]), labels_NA[held_N])
    torch.save({"network": network.state_dict(), "key": key, "held_out": held_out}, path)
    return Classifier(subject=subject, network=network, held_out=held_out)


def _trained(
    subject: Subject, crops_NHWC: np.ndarray, labels_NA: np.ndarray, seed: int, precision: str
) -> nn.Module:
    """A network from scratch; labels are smoothed, because some are wrong."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    count = labels_NA.shape[1]
    rate_A = labels_NA.mean(axis=0)
    weights_2A = (0.5 / np.stack([1 - rate_A, rate_A])) ** subject.evened
    network = _network(count)
    steps = subject.epochs * (len(crops_NHWC) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.15)
    order_N = np.concatenate([rng.permutation(len(crops_NHWC)) for _ in range(subject.epochs)])
    for step in range(steps):
        batch_B = order_N[step * BATCH : (step + 1) * BATCH]
        x_NCHW = _tensor([_spoilt(crops_NHWC[i], subject.window, rng) for i in batch_B])
        target_NA = torch.from_numpy(labels_NA[batch_B]).float() * 0.9 + 0.05
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits_NA = network(x_NCHW)
        weight_NA = torch.from_numpy(weights_2A[labels_NA[batch_B], np.arange(count)]).float()
        loss = F.binary_cross_entropy_with_logits(logits_NA.float(), target_NA, weight_NA)
        loss = loss * count  # the sum over the questions
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"classifier: step {step + 1} of {steps}, loss {loss.item():.3f}", flush=True)
    return network.eval()


def _network(questions: int) -> nn.Sequential:
    """x_NCHW in [-1, 1], 64 px → logits_NA; 0.6 M parameters."""
    layers: list[nn.Module] = []
    width = 3
    for wider, stride in ((24, 2), (48, 2), (48, 1), (96, 2), (96, 1), (192, 2), (192, 1)):
        convolution = nn.Conv2d(width, wider, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(wider), nn.ReLU()]
        width = wider
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(width, questions)]
    return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)


def _spoilt(crop_HWC: Pixels, window: tuple[slice, slice], rng: np.random.Generator) -> Pixels:
    """A crop's window at 64 px, as soft, shifted and discoloured as a small model's result."""
    rows, columns = window
    centre = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
    scale = INPUT / (rows.stop - rows.start) * rng.uniform(0.92, 1.12)
    turn_23: Any = cv2.getRotationMatrix2D(centre, rng.uniform(-8, 8), scale)
    turn_23[:, 2] += INPUT / 2 - np.array(centre) + rng.uniform(-4, 4, 2)
    size = (INPUT, INPUT)
    face_HWC: Any = cv2.warpAffine(crop_HWC, turn_23, size, borderMode=cv2.BORDER_REPLICATE)
    if rng.random() < 0.5:
        face_HWC = face_HWC[:, ::-1]
    if rng.random() < 0.6:
        face_HWC = softened(face_HWC, int(rng.integers(20, 56)))
    if rng.random() < 0.4:
        quality = int(rng.integers(15, 90))
        _, data = cv2.imencode(".jpg", face_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])
        face_HWC = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if rng.random() < 0.2:
        face_HWC = face_HWC.mean(axis=2, keepdims=True)
    contrast_3 = rng.uniform(0.7, 1.35) * rng.uniform(0.9, 1.1, 3)
    face_HWC = (face_HWC - 127.0) * contrast_3 + 127 + rng.uniform(-35, 35)
    return np.asarray(face_HWC.clip(0, 255).astype(np.uint8))


def _tensor(faces: Sequence[Pixels]) -> Tensor:
    """uint8 HWC pictures → x_NCHW in [-1, 1]."""
    x_NCHW = torch.from_numpy(np.stack(faces).transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    return x_NCHW.contiguous(memory_format=torch.channels_last)


# --- What they learn from --------------------------------------------------------------


def utkface(archive: Path, detector: Detector) -> Lessons:
    """Faces by gender; UTKFace is a folder each."""
    pictures = _pictures(archive)
    labels_N = np.array([GENDERS.index(name.split("/")[0]) for name in pictures])
    return cut_found(list(pictures.values()), detector), labels_N[:, None]


def celeba(archive: Path, names: Sequence[str], detector: Detector) -> Lessons:
    """Faces with their hair, and these of the attributes that people saw in them."""
    with zipfile.ZipFile(archive) as file:
        content = file.read("attributes.csv")
    _, rows = parse_attributes(content, "attributes.csv", names)
    pictures = _pictures(archive)
    labels_NA = np.stack([rows[Path(name).name] for name in pictures])
    return cut_found(list(pictures.values()), detector, WIDE), labels_NA


def portraits_and_anime(
    archives: Mapping[str, Path], template: str, without: Mapping[str, Collection[str]]
) -> Lessons:
    """As many CelebA faces as drawn ones, on a template, without the pictures of these stems;
    all by kind."""
    left, top, side = SQUARES[template]
    photos, drawings = (
        [pic for name, pic in _pictures(archives[k]).items() if Path(name).stem not in without[k]]
        for k in KINDS
    )
    photos = photos[:: max(1, len(photos) // len(drawings))][: len(drawings)]
    squares = [*(pic[top : top + side, left : left + side] for pic in photos), *drawings]
    labels_N = np.repeat((0, 1), (len(photos), len(drawings)))
    return np.stack([cut_template(square, template) for square in squares]), labels_N[:, None]


def _pictures(archive: Path) -> dict[str, Pixels]:
    """By name, sorted."""
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        data = {name: np.frombuffer(file.read(name), np.uint8) for name in names}
    return {name: np.asarray(cv2.imdecode(d, cv2.IMREAD_COLOR_RGB)) for name, d in data.items()}
