"""What teaches the discriminators of more than one family: the non-saturating loss and R1.

logits_N...  realness, one value a picture or more; x_NCHW  pictures
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

R1_EVERY = 8  # iterations between two R1 penalties, each as heavy as all (StyleGAN2, appendix B)


def cross_entropy(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of logits toward 1 (``real``) or 0, mean over all of them."""
    return F.softplus(-logits if real else logits).mean()


def r1_penalty(judgement_N: Tensor, x_NCHW: Tensor) -> Tensor:
    """0.5 · ‖∇D(x)‖², mean over the batch, of real pictures (Mescheder et al., ICML 2018).

    Its weight should follow the size: 0.0002 · pixels of a picture / pictures of a batch
    (StyleGAN2's program). Ten times as much, and a discriminator learns next to nothing.
    """
    (gradient,) = torch.autograd.grad(judgement_N.sum(), x_NCHW, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()
