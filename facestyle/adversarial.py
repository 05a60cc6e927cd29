"""What more than one family is judged by: a discriminator, the non-saturating loss and R1.

logits_N...  realness, one value a picture or more; x_NCHW  pictures
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.initialisation import he_init

SLOPE = 0.2  # of the judge's leaky ReLU
R1_EVERY = 8  # iterations between two R1 penalties, each as heavy as all (StyleGAN2, appendix B)


class Judge(nn.Module):
    """Picture and domain → realness of its quarters, a branch a domain: StarGAN's trunk, He's
    initialisation (with torch's own a signal is a hundredth after five layers) and no norm.

    Not published. With generators held fast and 200 to 400 iterations of 8 pictures it learns to
    tell theirs from real ones where StarGAN v2's residual discriminator and U-GAT-IT's spectral
    ones still guess: it is for runs of thousands of iterations, not of hundreds of thousands.
    """

    def __init__(self, side: int, width: int, domains: int) -> None:
        super().__init__()
        self.main = nn.Sequential()
        wide = 3
        for level in range(side.bit_length() - 2):  # down to 2 px, or 3
            self.main.append(nn.Conv2d(wide, width * 2**level, 4, 2, 1))
            self.main.append(nn.LeakyReLU(SLOPE))
            wide = width * 2**level
        self.main.append(nn.Conv2d(wide, domains, 3, padding=1))
        he_init(self, SLOPE)

    def forward(self, x_NCHW: Tensor, domain_N: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) pictures, (N,) domain indices → (N, P) logits, one a patch; without
        indices (N, D, P), of every domain."""
        per_domain_NDP: Tensor = self.main(x_NCHW).flatten(2)
        return per_domain_NDP if domain_N is None else of_domain(per_domain_NDP, domain_N)


def of_domain(per_domain_NDP: Tensor, domain_N: Tensor) -> Tensor:
    """(N, P): of each picture what its domain's branch says."""
    return per_domain_NDP[torch.arange(len(domain_N), device=domain_N.device), domain_N]


def cross_entropy(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of logits toward 1 (``real``) or 0, mean over all of them."""
    return F.softplus(-logits if real else logits).mean()


def r1_penalty(logits: Tensor, x_NCHW: Tensor) -> Tensor:
    """0.5 · ‖∇D(x)‖², mean over the batch, of real pictures (Mescheder et al., ICML 2018); D is
    the mean of a picture's logits, where it has more than one.

    Its weight should follow the size: 0.0002 · pixels of a picture / pictures of a batch
    (StyleGAN2's program). Ten times as much, and a discriminator learns next to nothing.
    """
    judgement_N = logits.reshape(len(logits), -1).mean(dim=1)
    (gradient,) = torch.autograd.grad(judgement_N.sum(), x_NCHW, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()
