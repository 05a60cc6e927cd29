"""Instance norm: the numbers of torch's own, forward and backward, in every layout and type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from facestyle.nn.norms import instance_norm


def near(found: Tensor, expected: Tensor, relative: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= relative * expected.abs().max())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scaled", ["no", "a channel", "a sample"])
def test_it_is_torchs_instance_norm_with_its_gradients(
    layout: torch.memory_format, scaled: str
) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = (3 * drawn(2, 5, 16, 12) + 1).contiguous(memory_format=layout).requires_grad_()
    weight = drawn(2, 5, 16, 12)  # an arbitrary loss
    samples = 2 if scaled == "a sample" else 1
    scale = None if scaled == "no" else drawn(samples, 5, 1, 1).requires_grad_()
    shift = None if scaled == "no" else drawn(samples, 5, 1, 1).requires_grad_()
    inputs = [tensor for tensor in (x, scale, shift) if tensor is not None]

    expected = F.instance_norm(x)
    if scale is not None and shift is not None:
        expected = scale * expected + shift
    found = instance_norm(x, scale, shift)
    assert near(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        assert mine.shape == theirs.shape
        assert near(mine, theirs)
    with torch.inference_mode():
        assert torch.equal(instance_norm(x, scale, shift), found)
    assert found.is_contiguous(memory_format=layout)


def test_gradients_are_those_of_finite_differences() -> None:
    x, scale, shift = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 4, 3), (2, 3, 1, 1), (1, 3, 1, 1))
    )
    assert torch.autograd.gradcheck(instance_norm, (x, scale, shift))


def test_statistics_stay_in_float32_under_bfloat16() -> None:
    x = (torch.randn(2, 4, 32, 32) + 50).bfloat16()  # in bfloat16 alone the deviation would drown
    expected = F.instance_norm(x.float())
    found = instance_norm(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.02
    y = x.clone().requires_grad_()
    instance_norm(y).float().square().sum().backward()
    assert y.grad is not None
    assert y.grad.dtype == torch.bfloat16
    assert torch.isfinite(y.grad).all()


def test_compilers_see_the_plain_formula() -> None:
    x, scale = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 1, 1)
    compiled = torch.compile(instance_norm, backend="eager", fullgraph=True)
    assert near(compiled(x, scale, scale), instance_norm(x, scale, scale))


def test_second_derivatives_are_torchs() -> None:
    x = torch.randn(2, 3, 6, 4).contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, 1, 3, 1, 1)
    weight = torch.randn_like(x)

    def second(norm: Any) -> list[Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in (x, scale, shift)]
        loss = (norm(*inputs).tanh() * weight).sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        return [*first, *torch.autograd.grad(first[0].square().sum(), inputs)]

    expected = second(lambda x, scale, shift: scale * F.instance_norm(x) + shift)
    for mine, theirs in zip(second(instance_norm), expected, strict=True):
        assert near(mine, theirs, 1e-4)
