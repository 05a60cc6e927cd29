"""Convolutions beside a change of size: the numbers of the plain ones, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.backends.on_torch import computes_bf16
from facestyle.nn import resampling
from facestyle.nn.resampling import DoublingConv, HalvingConv, doubled, merged


def near(found: Tensor, expected: Tensor, relative: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= relative * expected.abs().max())


def rounded(x: Tensor) -> Tensor:
    """To bfloat16."""
    return x.bfloat16().float()


def plain(conv: nn.Module, x: Tensor) -> Tensor:
    """As the published programs write it."""
    if isinstance(conv, HalvingConv):
        return F.avg_pool2d(F.conv2d(x, conv.weight, conv.bias, padding=1), 2)
    assert isinstance(conv, DoublingConv)
    mode = "reflect" if conv.padding_mode == "reflect" else "constant"
    x = F.pad(F.interpolate(x, scale_factor=2, mode="nearest"), (1, 1, 1, 1), mode=mode)
    return F.conv2d(x, conv.weight, conv.bias)


CONVS = {
    "halving": lambda *wide: HalvingConv(*wide),
    "halving, no bias": lambda *wide: HalvingConv(*wide, bias=False),
    "doubling": lambda *wide: DoublingConv(*wide),
    "doubling, reflected": lambda *wide: DoublingConv(*wide, bias=False, reflect=True),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [4, 12], ids=["too small to merge", "merged"])
@pytest.mark.parametrize("name", CONVS)
def test_the_numbers_and_gradients_of_the_plain_convolution(
    name: str, side: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = CONVS[name](11, 7).to(memory_format=layout)
    x = torch.randn(2, 11, side, side + 2).to(memory_format=layout).requires_grad_()
    inputs = [x, *conv.parameters()]
    expected, found = plain(conv, x), conv(x)
    assert found.shape == expected.shape
    assert near(found, expected)
    loss = torch.randn(expected.shape)  # an arbitrary one
    for mine, theirs in zip(
        torch.autograd.grad((found * loss).sum(), inputs),
        torch.autograd.grad((expected * loss).sum(), inputs),
        strict=True,
    ):
        assert near(mine, theirs)


@pytest.mark.parametrize("name", CONVS)
def test_the_merged_form_multiplies_less(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    conv, x = CONVS[name](4, 4), torch.randn(1, 4, 32, 32)
    counts = []
    for run in (conv, lambda x: plain(conv, x)):
        with FlopCounterMode(display=False) as counter:
            run(x)
        counts.append(counter.get_total_flops())
    # 16 for 36, and the sums of the weights; a reflected border costs a little too.
    assert counts[0] < 0.52 * counts[1]


@pytest.mark.parametrize("name", CONVS)
def test_second_derivatives_too(name: str) -> None:
    torch.manual_seed(0)
    conv = CONVS[name](2, 2).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(conv, (x,))


@pytest.mark.parametrize("name", CONVS)
def test_under_bfloat16_autocast_it_loses_no_more_than_the_plain_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv, x = CONVS[name](32, 32), torch.randn(2, 32, 16, 16)
    exact = plain(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = conv(x), plain(conv, x)
    assert mine.dtype == torch.bfloat16
    if "doubling" in name and not computes_bf16("cpu"):
        # Torch's own imitation of a transposed convolution rounds every partial sum. Processors
        # that compute bfloat16 round what goes in and what comes out, and sum in float32.
        monkeypatch.setattr(resampling, "merged", lambda *given: rounded(merged(*given)))
        mine = rounded(conv(rounded(x)))
        conv.weight.data = rounded(conv.weight.data)
        theirs = rounded(plain(conv, rounded(x)))
    assert (mine - exact).square().mean() < 1.5 * (theirs - exact).square().mean()


@pytest.mark.parametrize("name", CONVS)
def test_exported_it_is_the_same_at_any_size(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    conv, path = CONVS[name](5, 6).eval(), tmp_path / "conv.onnx"
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    torch.onnx.export(
        conv, (torch.randn(2, 5, 8, 8),), path, dynamo=True, verbose=False, dynamic_shapes=(free,)
    )
    session = onnxruntime.InferenceSession(path)
    x = torch.randn(3, 5, 12, 10)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        assert near(torch.from_numpy(found), plain(conv, x))


def test_doubling_repeats_each_pixel() -> None:
    x = torch.tensor([[[[1.0, 2], [3, 4]]]])
    rows = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert doubled(x).tolist() == [[[[float(value) for value in row] for row in rows]]]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVS)
def test_compiled_it_trains_the_same(name: str) -> None:
    """Inductor's own backward passes of doublings and paddings were slow, or wrong."""
    torch.manual_seed(0)
    conv = CONVS[name](8, 8).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    compiled = torch.compile(conv, dynamic=False)
    inputs = [x, *conv.parameters()]
    loss = torch.randn_like(plain(conv, x))  # an arbitrary one
    expected = torch.autograd.grad((plain(conv, x) * loss).sum(), inputs)
    found = torch.autograd.grad((compiled(x) * loss).sum(), inputs)
    assert all(near(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
