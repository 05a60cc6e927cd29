"""RetinaFace (Deng et al. 2019, arXiv:1905.00641), with facexlib's network and its files.

Knows the priors and their decoding, and tells the two published networks (mobile0.25,
resnet50) apart by the names in the file. Knows nothing of facexlib's downloader, global
device and picture handling, which it goes around. The one detector that needs torch, which
is imported where a detector is made.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from facestyle.errors import CheckpointError, UsageError
from facestyle.faces import Face

if TYPE_CHECKING:
    import torch

LONGER_SIDE = 800
"""In px, what the picture's longer side is scaled down to. A face that fills such a picture
is still found as one; from some 960 px on it falls to pieces (the largest prior is 512 px).
The smallest face is 16 px there, a fiftieth of the picture."""

STRIDES = (8, 16, 32)
PRIOR_SIDES = ((16, 32), (64, 128), (256, 512))
"""Sides in px of the two square priors in each cell of each stride, as trained."""

VARIANCES = (0.1, 0.2)
"""Units of the network's offsets (in priors) and log sizes, inherited from SSD."""

MEAN_BGR = (104.0, 117.0, 123.0)
"""Taken off each pixel, in 0..255, as trained."""

LOWEST_SCORE = 0.3
"""Where candidates begin, so that an error can name a near miss."""

OVERLAP = 0.4
"""Intersection over union from which two boxes are one face, as in facexlib."""

NETWORKS = {"body.stage1.0.0.weight": "mobile0.25", "body.layer1.0.conv1.weight": "resnet50"}
"""facexlib's name of a network by a key that only its files hold."""


class RetinaFaceDetector:
    """A ``Detector`` on one of facexlib's two files."""

    name = "retinaface"
    threshold = 0.9
    """Its scores are all or nothing: faces above 0.97 (facexlib's own fixed threshold, which
    loses some turned ones), a few things that are none up to 0.8."""

    def __init__(self, path: Path | str, device: str = "cpu") -> None:
        """Read the file and put the network on ``device``.

        Raises:
            CheckpointError: the file is none of the two.
            UsageError: facexlib is not installed.
        """
        import torch

        self._device = torch.device(device)
        self._network = _network(Path(path), self._device)

    def candidates(self, picture_HWC: np.ndarray) -> list[Face]:
        """See ``Detector``."""
        height, width = picture_HWC.shape[:2]
        scale = min(LONGER_SIDE / max(height, width), 1.0)
        small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
        small_HWC = cv2.resize(
            picture_HWC, (small_width, small_height), interpolation=cv2.INTER_AREA
        )
        scores_P, offsets_P4, points_P10 = self._run(small_HWC)

        # Decode what is left of the priors.
        seen_P = scores_P > LOWEST_SCORE
        scores_N, offsets_N4 = scores_P[seen_P], offsets_P4[seen_P]
        priors_N4 = priors(small_height, small_width)[seen_P]
        centre_N2, side_N2 = priors_N4[:, :2], priors_N4[:, 2:]
        points_N52 = centre_N2[:, None] + VARIANCES[0] * side_N2[:, None] * points_P10[
            seen_P
        ].reshape(-1, 5, 2)
        size_N2 = side_N2 * np.exp(VARIANCES[1] * offsets_N4[:, 2:])
        corner_N2 = centre_N2 + VARIANCES[0] * side_N2 * offsets_N4[:, :2] - size_N2 / 2

        # Each axis by its own ratio: rounding a thin picture's short side is no small change.
        ratio_2 = np.array([width / small_width, height / small_height], np.float32)
        sides_N4 = np.hstack([corner_N2 * ratio_2, size_N2 * ratio_2])
        kept = cv2.dnn.NMSBoxes(sides_N4.tolist(), scores_N.tolist(), LOWEST_SCORE, OVERLAP)
        return [
            Face(
                box=(*sides_N4[n, :2].tolist(), *(sides_N4[n, :2] + sides_N4[n, 2:]).tolist()),
                landmarks_52=(points_N52[n] * ratio_2).astype(np.float32),
                score=float(scores_N[n]),
            )
            for n in kept
        ]

    def _run(self, small_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Score, four offsets and ten point offsets of every prior."""
        import torch

        picture_CHW = (small_HWC[..., ::-1] - np.array(MEAN_BGR, np.float32)).transpose(2, 0, 1)
        picture_1CHW = torch.from_numpy(np.ascontiguousarray(picture_CHW))[None].to(self._device)
        with torch.inference_mode():
            offsets_1P4, scores_1P2, points_1P10 = self._network(picture_1CHW)
        return (
            scores_1P2[0, :, 1].cpu().numpy(),
            offsets_1P4[0].cpu().numpy(),
            points_1P10[0].cpu().numpy(),
        )


def priors(height: int, width: int) -> np.ndarray:
    """Centre x, y and side, side in px of every prior (P, 4), in the network's order.

    >>> priors(8, 16)[:3].tolist()
    [[4.0, 4.0, 16.0, 16.0], [4.0, 4.0, 32.0, 32.0], [12.0, 4.0, 16.0, 16.0]]
    """
    levels = []
    for stride, sides in zip(STRIDES, PRIOR_SIDES, strict=True):
        y_Q, x_Q = np.mgrid[: -(-height // stride), : -(-width // stride)].reshape(2, -1)
        level_Q24 = np.empty((len(y_Q), 2, 4), np.float32)
        level_Q24[..., 0] = (x_Q[:, None] + 0.5) * stride
        level_Q24[..., 1] = (y_Q[:, None] + 0.5) * stride
        level_Q24[..., 2:] = np.array(sides)[:, None]
        levels.append(level_Q24.reshape(-1, 4))
    return np.concatenate(levels)


def _network(path: Path, device: torch.device) -> torch.nn.Module:
    """facexlib's network with the weights of a file."""
    weights = _weights(path)
    kind = next((kind for key, kind in NETWORKS.items() if key in weights), None)
    if kind is None:
        raise _refusal(path, f"holds {next(iter(weights), 'nothing')} and so on")
    try:
        from facexlib.detection.retinaface import RetinaFace
    except ImportError as error:
        raise UsageError(
            "the detector retinaface needs facexlib, which is not installed",
            "pip install facexlib, or choose another detector",
        ) from error
    with warnings.catch_warnings():
        # facexlib still says pretrained=False to torchvision.
        warnings.simplefilter("ignore", UserWarning)
        network: torch.nn.Module = RetinaFace(network_name=kind, device=device)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            problem = f"{name}: found {found.get(name)}, expected {expected.get(name)}"
            raise _refusal(path, f"does not fit RetinaFace {kind} ({problem})")
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    return network


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, without the ``module.`` that DataParallel left on their names."""
    import torch

    if not path.is_file():
        raise _refusal(path, "is no file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint end in whatever exception the unpickler meets first.
        raise _refusal(path, "is no file of tensors alone") from error
    if not isinstance(loaded, dict) or not all(map(torch.is_tensor, loaded.values())):
        raise _refusal(path, "is no plain state dict")
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def _refusal(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {found}; expected facexlib's detection_mobilenet0.25_Final.pth or "
        "detection_Resnet50_Final.pth",
        "fetch it again, or choose another detector",
    )
