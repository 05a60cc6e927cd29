"""What is measured on crops, embeddings and features: arrays in, plain numbers out.

Knows no model, no file and no classifier.

    crop_HWC  uint8 RGB, 112 px, aligned by five landmarks      embedding_E  of length 1
    ..._NE    N of them      ..._NLab  mean colours      features_ND  of any length
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

INNER = (slice(24, 112), slice(12, 100))
"""Rows and columns of a crop that UTKFace's tight pictures cover as well: forehead to chin."""

RINGS = 12  # contours of the mask on which a seam is looked for
SIGMA = 1.0  # px in which gradients are taken

Scores = dict[str, float]


def mean(values: Iterable[Any]) -> float:
    """A plain number for JSON."""
    return round(float(np.mean(list(values))), 4)


# --- Colour ----------------------------------------------------------------------------


def lab(crop_HWC: np.ndarray) -> np.ndarray:
    """The inner face in CIE L*a*b*, whose distances are near to seen ones."""
    return cv2.cvtColor(crop_HWC[INNER].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def change(crop_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    """Mean distance of the inner face's colours, CIE76; 2 is just seen, 10 at a glance."""
    return float(np.linalg.norm(lab(crop_HWC) - lab(other_HWC), axis=2).mean())


def apart(pictures_NHWC: np.ndarray, others_NHWC: np.ndarray) -> float:
    """Mean absolute difference of pixels, 0 to 255."""
    return mean([np.abs(pictures_NHWC.astype(np.int16) - others_NHWC).mean()])


def following(groups: Sequence[np.ndarray]) -> Scores:
    """Whether the face's mean colour goes where the reference's is, for L*, a* and b*.

    Correlation and the share that is nearer to its own reference than to the other ones are
    within a group, so that the photo's own colour has no part in them.

    Args:
        groups: one photo in one domain each, (K references, 3, Lab): of the result, of the
            reference and of the photo.
    """
    nearest: list[bool] = []
    for colours_K33 in groups:
        apart_KK = np.linalg.norm(colours_K33[:, None, 0] - colours_K33[:, 1], axis=2)
        nearest += list(apart_KK.argmin(axis=1) == np.arange(len(colours_K33)))
    moves_33N = np.concatenate([g - g.mean(axis=0) for g in groups]).transpose(1, 2, 0)
    r_3 = [np.corrcoef(moves_33N[0, i], moves_33N[1, i])[0, 1] for i in range(3)]
    result_NLab, reference_NLab, photo_NLab = np.concatenate(groups).transpose(1, 0, 2)
    return {
        "count": len(nearest),
        **{f"r_{name}": mean([r]) for name, r in zip("Lab", r_3, strict=True)},
        "own_nearest": mean(nearest),
        "distance": mean(np.linalg.norm(result_NLab - reference_NLab, axis=1)),
        "of_source": mean(np.linalg.norm(photo_NLab - reference_NLab, axis=1)),
    }


# --- Seams -----------------------------------------------------------------------------


def seam(result_HWC: np.ndarray, source_HWC: np.ndarray, mask_HW: np.ndarray) -> float:
    """Gradient across the mask's contours, result over source, on the worst of them; the source is
    what the result was pasted into.

    The contours divide the mask's edge (where it is between 0 and 1) into rings, because a
    visible seam is a thin line and would drown in the mean over a wide edge. 1 is no seam; on
    the portraits a hard step of 15 grey levels gives 1.26, one of 40 that is feathered 1.06.
    """
    normal_HW2 = _gradient(mask_HW)
    normal_HW2 /= np.linalg.norm(normal_HW2, axis=2, keepdims=True) + 1e-9
    ring_HW = np.where((mask_HW > 0) & (mask_HW < 1), (mask_HW * RINGS).astype(int), RINGS)
    means = []
    for picture_HWC in (result_HWC, source_HWC):
        grey_HW = cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
        across_HW = np.abs((_gradient(grey_HW) * normal_HW2).sum(axis=2))
        means.append(np.bincount(ring_HW.ravel(), across_HW.ravel(), RINGS + 1)[:RINGS] + 1e-9)
    return float((means[0] / means[1]).max())


def _gradient(values_HW: np.ndarray) -> np.ndarray:
    """(H, W, 2) along x and y."""
    smooth_HW = cv2.GaussianBlur(values_HW, (0, 0), SIGMA)
    return np.stack([cv2.Sobel(smooth_HW, cv2.CV_32F, 1 - i, i) for i in (0, 1)], axis=2)


# --- Embeddings and features -----------------------------------------------------------


def diversity(groups: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> Scores:
    """Mean distance of all pairs within a group: 1 - cosine, and pixels of the inner face.

    Args:
        groups: one photo in several styles each, as (embedding_E, crop_HWC).
    """
    pairs = [pair for group in groups for pair in itertools.combinations(group, 2)]
    return {
        "count": len(pairs),
        "embedding": mean(1 - a_E @ b_E for (a_E, _), (b_E, _) in pairs),
        "pixels": mean(cv2.absdiff(a, b)[INNER].mean() for (_, a), (_, b) in pairs),
    }


def strangers(embeddings_NE: np.ndarray) -> float:
    """Mean cosine of two different ones."""
    count, cosines_NN = len(embeddings_NE), embeddings_NE @ embeddings_NE.T
    return mean([(cosines_NN.sum() - np.trace(cosines_NN)) / (count * (count - 1))])


def kid(features_ND: np.ndarray, features_MD: np.ndarray) -> float:
    """How far two sets of features are apart: the estimator of the kernel inception distance.

    Binkowski et al. 2018, section 4: the squared maximum mean discrepancy under the kernel
    (x·y / D + 1)³, without bias, so that two sets of one distribution give 0 on the mean over
    draws, a single draw a little more or less. It is comparable only on the same features.
    """

    def kernel(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
        return (x_ND.astype(np.float64) @ y_MD.astype(np.float64).T / x_ND.shape[1] + 1) ** 3

    def within(x_ND: np.ndarray) -> float:
        alike_NN, count = kernel(x_ND, x_ND), len(x_ND)
        return float((alike_NN.sum() - np.trace(alike_NN)) / (count * (count - 1)))

    across = float(kernel(features_ND, features_MD).mean())
    return within(features_ND) + within(features_MD) - 2 * across
