"""The generator that makes the change alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facestyle.painter import Painter, cost, halvings, is_painter, painter_sizes, roughness


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


@pytest.mark.parametrize(("widest", "blocks", "depth"), [(64, 6, 3), (8, 1, 1), (20, 3, 4)])
def test_its_tensors_tell_its_sizes(widest: int, blocks: int, depth: int) -> None:
    sizes = {"vector": 7, "width": 8, "widest": widest, "blocks": blocks, "depth": depth}
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
