"""How StarGAN v2 is trained (Choi et al., CVPR 2020, section 3.2 and appendix B).

Losses are pure functions of networks and tensors; ``Task`` strings them together in the
published order and owns the optimisers. Knows nothing of files, folders or progress bars.

    x_NCHW  source faces, domain y_N        ref_NCHW, ref2_NCHW  two references of y_ref_N
    z_NL, z2_NL  latent codes for y_ref_N   s_NS  style codes
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.faces.paste import LUMA, TONE_COLOUR, TONE_SIGMA
from facestyle.families.stargan_v2.networks import (
    Discriminator,
    MappingNetwork,
    Sizes,
    StyleEncoder,
    built_generator,
    high_pass_masks,
    landmark_heatmaps,
)
from facestyle.nn.adversarial import Judge, cross_entropy, r1_penalty
from facestyle.nn.augment import diff_augment
from facestyle.nn.initialisation import he_init
from facestyle.nn.painter import SHAPER_WIDTH, Painter, costs, shaping_left, train_half
from facestyle.nn.updates import Optimisers

if TYPE_CHECKING:
    from facestyle.training.data import LabelledPictures

Masks = tuple[()] | tuple[tuple[Tensor, Tensor]]  # a generator's third argument, or none
Losses = dict[str, Tensor]
Batch = Mapping[str, Tensor]  # by the names of the legend


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained and how; the defaults are the paper's for AFHQ-like data."""

    image_size: int = 256
    """Side of the square picture, px; a power of two from 16 to 1024."""
    first_width: int = 64
    """Channels of the first convolution; the published rule is 2^14 / image_size."""
    max_width: int = 512
    """Widest convolution."""
    mapping_width: int = 512
    """Hidden width of the mapping network."""
    latent_dim: int = 16
    """Width of the latent code."""
    style_dim: int = 64
    """Width of the style code."""
    roughness: float = 0.0
    """Above 0 the generator is a ``painter.Painter``, which makes the change alone; this is the
    weight of what that change costs (``painter.cost``). Not the published way."""
    roughness_steps: int = 0
    """Iterations over which that weight rises from 0."""
    blocks: int = 4
    """A painter's residual blocks at its smallest side."""
    warp: float = 0.0
    """Above 0 the painter moves what is there before it paints (``painter.Shaper``); this is the
    weight of the flow's ``strain``. Not the published way."""
    warp_steps: int = 0
    """Iterations, after the warmup, in which it learns to move, its rate falling to 0; then it
    learns to paint. Side by side nothing would move: painting is quicker to learn."""
    w_hpf: float = 0.0
    """High-pass weight: 1 on CelebA-HQ (needs wing.ckpt), 0 elsewhere."""
    lr: float = 1e-4
    """Adam's learning rate of generator, style encoder and discriminator."""
    mapping_lr: float = 1e-6
    """Adam's learning rate of the mapping network."""
    beta2: float = 0.99
    """Adam's second moment; the first is 0."""
    weight_decay: float = 1e-4
    """L2 inside Adam (not AdamW)."""
    r1: float = 1.0
    """Weight of the R1 penalty. What is right grows with the pixels and falls with the batch
    (StyleGAN2: 0.0002 pixels / batch)."""
    r1_every: int = 1
    """Apply R1 every N-th iteration, N times as strong (lazy regularisation, StyleGAN2); 1 is
    the published way."""
    judge: str = "residual"
    """Who tells real from made: ``residual``, the paper's discriminator; or ``plain``, strided
    convolutions (``adversarial.Judge``), which learn in hundreds of iterations, and of which then
    the style encoder is too. Not the published way."""
    judge_width: int = 16
    """Channels of the plain one's first convolution."""
    warmup_steps: int = 0
    """Iterations first in which the discriminator alone learns. Not the published way."""
    style: float = 1.0
    """Weight of the style reconstruction loss."""
    diversity: float = 1.0
    """First weight of the diversity loss; 2 on AFHQ."""
    diversity_steps: int = 100_000
    """Iterations over which the diversity weight falls to 0."""
    cycle: float = 1.0
    """Weight of the cycle loss."""
    mirror: float = 0.0
    """Weight of how far the result of a mirrored source is from the mirrored result: both eyes
    become alike. Not the published way."""
    tone: float = 0.0
    """How much of a source's skin tone and light its results by latent code keep, 0 to 1, wherever
    a loss looks at them: what ``paste.paste`` leaves of them at 1 is what ``translate`` shows, so
    no style is learned that users would not see. Not the published way."""
    ema: float = 0.999
    """Decay of the averaged weights, an iteration."""
    augment: bool = False
    """Show the discriminator shifted and discoloured pictures (DiffAugment), where there are few
    of them; not the published way."""
    other_domain: float = 0.0
    """Share of the items whose target is surely not the source's own domain; the others draw
    both alone, the published way, by which half of the targets of two domains are what a face
    already is."""
    mismatch: float = 0.0
    """Weight of the discriminator's loss on real pictures under another domain's name, which are
    as wrong as fakes: it goes on knowing the domains while fakes change (matching-aware, Reed et
    al., ICML 2016, section 4.2). Not the published way."""
    colour: float = 0.0
    """Weight of the difference between the coarse colours of a picture and of its reference
    (``colour_difference``): the style encoder then learns from references too. Not the published
    way."""
    codes: float = 0.0
    """Weight of the distance between the mapping network's style codes and those that the style
    encoder reads from references (``energy_distance``), by which drawn styles are styles that
    pictures have. Not the published way."""
    alternate: bool = False
    """Latent codes in even iterations and references in odd ones, instead of both in each:
    half the work an iteration; not the published way."""


def sample(
    pictures: LabelledPictures, config: Config, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One item: every domain equally likely (the published weighted sampler), a reference is
    two random pictures of one domain, latent codes standard normal."""
    domains = len(pictures.domains)
    y, y_ref = (int(rng.integers(domains)) for _ in range(2))
    if config.other_domain and domains > 1 and rng.random() < config.other_domain:
        y_ref = (y + int(rng.integers(1, domains))) % domains
    x, ref, ref2 = (pictures.load(d, rng, config.image_size) for d in (y, y_ref, y_ref))
    z, z2 = (rng.standard_normal(config.latent_dim, np.float32) for _ in range(2))
    return {
        "x_NCHW": x, "y_N": np.array(y), "ref_NCHW": ref, "ref2_NCHW": ref2,
        "y_ref_N": np.array(y_ref), "z_NL": z, "z2_NL": z2,
    }  # fmt: skip


def diversity_weight(first: float, fall_steps: int, step: int) -> float:
    """The diversity weight at an iteration: linear from ``first`` to 0 over ``fall_steps``."""
    return max(0.0, first * (1 - step / fall_steps)) if fall_steps > 0 else 0.0


def colour_difference(fake_NCHW: Tensor, ref_NCHW: Tensor) -> Tensor:
    """Mean absolute difference of local mean colours, in cells of an eighth of the side that
    overlap by half. Corners do not count: what is there is background.

    The makeup loss of BeautyGAN (Li et al., ACM MM 2018) for crops that are aligned: places
    instead of parsed regions, means instead of histograms.
    """
    cell = fake_NCHW.shape[2] // 8
    apart = (fake_NCHW - ref_NCHW).float()
    cells_NCHW = F.avg_pool2d(apart, cell, cell // 2).abs()
    along = torch.linspace(-1, 1, cells_NCHW.shape[2], device=apart.device)
    radius_HW = torch.hypot(along[:, None], along[None])
    weight_HW = ((0.9 - radius_HW) / 0.4).clamp(0, 1)
    return (weight_HW * cells_NCHW).mean() / weight_HW.mean()


def keep_tone(fake_NCHW: Tensor, x_NCHW: Tensor, tone: float) -> Tensor:
    """The results with so much of their sources' skin tone and light, as ``paste.paste`` has it.

    Of the source before a painter moves it, which at this size is hardly another.
    """
    across_WW, down_HH = (
        _blurring(side, TONE_SIGMA * side).to(fake_NCHW.device) for side in fake_NCHW.shape[:1:-1]
    )
    with torch.autocast(fake_NCHW.device.type, enabled=False):
        x_NCHW = x_NCHW.float()
        change_NCHW = fake_NCHW.float() - x_NCHW
        coarse_NCHW = down_HH @ change_NCHW @ across_WW.T
        fine_NCHW = change_NCHW - coarse_NCHW
        light_N1HW = torch.einsum("nchw,c->nhw", fine_NCHW, fine_NCHW.new_tensor(LUMA))[:, None]
        colour_NCHW = (1 - tone * (1 - TONE_COLOUR)) * (fine_NCHW - light_N1HW)
        return x_NCHW + (1 - tone) * coarse_NCHW + light_N1HW + colour_NCHW


@functools.cache
def _blurring(side: int, sigma: float) -> Tensor:
    """(side, side) matrix that blurs a column by a Gaussian, mirrored at its ends."""
    reach = min(round(4 * sigma), side - 1)
    along = torch.arange(-reach, reach + 1.0)
    weight = torch.exp(-0.5 * (along / sigma) ** 2)
    mirrored_HE = F.pad(torch.eye(side)[None], (reach, reach), mode="reflect")[0]
    # No matmul: under autocast it would lose digits.
    return (mirrored_HE.unfold(1, len(weight), 1) * (weight / weight.sum())).sum(2).T


def energy_distance(drawn_MS: Tensor, read_MS: Tensor, y_M: Tensor) -> Tensor:
    """How unlike drawn style codes are those that were read, summed over domains: least where
    both are of one distribution (Székely & Rizzo, 2013), where it is the mean distance of two.

    Unbiased, so that a few codes a batch are enough; a domain wants two of each at least.
    """
    same_MM = (y_M[:, None] == y_M).float()
    others_MM = same_MM - torch.eye(len(y_M), device=y_M.device)
    count_M1 = same_MM.sum(1, keepdim=True)
    across_MM = torch.cdist(drawn_MS, read_MS) * same_MM / count_M1.square()
    # Not of equal ones, where a distance has no gradient.
    apart_MM = torch.cdist(drawn_MS, drawn_MS + 1e-6)
    within_MM = apart_MM * others_MM / (count_M1 * (count_M1 - 1).clamp(min=1))
    return 2 * across_MM.sum() - within_MM.sum()


class Task:
    """StarGAN v2 in training: networks, their averages, optimisers, one ``step`` a batch.

    ``step_index`` is the only schedule state: every schedule is a pure function of it.
    """

    def __init__(
        self,
        config: Config,
        domains: int,
        *,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        compile: bool = False,
        fan: nn.Module | None = None,
    ) -> None:
        """Fresh networks, initialised from torch's global random state.

        Args:
            bf16: run convolutions and linears under bfloat16 autocast; weights, optimisers,
                norm statistics, losses and R1's gradient stay in float32.
            compile: compile the networks (R1's second derivative runs uncompiled).
            fan: landmark network; needed where ``config.w_hpf`` > 0.
        """
        assert (fan is not None) == (config.w_hpf > 0), "the high-pass needs its landmark network"
        sizes = Sizes(
            image_size=config.image_size,
            domains=domains,
            latent_dim=config.latent_dim,
            style_dim=config.style_dim,
            first_width=config.first_width,
            max_width=config.max_width,
            mapping_width=config.mapping_width,
            w_hpf=config.w_hpf,
            painter_blocks=config.blocks if config.roughness else 0,
            shaper=SHAPER_WIDTH if config.warp else 0,
            plain_encoder=config.judge == "plain",
        )
        self.config = config
        self.device = torch.device(device)
        self.bf16 = bf16
        self.fan = None if fan is None else fan.to(self.device)
        self._domains = domains
        self.step_index = 0
        networks: dict[str, nn.Module] = {
            "generator": built_generator(sizes),
            "mapping_network": MappingNetwork(sizes),
            "style_encoder": StyleEncoder(sizes),
            "discriminator": (
                Discriminator(sizes)
                if config.judge == "residual"
                else Judge(config.image_size, config.judge_width, domains)
            ),
        }
        self.networks = {
            part: (net if isinstance(net, Painter) else he_init(net))
            .to(self.device)
            .to(memory_format=torch.channels_last)
            for part, net in networks.items()
        }
        self.averages = {
            part: copy.deepcopy(net).eval().requires_grad_(False)
            for part, net in self.networks.items()
            if part != "discriminator"
        }
        self.optimisers = Optimisers(
            {
                part: torch.optim.Adam(
                    net.parameters(),
                    lr=config.mapping_lr if part == "mapping_network" else config.lr,
                    betas=(0.0, config.beta2),
                    weight_decay=config.weight_decay,
                    fused=True,
                )
                for part, net in self.networks.items()
            }
        )
        if compile:
            for net in self.networks.values():
                net.compile(dynamic=False)

    def step(self, batch: Batch) -> dict[str, float]:
        """One iteration in the published order; the losses by name. See the legend above."""
        config, k = self.config, self.step_index
        latent = not config.alternate or k % 2 == 0
        reference = not config.alternate or k % 2 == 1
        losses: Losses = {}

        for source, wanted in (("latent", latent), ("reference", reference)):
            if wanted:
                losses |= self._discriminator_step(batch, source)
        if k >= config.warmup_steps:
            for source, wanted in (("latent", latent), ("reference", reference)):
                if wanted:
                    losses |= self._generator_step(batch, source)
            # Update EMA: parameters only.
            with torch.no_grad():
                for part, average in self.averages.items():
                    mine: list[Tensor] = list(average.parameters())
                    theirs: list[Tensor] = list(self.networks[part].parameters())
                    torch._foreach_lerp_(mine, theirs, 1 - config.ema)
        self.step_index += 1
        return {name: float(value) for name, value in losses.items()}

    def _discriminator_step(self, batch: Batch, source: str) -> Losses:
        """Real pictures with their penalty, then fakes: one graph at a time is in memory."""
        config, discriminator = self.config, self.networks["discriminator"]
        self._train_only("discriminator")
        self.optimisers.begin()
        losses: Losses = {}
        # `forward` is the uncompiled call: a compiled one has no second derivative.
        penalised = self.step_index // (2 if config.alternate else 1) % config.r1_every == 0
        x = batch["x_NCHW"].detach().requires_grad_(penalised)
        with self._autocast(not penalised):  # a squared gradient needs all digits
            judge = discriminator.forward if penalised else discriminator
            logits = judge(self._shown(x), batch["y_N"]).float()
        losses["real"] = total = cross_entropy(logits, real=True)
        if penalised:
            losses["reg"] = r1_penalty(logits, x)
            total = total + config.r1 * config.r1_every * losses["reg"]
        total.backward()
        with torch.no_grad(), self._autocast():
            s = self._style(batch, source, first=True)
            fake = self.networks["generator"](batch["x_NCHW"], s, *self._masks(batch["x_NCHW"]))
            fake = self._toned(fake, batch["x_NCHW"], source)
        with self._autocast():
            logits = discriminator(self._shown(fake), batch["y_ref_N"]).float()
        losses["fake"] = cross_entropy(logits, real=False)
        losses["fake"].backward()
        if config.mismatch and self._domains > 1:
            # Of several other domains, one after the other.
            away = 1 + self.step_index % (self._domains - 1)
            other_N = (batch["y_N"] + away) % self._domains
            with self._autocast():
                logits = discriminator(self._shown(batch["x_NCHW"]), other_N).float()
            losses["mismatch"] = cross_entropy(logits, real=False)
            (config.mismatch * losses["mismatch"]).backward()
        self.optimisers.finish("discriminator")
        return {f"D/{source}/{name}": value.detach() for name, value in losses.items()}

    def _generator_step(self, batch: Batch, source: str) -> Losses:
        """Adversarial, style, diversity and cycle loss (paper, equations 1 to 4), what a painter's
        change costs, and from references their colours and codes.

        In stages: each loss goes back to the fake and its style code, and its graph is gone
        before the next one is made; what has gathered there then goes back through the first
        pass. The same gradient as of the weighted sum, with half of its graphs in memory.
        """
        config = self.config
        # Published: with references only the generator steps.
        trained: tuple[str, ...] = ("generator",)
        warp_steps = config.warp_steps if config.warp else 0
        left = shaping_left(config.warmup_steps, warp_steps, self.step_index)
        shaping = left > 0
        if not shaping and (source == "latent" or config.colour):
            trained = (*trained, "style_encoder")
        if not shaping and (source == "latent" or config.codes):
            trained = (*trained, "mapping_network")
        self._train_only(*trained)
        if config.warp:
            train_half(cast("Painter", self.networks["generator"]), shaping=shaping)
            self.optimisers.set_lr(config.lr * (left if shaping else 1), "generator")
        self.optimisers.begin()
        generator, encoder = self.networks["generator"], self.networks["style_encoder"]
        x, y_ref = batch["x_NCHW"], batch["y_ref_N"]
        masks = self._masks(x)
        losses: Losses = {}
        with self._autocast():
            first_s = self._style(batch, source, first=True)
            s = first_s.detach().requires_grad_(first_s.requires_grad)
            first_made = generator(x, s, *masks)
            first_fake = self._toned(first_made, x, source)
        # As it is seen, and as it was made.
        fake, made = (one.detach().requires_grad_() for one in (first_fake, first_made))

        with self._autocast():
            logits = self.networks["discriminator"](self._shown(fake), y_ref).float()
        losses["adv"] = cross_entropy(logits, real=True)
        losses["adv"].backward()

        if config.mirror:
            aside = x.flip(3)
            with self._autocast():
                other = generator(aside, s, *self._masks(aside))
                other = self._toned(other, aside, source).float().flip(3)
            losses["mirror"] = (other - fake.float()).abs().mean()
            (config.mirror * losses["mirror"]).backward()

        with self._autocast():
            s_back = encoder(made, y_ref).float()  # of which tone is a part
        # What a reference's code is to be, other losses say; this one would have it be nothing.
        target = s if source == "latent" else s.detach()
        losses["sty"] = (s_back - target.float()).abs().mean()
        (config.style * losses["sty"]).backward()

        # The second picture gets no gradient, so it needs no graph.
        with torch.no_grad(), self._autocast():
            s2 = self._style(batch, source, first=False)
            fake2 = self._toned(generator(x, s2, *masks), x, source)
        losses["ds"] = (fake.float() - fake2.float()).abs().mean()
        weight = diversity_weight(config.diversity, config.diversity_steps, self.step_index)
        (-weight * losses["ds"]).backward()

        if config.colour and source == "reference":
            losses["colour"] = colour_difference(fake, batch["ref_NCHW"])
            (config.colour * losses["colour"]).backward()

        if config.codes and "mapping_network" in trained and source == "reference":
            z_ML = torch.cat([batch["z_NL"], batch["z2_NL"]])
            y_M = torch.cat([y_ref, y_ref])
            with self._autocast():
                drawn_MS = self.networks["mapping_network"](z_ML, y_M).float()
            read_MS = torch.cat([s.detach(), s2]).float()
            losses["codes"] = energy_distance(drawn_MS, read_MS, y_M)
            (config.codes * losses["codes"]).backward()

        if config.roughness:
            with self._autocast():
                spent = costs(cast("Painter", generator), x, s, made)
            losses |= spent
            risen = 1 - diversity_weight(1.0, config.roughness_steps, self.step_index)
            total = (
                config.warp * spent["warp"]
                if shaping
                else risen * config.roughness * spent["rough"]
            )
            total.backward()

        with self._autocast():
            back = generator(fake, encoder(x, batch["y_N"]), *self._masks(fake))
        losses["cyc"] = (back.float() - x.float()).abs().mean()
        (config.cycle * losses["cyc"]).backward()

        torch.autograd.backward((first_fake, first_made), (fake.grad, made.grad))
        if first_s.requires_grad:
            first_s.backward(s.grad)
        self.optimisers.finish(*trained)
        return {f"G/{source}/{name}": value.detach() for name, value in losses.items()}

    def _style(self, batch: Batch, source: str, *, first: bool) -> Tensor:
        if source == "latent":
            z = batch["z_NL"] if first else batch["z2_NL"]
            return self.networks["mapping_network"](z, batch["y_ref_N"])
        ref = batch["ref_NCHW"] if first else batch["ref2_NCHW"]
        return self.networks["style_encoder"](ref, batch["y_ref_N"])

    def _toned(self, fake_NCHW: Tensor, x_NCHW: Tensor, source: str) -> Tensor:
        """What a user sees of results: a reference's tone is part of what it is given for."""
        if self.config.tone == 0 or source == "reference":
            return fake_NCHW
        return keep_tone(fake_NCHW, x_NCHW, self.config.tone)

    def _shown(self, x_NCHW: Tensor) -> Tensor:
        """What the discriminator sees of pictures."""
        return diff_augment(x_NCHW) if self.config.augment else x_NCHW

    def _masks(self, x_NCHW: Tensor) -> Masks:
        return (high_pass_masks(landmark_heatmaps(self.fan, x_NCHW)),) if self.fan else ()

    def _autocast(self, wanted: bool = True) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 and wanted)

    def _train_only(self, *parts: str) -> None:
        """Gradients for these parts alone: what a step does not update costs nothing."""
        for part, net in self.networks.items():
            net.requires_grad_(part in parts)

    def ailments(self, losses: Mapping[str, float]) -> list[str]:
        """A discriminator that has won or given up, and styles that all look alike."""
        found = []
        for source in ("latent", "reference"):
            real, fake, adv, spread = (
                losses.get(f"{name}/{source}/{loss}", math.nan)
                for name, loss in (("D", "real"), ("D", "fake"), ("G", "adv"), ("G", "ds"))
            )
            if real + fake < 0.02 and adv > 5:
                found.append(f"the discriminator tells all fakes ({source}): nothing is learnt")
            if abs(real + fake - 2 * math.log(2)) < 0.002:
                found.append(f"the discriminator tells nothing apart ({source})")
            if spread < 0.01:
                found.append(f"styles have collapsed ({source}): their pictures are equal")
        return found

    def model_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The finished model: the averaged networks, by their published names."""
        return {part: average.state_dict() for part, average in self.averages.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, but the random state of batches."""
        return {
            "step": self.step_index,
            "networks": {part: net.state_dict() for part, net in self.networks.items()},
            "averages": {part: net.state_dict() for part, net in self.averages.items()},
            "optimisers": self.optimisers.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of ``state_dict``; strict."""
        self.step_index = state["step"]
        for mine, saved in (
            (self.networks, state["networks"]),
            (self.averages, state["averages"]),
        ):
            for part, network in mine.items():
                network.load_state_dict(saved[part])
        self.optimisers.load_state_dict(state["optimisers"])
