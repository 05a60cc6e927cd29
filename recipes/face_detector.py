r"""Train the face detector that ships with facestyle (``weights/face_detector.onnx``).

    python recipes/face_detector.py --faces ../shared/faces \
        --teacher ../shared/weights/face_detection_yunet_2026may.onnx \
        --photos ../shared/photos --out weights/face_detector.onnx

Aligned face crops are all we have, and no photograph with small faces in it. So:

1. A teacher (YuNet) labels each crop once: a box and five points, the mean over three
   sizes and both mirrorings, because its answers differ by some 5 % of the eye distance
   from one size to the next. Crops on which it does not agree with itself are dropped.
2. Scenes are made up on the fly: crops pasted at all sizes and some angles into patchworks
   of other crops without their faces, drawn textures, skin-coloured blobs and shapes.
3. A small anchor-free network learns them: per cell of strides 8, 16 and 32 a score, a box
   and five points, as in YuNet, SCRFD and FCOS, all in px of the picture.
4. It is exported as one ONNX file from a uint8 picture to decoded candidates, so that who
   runs it (``facestyle/faces/builtin.py``) knows neither strides nor normalisation.

The same seed and arguments give the same scenes in the same order. On two idle CPU cores the
labels take 8 minutes (once: ``--labels``) and 1000 steps take 3. Knows nothing of
``facestyle.training``: a detector is no translator.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from face_net import FaceNet, loss
from face_scenes import Materials, Scenes, decode, labelled, read_zip, scene
from torch import Tensor, nn
from torch.utils.data import DataLoader

from facestyle.faces import Face
from facestyle.faces.builtin import BuiltinDetector
from facestyle.faces.yunet import YuNetDetector


def train(
    materials: Materials, steps: int, batch: int, rate: float, seed: int, start: Path | None
) -> FaceNet:
    """The network's moving average after ``steps`` batches of made-up scenes."""
    torch.manual_seed(seed)
    net = FaceNet().to(memory_format=torch.channels_last).train()
    if start is not None:
        net.load_state_dict(torch.load(start, weights_only=True))
    average = FaceNet().requires_grad_(False)
    average.load_state_dict(net.state_dict())
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters")
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
    )
    scenes = DataLoader(
        Scenes(materials, batch, seed), batch_size=None, num_workers=1, prefetch_factor=8
    )
    started, sums = time.monotonic(), {"score": 0.0, "box": 0.0, "points": 0.0}
    for step, (pictures_NHWC, boxes_NK4, points_NK52) in zip(
        range(1, steps + 1), scenes, strict=False
    ):
        warm_up = min(1.0, step / 300)
        for group in optimiser.param_groups:
            group["lr"] = rate * warm_up * (0.01 + 0.495 * (1 + math.cos(math.pi * step / steps)))
        pictures_NCHW = pictures_NHWC.permute(0, 3, 1, 2).float()
        with torch.autocast("cpu", torch.bfloat16):
            levels = net.look(pictures_NCHW)
        losses = loss(net.read(levels), boxes_NK4, points_NK52)
        optimiser.zero_grad(set_to_none=True)
        (losses["score"] + losses["box"] + losses["points"]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimiser.step()

        # Update the moving average, of the normalisation's statistics too.
        decay = min(0.998, step / (step + 20))
        for mean, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            mean.lerp_(new, 1 - decay) if mean.is_floating_point() else mean.copy_(new)
        sums = {name: sums[name] + value.item() for name, value in losses.items()}
        if step % 200 == 0 or step == steps:
            means = "  ".join(f"{name} {value / 200:.4f}" for name, value in sums.items())
            print(f"step {step}/{steps}  {time.monotonic() - started:.0f} s  {means}", flush=True)
            sums = dict.fromkeys(sums, 0.0)
    return average.eval()


class Exported(nn.Module):
    """What the file holds: a uint8 picture in, scores, boxes and points in its px out."""

    def __init__(self, net: FaceNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, picture_HWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sides are multiples of 32."""
        logits_1C, boxes_1C4, points_1C52 = self.net(picture_HWC.permute(2, 0, 1)[None].float())
        return logits_1C[0].sigmoid(), boxes_1C4[0], points_1C52[0]


def export(net: FaceNet, path: Path, notes: dict[str, str]) -> None:
    """One ONNX file with ``notes`` in its metadata."""
    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")
    program = torch.onnx.export(
        Exported(net).eval(),
        (torch.zeros(96, 128, 3, dtype=torch.uint8),),
        input_names=["picture_HWC"],
        output_names=["scores_C", "boxes_C4", "points_C52"],
        dynamic_shapes={"picture_HWC": {0: 32 * rows, 1: 32 * columns}},
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, notes)
    model.doc_string = ""
    for node in model.graph.node:  # Traces of this machine's paths, and a third of the file.
        del node.metadata_props[:]
        node.doc_string = ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def overlap(one: Face, two: Face) -> float:
    """Intersection over union of two faces' boxes."""
    one_22, two_22 = np.reshape(one.box, (2, 2)), np.reshape(two.box, (2, 2))
    inner_2 = np.minimum(one_22[1], two_22[1]) - np.maximum(one_22[0], two_22[0])
    inner = float(np.maximum(inner_2, 0).prod())
    return inner / (one.area + two.area - inner)


def eye_errors(found: Face, true: Face) -> np.ndarray:
    """Distance of each eye from the true one, in % of the true distance of the eyes."""
    left_2, right_2 = true.landmarks_52[:2]
    away_2 = np.linalg.norm(found.landmarks_52[:2] - true.landmarks_52[:2], axis=1)
    return 100 * away_2 / np.linalg.norm(right_2 - left_2)


def compare(pairs: list[tuple[list[Face], list[Face]]], threshold: float) -> str:
    """One line on (candidates, true faces) of several pictures."""
    hits, faces, false, errors = 0, 0, 0, [np.empty(0)]
    for candidates, true in pairs:
        found = [face for face in candidates if face.score >= threshold]
        for face in true:
            best = max(found, key=lambda one: overlap(one, face), default=None)
            if best is not None and overlap(best, face) > 0.35:
                hits += 1
                errors.append(eye_errors(best, face))
        faces += len(true)
        false += sum(all(overlap(one, face) <= 0.35 for face in true) for one in found)
    errors_E = np.concatenate(errors)
    middle, high = np.percentile(errors_E, (50, 90)) if len(errors_E) else (math.nan, math.nan)
    return (
        f"score {threshold:.1f}: {hits} of {faces} faces, {false} false, "
        f"eye error {middle:.1f} % median, {high:.1f} % 90th percentile"
    )


def evaluate(
    path: Path, held_out: Materials, photos: Path | None, teacher: YuNetDetector, seed: int
) -> None:
    """Print how the exported file does on held-out scenes and on photographs."""
    detector = BuiltinDetector(path)
    rng = np.random.default_rng(seed + 1)
    pairs = []
    for _ in range(300):
        picture_HWC, boxes_K4, points_K52 = scene(held_out, rng)
        true = [
            Face(box=tuple(box.tolist()), landmarks_52=points, score=1.0)
            for box, points in zip(boxes_K4, points_K52, strict=True)
            if not np.isnan(box[0])
        ]
        pairs.append((detector.candidates(picture_HWC), true))
    for low, high in ((11, 20), (20, 40), (40, 80), (80, 160), (160, 260)):
        of_size = [
            (found, [face for face in true if low**2 <= face.area / 0.8 < high**2])
            for found, true in pairs
        ]
        line = compare(of_size, detector.threshold).split(", ")
        print(f"made-up scenes, faces of {low}-{high} px: {line[0]}, {', '.join(line[2:])}")
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7):
        print(f"made-up scenes, all: {compare(pairs, threshold)}")
    if photos is None:
        return
    pairs = []
    for photo in sorted(photos.glob("*.*")):
        picture_HWC = decode(photo.read_bytes())
        true = [face for face in teacher.candidates(picture_HWC) if face.score >= teacher.threshold]
        pairs.append((detector.candidates(picture_HWC), true))
        print(f"{photo.name}: {compare(pairs[-1:], detector.threshold)}")
    portraits = [pair for pair in pairs if len(pair[1]) < 3]
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7):
        print(f"portraits: {compare(portraits, threshold)}")


def main() -> None:
    """Label, train, export, evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--faces", type=Path, required=True, help="folder of celeba10k.zip, utk8k.zip, anime4k.zip")
    add("--teacher", type=Path, required=True, help="YuNet's ONNX file")
    add("--photos", type=Path, help="photographs to evaluate on, never trained on")
    add("--backgrounds", type=Path, help="photographs without faces, for backgrounds")
    add("--labels", type=Path, help="where the teacher's answers are kept (.npy)")
    add("--out", type=Path, default=Path("weights/face_detector.onnx"))
    add("--start", type=Path, help="an earlier run's --state (.pt), to go on from")
    add("--state", type=Path, help="where the trained network is kept for a later --start (.pt)")
    add("--steps", type=int, default=8000)
    add("--batch", type=int, default=32)
    add("--rate", type=float, default=4e-3, help="AdamW's largest learning rate")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1, help="for the network; scenes take one more process")
    add("--only-evaluate", action="store_true", help="leave --out as it is and measure it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)

    teacher = YuNetDetector(options.teacher)
    pictures = [
        p for name in ("celeba10k", "utk8k") for p in read_zip(options.faces / f"{name}.zip")
    ]
    crops = labelled(pictures, teacher, options.labels)
    print(f"{len(crops.pictures)} of {len(pictures)} crops labelled")
    learned, held_out = crops.split()
    drawings = read_zip(options.faces / "anime4k.zip")
    backgrounds = sorted(options.backgrounds.iterdir()) if options.backgrounds else []
    photographs = [decode(path.read_bytes()) for path in backgrounds]

    if not options.only_evaluate:
        materials = Materials(learned, drawings, photographs)
        net = train(
            materials, options.steps, options.batch, options.rate, options.seed, options.start
        )
        if options.state is not None:
            torch.save(net.state_dict(), options.state)
        notes = card(options, len(learned.pictures), [path.stem for path in backgrounds])
        export(net, options.out, notes)
        print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    evaluate(options.out, Materials(held_out, drawings, []), options.photos, teacher, options.seed)


def card(options: argparse.Namespace, crops: int, photographs: list[str]) -> dict[str, str]:
    """What the file says about itself."""
    return {
        "name": "facestyle built-in face detector",
        "licence": "research only, as its training data (CelebA, UTKFace) is",
        "trained_on": json.dumps(
            {
                "face crops of celeba10k and utk8k": crops,
                "labels": "YuNet 2026may, mean over three sizes and mirroring",
                "shreds of anime4k drawings": "as background",
                "pictures without faces as background": photographs,
            }
        ),
        "seed": str(options.seed),
        "steps": f"{options.steps} of {options.batch} scenes",
        "command": (
            "python recipes/face_detector.py --faces FACES --teacher YUNET "
            + ("--backgrounds FOLDER " if photographs else "")
            + ("--start STATE " if options.start else "")
            + f"--steps {options.steps} --batch {options.batch} --rate {options.rate:g} "
            f"--seed {options.seed} --threads {options.threads}"
        ),
        "input": "picture_HWC: uint8 RGB, height and width multiples of 32",
        "output": (
            "a candidate a cell, in px of the input: scores_C in [0, 1]; boxes_C4 left, top, "
            "right, bottom; points_C52 eye, eye, nose, mouth corner, mouth corner, "
            "the picture's left first"
        ),
    }


if __name__ == "__main__":
    main()
