"""The guided filter: a coarse map that ends where a picture's edges are. No torch.

He, Sun, Tang, Guided Image Filtering (PAMI 2013), for a guide of one value a pixel and of three. As
in its fast variant (2015), coefficients are found at a small size and laid over the large picture.
"""

from __future__ import annotations

import cv2
import numpy as np

from facestyle.faces.align import Floats


def coefficients(
    guide_HWC: Floats, target_HWK: Floats, radius: float, eps: float
) -> tuple[Floats, Floats]:
    """gain (H, W, C, K) and offset (H, W, K) with target ≈ guide · gain + offset in every window.

    Args:
        radius: of the window, share of the side.
        eps: variance below which the guide counts as flat.
    """
    size = 2 * max(1, round(radius * len(guide_HWC))) + 1

    def mean(x: Floats) -> Floats:
        flat = x.reshape(*x.shape[:2], -1)
        blurred = cv2.blur(flat, (size, size), borderType=cv2.BORDER_REFLECT_101)
        return np.asarray(blurred, np.float32).reshape(x.shape)

    mean_guide, mean_target = mean(guide_HWC), mean(target_HWK)
    # Of each pixel's window, channels by channels and channels by targets.
    variance = mean(guide_HWC[..., :, None] * guide_HWC[..., None, :])
    variance -= mean_guide[..., :, None] * mean_guide[..., None, :]
    variance += eps * np.eye(guide_HWC.shape[2], dtype=np.float32)
    covariance = mean(guide_HWC[..., :, None] * target_HWK[..., None, :])
    covariance -= mean_guide[..., :, None] * mean_target[..., None, :]
    gain = np.linalg.solve(variance, covariance)
    return mean(gain), mean(mean_target - np.einsum("hwc,hwck->hwk", mean_guide, gain))


def follow(guide_HWC: Floats, gain_HWCK: Floats, offset_HWK: Floats) -> Floats:
    """(H, W, K) the target that a guide predicts; for one larger than that which the coefficients
    were fitted to, enlarge them first."""
    return np.asarray(np.einsum("hwc,hwck->hwk", guide_HWC, gain_HWCK) + offset_HWK, np.float32)
