"""StarGAN's objective (Choi et al., CVPR 2018, sections 3.1 and 3.3) and training step.

Losses are pure functions of tensors; ``Task`` strings them together in the published order.
Knows nothing of files or attributes' names.

    x_NCHW  source faces, attributes label_NA       target_NA  the attributes to give them
    alpha_N111  where between real and fake the gradient is penalised
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.families.stargan.networks import SLOPE, Discriminator, built_generator
from facestyle.nn.adversarial import R1_EVERY, r1_penalty
from facestyle.nn.augment import moved
from facestyle.nn.initialisation import he_init
from facestyle.nn.painter import SHAPER_WIDTH, costs, halvings, shaping_left, train_half
from facestyle.nn.updates import Optimisers


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained and how; the defaults are the paper's for CelebA."""

    image_size: int = 128
    """Side of the square picture, px; a multiple of 4."""
    crop: int = 178
    """Side of the centre square cut from each file first, px; 0 takes the largest."""
    crop_from: int = 0
    """Shorter side of the pictures that ``crop`` is cut from, px, which says how much larger faces
    are in it, for the card; 0: that of the data, where all is alike."""
    labels: str = "attributes"
    """``attributes``, each on or off for itself; or ``one-hot``, exactly one on (RaFD), as it is
    of folders in any case."""
    even: bool = False
    """Whether pictures and targets are drawn by a random attribute that they have or lack, both as
    often, so that what is rare is seen more often than in the data. Not the published way."""
    g_width: int = 64
    """Channels of the generator's first convolution."""
    g_blocks: int = 6
    """The generator's residual blocks."""
    roughness: float = 0.0
    """Above 0 the generator is a ``painter.Painter``, which makes the change alone; this is the
    weight of what that change costs (``painter.cost``), from 0 up over ``constant_steps``. Not
    the published way."""
    warp: float = 0.0
    """Above 0 the painter moves what is there before it paints (``painter.Shaper``); this is the
    weight of the flow's ``strain``. Not the published way."""
    warp_steps: int = 0
    """Iterations, after the warmup, in which it learns to move, its rate falling to 0; then it
    learns to paint. Side by side nothing would move: painting is quicker to learn."""
    relative: bool = False
    """Whether the generator is given the target less the face's own label: 1 for what is to
    come, -1 for what is to go, 0 for what stays, whatever it is (STGAN's difference attribute
    vector, Liu et al., CVPR 2019). Not the published way."""
    d_width: int = 64
    """Channels of the discriminator's first convolution."""
    d_layers: int = 6
    """The discriminator's halvings; 2^d_layers px at most."""
    g_lr: float = 1e-4
    """Adam's learning rate of the generator."""
    d_lr: float = 1e-4
    """Adam's learning rate of the discriminator."""
    beta1: float = 0.5
    """Adam's first moment."""
    beta2: float = 0.999
    """Adam's second moment."""
    n_critic: int = 5
    """The generator steps every N-th iteration."""
    judge: str = "whole"
    """What D says of a picture: ``whole``, one realness (WGAN-GP, the published way); or
    ``attributes``, for each of them whether it is a real picture that has it, or one that lacks
    it, as StarGAN v2's judges by domain: for few pictures and few iterations. Then half of the
    targets change one attribute alone, D sees augmented pictures and its penalty is R1."""
    mismatch: float = 0.0
    """Weight of what ``attributes`` says of real pictures under the contrary of each label, which
    is as wrong as a fake: D goes on knowing the attributes while fakes change (matching-aware,
    Reed et al., ICML 2016, section 4.2)."""
    warmup_steps: int = 0
    """Iterations first in which D alone learns, from pictures under wrong labels."""
    constant_steps: int = 100_000
    """Iterations at the full learning rates."""
    decay_steps: int = 100_000
    """Iterations after these over which they fall linearly to 0."""
    classify: float = 1.0
    """Weight of the classification loss."""
    reconstruct: float = 10.0
    """Weight of the reconstruction loss."""
    reconstruct_every: int = 1
    """The reconstruction is computed at every N-th of the generator's steps: it costs half."""
    mirror: float = 0.0
    """Weight of how far the result of a mirrored face is from the mirrored result: both eyes
    become alike. Not the published way."""
    penalty: float = 10.0
    """Weight of the gradient penalty."""


def draw_item(
    pictures: Any, config: Config, exclusive: Sequence[Sequence[int]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One picture, its target and its alpha.

    The published targets are the batch's labels permuted; labels of random pictures have the
    same distribution and leave an item independent of its batch.

    Args:
        exclusive: groups of attributes of which a face has one at a time.
    """
    x_CHW, label_A = pictures.load_labelled(rng, config.image_size, config.crop, even=config.even)
    target_A = pictures.label(rng, even=config.even)
    if config.judge == "attributes" and rng.random() < 0.5:
        target_A = one_changed(label_A, exclusive, rng)
    return {
        "x_NCHW": x_CHW,
        "label_NA": label_A,
        "target_NA": target_A,
        "alpha_N111": rng.random((1, 1, 1), np.float32),
    }


def one_changed(
    label_A: np.ndarray, exclusive: Sequence[Sequence[int]], rng: np.random.Generator
) -> np.ndarray:
    """The label with another value of one attribute; of an exclusive group, another one on."""
    changed_A = label_A.copy()
    which = int(rng.integers(len(label_A)))
    for group in exclusive:
        if which in group:
            which = int(rng.choice([one for one in group if not label_A[one]] or [which]))
            changed_A[list(group)] = 0
    changed_A[which] = 1 - label_A[which]
    return changed_A


def judged(realness_NJhw: Tensor, label_NA: Tensor) -> Tensor:
    """(N, A): what D says of each attribute as the label has it, mean over the patches."""
    lacking_NA, having_NA = realness_NJhw.mean(dim=(2, 3)).chunk(2, dim=1)
    return torch.where(label_NA > 0.5, having_NA, lacking_NA)


def realness_loss(judged_NA: Tensor, real: bool) -> Tensor:
    """Cross-entropy toward real or fake, elementwise (StarGAN v2, Choi et al., CVPR 2020)."""
    return F.softplus(-judged_NA if real else judged_NA)


def classification_loss(logits_NA: Tensor, label_NA: Tensor, *, one_hot: bool) -> Tensor:
    """How far logits are from labels, a picture (equations 2 and 3): cross-entropy of one-hot
    labels, else binary cross-entropies summed over the attributes."""
    if one_hot:
        return F.cross_entropy(logits_NA, label_NA.argmax(dim=1))
    total = F.binary_cross_entropy_with_logits(logits_NA, label_NA, reduction="sum")
    return total / len(logits_NA)


def gradient_penalty(realness: Tensor, x_NCHW: Tensor) -> Tensor:
    """(‖∇D(x)‖ - 1)², mean over the batch (equation 8; Gulrajani et al., NeurIPS 2017)."""
    (gradient,) = torch.autograd.grad(realness.sum(), x_NCHW, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def learning_rate_factor(constant_steps: int, decay_steps: int, step: int) -> float:
    """1 for ``constant_steps`` iterations, then linear to 0 over ``decay_steps``."""
    left = constant_steps + decay_steps - step
    return min(1.0, max(0.0, left / decay_steps)) if decay_steps else 1.0


def ailments(losses: Mapping[str, float], guessing: float) -> list[str]:
    """What mean losses say is going wrong, one line each.

    Args:
        guessing: the classification loss of one who knows nothing of the picture.
    """
    found = []
    if losses.get("D/cls", 0.0) > 0.97 * guessing:
        found.append(
            f"D reads no attribute off real pictures (D/cls {losses['D/cls']:.3g}, "
            f"{guessing:.3g} is guessing): do the labels belong to the pictures?"
        )
    elif losses.get("G/cls", 0.0) > guessing:
        found.append(
            f"results do not show the attributes wanted (G/cls {losses['G/cls']:.3g}, "
            f"{guessing:.3g} is guessing): more iterations, or a larger classify, help"
        )
    if losses.get("D/gp", 0.0) > 1:
        found.append(
            f"D's gradients are far from 1 (D/gp {losses['D/gp']:.2g}, usual is under 0.2): "
            "a lower d_lr or a larger penalty helps"
        )
    return found


class Task:
    """StarGAN in training: networks, optimisers, one ``step`` a batch."""

    def __init__(
        self,
        config: Config,
        domains: int,
        *,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        compile: bool = False,
    ) -> None:
        """Fresh networks, initialised as torch does (the published way).

        Args:
            domains: number of attributes.
            bf16: run convolutions under bfloat16 autocast; weights, optimisers, norm statistics,
                losses and the gradient penalty stay in float32.
            compile: compile the networks (the penalty's second derivative runs uncompiled).
        """
        self.config = config
        self.device = torch.device(device)
        self.bf16 = bf16
        self.step_index = 0
        self._guessing = math.log(domains) if config.labels == "one-hot" else domains * math.log(2)
        sizes = {"labels": domains, "width": config.g_width, "blocks": config.g_blocks}
        if config.roughness:
            depth = halvings(config.image_size)
            sizes |= {
                "widest": config.g_width << max(0, depth - 1),
                "depth": depth,
                "shaper": SHAPER_WIDTH if config.warp else 0,
            }
        self._generator: Any = built_generator(sizes)
        self._discriminator = Discriminator(
            attributes=domains,
            width=config.d_width,
            layers=config.d_layers,
            kernel=config.image_size >> config.d_layers,
            judgements=1 if config.judge == "whole" else 2 * domains,
        )
        self.networks: dict[str, nn.Module] = {"G": self._generator, "D": self._discriminator}
        # In fp32 on a CPU torch's own layout, in which it gives the published program's numbers.
        plain = self.device.type == "cpu" and not (compile or bf16) and config.judge == "whole"
        self._layout = torch.contiguous_format if plain else torch.channels_last
        for network in self.networks.values():
            network.to(self.device).to(memory_format=self._layout)
        self.optimisers = Optimisers(
            {
                part: torch.optim.Adam(
                    network.parameters(), lr=lr, betas=(config.beta1, config.beta2), fused=True
                )
                for (part, network), lr in zip(
                    self.networks.items(), (config.g_lr, config.d_lr), strict=True
                )
            }
        )
        if config.judge == "attributes":
            he_init(self._discriminator, SLOPE)
        if compile:
            for network in self.networks.values():
                network.compile(dynamic=False)

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration: the discriminator, and every ``n_critic``-th time the generator."""
        config = self.config
        factor = learning_rate_factor(config.constant_steps, config.decay_steps, self.step_index)
        self.optimisers.set_lr(config.g_lr * (self._shaping_left() or factor), "G")
        self.optimisers.set_lr(config.d_lr * factor, "D")
        x = batch["x_NCHW"].contiguous(memory_format=self._layout)
        warm = self.step_index >= config.warmup_steps
        learns = warm and (self.step_index + 1) % config.n_critic == 0

        # The generator does not change before its own step, so both steps share the fakes.
        self._train_only("G")
        fake = x
        if warm:
            with torch.set_grad_enabled(learns), self._autocast():
                fake = self._generator(
                    x, self._wanted(batch["label_NA"], batch["target_NA"])
                ).float()
        losses = self._discriminator_step(x, fake.detach(), batch)
        if learns:
            losses |= self._generator_step(x, fake, batch)
        self.step_index += 1
        return {name: float(value) for name, value in losses.items()}

    def _discriminator_step(
        self, x: Tensor, fake: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        config = self.config
        self._train_only("D")
        if config.judge == "whole":
            losses, logits = self._judged_whole(x, fake, batch["alpha_N111"])
        else:
            losses, logits = self._judged_by_attribute(x, fake, batch)
        losses["D/cls"] = self._classification(logits, batch["label_NA"])
        total = losses["D/real"] + losses["D/fake"] + config.classify * losses["D/cls"]
        weights = {
            "D/gp": config.penalty,
            "D/r1": config.penalty * R1_EVERY,
            "D/mismatch": config.mismatch,
        }
        for name, weight in weights.items():
            if name in losses:
                total = total + weight * losses[name]
        self.optimisers.update(total, "D")
        return {name: value.detach() for name, value in losses.items()}

    def _judged_whole(
        self, x: Tensor, fake: Tensor, alpha_N111: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        with self._autocast():
            realness, logits = self._discriminator(x)
            realness_fake, _ = self._discriminator(fake)
        between = torch.lerp(fake, x, alpha_N111).requires_grad_()
        # `forward` is the uncompiled call: a compiled one has no second derivative.
        losses = {
            "D/real": -realness.float().mean(),
            "D/fake": realness_fake.float().mean(),
            "D/gp": gradient_penalty(self._discriminator.forward(between)[0], between),
        }
        return losses, logits

    def _judged_by_attribute(
        self, x: Tensor, fake: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        with self._autocast():
            realness, logits = self._discriminator(moved(x))
            realness_fake, _ = self._discriminator(moved(fake))
        real_NA = judged(realness.float(), batch["label_NA"])
        fake_NA = judged(realness_fake.float(), batch["target_NA"])
        losses = {
            "D/real": realness_loss(real_NA, True).mean(),
            "D/fake": realness_loss(fake_NA, False).mean(),
        }
        if self.config.mismatch:
            contrary_NA = judged(realness.float(), 1 - batch["label_NA"])
            losses["D/mismatch"] = realness_loss(contrary_NA, False).mean()
        if self.step_index % R1_EVERY == 0:
            penalised = x.detach().requires_grad_()
            realness = self._discriminator.forward(penalised)[0]
            judgement_NA = judged(realness, batch["label_NA"])
            losses["D/r1"] = r1_penalty(judgement_NA, penalised)
        return losses, logits

    def _generator_step(
        self, x: Tensor, fake: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        config = self.config
        self._train_only("G")
        whole, target = config.judge == "whole", batch["target_NA"]
        with self._autocast():
            realness, logits = self._discriminator(fake if whole else moved(fake))
        if whole:
            losses = {"G/adv": -realness.float().mean()}
        else:
            # What has changed counts as much as all that stays.
            each_NA = realness_loss(judged(realness.float(), target), True)
            changed_NA = (target != batch["label_NA"]).float()
            losses = {"G/adv": each_NA.mean() + (each_NA * changed_NA).sum(dim=1).mean()}
        losses["G/cls"] = self._classification(logits, target)
        total = losses["G/adv"] + config.classify * losses["G/cls"]
        if (self.step_index + 1) // config.n_critic % config.reconstruct_every == 0:
            with self._autocast():
                back = self._generator(fake, self._wanted(target, batch["label_NA"]))
            losses["G/rec"] = (back.float() - x).abs().mean()
            total = total + config.reconstruct * losses["G/rec"]
        wanted = self._wanted(batch["label_NA"], target)
        if config.mirror:
            with self._autocast():
                other = self._generator(x.flip(3), wanted).float().flip(3)
            losses["G/mirror"] = (other - fake).abs().mean()
            total = total + config.mirror * losses["G/mirror"]
        if config.roughness:
            with self._autocast():
                spent = costs(self._generator, x, wanted, fake)
            losses |= {f"G/{name}": value for name, value in spent.items()}
            risen = min(1.0, self.step_index / max(1, config.constant_steps))
            if self._shaping_left():
                total = total + config.warp * spent["warp"]
            else:
                total = total + config.roughness * risen * spent["rough"]
        self.optimisers.update(total, "G")
        return {name: value.detach() for name, value in losses.items()}

    def _shaping_left(self) -> float:
        config = self.config
        steps = config.warp_steps if config.warp else 0
        return shaping_left(config.warmup_steps, steps, self.step_index)

    def _wanted(self, has_NA: Tensor, target_NA: Tensor) -> Tensor:
        """What the generator is told of faces that have one label and are to have another."""
        return target_NA - has_NA if self.config.relative else target_NA

    def _classification(self, logits_NA: Tensor, label_NA: Tensor) -> Tensor:
        one_hot = self.config.labels == "one-hot"
        return classification_loss(logits_NA.float(), label_NA, one_hot=one_hot)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _train_only(self, part: str) -> None:
        """Gradients for one network alone: what a step does not update costs nothing."""
        config = self.config
        for name, network in self.networks.items():
            network.requires_grad_(name == part)
        if part == "G" and config.warp:
            train_half(self._generator, shaping=self._shaping_left() > 0)

    def ailments(self, losses: Mapping[str, float]) -> list[str]:
        """See ``ailments``."""
        return ailments(losses, self._guessing)

    def model_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The finished model; the discriminator tells a picture's own attributes."""
        return {part: network.state_dict() for part, network in self.networks.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on."""
        return {
            "step": self.step_index,
            "networks": self.model_parts(),
            "optimisers": self.optimisers.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of ``state_dict``; strict."""
        self.step_index = state["step"]
        for part, network in self.networks.items():
            network.load_state_dict(state["networks"][part])
        self.optimisers.load_state_dict(state["optimisers"])
