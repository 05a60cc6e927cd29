"""How U-GAT-IT is trained (Kim et al., ICLR 2020, section 2.2), as the PyTorch program does it.

Losses are pure functions of tensors; ``Task`` strings them together in the published order and
owns the optimisers. Knows nothing of files, folders or progress bars.

    a_NCHW, b_NCHW  pictures of the two domains, float [-1, 1]
    genA2B  takes A to B;  disGA, disLA  judge pictures of A, the whole and small patches
    cam_N2  logits of the auxiliary classifiers (class activation maps)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.families.ugatit.networks import Discriminator, Generator, Sizes, Trainee
from facestyle.nn.adversarial import (
    R1_EVERY,
    Judge,
    ReplayPool,
    cross_entropy,
    drawn,
    of_domain,
    pool_draws,
    r1_penalty,
)
from facestyle.nn.augment import bare, recoloured, spoilt
from facestyle.nn.losses import l1, linear_fall, realness_loss
from facestyle.nn.updates import Optimisers

if TYPE_CHECKING:
    from facestyle.training.data import LabelledPictures

GENERATORS = ("genA2B", "genB2A")
DISCRIMINATORS = ("disGA", "disLA", "disGB", "disLB")  # in the published order of judging
JUDGE = "judge"
WON = 0.01  # discriminator loss below which its judgement is no longer worth much

Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained and how; the defaults are the paper's."""

    image_size: int = 256
    """Side of the square picture, px; a multiple of 4."""
    load_size: int = 286
    """Side to which a picture is resized before the random crop to image_size, px."""
    width: int = 64
    """Channels of the first convolution, of generators and discriminators."""
    blocks: int = 4
    """Residual blocks of a generator's encoder, and AdaLIN blocks of its decoder."""
    light: bool = False
    """Make gamma and beta from the mean of the features, not from all of them: 1/26 of the
    parameters at 256 px, and any image size."""
    global_layers: int = 7
    """Layers of the discriminators that judge the whole; needs 3 · 2^(layers - 2) px."""
    local_layers: int = 5
    """Layers of the discriminators that judge small patches."""
    judge: str = "patches"
    """Who tells real from made: ``patches``, four spectral-norm discriminators by least squares
    (the published way); or ``domains``, one with a branch a domain, by cross-entropy with R1: it
    learns several times as fast, for few iterations."""
    judge_width: int = 32
    """Channels of that one's first convolution."""
    judge_levels: int = 1
    """Of its layers, from the last one back, whose features are judged: 1 is the whole picture,
    each more is patches of half the side beside it."""
    r1: float = 0.1
    """Weight of its R1 penalty. What is right grows with the pixels and falls with the batch
    (StyleGAN2: 0.0002 pixels / batch)."""
    mismatch: float = 0.0
    """Weight of real pictures of the one domain as fakes of the other, in that one's loss: it
    keeps knowing the domains while it chases fakes (GAN-CLS, Reed et al., ICML 2016)."""
    recolour: bool = False
    """Whether it sees every picture, real or made, with its hues turned about and lighter or
    darker: it judges shapes, and colours are left to the generators' other losses."""
    unseen: float = 0.0
    """How far down from the top, as a share of the side, it sees nothing but the sides. Above the
    brows drawings have fringes: who has none is not given one, and keeps the photo's hair."""
    pool: int = 0
    """Earlier results of each generator that the discriminators may be shown again, as CycleGAN's
    are: what they have learned to tell, they go on telling. 0 is none, the published way."""
    warmup_steps: int = 0
    """Iterations first in which the discriminators alone learn."""
    lr: float = 1e-4
    """Adam's learning rate."""
    d_lr_factor: float = 1.0
    """The discriminators' own, in multiples of that: more, and they lead (two time-scale update
    rule, Heusel et al., NeurIPS 2017)."""
    lr_fall_from: int = 500_000
    """Iteration after which the learning rate falls; the published way is half of the run."""
    lr_fall_to: int = 1_000_000
    """Iteration at which it is 0; the published way is the end of the run."""
    beta1: float = 0.5
    """Adam's first moment; the second is 0.999."""
    weight_decay: float = 1e-4
    """L2 inside Adam (not AdamW)."""
    adversarial: float = 1.0
    """Weight of the adversarial losses."""
    cycle: float = 10.0
    """Weight of the cycle loss."""
    cycle_noise: float = 0.0
    """Standard deviation of the noise on a result that is taken back, in which no photo can be
    hidden as a fine pattern (additive noise, Bashkirova et al., NeurIPS 2019). Not the
    published way."""
    identity: float = 10.0
    """Weight of the identity loss."""
    restore: bool = False
    """Whether that loss begins from a picture that is coarse and mixed with one of the other
    domain, which is to become itself again: a generator learns to draw what is there, in its
    place, and to leave out what its domain does not have. Not the published way."""
    colour: float = 0.0
    """Weight of how far a result's coarse colours are from its source's. Not the published
    way."""
    mirror: float = 0.0
    """Weight of how far the result of a mirrored source is from the mirrored result: eyes are
    drawn alike on both sides. A third more work of the generators. Not the published way."""
    cam: float = 1000.0
    """Weight of the auxiliary classifiers' loss."""


def draw(
    pictures: LabelledPictures, config: Config, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One item of a batch: a picture of each domain, and what replay pools, if any, will do."""
    item = {
        name: pictures.jittered(domain, rng, config.image_size, config.load_size)
        for domain, name in enumerate("AB")
    }
    for name in "AB" if config.pool else "":
        item |= pool_draws(name, config.pool, rng)
    return item


def attention_loss(cam_source_N2: Tensor, cam_target_N2: Tensor) -> Tensor:
    """Cross-entropy of a generator's auxiliary classifiers: a source picture is 1, one that is
    in the target domain already is 0 (paper, equation 4)."""
    return F.softplus(-cam_source_N2.float()).mean() + F.softplus(cam_target_N2.float()).mean()


def noised(x: Tensor, deviation: float) -> Tensor:
    """With normal noise of this standard deviation on each value; with none the same tensor."""
    return x + deviation * torch.randn_like(x) if deviation else x


def coarse(x_NCHW: Tensor) -> Tensor:
    """Mean colours of cells of a twelfth of the side, or of 4 px in small pictures. All of the
    crop counts, hair and wall too: unlike StarGAN v2's colours, which are those of a face."""
    return F.avg_pool2d(x_NCHW.float(), max(4, x_NCHW.shape[2] // 12))


def learning_rate(config: Config, step: int) -> float:
    """The learning rate at an iteration: constant, then linear to 0."""
    first = config.lr_fall_from
    return config.lr * linear_fall(step + 1, first, config.lr_fall_to - first)


def _judges(config: Config) -> dict[str, nn.Module]:
    """Fresh discriminators by name."""
    if config.judge == "patches":
        layers = {"G": config.global_layers, "L": config.local_layers}
        return {part: Discriminator(config.width, layers[part[3]]) for part in DISCRIMINATORS}
    return {JUDGE: Judge(config.image_size, config.judge_width, 2, config.judge_levels)}


def _both(pictures: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures of A, then of B, as one batch, and their domains (N,): 0, then 1."""
    both_NCHW = torch.cat([pictures[name] for name in "AB"])
    place_N = torch.arange(len(both_NCHW), device=both_NCHW.device)
    return both_NCHW, (place_N >= len(pictures["A"])).long()


class Task:
    """U-GAT-IT in training: two generators, their discriminators, one ``step`` a batch.

    ``step_index`` is the only schedule state: the learning rate is a pure function of it.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        compile: bool = False,
    ) -> None:
        """Fresh networks, initialised from torch's global random state.

        Args:
            bf16: run convolutions and linears under bfloat16 autocast; weights, optimisers,
                norm statistics, singular values and losses stay in float32.
            compile: compile the networks for the step.
        """
        sizes = Sizes(
            width=config.width,
            blocks=config.blocks,
            image_size=None if config.light else config.image_size,
        )
        self.config = config
        self.device = torch.device(device)
        self.bf16 = bf16
        self.step_index = 0
        self.generators = {part: self._placed(Generator(sizes)) for part in GENERATORS}
        self.discriminators = {part: self._placed(net) for part, net in _judges(config).items()}
        self.networks: dict[str, nn.Module] = {**self.generators, **self.discriminators}
        self.optimisers = Optimisers(
            {
                name: torch.optim.Adam(
                    [p for network in group.values() for p in network.parameters()],
                    lr=config.lr,
                    betas=(config.beta1, 0.999),
                    weight_decay=config.weight_decay,
                    fused=True,
                )
                for name, group in (
                    ("discriminators", self.discriminators),
                    ("generators", self.generators),
                )
            }
        )
        self.pools = {
            name: ReplayPool(config.pool, config.image_size, self.device)
            for name in ("AB" if config.pool else "")
        }
        self._rhos = [
            parameter
            for network in self.generators.values()
            for name, parameter in network.named_parameters()
            if name.endswith(".rho")
        ]
        self._trainees = {part: Trainee(network) for part, network in self.generators.items()}
        if compile:
            for network in (*self._trainees.values(), *self.discriminators.values()):
                network.compile(dynamic=False)

    def _placed(self, network: nn.Module) -> Any:
        return network.to(self.device).to(memory_format=torch.channels_last)

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration in the published order; the losses by name, before their weights."""
        a, b = batch["A"], batch["B"]
        lr = learning_rate(self.config, self.step_index)
        self.optimisers.set_lr(lr, "generators")
        self.optimisers.set_lr(lr * self.config.d_lr_factor, "discriminators")
        warm = self.step_index >= self.config.warmup_steps

        # The generators do not change before their own step, so both steps share these fakes.
        # Nothing in a generator looks across pictures: two sources go through as one batch.
        own_A, own_B = (spoilt(a, b), spoilt(b, a)) if self.config.restore else (a, b)
        with torch.set_grad_enabled(warm), self._autocast():
            to_B, cam_B = self._trainees["genA2B"](torch.cat([a, own_B]))
            to_A, cam_A = self._trainees["genB2A"](torch.cat([b, own_A]))
        (fake_B, same_B), (fake_A, same_A) = to_B.chunk(2), to_A.chunk(2)
        fakes = {"A": fake_A, "B": fake_B}

        by_domain = JUDGE in self.discriminators
        self._train_discriminators(True)
        tell = self._told_by_judge if by_domain else self._told_by_patches
        shown = fakes | {
            name: pool.shown(fakes[name].detach(), *drawn(name, batch))
            for name, pool in self.pools.items()
        }
        losses = tell({"A": a, "B": b}, shown)
        self.optimisers.update(losses["D/total"], "discriminators")

        if warm:
            self._train_discriminators(False)
            judged = self._judged_by_domain(fakes) if by_domain else self._judged_by_patches(fakes)
            with self._autocast():
                back_A, _ = self._trainees["genB2A"](noised(fake_B, self.config.cycle_noise))
                back_B, _ = self._trainees["genA2B"](noised(fake_A, self.config.cycle_noise))
            judged |= {
                "G/cycle_A": l1(back_A, a),
                "G/cycle_B": l1(back_B, b),
                "G/identity_A": l1(same_A, a),
                "G/identity_B": l1(same_B, b),
                "G/cam_A": attention_loss(*cam_A.chunk(2)),
                "G/cam_B": attention_loss(*cam_B.chunk(2)),
            }
            if self.config.colour:
                judged["G/colour_A"] = l1(coarse(fake_A), coarse(b))
                judged["G/colour_B"] = l1(coarse(fake_B), coarse(a))
            if self.config.mirror:
                with self._autocast():
                    other_B, _ = self._trainees["genA2B"](a.flip(3))
                    other_A, _ = self._trainees["genB2A"](b.flip(3))
                judged["G/mirror_A"] = l1(other_A.flip(3), fake_A)
                judged["G/mirror_B"] = l1(other_B.flip(3), fake_B)
            judged["G/total"] = self._weighted(judged)
            self.optimisers.update(judged["G/total"], "generators")
            # Published: rho stays a mixture of the two norms.
            with torch.no_grad():
                torch._foreach_clamp_min_(self._rhos, 0.0)
                torch._foreach_clamp_max_(self._rhos, 1.0)
            losses |= judged
        self.step_index += 1
        values = torch.stack([value.detach() for value in losses.values()]).tolist()
        return dict(zip(losses, values, strict=True))

    def _told_by_judge(self, reals: Mapping[str, Tensor], fakes: Mapping[str, Tensor]) -> Losses:
        """Cross-entropy and now and then R1, pictures of both domains as one batch."""
        judge = self.discriminators[JUDGE]
        penalised = self.step_index % R1_EVERY == 0
        real, domain_N = _both(reals)
        real = self._seen(real).detach().requires_grad_(penalised)
        # `forward` is the uncompiled call: a compiled one has no second derivative.
        with self._autocast(not penalised):  # a squared gradient needs all digits
            per_domain_NDP = (judge.forward if penalised else judge)(real).float()
        logits_NP = of_domain(per_domain_NDP, domain_N)
        losses = {"D/real": cross_entropy(logits_NP, real=True)}
        total = losses["D/real"]
        if self.config.mismatch:
            other_NP = of_domain(per_domain_NDP, 1 - domain_N)
            losses["D/mismatch"] = cross_entropy(other_NP, real=False)
            total = total + self.config.mismatch * losses["D/mismatch"]
        if penalised:
            losses["D/r1"] = r1_penalty(logits_NP, real)
            total = total + self.config.r1 * R1_EVERY * losses["D/r1"]
        with self._autocast():
            logits_NP = judge(self._seen(_both(fakes)[0].detach()), domain_N)
        losses["D/fake"] = cross_entropy(logits_NP.float(), real=False)
        losses["D/total"] = total + losses["D/fake"]
        return losses

    def _judged_by_domain(self, fakes: Mapping[str, Tensor]) -> Losses:
        """What the judge, which does not learn now, says of the fakes."""
        made, domain_N = _both(fakes)
        seen = self._seen(made)
        with self._autocast():
            logits_NP = self.discriminators[JUDGE](seen, domain_N)
        return {
            f"G/dis_{name}": cross_entropy(part_NP.float(), real=True)
            for name, part_NP in zip(fakes, logits_NP.chunk(2), strict=True)
        }

    def _seen(self, x_NCHW: Tensor) -> Tensor:
        """What the judge is shown of a picture."""
        if self.config.recolour:
            x_NCHW = recoloured(x_NCHW)
        return bare(x_NCHW, self.config.unseen) if self.config.unseen else x_NCHW

    def _told_by_patches(self, reals: Mapping[str, Tensor], fakes: Mapping[str, Tensor]) -> Losses:
        """All real pictures first: each pass refines the spectral norms for the next."""
        with self._autocast():
            on_real = {part: net(reals[part[4]]) for part, net in self.discriminators.items()}
            on_fake = {
                part: net(fakes[part[4]].detach()) for part, net in self.discriminators.items()
            }
        losses = {}
        for part in DISCRIMINATORS:
            for kind, real, fake in zip(("adv", "cam"), on_real[part], on_fake[part], strict=True):
                losses[f"D/{part}/{kind}"] = realness_loss(real, True) + realness_loss(fake, False)
        losses["D/total"] = self.config.adversarial * torch.stack(list(losses.values())).sum()
        return losses

    def _judged_by_patches(self, fakes: Mapping[str, Tensor]) -> Losses:
        """What the discriminators, which do not learn now, say of the fakes."""
        losses = {}
        for part, network in self.discriminators.items():
            with self._autocast():
                logits, cam_N2 = network(fakes[part[4]])
            losses[f"G/{part}/adv"] = realness_loss(logits, True)
            losses[f"G/{part}/cam"] = realness_loss(cam_N2, True)
        return losses

    def _weighted(self, losses: Losses) -> Tensor:
        """The generators' whole loss (paper, equation 7)."""
        weights = {
            "dis": self.config.adversarial,
            "cycle": self.config.cycle,
            "identity": self.config.identity,
            "colour": self.config.colour,
            "mirror": self.config.mirror,
            "cam": self.config.cam,
        }
        kinds = {name: name.removeprefix("G/").split("_")[0] for name in losses}
        return torch.stack(
            [
                weights["dis" if kinds[name].startswith("dis") else kinds[name]] * value
                for name, value in losses.items()
            ]
        ).sum()

    def _train_discriminators(self, trained: bool) -> None:
        """In the generators' step the discriminators' own gradients would be thrown away."""
        for network in self.discriminators.values():
            network.requires_grad_(trained)

    def _autocast(self, wanted: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 and wanted)

    def ailments(self, losses: Mapping[str, float]) -> list[str]:
        """See ``families.Task``."""
        told = ["real", "fake"] if JUDGE in self.networks else [f"{d}/adv" for d in DISCRIMINATORS]
        mean = sum(losses[f"D/{name}"] for name in told) / len(told)
        if mean < WON:
            return [
                f"the discriminators tell every fake (mean loss {mean:.2g}): "
                "more pictures, or fewer iterations"
            ]
        return []

    def model_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The finished model: both generators, by their published names."""
        return {part: network.state_dict() for part, network in self.generators.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, but the random state of batches."""
        return {
            "step": self.step_index,
            "networks": {part: net.state_dict() for part, net in self.networks.items()},
            "optimisers": self.optimisers.state_dict(),
            "pools": {name: pool.state_dict() for name, pool in self.pools.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of ``state_dict``; strict."""
        self.step_index = state["step"]
        for part, network in self.networks.items():
            network.load_state_dict(state["networks"][part])
        self.optimisers.load_state_dict(state["optimisers"])
        for name, pool in self.pools.items():
            pool.load_state_dict(state["pools"][name])
