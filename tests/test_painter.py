"""The generator that makes the change alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facestyle.nn.painter import (
    FARTHEST,
    Painter,
    Shaper,
    cost,
    costs,
    halvings,
    is_painter,
    painter_sizes,
    roughness,
    strain,
    train_half,
    warped,
)


def test_a_painter_begins_with_no_change_and_follows_all_that_is_wanted() -> None:
    torch.manual_seed(0)
    painter = Painter(vector=2, width=4, widest=16, blocks=1, depth=3)
    x, wanted = torch.rand(2, 3, 16, 16) * 2 - 1, torch.zeros(2, 2)
    with torch.inference_mode():
        # What is not changed keeps all its digits.
        assert torch.equal(painter(x, wanted), x)
        nn.init.normal_(painter.painted.weight, std=0.02)
        made = painter(x, wanted)
        other = painter(x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        assert (other != made).flatten(1).any(dim=1).all()
        # Nothing leaves the range of pictures.
        nn.init.constant_(painter.painted.bias, 3.0)
        assert float(painter(x, wanted).max()) == 1


@pytest.mark.parametrize(
    ("widest", "blocks", "depth", "shaper"), [(64, 6, 3, 0), (8, 1, 1, 8), (20, 3, 4, 64)]
)
def test_its_tensors_tell_its_sizes(widest: int, blocks: int, depth: int, shaper: int) -> None:
    sizes = {
        "vector": 7, "width": 8, "widest": widest, "blocks": blocks, "depth": depth,
        "shaper": shaper,
    }  # fmt: skip
    shapes = {name: tuple(t.shape) for name, t in Painter(**sizes).state_dict().items()}
    assert is_painter(shapes)
    assert painter_sizes(shapes) == sizes
    assert not is_painter({name: shape for name, shape in shapes.items() if "painted" not in name})


def test_roughness_is_the_mean_step_between_neighbours() -> None:
    change = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])[None, None]
    assert float(roughness(change)) == pytest.approx(2 / 4)
    checkered = torch.arange(8)[:, None] + torch.arange(8)
    assert float(roughness((checkered % 2).float()[None, None])) == 2
    even = torch.full((2, 1, 4, 4), 0.3)
    assert float(roughness(even)) == 0
    assert float(cost(even)) == pytest.approx(0.3 / 4)
    assert cost(change) > roughness(change)


def test_a_painter_halves_to_eight_pixels_or_what_cannot_be_halved() -> None:
    sides = {8: 0, 16: 1, 64: 3, 72: 3, 96: 3, 128: 4, 200: 3, 256: 5}
    assert {side: halvings(side) for side in sides} == sides


def test_a_flow_says_where_what_is_seen_was() -> None:
    """A bright dot goes against the flow, by as much; no flow leaves every digit."""
    x = torch.full((1, 3, 64, 64), -1.0)
    x[..., 30:33, 30:33] = 1
    assert torch.allclose(warped(x, torch.zeros(1, 16, 16, 2)), x, atol=1e-5)
    flow = torch.zeros(1, 16, 16, 2)
    flow[..., 0], flow[..., 1] = 4 / 64, -3 / 64
    place = warped(x, flow)[0, 0].add(1).nonzero().float().mean(dim=0)
    assert place.tolist() == pytest.approx([31 + 3, 31 - 4], abs=0.1)


def test_a_shaper_begins_still_and_stays_within_bounds() -> None:
    torch.manual_seed(0)
    shaper = Shaper(2, 8)
    x, wanted = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 2)
    with torch.inference_mode():
        assert not shaper(x, wanted).any()
        nn.init.normal_(shaper.flow.weight, std=10.0)
        flow = shaper(x, wanted)
    assert flow.shape == (2, 16, 16, 2)
    assert 0.9 * FARTHEST < float(flow.abs().max()) <= FARTHEST
    assert (flow[0] != flow[1]).any()
    # The photo goes on beyond the border: it hardly moves there.
    assert float(flow[:, [0, -1]].abs().max()) < 0.15 * FARTHEST


def test_a_mirrored_face_moves_as_the_face_does() -> None:
    torch.manual_seed(0)
    shaper = Shaper(2, 8)
    nn.init.normal_(shaper.flow.weight, std=0.3)
    x, wanted = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 2)
    with torch.inference_mode():
        flow, mirrored = shaper(x, wanted), shaper(x.flip(3), wanted)
    assert float(flow.abs().mean()) > 0.1 * FARTHEST
    assert torch.allclose(mirrored.flip(2)[..., 0], -flow[..., 0], atol=1e-6)
    assert torch.allclose(mirrored.flip(2)[..., 1], flow[..., 1], atol=1e-6)
    # And so does the picture.
    with torch.inference_mode():
        assert torch.allclose(warped(x.flip(3), mirrored).flip(3), warped(x, flow), atol=1e-5)


def test_strain_is_of_what_stretches_not_of_what_moves() -> None:
    still = torch.full((1, 16, 16, 2), 0.05)
    assert float(strain(still)) == 0
    along = torch.arange(16) / 16
    stretched = 0.1 * torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=2)[None]
    # Twice as large at twice as fine a grid would be the same stretch.
    assert float(strain(stretched)) == pytest.approx(0.1**2, rel=1e-4)


def test_what_moves_is_not_counted_as_painted() -> None:
    torch.manual_seed(0)
    painter = Painter(vector=2, width=4, widest=8, blocks=1, depth=1, shaper=8)
    assert painter.shaper is not None
    nn.init.normal_(painter.shaper.flow.weight, std=0.1)
    x, wanted = torch.rand(1, 3, 32, 32) * 2 - 1, torch.ones(1, 2)
    made = painter(x, wanted)
    assert bool(((made - x).abs() > 0.1).any())
    spent = costs(painter, x, wanted, made)
    assert float(spent["rough"].detach()) == pytest.approx(0, abs=1e-6)
    assert bool(spent["warp"] > 0)
    train_half(painter, shaping=True)
    made.detach_()
    painter(x, wanted).mean().backward()
    assert painter.shaper.flow.weight.grad is not None
    assert painter.painted.weight.grad is None
    still = Painter(vector=2, width=4, widest=8, blocks=1, depth=1)
    assert set(costs(still, x, wanted, x)) == {"rough"}
