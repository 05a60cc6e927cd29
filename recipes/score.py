"""Score a female/male model on portraits that it has not seen, and draw contact sheets.

    python recipes/score.py --model weights/female-male.safetensors --faces ../shared/faces \
        --photos ../shared/photos --weights ../shared/weights --work work/score

What it measures, on whole photos through ``facestyle.restyle``, the path that users take:

identity   cosine of a face embedding (MobileFaceNet) between photo and result
domain     share of results in which a classifier sees the domain that was asked for; it is
           trained here, on UTKFace, which the model has never seen
change     mean colour distance between the faces of photo and result, CIE76
seam       gradient across the edge of what was pasted, over the photo's own in the same place
diversity  mean distance between ten latent styles of a photo, embedding and pixels (0 to 255)
following  whether the face's colour follows the reference's

What it does not measure: realism (look at the sheets), and hair, clothes and background,
which lie outside the inner face that is compared. Read the numbers together: a model that does
nothing has identity 1 and seam 1, and fails at domain. The embedding also tells women from men,
so both at once have a price: ``strangers`` is the identity of two people, ``softened`` that of
a photo and its copy at a 64 px model's resolution. ``--detail`` moves along that price: 0 shows
what the network does, the default what users get. The portraits (``<domain>_*``) are few: a
share of 36 results from 12 photos is good to some 10 points.

On one machine the same arguments give the same scores. Training the classifier takes some
5 minutes on a CPU core and is not repeated while ``classifier.pt`` is there.

    crop_HWC  uint8 RGB, 112 px, aligned by five landmarks      p_N  probability of ``male``
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import facestyle
from facestyle.faces import Detector, Face, find_faces
from facestyle.faces.align import DETAIL, paste_mask, similarity
from facestyle.faces.yunet import YuNetDetector
from facestyle.images import read_picture
from facestyle.pipeline import aligned_faces
from facestyle.translator import Style, Translator
from facestyle.weights import resolve

DOMAINS = ("female", "male")
SIDE = 112  # px of an aligned crop
POINTS_52 = np.array(  # where its landmarks lie, px: ArcFace's template, which the embedding wants
    [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
)
INNER = (slice(24, 112), slice(12, 100))
"""Rows and columns of a crop that UTKFace's tight pictures cover as well: forehead to chin."""

INPUT = 64  # px of the classifier's input
SOFT = 48  # px to which crops are softened as a test; a 64 px model has 55 for a crop
EPOCHS, BATCH, RATE = 14, 64, 2e-3
VALIDATION = 10  # one picture in so many is kept from training
STYLES = 10  # latent styles a photo behind the diversity
MATRIX = (6, 8)  # photos and references on the reference sheet
RINGS = 12  # contours of the mask on which a seam is looked for
SIGMA = 1.0  # px in which gradients are taken

Pixels = np.ndarray  # uint8 RGB, HWC
Embed = Callable[[Pixels], np.ndarray]  # crop_HWC → unit embedding_E
Groups = dict[str, dict[str, float]]


# --- Faces -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Portrait:
    """A photo with its one face."""

    name: str
    domain: str
    pixels_HWC: Pixels
    face: Face
    crop_HWC: Pixels


Wanted = tuple[str, Style, Portrait | None]  # its name for people, the style, whose it is


class KnownFace:
    """A ``Detector`` that knows the answer, so that results are compared in the same place."""

    name = "known"
    threshold = 0.0

    def __init__(self, face: Face) -> None:
        self.face = face

    def candidates(self, picture_HWC: Pixels) -> list[Face]:
        """See ``Detector``."""
        return [self.face]


def cut(picture_HWC: Pixels, points_52: np.ndarray, side: int = SIDE, zoom: float = 1) -> Any:
    """The face on the template; ``zoom`` below 1 shows more around it."""
    target_52 = ((POINTS_52 / SIDE - 0.5) * zoom + 0.5) * side
    times = int(np.clip(1 / np.hypot(*similarity(points_52, target_52)[:, 0]), 1, 8))
    to_fine_23 = similarity(points_52, target_52 * times)
    size, white = (side * times, side * times), (255, 255, 255)
    border = cv2.BORDER_REPLICATE if zoom == 1 else cv2.BORDER_CONSTANT
    fine_HWC = cv2.warpAffine(picture_HWC, to_fine_23, size, None, cv2.INTER_LINEAR, border, white)
    return cv2.resize(fine_HWC, (side, side), interpolation=cv2.INTER_AREA)


def cut_tight(pictures: Sequence[Pixels], detector: Detector) -> np.ndarray:
    """crops_NHWC of pictures that a face fills; median landmarks serve where none is found."""
    found: list[np.ndarray | None] = []
    for picture_HWC in pictures:
        margin = len(picture_HWC) // 4
        padded_HWC = np.pad(picture_HWC, ((margin, margin), (margin, margin), (0, 0)), "edge")
        faces = [f for f in detector.candidates(padded_HWC) if f.score >= detector.threshold]
        found.append(faces[0].landmarks_52 - margin if faces else None)
    usual_52 = np.median([points_52 for points_52 in found if points_52 is not None], axis=0)
    pairs = zip(pictures, found, strict=True)
    return np.stack([cut(picture, usual_52 if p is None else p) for picture, p in pairs])


def portraits(folder: Path, detector: Detector) -> list[Portrait]:
    """Every ``<domain>_*`` picture of a folder with its largest face."""
    found = []
    for path in sorted(path for domain in DOMAINS for path in folder.glob(f"{domain}_*")):
        pixels_HWC = read_picture(path).pixels_HWC
        face = find_faces(pixels_HWC, detector)[0]
        crop_HWC = cut(pixels_HWC, face.landmarks_52)
        found.append(Portrait(path.stem, path.stem.split("_")[0], pixels_HWC, face, crop_HWC))
    return found


def read_zip(path: Path) -> tuple[list[Pixels], np.ndarray]:
    """Pictures and labels_N of an archive with a folder a domain."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        files = [np.frombuffer(archive.read(name), np.uint8) for name in names]
    labels_N = np.array([DOMAINS.index(name.split("/")[0]) for name in names])
    return [np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR_RGB)) for file in files], labels_N


# --- The classifier --------------------------------------------------------------------


def classifier() -> nn.Sequential:
    """x_NCHW in [-1, 1], 64 px → logits_N1; 0.6 M parameters."""
    layers: list[nn.Module] = []
    width = 3
    for wider, stride in ((24, 2), (48, 2), (48, 1), (96, 2), (96, 1), (192, 2), (192, 1)):
        convolution = nn.Conv2d(width, wider, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(wider), nn.ReLU()]
        width = wider
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(width, 1)]
    return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)


def spoilt(crop_HWC: Pixels, rng: np.random.Generator) -> Pixels:
    """The inner face at 64 px, as soft, shifted and discoloured as a small model's result."""
    rows, columns = INNER
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


def softened(picture_HWC: Pixels, side: int = SOFT) -> np.ndarray:
    """Reduced to ``side`` px and enlarged again."""
    small_HWC = cv2.resize(picture_HWC, (side, side), interpolation=cv2.INTER_AREA)
    size = picture_HWC.shape[1::-1]
    return np.asarray(cv2.resize(small_HWC, size, interpolation=cv2.INTER_CUBIC))


def tensor(faces: Sequence[Pixels]) -> Tensor:
    """uint8 HWC pictures → x_NCHW in [-1, 1]."""
    x_NCHW = torch.from_numpy(np.stack(faces).transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def trained(crops_NHWC: np.ndarray, labels_N: np.ndarray, seed: int) -> nn.Module:
    """A network from scratch; labels are smoothed, because some of UTKFace's are wrong."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = classifier()
    steps = EPOCHS * (len(crops_NHWC) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.15)
    order_N = np.concatenate([rng.permutation(len(crops_NHWC)) for _ in range(EPOCHS)])
    for step in range(steps):
        batch_B = order_N[step * BATCH : (step + 1) * BATCH]
        x_NCHW = tensor([spoilt(crops_NHWC[i], rng) for i in batch_B])
        target_N = torch.from_numpy(labels_N[batch_B]).float() * 0.9 + 0.05
        with torch.autocast("cpu", torch.bfloat16):
            logits_N = network(x_NCHW)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits_N.float(), target_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"classifier: step {step + 1} of {steps}, loss {loss.item():.3f}", flush=True)
    return network.eval()


def male_probability(crops: Sequence[Pixels], network: nn.Module) -> np.ndarray:
    """p_N, from the mean over a face and its mirror image."""
    size = (INPUT, INPUT)
    x_NCHW = tensor([cv2.resize(c[INNER], size, interpolation=cv2.INTER_AREA) for c in crops])
    with torch.inference_mode():
        logits = [(network(x) + network(x.flip(3))) / 2 for x in x_NCHW.split(BATCH)]
    return torch.sigmoid(torch.cat(logits))[:, 0].numpy()


def accuracy(crops: Sequence[Pixels], labels_N: np.ndarray, network: nn.Module) -> Groups:
    """Shares of faces that are recognised, sharp and softened, by domain."""
    table = {}
    for name, shown in (("sharp", crops), ("softened", [softened(crop) for crop in crops])):
        right_N = (male_probability(shown, network) > 0.5) == labels_N
        shares = {domain: mean(right_N[labels_N == i]) for i, domain in enumerate(DOMAINS)}
        table[name] = {"count": len(right_N), "accuracy": mean(right_N), **shares}
    return table


def obtain_classifier(
    archive: Path, path: Path, detector: Detector, seed: int
) -> tuple[nn.Module, Groups]:
    """The classifier in ``path``, trained where there is none, and its held-out accuracy."""
    network: nn.Module = classifier().eval()
    if path.is_file() and (saved := torch.load(path, weights_only=True))["seed"] == seed:
        network.load_state_dict(saved["network"])
        return network, saved["held_out"]
    pictures, labels_N = read_zip(archive)
    crops_NHWC = cut_tight(pictures, detector)
    held_N = np.zeros(len(labels_N), bool)
    held_N[np.random.default_rng(seed).permutation(len(labels_N))[::VALIDATION]] = True
    network = trained(crops_NHWC[~held_N], labels_N[~held_N], seed)
    held_out = accuracy(list(crops_NHWC[held_N]), labels_N[held_N], network)
    torch.save({"network": network.state_dict(), "seed": seed, "held_out": held_out}, path)
    return network, held_out


# --- Measures --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A photo in one style, and what was measured on it; ``asked`` is the domain's probability."""

    source: Portrait
    domain: str
    reference: Portrait | None
    crop_HWC: Pixels
    thumbnail_HWC: Pixels
    embedding_E: np.ndarray
    identity: float
    asked: float
    change: float
    seam: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """A model with what measures its results; thumbnails are ``side`` px."""

    model: Translator
    detail: float
    network: nn.Module
    embed: Embed
    side: int

    def results(self, source: Portrait, wanted: Iterable[Wanted]) -> list[Result]:
        """The photo in each style."""
        return [self.result(source, style, reference) for _, style, reference in wanted]

    def result(self, source: Portrait, style: Style, reference: Portrait | None) -> Result:
        """The photo in one style; the source's landmarks serve for all crops."""
        known, before_HWC = KnownFace(source.face), source.pixels_HWC
        (aligned,) = aligned_faces(before_HWC, self.model, detector=known)
        picture_HWC = facestyle.restyle(
            before_HWC, self.model, style, detector=known, detail=self.detail
        )
        crop_HWC = cut(picture_HWC, source.face.landmarks_52)
        p, embedding_E = male_probability([crop_HWC], self.network)[0], self.embed(crop_HWC)
        asked = float(p if style.domain == "male" else 1 - p)
        identity = float(self.embed(source.crop_HWC) @ embedding_E)
        note = f"{asked:.2f} {style.domain}, id {identity:.2f}"
        return Result(
            source=source,
            domain=style.domain,
            reference=reference,
            crop_HWC=crop_HWC,
            thumbnail_HWC=thumbnail(picture_HWC, source, self.side, note),
            embedding_E=embedding_E,
            identity=identity,
            asked=asked,
            change=float(np.linalg.norm(lab(crop_HWC) - lab(source.crop_HWC), axis=2).mean()),
            seam=seam(picture_HWC, before_HWC, paste_mask(aligned, *before_HWC.shape[:2])),
        )


def open_embedding(path: Path) -> Embed:
    """MobileFaceNet."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def embed(crop_HWC: Pixels) -> np.ndarray:
        values_NCHW = ((crop_HWC.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        embedding_E = session.run(None, {name: values_NCHW})[0][0]
        return np.asarray(embedding_E / np.linalg.norm(embedding_E))

    return embed


def lab(crop_HWC: Pixels) -> np.ndarray:
    """The inner face in CIE L*a*b*, whose distances are near to seen ones."""
    return cv2.cvtColor(crop_HWC[INNER].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def seam(result_HWC: Pixels, source_HWC: Pixels, mask_HW: np.ndarray) -> float:
    """Gradient across the mask's contours, result over source, on the worst of them.

    The contours divide the mask's edge (where it is between 0 and 1) into rings, because a
    visible seam is a thin line and would drown in the mean over a wide edge. 1 is no seam; on
    the portraits a hard step of 15 grey levels gives 1.26, one of 40 that is feathered 1.06.
    """
    normal_HW2 = gradient(mask_HW)
    normal_HW2 /= np.linalg.norm(normal_HW2, axis=2, keepdims=True) + 1e-9
    ring_HW = np.where((mask_HW > 0) & (mask_HW < 1), (mask_HW * RINGS).astype(int), RINGS)
    means = []
    for picture_HWC in (result_HWC, source_HWC):
        grey_HW = cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
        across_HW = np.abs((gradient(grey_HW) * normal_HW2).sum(axis=2))
        means.append(np.bincount(ring_HW.ravel(), across_HW.ravel(), RINGS + 1)[:RINGS] + 1e-9)
    return float((means[0] / means[1]).max())


def gradient(values_HW: np.ndarray) -> np.ndarray:
    """(H, W, 2) along x and y."""
    smooth_HW = cv2.GaussianBlur(values_HW, (0, 0), SIGMA)
    return np.stack([cv2.Sobel(smooth_HW, cv2.CV_32F, 1 - i, i) for i in (0, 1)], axis=2)


def mean(values: Iterable[Any]) -> float:
    """A plain number for JSON."""
    return round(float(np.mean(list(values))), 4)


# --- Scores ----------------------------------------------------------------------------


def by_direction(results: Sequence[Result]) -> Groups:
    """Means over the results from each domain to each."""
    groups: Groups = {}
    keys = ("identity", "change", "seam")
    for start, goal in itertools.product(DOMAINS, DOMAINS):
        group = [r for r in results if (r.source.domain, r.domain) == (start, goal)]
        groups[f"{start} to {goal}"] = {
            "count": len(group),
            "domain": mean(r.asked > 0.5 for r in group),
            "probability": mean(r.asked for r in group),
            **{key: mean(getattr(r, key) for r in group) for key in keys},
            "worst_seam": mean([max(r.seam for r in group)]),
        }
    return groups


def diversity(results: Sequence[Result]) -> Groups:
    """Mean distance of all pairs of a photo's latent styles in the other domain."""
    groups: Groups = {}
    for start in DOMAINS:
        away = [r for r in results if r.source.domain == start != r.domain]
        pairs = [(a, b) for a, b in itertools.combinations(away, 2) if a.source is b.source]
        groups[f"from {start}"] = {
            "count": len(pairs),
            "embedding": mean(1 - a.embedding_E @ b.embedding_E for a, b in pairs),
            "pixels": mean(cv2.absdiff(a.crop_HWC, b.crop_HWC)[INNER].mean() for a, b in pairs),
        }
    return groups


def following(results: Sequence[Result]) -> Groups:
    """Whether the face's mean colour goes where the reference's is, for L*, a* and b*.

    Correlation and the share that is nearer to its own reference than to the other ones are
    within one photo and domain, so that the photo's own colour has no part in them.
    """
    colours, moves, nearest = [], [], []
    for source, domain in dict.fromkeys((r.source, r.domain) for r in results):
        group = [r for r in results if r.source is source and r.domain == domain]
        trios = [(r, r.reference, source) for r in group if r.reference]
        colours_K33 = np.stack([[lab(x.crop_HWC).mean(axis=(0, 1)) for x in t] for t in trios])
        apart_KK = np.linalg.norm(colours_K33[:, None, 0] - colours_K33[:, 1], axis=2)
        nearest += list(apart_KK.argmin(axis=1) == np.arange(len(trios)))
        colours.append(colours_K33)
        moves.append(colours_K33 - colours_K33.mean(axis=0))
    moves_33N = np.concatenate(moves).transpose(1, 2, 0)
    r_3 = [np.corrcoef(moves_33N[0, i], moves_33N[1, i])[0, 1] for i in range(3)]
    result_N3, reference_N3, source_N3 = np.concatenate(colours).transpose(1, 0, 2)
    return {
        "references": {
            "count": len(nearest),
            **{f"r_{name}": mean([r]) for name, r in zip("Lab", r_3, strict=True)},
            "own_nearest": mean(nearest),
            "distance": mean(np.linalg.norm(result_N3 - reference_N3, axis=1)),
            "of_source": mean(np.linalg.norm(source_N3 - reference_N3, axis=1)),
        }
    }


def others(source: Portrait, people: Sequence[Portrait], domain: str, count: int) -> list[Portrait]:
    """The people of a domain who follow the source's place in its own."""
    place = [p for p in people if p.domain == source.domain].index(source) + 1
    there = [p for p in people if p.domain == domain]
    turned = [there[(place + i) % len(there)] for i in range(len(there))]
    return [p for p in turned if p is not source][:count]


# --- Reports ---------------------------------------------------------------------------


def thumbnail(picture_HWC: Pixels, who: Portrait, side: int, note: str = "") -> np.ndarray:
    """The head with its surroundings, and a note below."""
    head_HWC = cut(picture_HWC, who.face.landmarks_52, side, zoom=0.62)
    return np.concatenate([head_HWC, label(note, side)])


def label(text: str, width: int) -> np.ndarray:
    """A line of text, 16 px high."""
    line_HWC = np.full((16, width, 3), 255, np.uint8)
    return cv2.putText(line_HWC, text, (4, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, 16)


def write_sheet(path: Path, titles: Sequence[str], rows: Sequence[Sequence[Pixels]]) -> None:
    """Rows of thumbnails below a line of titles."""
    head = [label(title, rows[0][0].shape[1]) for title in titles]
    lines = [np.concatenate(row, axis=1) for row in [head, *rows]]
    cv2.imwrite(str(path), np.concatenate(lines)[..., ::-1])


def table(title: str, groups: Groups) -> str:
    """Groups as lines, their keys as columns."""
    keys = list(next(iter(groups.values())))
    lines = [f"\n{title:24}" + "".join(f"{key:>12}" for key in keys)]
    for name, values in groups.items():
        lines.append(f"  {name:22}" + "".join(f"{values[key]:>12.4g}" for key in keys))
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, help="a checkpoint, or a name that facestyle knows")
    add("--faces", type=Path, required=True, help="folder with utk8k.zip")
    add("--photos", type=Path, required=True, help="folder with <domain>_* portraits")
    add("--weights", type=Path, required=True, help="folder with YuNet and MobileFaceNet")
    add("--held-out", type=Path, help="<domain>/ folders of more faces to try the classifier on")
    add("--work", type=Path, default=Path("work/score"))
    add("--seeds", type=int, default=3, help="latent styles a photo and domain")
    add("--references", type=int, default=3, help="references a photo and domain")
    add("--psi", type=float, default=1.0, help="truncation of latent styles")
    add(
        "--detail",
        type=float,
        default=DETAIL,
        help="of the photo that stays, see facestyle.restyle",
    )
    add("--seed", type=int, default=0, help="of the classifier's training")
    add("--threads", type=int, default=1)
    add("--thumbnail", type=int, default=160, help="px")
    arguments = parser.parse_args()
    if arguments.references < 2:
        parser.error("--references 2 or more: following compares a photo's references")
    work, side = arguments.work, arguments.thumbnail
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)

    # What measures, and how far it can be trusted.
    files = {
        "model": resolve(arguments.model),
        "detector": arguments.weights / "face_detection_yunet_2026may.onnx",
        "embedding": arguments.weights / "mobilefacenet.onnx",
        "classifier": work / "classifier.pt",
        "faces": arguments.faces / "utk8k.zip",
    }
    detector, embed = YuNetDetector(files["detector"]), open_embedding(files["embedding"])
    people = portraits(arguments.photos, detector)
    network, held_out = obtain_classifier(
        files["faces"], files["classifier"], detector, arguments.seed
    )
    tests = {"portraits": ([p.crop_HWC for p in people], [p.domain for p in people])}
    if arguments.held_out:
        paths = [p for domain in DOMAINS for p in sorted((arguments.held_out / domain).iterdir())]
        pictures = [read_picture(path).pixels_HWC for path in paths]
        tests["held-out"] = (list(cut_tight(pictures, detector)), [p.parent.name for p in paths])
    trust = {f"utkface {name}": shares for name, shares in held_out.items()}
    for test, (crops, domains) in tests.items():
        labels_N = np.array([DOMAINS.index(domain) for domain in domains])
        shares = accuracy(crops, labels_N, network)
        trust |= {f"{test} {name}": values for name, values in shares.items()}

    # Every portrait in every style.
    model = facestyle.load(arguments.model, domains=DOMAINS)
    judge = Judge(model=model, detail=arguments.detail, network=network, embed=embed, side=side)

    def latent(domain: str, seed: int) -> Wanted:
        style = model.sample_style(domain, seed=seed, psi=arguments.psi)
        return f"{domain}, seed {seed}", style, None

    def referring(to: Portrait) -> Wanted:
        known = KnownFace(to.face)
        style = facestyle.reference_style(to.pixels_HWC, model, to.domain, detector=known)
        return to.name, style, to

    seeds = [latent(domain, seed) for domain in DOMAINS for seed in range(arguments.seeds)]
    spare = [latent(domain, seed) for domain in DOMAINS for seed in range(arguments.seeds, STYLES)]
    latents: list[Result] = []
    varied: list[Result] = []
    references: list[Result] = []
    for person in people:
        print(f"\r{person.name} ", end="", flush=True, file=sys.stderr)
        latents += judge.results(person, seeds)
        varied += judge.results(person, [w for w in spare if w[1].domain != person.domain])
        chosen = [p for d in DOMAINS for p in others(person, people, d, arguments.references)]
        references += judge.results(person, map(referring, chosen))
    pairs = itertools.combinations([embed(person.crop_HWC) for person in people], 2)
    scores = {
        "classifier": trust,
        "latent": by_direction(latents),
        "reference": by_direction(references),
        "diversity": diversity(latents + varied),
        "following": following(references),
        "identity of": {
            "portraits": {
                "strangers": mean(a @ b for a, b in pairs),
                "softened": mean(embed(softened(p.crop_HWC)) @ embed(p.crop_HWC) for p in people),
            }
        },
    }

    # Tables, JSON, sheets.
    print("\n".join(table(title, groups) for title, groups in scores.items()))
    asked = {
        key: getattr(arguments, key) for key in ("seeds", "references", "psi", "detail", "seed")
    }
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    document = {"settings": asked, "portraits": len(people), "sha256": hashes, **scores}
    (work / "scores.json").write_text(json.dumps(document, indent=2) + "\n")
    own = {person: thumbnail(person.pixels_HWC, person, side) for person in people}
    for domain in DOMAINS:
        rows = [
            [own[person], *(r.thumbnail_HWC for r in latents if r.source is person)]
            for person in people
            if person.domain == domain
        ]
        write_sheet(work / f"from-{domain}.png", ["photo", *(w[0] for w in seeds)], rows)
    some, targets = (people[:: max(1, len(people) // n)][:n] for n in MATRIX)
    wanted = [referring(person) for person in targets]
    rows = [[np.full_like(own[people[0]], 255), *(own[person] for person in targets)]]
    rows += [[own[p], *(r.thumbnail_HWC for r in judge.results(p, wanted))] for p in some]
    write_sheet(work / "references.png", ["photo", *(w[0] for w in wanted)], rows)


if __name__ == "__main__":
    main()
