"""Losses and schedules that more than one family has. Pure functions."""

from __future__ import annotations

from torch import Tensor


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference, in float32."""
    return (x.float() - y.float()).abs().mean()


def realness_loss(logits: Tensor, real: bool) -> Tensor:
    """Least squares toward 1 (``real``) or 0 (Mao et al., ICCV 2017)."""
    return (logits.float() - float(real)).square().mean()


def linear_fall(step: int, first: int, length: int) -> float:
    """1 until iteration ``first``, then linear to 0 within ``length`` iterations."""
    return min(1.0, max(0.0, 1 - (step - first) / max(1, length)))
