"""A model as the pixel side sees it: a card, a backend, and what a style is.

Style logic is written once, here, for every family and every runtime. A backend knows only
``run(role, *arrays)``; this module knows no torch.

    faces_NCHW  float32 [-1, 1]     code_NS  style code     z_NL  latent code
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from facestyle import weights
from facestyle.card import ModelCard
from facestyle.errors import UsageError
from facestyle.weights import Progress

if TYPE_CHECKING:
    from facestyle.checkpoint import Checkpoint

MEAN_STYLE_SAMPLES = 10_000  # latent codes behind the mean style (published demo's number)
MEAN_STYLE_SEED = 0  # the mean must not change with the style's own seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Style:
    """Where a face is to go: a domain, and there one point."""

    domain: str
    """The target domain."""
    code_NS: np.ndarray | None
    """float32 (1, S) style code; None where the model has one fixed style a domain."""
    origin: str
    """For people and recipes: ``seed 7, psi 0.7`` or ``reference ref.jpg``."""


class Backend(Protocol):
    """Named networks with numpy in and out.

    Roles: ``generator`` (image, code) → image; ``mapping`` (latent, domain) → code;
    ``encoder`` (image, domain) → code.
    """

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that can be run."""
        ...

    @property
    def about(self) -> str:
        """Runtime, device and precision, for people: ``torch on cpu, fp32``."""
        ...

    def run(self, role: str, *arrays: np.ndarray) -> np.ndarray:
        """Run one network."""
        ...


class Translator:
    """A loaded model: samples styles, reads them off references, restyles aligned faces."""

    def __init__(self, card: ModelCard, backend: Backend) -> None:
        self.card = card
        self.backend = backend
        self._mean_codes: dict[str, np.ndarray] = {}

    def domain_index(self, domain: str) -> int:
        """Raises UsageError for a domain that the model does not have."""
        if domain not in self.card.domains:
            near = difflib.get_close_matches(domain, self.card.domains, n=1)
            guess = f"did you mean '{near[0]}'? " if near else ""
            raise UsageError(
                f"unknown domain '{domain}'",
                f"{guess}this model has {', '.join(self.card.domains)}",
            )
        return self.card.domains.index(domain)

    def sample_style(self, domain: str, seed: int = 0, psi: float = 1.0) -> Style:
        """A random style of a domain, the same for the same seed.

        Args:
            psi: truncation; 1 takes the sampled style, 0 the domain's mean style.

        Raises:
            UsageError: unknown domain, or the model draws no styles.
        """
        index = self.domain_index(domain)
        self._needs("latent", "sample a style from a seed")
        rng = np.random.default_rng(seed)
        z_NL = rng.standard_normal((1, self._latent_dim), np.float32)
        code_NS = self.backend.run("mapping", z_NL, np.array([index]))
        if psi != 1:
            mean_NS = self._mean_code(domain)
            code_NS = mean_NS + np.float32(psi) * (code_NS - mean_NS)
        return Style(domain=domain, code_NS=code_NS, origin=f"seed {seed}, psi {psi:g}")

    def style_of(self, reference_NCHW: np.ndarray, domain: str, origin: str = "reference") -> Style:
        """The style of one aligned reference face (1, 3, H, W), as a member of ``domain``.

        Raises:
            UsageError: unknown domain, or the model takes no references.
        """
        index = self.domain_index(domain)
        self._needs("reference", "take the style of a reference picture")
        code_NS = self.backend.run("encoder", reference_NCHW, np.array([index]))
        return Style(domain=domain, code_NS=code_NS, origin=origin)

    def likely_domain(self, face_NCHW: np.ndarray) -> str:
        """The domain whose own reading of an aligned face (1, 3, H, W) restores it best.

        A face restyled to its own style comes back nearly unchanged (the cycle loss asks for
        it); under another domain's style encoder branch it does not. A guess: the model that
        ships is right for about four of five faces that it has not seen.

        Raises:
            UsageError: the model takes no references.
        """

        def error(domain: str) -> float:
            back_NCHW = self.translate(face_NCHW, self.style_of(face_NCHW, domain))
            return float(np.abs(back_NCHW - face_NCHW).mean())

        return min(self.card.domains, key=error)

    def translate(self, faces_NCHW: np.ndarray, style: Style) -> np.ndarray:
        """Restyle aligned faces (N, 3, H, W) in [-1, 1]; the result is clipped to [-1, 1]."""
        self.domain_index(style.domain)
        assert style.code_NS is not None, "this translator's generator takes a style code"
        codes_NS = np.repeat(style.code_NS, len(faces_NCHW), axis=0)
        return np.clip(self.backend.run("generator", faces_NCHW, codes_NS), -1, 1)

    @property
    def _latent_dim(self) -> int:
        assert self.card.latent_dim is not None, "a model with latent styles has a latent width"
        return self.card.latent_dim

    def _needs(self, kind: str, action: str) -> None:
        if kind not in self.card.styles:
            raise UsageError(
                f"{self.card.name or self.card.family} cannot {action}",
                f"its styles are: {', '.join(self.card.styles)}",
            )

    def _mean_code(self, domain: str) -> np.ndarray:
        if domain not in self._mean_codes:
            rng = np.random.default_rng(MEAN_STYLE_SEED)
            z_NL = rng.standard_normal((MEAN_STYLE_SAMPLES, self._latent_dim), np.float32)
            y_N = np.full(MEAN_STYLE_SAMPLES, self.domain_index(domain))
            mean_NS = self.backend.run("mapping", z_NL, y_N).mean(axis=0, keepdims=True)
            self._mean_codes[domain] = mean_NS
        return self._mean_codes[domain]


def open_translator(
    name_or_path: str | Path,
    *,
    domains: Sequence[str] | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    offline: bool = False,
    progress: Progress | None = None,
) -> Translator:
    """Load a model: a name of ``facestyle models list``, or a checkpoint of a known family.

    Args:
        domains: names for the domains of a checkpoint that has none, in its own order; on
            one that has, they must agree.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: ``fp32``, or ``bf16`` (autocast).

    Raises:
        WeightsError: the file, or another that it needs, is not here.
        CheckpointError: the file is refused, damaged, or of no known family.
        UsageError: the domain names, the device or the precision do not fit.
    """
    from facestyle.backend_torch import TorchBackend, best_device
    from facestyle.checkpoint import load_checkpoint
    from facestyle.families import detect

    path = weights.resolve(name_or_path, offline=offline, progress=progress)
    checkpoint = load_checkpoint(path)
    card = card_of(checkpoint, domains)
    modules = detect(checkpoint).modules(checkpoint, card)
    return Translator(card, TorchBackend(modules, best_device(device), precision))


def card_of(checkpoint: Checkpoint, domains: Sequence[str] | None = None) -> ModelCard:
    """A checkpoint's own card, or one from its shapes, the index, and the names given.

    Raises:
        CheckpointError: of no known family.
        UsageError: more or fewer names than domains.
    """
    from facestyle.families import detect

    if checkpoint.card is not None:
        return _renamed(checkpoint.card, domains)
    family = detect(checkpoint)
    entry = weights.entry_for(checkpoint.path)
    known = dict(entry.card or {}, licence=entry.licence, name=entry.name) if entry else {}
    if domains is not None:
        known["domains"] = tuple(domains)
    return family.card(checkpoint, known)


def _renamed(card: ModelCard, domains: Sequence[str] | None) -> ModelCard:
    """The card with the domains that the user names; they may rename, not add or drop."""
    if domains is None or tuple(domains) == card.domains:
        return card
    if len(domains) != len(card.domains):
        raise UsageError(
            f"{len(domains)} domain names were given, this model has {len(card.domains)}",
            f"its own are: {', '.join(card.domains)}",
        )
    return replace(card, domains=tuple(domains))
