"""The networks as one would first write them: what the benchmarks measure against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch.nn.functional as F
from torch import Tensor, nn

from facestyle.families.stargan_v2 import networks as stargan_v2
from facestyle.families.ugatit import networks as ugatit
from facestyle.nn.resampling import DoublingConv, HalvingConv


@contextmanager
def plain_networks() -> Iterator[None]:
    """torch's own instance norm, AdaLIN as its paper writes it, and every operation at the size
    and in the order of the published programs."""
    patches = (
        mock.patch.object(stargan_v2, "instance_norm", _scaled),
        mock.patch.object(stargan_v2.ResBlock, "forward", _res_block),
        mock.patch.object(stargan_v2.AdainResBlock, "forward", _adain_block),
        mock.patch.object(ugatit, "instance_norm", _alone),
        mock.patch.object(ugatit, "layer_instance_norm", _mixed),
        mock.patch.object(HalvingConv, "forward", _halving),
        mock.patch.object(DoublingConv, "forward", _doubling),
    )
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return scale * F.instance_norm(x) + shift


def _alone(x: Tensor) -> Tensor:
    return F.instance_norm(x, eps=ugatit.EPS)


def _mixed(x: Tensor, rho: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    def normed(dims: tuple[int, ...]) -> Tensor:
        mean, variance = x.mean(dims, keepdim=True), x.var(dims, keepdim=True)
        return (x - mean) / (variance + ugatit.EPS).sqrt()

    return (rho * normed((2, 3)) + (1 - rho) * normed((1, 2, 3))) * gamma + beta


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _halving(conv: HalvingConv, x: Tensor) -> Tensor:
    return F.avg_pool2d(nn.Conv2d.forward(conv, x), 2)


def _doubling(conv: DoublingConv, x: Tensor) -> Tensor:
    return nn.Conv2d.forward(conv, _doubled(x))


def _res_block(block: stargan_v2.ResBlock, x: Tensor) -> Tensor:
    """The shortcut's 1 × 1 convolution before the pooling."""
    skip = block.conv1x1(x) if hasattr(block, "conv1x1") else x
    if block.halves:
        skip = F.avg_pool2d(skip, 2)
    x = block.conv1(F.leaky_relu(block.norm1(x), stargan_v2.SLOPE))
    x = block.conv2(F.leaky_relu(block.norm2(x), stargan_v2.SLOPE))
    return (x + skip) / math.sqrt(2)


def _adain_block(block: stargan_v2.AdainResBlock, x: Tensor, s: Tensor) -> Tensor:
    """The shortcut's 1 × 1 convolution after the doubling."""
    skip = _doubled(x) if block.doubles else x
    skip = block.conv1x1(skip) if hasattr(block, "conv1x1") else skip
    x = block.conv1(F.leaky_relu(block.norm1(x, s), stargan_v2.SLOPE))
    x = block.conv2(F.leaky_relu(block.norm2(x, s), stargan_v2.SLOPE))
    return (x + skip) / math.sqrt(2) if block.shortcut else x
