"""DiffAugment: what changes, what does not, and that the change has a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facestyle.nn.augment import (
    BRIGHTNESS,
    CELLS,
    EDGE,
    FOREIGN,
    FROM_MIDDLE,
    LIGHTER,
    RICHER,
    SHIFT,
    bare,
    diff_augment,
    moved,
    recoloured,
    shifted,
    spoilt,
)


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_shift_moves_whole_pixels_and_leaves_zeros() -> None:
    x = pictures(2, 3, 16, 16)
    moved = shifted(x, torch.tensor([2, 0]), torch.tensor([-1, 0]))
    assert torch.equal(moved[1], x[1])
    assert torch.equal(moved[0, :, 2:, :-1], x[0, :, :-2, 1:])
    assert not moved[0, :, :2].any()
    assert not moved[0, :, :, -1:].any()


def test_each_picture_changes_in_its_own_way_the_same_for_the_same_seed() -> None:
    x = pictures(1, 3, 16, 16).repeat(64, 1, 1, 1)
    torch.manual_seed(1)
    first = diff_augment(x)
    torch.manual_seed(1)
    assert torch.equal(diff_augment(x), first)
    assert first.shape == x.shape
    assert len({tuple(row) for row in first.flatten(1).tolist()}) == len(x)
    # Brightness is drawn around nothing: the mean of many stays near the pictures' own.
    inner = slice(int(16 * SHIFT), -int(16 * SHIFT))
    assert abs(float(first[..., inner, inner].mean() - x.mean())) < 0.1


def test_it_has_first_and_second_derivatives() -> None:
    x = pictures(2, 3, 8, 8).double().requires_grad_()

    def same(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return diff_augment(x)

    assert torch.autograd.gradcheck(same, (x,))
    (gradient,) = torch.autograd.grad(same(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.abs().sum() > 0


def test_moved_pictures_draw_their_border_out_and_keep_their_colour_nearly() -> None:
    plain = torch.tensor([0.3, 0.0, -0.3])[None, :, None, None].expand(16, 3, 16, 16)
    torch.manual_seed(0)
    changed = moved(plain)
    assert torch.allclose(changed, changed[:, :, :1, :1].expand_as(changed))  # no black border
    assert float((changed.mean(dim=(1, 2, 3))).abs().max()) <= BRIGHTNESS + 1e-6
    assert (changed[:, 0] > changed[:, 1]).all()
    assert (changed[:, 1] > changed[:, 2]).all()
    spot = torch.zeros(32, 3, 16, 16)
    spot[:, :, 8, 8] = 1
    places = {int(p) for p in moved(spot)[:, 0].flatten(1).argmax(dim=1)}
    assert len(places) > 8
    rows, columns = {p // 16 for p in places}, {p % 16 for p in places}
    assert max(rows | columns) <= 8 + 16 * SHIFT
    assert min(rows | columns) >= 8 - 16 * SHIFT


def test_recoloured_pictures_keep_their_shapes_and_no_hue() -> None:
    red, grey = torch.tensor([0.6, 0.0, 0.0]), torch.full((3,), 0.2)
    x = torch.stack([red, grey], dim=1)[None, :, :, None].expand(400, 3, 2, 1)
    torch.manual_seed(0)
    changed = recoloured(x)[..., 0]
    was, now = x[..., 0].mean(dim=1), changed.mean(dim=1)
    lighter = (now - was)[:, 1]
    # Light and dark move together, at most so far; what was grey is grey.
    assert torch.allclose(now - was, lighter[:, None].expand(-1, 2), atol=1e-6)
    assert 0.9 * LIGHTER < float(lighter.abs().max()) <= LIGHTER + 1e-6
    assert torch.allclose(changed[..., 1], now[:, 1:].expand(-1, 3), atol=1e-6)
    # Colours are as far from grey as before, give or take their share, and of every hue.
    colour = changed[..., 0] - now[:, :1]
    richness = colour.norm(dim=1) / (red - red.mean()).norm()
    assert 1 - RICHER - 1e-5 <= float(richness.min()) < float(richness.max()) <= 1 + RICHER + 1e-5
    hue = torch.atan2(
        math.sqrt(3) * (colour[:, 1] - colour[:, 2]), 2 * colour[:, 0] - colour[:, 1] - colour[:, 2]
    )
    assert torch.histc(hue, 8, -math.pi, math.pi).min() > 20


def test_a_spoilt_picture_is_coarse_and_partly_another() -> None:
    """Each in its own way: a share of the other, which a constant shows, and a coarseness, which
    a fine pattern does."""
    ours, other = torch.full((200, 3, 32, 32), -1.0), torch.full((200, 3, 32, 32), 1.0)
    torch.manual_seed(0)
    share = (spoilt(ours, other) + 1) / 2
    assert share.shape == ours.shape
    assert torch.allclose(share, share[:, :1, :1, :1].expand_as(share), atol=1e-6)
    drawn = share[:, 0, 0, 0]
    assert 0 <= float(drawn.min()) < 0.05 * FOREIGN
    assert 0.95 * FOREIGN < float(drawn.max()) <= FOREIGN + 1e-6

    fine = pictures(200, 3, 32, 32)
    kept = spoilt(fine, fine).flatten(1).var(dim=1) / fine.flatten(1).var(dim=1)
    # Of noise as much stays as there are cells for its pixels, less what is blurred between them.
    for found, cells in ((kept.min(), CELLS[0]), (kept.max(), CELLS[1])):
        assert 0.2 * cells**2 < float(found) < 4 / 9 * cells**2


def test_a_bare_forehead_is_grey_and_all_else_as_it_was() -> None:
    x = torch.ones(2, 3, 100, 100)
    seen = bare(x, 0.4)
    top, middle = 40, 50
    deep, wide = round(100 * EDGE), round(100 * FROM_MIDDLE)
    assert not seen[:, :, : top - deep, middle - wide + deep : middle + wide - deep].any()
    assert torch.equal(seen[:, :, top:], x[:, :, top:])
    assert torch.equal(seen[..., : middle - wide], x[..., : middle - wide])
    assert torch.allclose(seen, seen.flip(3), atol=1e-5)
    fading = seen[0, 0, :, middle]
    assert (fading.diff() >= 0).all()  # no edge that a judge could take for one
    assert float(fading.diff().max()) < 2 / deep
