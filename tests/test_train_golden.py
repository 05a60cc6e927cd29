"""StarGAN v2's training step against the published program's numbers.

Adam without a first moment multiplies rounding: its first update is g / |g|, so that a weight
whose gradient is near zero moves by the whole learning rate one way or the other. One last
digit in the starting weights is 1e-3 in the losses after one update of the generator, 1e-2
after two, 1e-1 after four; float64 is as far from the golden as that. Hence three tests that
hold each other up:

- iteration 0 to the 1e-3 that the goldens ask, with the golden's kind of convolution;
- the later iterations within what rounding grows to, narrow enough that a generator or an
  encoder stepped once too often or too seldom falls out;
- three iterations in float64, where rounding stays at 1e-11, equal to the step written out.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.families.stargan_v2.objective import Config, Task
from facestyle.nn import resampling

GOLDENS = Path(__file__).parent / "goldens"
LOSS_TOLERANCE = 1e-3  # relative (goldens' own rule)

# Relative; two to three times the farthest of 17 runs: starts 1e-8 .. 1e-7 apart, oneDNN's and
# plain convolutions, both memory layouts, float64. What saw no updated generator keeps 1e-3.
GROWN_TOLERANCE = {
    "D/latent": {"real": LOSS_TOLERANCE, "fake": 0.03, "reg": 0.01},
    "D/reference": {"real": 0.04, "fake": 0.12, "reg": 0.12},
    "G/latent": {"adv": 0.15, "sty": 0.015, "ds": 0.015, "cyc": 0.015},
    "G/reference": {"adv": 0.8, "sty": 0.12, "ds": 0.06, "cyc": 0.05},
}
# Of how far the sum of squares moved in three iterations; the discriminator's hardly moves.
MOVED_TOLERANCE = {
    "after": {"generator": 0.10, "mapping_network": 0.004, "style_encoder": 0.05},
    "ema": {"generator": 0.04, "mapping_network": 0.02, "style_encoder": 0.02},
}


def golden_batch(index: int, size: int) -> dict[str, Tensor]:
    """The golden's ``inputs``, for a batch of two and two domains."""
    b = 100 * (index + 1)
    pictures = [torch.from_numpy(standin.image(b + n, 2, size)) for n in (1, 2, 3)]
    codes = [torch.from_numpy(standin.noise(b + n, 2, 16)) for n in (4, 5)]
    return {
        **dict(zip(("x_NCHW", "ref_NCHW", "ref2_NCHW"), pictures, strict=True)),
        **dict(zip(("z_NL", "z2_NL"), codes, strict=True)),
        "y_N": torch.tensor([index % 2, (index + 1) % 2]),
        "y_ref_N": torch.tensor([(index + 1) % 2, index % 2]),
    }


def sum_sq(state: dict[str, Tensor]) -> float:
    return sum(float(value.double().square().sum()) for value in state.values())


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads((GOLDENS / "train_stargan_v2_2domains.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def replayed(golden: Any) -> tuple[list[dict[str, float]], dict[str, dict[str, float]]]:
    """The golden's three iterations: losses, and how far each part's sum of squares moved."""
    torch.set_num_threads(1)
    hyper = golden["hyper"]
    config = Config(
        image_size=golden["img_size"],
        first_width=2**14 // golden["img_size"],
        latent_dim=golden["latent_dim"],
        style_dim=golden["style_dim"],
        lr=hyper["lr"],
        mapping_lr=hyper["mapping_lr"],
        beta2=hyper["betas"][1],
        weight_decay=hyper["weight_decay"],
        r1=hyper["lambda_reg"],
        style=hyper["lambda_sty"],
        diversity=hyper["lambda_ds"],
        diversity_steps=hyper["ds_iter"],
        cycle=hyper["lambda_cyc"],
        ema=hyper["ema"],
        w_hpf=hyper["w_hpf"],
    )
    task = Task(config, golden["num_domains"])
    for network in (*task.networks.values(), *task.averages.values()):
        network.to(memory_format=torch.contiguous_format)  # channels_last rounds otherwise
    start = {}
    for part, network in task.networks.items():
        state = {
            key: torch.from_numpy(np.asarray(standin.tensor_for(f"{part}.{key}", shape)))
            for key, shape in golden["shapes"][part].items()
        }
        start[part] = sum_sq(state)
        network.load_state_dict(state)
        if part in task.averages:
            task.averages[part].load_state_dict(state)
    losses = []
    for index in range(len(golden["losses"])):
        # The golden's rounding: neither oneDNN nor a convolution merged with its change of size.
        # It takes three times as long, and later iterations gain nothing by it.
        torch.backends.mkldnn.enabled = index > 0
        with pytest.MonkeyPatch.context() as patch:
            if index == 0:
                patch.setattr(resampling, "_pays", lambda *_, **__: False)
            losses.append(task.step(golden_batch(index, golden["img_size"])))
    moved = {
        name: {part: sum_sq(network.state_dict()) - start[part] for part, network in found.items()}
        for name, found in (("after", task.networks), ("ema", task.averages))
    }
    return losses, moved | {"start": start}


def flat(losses: dict[str, Any]) -> dict[str, float]:
    """A golden's losses by our names."""
    return {
        f"{step}/{name}": value
        for step, values in losses.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


@pytest.mark.slow
def test_the_published_first_iteration(golden: Any, replayed: Any) -> None:
    expected, found = flat(golden["losses"][0]), replayed[0][0]
    assert found == pytest.approx(expected, rel=LOSS_TOLERANCE)


@pytest.mark.slow
def test_the_published_second_iteration(golden: Any, replayed: Any) -> None:
    expected, found = flat(golden["losses"][1]), replayed[0][1]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        step, loss = name.rsplit("/", 1)
        assert found[name] == pytest.approx(value, rel=GROWN_TOLERANCE[step][loss]), name


@pytest.mark.slow
def test_the_published_sums_after_three_iterations(golden: Any, replayed: Any) -> None:
    moved = replayed[1]
    for name, tolerances in MOVED_TOLERANCE.items():
        for part, tolerance in tolerances.items():
            expected = golden[name][part]["sum_sq"] - moved["start"][part]
            assert moved[name][part] == pytest.approx(expected, rel=tolerance), (name, part)


# --- All iterations, against the step written out --------------------------------------------

DOUBLE = Config(  # every weight its own, so that none can stand for another
    image_size=16, first_width=4, max_width=8, mapping_width=8, latent_dim=3, style_dim=5,
    lr=1e-3, mapping_lr=3e-4, beta2=0.9, weight_decay=1e-2, r1=0.7, style=1.3, diversity=1.7,
    diversity_steps=4, cycle=0.6, ema=0.8,
)  # fmt: skip


def written_out(
    nets: dict[str, nn.Module],
    averages: dict[str, nn.Module],
    optimisers: dict[str, torch.optim.Optimizer],
    batch: dict[str, Tensor],
    diversity: float,
    c: Config,
) -> dict[str, float]:
    """One iteration as the paper and the golden's ``order`` say it, with no work saved."""
    g, m, e, d = (
        nets[n] for n in ("generator", "mapping_network", "style_encoder", "discriminator")
    )
    x, y, target = batch["x_NCHW"], batch["y_N"], batch["y_ref_N"]
    losses: dict[str, float] = {}

    def bce(logits: Tensor, wanted: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted))

    def style(source: str, second: str) -> Tensor:
        if source == "latent":
            return m(batch[f"z{second}_NL"], target)
        return e(batch[f"ref{second}_NCHW"], target)

    def update(loss: Tensor, *parts: str) -> None:
        for optimiser in optimisers.values():
            optimiser.zero_grad()
        loss.backward()
        for part in parts:
            optimisers[part].step()

    for source in ("latent", "reference"):
        real_x = x.clone().requires_grad_()
        logits = d(real_x, y)
        (slope,) = torch.autograd.grad(logits.sum(), real_x, create_graph=True)
        terms = {
            "real": bce(logits, 1.0),
            "fake": bce(d(g(x, style(source, "")).detach(), target), 0.0),
            "reg": 0.5 * slope.pow(2).sum(dim=(1, 2, 3)).mean(),
        }
        update(terms["real"] + terms["fake"] + c.r1 * terms["reg"], "discriminator")
        losses |= {f"D/{source}/{name}": value.item() for name, value in terms.items()}
    for source in ("latent", "reference"):
        s = style(source, "")
        fake = g(x, s)
        terms = {
            "adv": bce(d(fake, target), 1.0),
            "sty": F.l1_loss(e(fake, target), s),
            "ds": (fake - g(x, style(source, "2")).detach()).abs().mean(),
            "cyc": F.l1_loss(g(fake, e(x, y)), x),
        }
        total = terms["adv"] + c.style * terms["sty"] + c.cycle * terms["cyc"]
        if c.mirror:
            terms["mirror"] = F.l1_loss(g(x.flip(3), s), fake.flip(3))
            total = total + c.mirror * terms["mirror"]
        parts = ["generator", "mapping_network", "style_encoder"]
        update(total - diversity * terms["ds"], *parts[: 3 if source == "latent" else 1])
        losses |= {f"G/{source}/{name}": value.item() for name, value in terms.items()}
    with torch.no_grad():
        for part, average in averages.items():
            for mean, value in zip(average.parameters(), nets[part].parameters(), strict=True):
                mean.copy_(c.ema * mean + (1 - c.ema) * value)
    return losses


@pytest.mark.parametrize("mirror", [0.0, 0.9])
def test_three_iterations_equal_the_step_written_out(
    mirror: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64; three domains for two samples, so that a domain goes without gradient."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)  # double stays double
    torch.manual_seed(0)
    config = replace(DOUBLE, mirror=mirror)
    task = Task(config, 3)
    for network in (*task.networks.values(), *task.averages.values()):
        network.double()
        for value in network.state_dict().values():
            value.add_(0.1 * torch.randn(value.shape, dtype=torch.float64))
    nets, averages = copy.deepcopy((task.networks, task.averages))
    optimisers: dict[str, torch.optim.Optimizer] = {
        part: torch.optim.Adam(
            net.parameters(),
            lr=DOUBLE.mapping_lr if part == "mapping_network" else DOUBLE.lr,
            betas=(0.0, DOUBLE.beta2),
            weight_decay=DOUBLE.weight_decay,
            foreach=False,
        )
        for part, net in nets.items()
    }
    for index in range(3):
        pictures = torch.rand(3, 2, 3, 16, 16, dtype=torch.float64) * 2 - 1
        codes = torch.randn(2, 2, DOUBLE.latent_dim, dtype=torch.float64)
        batch = {
            **dict(zip(("x_NCHW", "ref_NCHW", "ref2_NCHW"), pictures, strict=True)),
            **dict(zip(("z_NL", "z2_NL"), codes, strict=True)),
            "y_N": torch.tensor([index % 3, 2]),
            "y_ref_N": torch.tensor([1, (index + 1) % 3]),
        }
        weight = DOUBLE.diversity * (1 - index / DOUBLE.diversity_steps)
        expected = written_out(nets, averages, optimisers, batch, weight, config)
        assert task.step(batch) == pytest.approx(expected, rel=1e-9)
    for mine, plain in ((task.networks, nets), (task.averages, averages)):
        for part, network in mine.items():
            torch.testing.assert_close(
                network.state_dict(), plain[part].state_dict(), rtol=1e-8, atol=1e-10
            )
