"""A model as the pixel side sees it: a card, a backend, and what a style is.

Style logic is written once, here, for every family and every runtime. A backend knows only
``run(role, *arrays)``; this module knows no torch.

    faces_NCHW  float32 [-1, 1]     code_NS  style code     z_NL  latent code
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from facestyle import edits
from facestyle.backends import Backend
from facestyle.card import ModelCard
from facestyle.edits import Edit
from facestyle.errors import UsageError

MEAN_STYLE_SAMPLES = 10_000  # latent codes behind the mean style (published demo's number)
MEAN_STYLE_SEED = 0  # the mean must not change with the style's own seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Style:
    """Where a face is to go: a domain, and there one point."""

    domain: str
    """The target domain; of an edit, the first attribute named."""
    code_NS: np.ndarray | None = None
    """float32 (1, S) style code; None where the model has one fixed style a domain."""
    edit: Edit | None = None
    """Changes of the face's own attributes, for attribute models."""
    drawn: bool = False
    """Whether the code was drawn by a seed, not read off a reference."""
    noise_seed: int | None = None
    """Seed of the dropout noise, where the style is that."""
    origin: str
    """For people and recipes: ``seed 7, psi 0.7`` or ``reference ref.jpg``."""


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

    def domain_after(self, direction: str) -> str:
        """The target of ``AtoB`` or ``BtoA`` in a model that goes between two domains.

        Raises:
            UsageError: another word, or another kind of model.
        """
        if len(self.card.domains) != 2 or "fixed" not in self.card.styles:
            raise UsageError(
                f"{self._name} ({self.card.family}) has no directions",
                f"choose --domain, one of: {', '.join(self.card.domains)}",
            )
        if direction not in ("AtoB", "BtoA"):
            raise UsageError(f"unknown direction '{direction}'", "AtoB or BtoA")
        return self.card.domains[direction == "AtoB"]

    def style(
        self, domain: str | None = None, *, seed: int | None = None, psi: float | None = None
    ) -> Style:
        """A style of a domain in this model's own way: drawn, fixed, or an attribute set.

        Args:
            domain: may be left out where the model has only one.
            seed: of the latent code or the dropout noise; None takes the first latent code,
                and no dropout.
            psi: truncation of a latent code, see ``sample_style``.

        Raises:
            UsageError: unknown domain, or a seed or psi that this model has no use for.
        """
        if domain is None:
            if len(self.card.domains) > 1:
                raise UsageError("no domain was given", f"one of: {', '.join(self.card.domains)}")
            domain = self.card.domains[0]
        if "latent" in self.card.styles:
            return self.sample_style(domain, seed or 0, 1.0 if psi is None else psi)
        self.domain_index(domain)
        if psi is not None:
            raise self._cannot("truncate styles: --psi has no effect")
        if seed is not None and "dropout" in self.card.styles:
            return Style(domain=domain, noise_seed=seed, origin=f"dropout, seed {seed}")
        if seed is not None:
            raise self._cannot("draw styles: a seed has no effect")
        if "attributes" in self.card.styles:
            return self.edited(Edit(on=(domain,)))
        return Style(domain=domain, origin="fixed")

    def sample_style(self, domain: str, seed: int = 0, psi: float = 1.0) -> Style:
        """A random style of a domain, the same for the same seed.

        Args:
            psi: truncation; 1 takes the sampled style, 0 the domain's mean style.

        Raises:
            UsageError: unknown domain, or the model draws no styles.
        """
        self.domain_index(domain)
        self._needs("latent", "sample a style from a seed")
        if seed < 0:
            raise UsageError(f"the seed is {seed}", "expected 0 or more")
        rng = np.random.default_rng(seed)
        code_NS = self._codes(rng.standard_normal((1, self._latent_dim), np.float32), domain)
        if psi != 1:
            mean_NS = self._mean_code(domain)
            code_NS = mean_NS + np.float32(psi) * (code_NS - mean_NS)
        origin = f"seed {seed}, psi {psi:g}"
        return Style(domain=domain, code_NS=code_NS, drawn=True, origin=origin)

    def style_of(self, reference_NCHW: np.ndarray, domain: str, origin: str = "reference") -> Style:
        """The style of one aligned reference face (1, 3, H, W), as a member of ``domain``.

        Raises:
            UsageError: unknown domain, or the model takes no references.
        """
        index = self.domain_index(domain)
        self._needs("reference", "take the style of a reference picture")
        # Where the latent code is the style code, its encoder knows no domains.
        of_domain = (np.array([index]),) if "mapping" in self.backend.roles else ()
        code_NS = self.backend.run("encoder", reference_NCHW, *of_domain)
        return Style(domain=domain, code_NS=code_NS, origin=origin)

    def edited(self, edit: Edit) -> Style:
        """The style that makes these changes to a face's attributes.

        Raises:
            UsageError: an unknown attribute, one wanted in two ways, two of one exclusive group,
                nothing to change, or the model knows no attributes, or cannot see a face's own.
        """
        self._needs("attributes", "change attributes")
        for name in (*edit.names, *(edit.source or ())):
            self.domain_index(name)
        edits.check(edit, self.card)
        blind = edit.source is None and "classifier" not in self.backend.roles
        if blind and edits.depends_on_face(edit, self.card):
            raise UsageError(
                f"{self._name} cannot see which attributes a face has (no discriminator file)",
                "say them with --source, or put the -D file beside the -G file",
            )
        return Style(domain=edit.names[0], edit=edit, origin=edit.words)

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

    def translate(
        self, faces_NCHW: np.ndarray, style: Style, template_52: np.ndarray | None = None
    ) -> np.ndarray:
        """Restyle aligned faces (N, 3, H, W) in [-1, 1]; the result is clipped to [-1, 1].

        ``template_52`` is where their landmarks lie, as shares of the side; by default on the
        card's own template.

        Of several differences each is made by itself, and the changes are added: told two at once,
        a generator does of each a little to the other.
        """
        if len(apart := self._apart(style)) > 1:
            changes = [self.translate(faces_NCHW, one, template_52) - faces_NCHW for one in apart]
            return np.clip(faces_NCHW + np.sum(changes, axis=0), -1, 1)
        arrays = self._wish(faces_NCHW, style)
        if drawing := style.domain in self.card.drawings:
            faces_NCHW = self._resized_eyes(faces_NCHW, template_52, larger=True)
        role = f"generator.{style.domain}"
        if style.noise_seed is not None:
            role, arrays = f"sampler.{style.domain}", (np.array([style.noise_seed]),)
        elif role not in self.backend.roles:
            role = "generator"
        images_NCHW = np.clip(self.backend.run(role, faces_NCHW, *arrays), -1, 1)
        if self.card.both_ways:
            others_NCHW = np.clip(self.backend.run(role, _mirrored(faces_NCHW), *arrays), -1, 1)
            images_NCHW = (images_NCHW + _mirrored(others_NCHW)) / 2
        return (
            images_NCHW if drawing else self._resized_eyes(images_NCHW, template_52, larger=False)
        )

    def flow(self, faces_NCHW: np.ndarray, style: Style) -> np.ndarray | None:
        """How ``translate`` moves what is there before it paints: (N, h, w, 2) displacements, see
        ``paste.reshape``; None of a model that moves nothing."""
        if "flow" not in self.backend.roles:
            return None
        flows = [self._flow(faces_NCHW, one) for one in self._apart(style)]
        return np.asarray(np.sum(flows, axis=0))

    def _flow(self, faces_NCHW: np.ndarray, style: Style) -> np.ndarray:
        arrays = self._wish(faces_NCHW, style)
        flow_NHW2 = self.backend.run("flow", faces_NCHW, *arrays)
        if self.card.both_ways:
            others_NHW2 = self.backend.run("flow", _mirrored(faces_NCHW), *arrays)
            flow_NHW2 = (flow_NHW2 + others_NHW2[:, :, ::-1] * np.array([-1, 1], np.float32)) / 2
        return flow_NHW2

    def hair_colours(self, faces_NCHW: np.ndarray) -> np.ndarray:
        """How far the results of the card's colours of hair differ, which is most where hair is:
        (N, H, W), see ``masks.hair``."""
        # As if of faces without attributes: nobody has to look for them, and the place is the same.
        # One way, for that is as good to see where.
        asked = [Edit(on=(colour,), source=()) for colour in self.card.on_hair]
        images = [
            np.clip(self.backend.run("generator", faces_NCHW, self.labels(faces_NCHW, one)), -1, 1)
            for one in asked
        ]
        return np.asarray(np.ptp(np.stack(images), axis=0).mean(axis=1))

    def _resized_eyes(
        self, photos_NCHW: np.ndarray, template_52: np.ndarray | None, *, larger: bool
    ) -> np.ndarray:
        """Photos with eyes as the generators know them, ``larger``, or back at their own size; as
        they are of a card that does not ask for it."""
        card = self.card
        if card.eyes is None:
            return photos_NCHW
        from facestyle.faces.align import template_points, with_larger_eyes

        if template_52 is None:
            template_52 = template_points(card.alignment, card.zoom)
        times = card.eyes if larger else 1 / card.eyes
        photos_NHWC = np.ascontiguousarray(photos_NCHW.transpose(0, 2, 3, 1))
        resized_NHWC = np.stack([with_larger_eyes(f, template_52, times) for f in photos_NHWC])
        return np.ascontiguousarray(resized_NHWC.transpose(0, 3, 1, 2))

    def _apart(self, style: Style) -> list[Style]:
        """The styles that a generator is asked for one by one, see ``edits.apart``."""
        if style.edit is None or len(parts := edits.apart(style.edit, self.card)) == 1:
            return [style]
        return [self.edited(edit) for edit in parts]

    def _wish(self, faces_NCHW: np.ndarray, style: Style) -> tuple[np.ndarray, ...]:
        """What the generator is told beside the faces."""
        self.domain_index(style.domain)
        if style.edit is not None:
            return (self.labels(faces_NCHW, style.edit),)
        if style.code_NS is not None:
            return (np.repeat(style.code_NS, len(faces_NCHW), axis=0),)
        return ()

    def needs_attention(self, style: Style) -> str:
        """The role that shows what the generator looks at; raises UsageError without one."""
        role = f"attention.{style.domain}"
        if role not in self.backend.roles:
            raise self._cannot("show attention: its networks have none")
        return role

    def attention(
        self, faces_NCHW: np.ndarray, style: Style, template_52: np.ndarray | None = None
    ) -> np.ndarray:
        """What the generator looks at: heatmaps (N, 1, h, w), larger where it looks more.

        ``template_52`` as in ``translate``.

        Raises:
            UsageError: the model has no attention.
        """
        if style.domain in self.card.drawings:
            faces_NCHW = self._resized_eyes(faces_NCHW, template_52, larger=True)
        return self.backend.run(self.needs_attention(style), faces_NCHW)

    def labels(self, faces_NCHW: np.ndarray, edit: Edit) -> np.ndarray:
        """The label vectors (N, A) that ask the generator for these faces with these changes, see
        ``edits.labels``."""
        has = {name: name in (edit.source or ()) for name in self.card.domains}
        own = {name: np.full(len(faces_NCHW), value) for name, value in has.items()}
        if edit.source is None and edits.depends_on_face(edit, self.card):
            own = edits.seen(self.backend.run("classifier", faces_NCHW), self.card)
        return edits.labels(edit, self.card, own)

    @property
    def _name(self) -> str:
        return self.card.name or self.card.family

    @property
    def _latent_dim(self) -> int:
        assert self.card.latent_dim is not None, "a model with latent styles has a latent width"
        return self.card.latent_dim

    def _needs(self, kind: str, action: str) -> None:
        if kind not in self.card.styles:
            raise self._cannot(action)

    def _cannot(self, action: str) -> UsageError:
        return UsageError(
            f"{self._name} ({self.card.family}) cannot {action}",
            f"its styles are: {', '.join(self.card.styles)}",
        )

    def _codes(self, z_NL: np.ndarray, domain: str) -> np.ndarray:
        """Style codes of latent codes; without a mapping network the latent code is it."""
        if "mapping" not in self.backend.roles:
            return z_NL
        return self.backend.run("mapping", z_NL, np.full(len(z_NL), self.domain_index(domain)))

    def _mean_code(self, domain: str) -> np.ndarray:
        if domain not in self._mean_codes:
            rng = np.random.default_rng(MEAN_STYLE_SEED)
            z_NL = rng.standard_normal((MEAN_STYLE_SAMPLES, self._latent_dim), np.float32)
            self._mean_codes[domain] = self._codes(z_NL, domain).mean(axis=0, keepdims=True)
        return self._mean_codes[domain]


def _mirrored(pictures_NCHW: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures_NCHW[..., ::-1])
