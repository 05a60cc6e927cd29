"""What more than one family is judged by: a discriminator, the non-saturating loss, R1 and a pool
of earlier fakes.

logits_N...  realness, one value a picture or more; x_NCHW  pictures
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.nn.initialisation import he_init

SLOPE = 0.2  # of the judge's leaky ReLU
R1_EVERY = 8  # iterations between two R1 penalties, each as heavy as all (StyleGAN2, appendix B)


class Judge(nn.Module):
    """Picture and domain → realness of its quarters, a branch a domain: StarGAN's trunk, He's
    initialisation (with torch's own a signal is a hundredth after five layers) and no norm.

    Not published. With generators held fast and 200 to 400 iterations of 8 pictures it learns to
    tell theirs from real ones where StarGAN v2's residual discriminator and U-GAT-IT's spectral
    ones still guess: it is for runs of thousands of iterations, not of hundreds of thousands.

    With more than one of its ``levels`` the features of earlier ones are judged too: patches, of
    half the side at each, beside the whole (as U-GAT-IT has local and global discriminators).
    """

    def __init__(self, side: int, width: int, domains: int, levels: int = 1) -> None:
        """``levels``: at most as many as there are halvings of ``side``, down to 2 or 3 px."""
        super().__init__()
        self.main = nn.Sequential()
        wide = 3
        for level in range(side.bit_length() - 2):  # down to 2 px, or 3
            self.main.append(nn.Conv2d(wide, width * 2**level, 4, 2, 1))
            self.main.append(nn.LeakyReLU(SLOPE))
            wide = width * 2**level
        self.main.append(nn.Conv2d(wide, domains, 3, padding=1))
        self.local = nn.ModuleList(
            nn.Conv2d(wide // 2**up, domains, 3, padding=1) for up in range(1, levels)
        )
        he_init(self, SLOPE)

    def forward(self, x_NCHW: Tensor, domain_N: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) pictures, (N,) domain indices → (N, P) logits, one a patch; without
        indices (N, D, P), of every domain. All levels have as many patches, a whole one's
        repeated, and so the same weight in a mean."""
        levels = []
        for layer in self.main:
            x_NCHW = layer(x_NCHW)
            if isinstance(layer, nn.LeakyReLU):
                levels.append(x_NCHW)
        earlier = zip(self.local, reversed(levels[:-1]), strict=False)
        judged = [x_NCHW, *(head(features) for head, features in earlier)]
        finest = judged[-1].shape[2:]
        per_domain_NDP = torch.cat([F.interpolate(x, finest).flatten(2) for x in judged], dim=2)
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


class ReplayPool:
    """Earlier results of a generator, for its discriminator (Shrivastava et al., CVPR 2017).

    While it fills, each result is kept and shown. After that a result is shown, or put in a
    slot from which an earlier one is shown instead, as the batch's own draws say. Several
    processes keep the same pool, that of their whole batch.
    """

    def __init__(self, capacity: int, side: int, device: torch.device) -> None:
        self.pictures_KCHW = torch.zeros(capacity, 3, side, side, device=device)
        self.filled = 0

    def shown(self, fakes_NCHW: Tensor, swap_N: Tensor, slot_N: Tensor) -> Tensor:
        """What the discriminator is shown in place of new results, one picture after the other.

        Swapping is written without a branch: the draws stay on the device, and nobody waits.
        """
        # One result that is not finite must not come back for hundreds of iterations.
        everyones = [_of_all(x) for x in (fakes_NCHW.nan_to_num(), swap_N, slot_N)]
        shown = []
        for fake, swap, slot in zip(*(x.split(1) for x in everyones), strict=True):
            if self.filled < len(self.pictures_KCHW):
                self.pictures_KCHW[self.filled] = fake[0]
                self.filled += 1
                shown.append(fake)
                continue
            old, swaps = self.pictures_KCHW[slot], swap[:, None, None, None] >= 0.5
            self.pictures_KCHW[slot] = torch.where(swaps, fake, old)
            shown.append(torch.where(swaps, old, fake))
        mine = len(fakes_NCHW) * _rank()
        return torch.cat(shown[mine : mine + len(fakes_NCHW)])

    def state_dict(self) -> dict[str, Tensor]:
        """The pictures that it holds."""
        return {"pictures": self.pictures_KCHW[: self.filled].clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The reverse of ``state_dict``."""
        self.filled = len(state["pictures"])
        self.pictures_KCHW[: self.filled] = state["pictures"]


def pool_draws(name: str, capacity: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What the replay pool of a domain will do with one item's result, as parts of the item: a
    swap from 0.5 on, and with which slot."""
    return {
        f"pool_{name}_swap": np.asarray(rng.random(dtype=np.float32)),
        f"pool_{name}_slot": np.asarray(rng.integers(max(1, capacity))),
    }


def drawn(name: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of a batch of such items: the swaps (N,) and the slots (N,), as ``shown`` takes them."""
    return batch[f"pool_{name}_swap"], batch[f"pool_{name}_slot"]


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _of_all(x: Tensor) -> Tensor:
    """The shares that all processes have of a batch, in order; all are of one size."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    shares = [torch.empty_like(x).contiguous() for _ in range(dist.get_world_size())]
    dist.all_gather(shares, x.contiguous())
    return torch.cat(shares)
