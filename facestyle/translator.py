"""A model as the pixel side sees it: a card, a backend, and what a style is.

Style logic is written once, here, for every family and every runtime. A backend knows only
``run(role, *arrays)``; this module knows no torch.

    faces_NCHW  float32 [-1, 1]     code_NS  style code     z_NL  latent code
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from facestyle import weights
from facestyle.bundle import is_onnx, load_bundle
from facestyle.card import ModelCard
from facestyle.errors import UsageError
from facestyle.watched import Watched
from facestyle.weights import Progress

if TYPE_CHECKING:
    from facestyle.checkpoint import Checkpoint

MEAN_STYLE_SAMPLES = 10_000  # latent codes behind the mean style (published demo's number)
RUNTIMES = ("auto", "torch", "onnx", "openvino")
MEAN_STYLE_SEED = 0  # the mean must not change with the style's own seed


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is to change of a face's attributes (attribute models, such as StarGAN)."""

    on: tuple[str, ...] = ()
    """Attributes that the result shall have; of an exclusive group the others go off."""
    off: tuple[str, ...] = ()
    """Attributes that it shall not have."""
    flip: tuple[str, ...] = ()
    """Attributes to reverse."""
    source: tuple[str, ...] | None = None
    """The attributes that the picture has; None to let the model's classifier say it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes that it changes."""
        return tuple(dict.fromkeys((*self.on, *self.off, *self.flip)))

    def among(self, domains: Collection[str]) -> Edit:
        """What of it is asked of these attributes."""

        def some(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in names if name in domains)

        return replace(self, on=some(self.on), off=some(self.off), flip=some(self.flip))


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


class Backend(Protocol):
    """Named networks with numpy in and out.

    Roles: ``generator`` (image, code) → image, or one ``generator.<domain>`` (image) → image
    for each target domain; ``flow`` (image, code) → displacements, where the generator moves
    before it paints; ``mapping`` (latent, domain) → code; ``encoder`` (image, domain) →
    code, without a mapping (image) → code; ``classifier`` (image) → attribute logits;
    ``attention.<domain>`` (image) → heatmap; ``sampler.<domain>`` (image, seed) → image.
    """

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that can be run."""
        ...

    @property
    def about(self) -> str:
        """Runtime, device and precision, for people: ``torch on cpu, fp32``."""
        ...

    precision: str
    """``fp32``, ``bf16`` or ``fp16``."""

    def exact(self) -> Backend:
        """The same networks in float32."""
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
        wanted = [*edit.on, *edit.off, *edit.flip]
        for name in (*wanted, *(edit.source or ())):
            self.domain_index(name)
        if not wanted:
            raise UsageError("no attribute to change", f"it knows {', '.join(self.card.domains)}")
        if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
            raise UsageError(f"'{twice[0]}' is wanted in two ways", "name it once")
        for group in self._groups():
            if len(both := [name for name in edit.on if name in group]) > 1:
                raise UsageError(
                    f"{' and '.join(both)} exclude each other", f"set one of {', '.join(group)}"
                )
        if edit.source is None and "classifier" not in self.backend.roles and self._looks(edit):
            raise UsageError(
                f"{self._name} cannot see which attributes a face has (no discriminator file)",
                "say them with --source, or put the -D file beside the -G file",
            )
        words = [*edit.on, *(f"no {name}" for name in edit.off), *(f"flip {n}" for n in edit.flip)]
        return Style(domain=wanted[0], edit=edit, origin=", ".join(words))

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
        edits = [Edit(on=(colour,), source=()) for colour in self.card.on_hair]
        images = [
            np.clip(self.backend.run("generator", faces_NCHW, self.labels(faces_NCHW, one)), -1, 1)
            for one in edits
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
        """Of a generator of differences one style for each of them; of an exclusive group's there
        is one."""
        edit = style.edit
        if edit is None or not self.card.relative:
            return [style]
        groups = {name: tuple(group) for group in self._groups() for name in group}
        wanted = dict.fromkeys(groups.get(name, (name,)) for name in edit.names)
        return [self.edited(edit.among(names)) for names in wanted]

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
        """The label vectors (N, A) that ask the generator for faces with these changes.

        Of several data sets' attributes only the set with the edit counts: the mask says so. A
        generator of differences is told 1 of what is to come and -1 of what is to go, and of what
        was asked for by name even where the face seems to have it: the classifier may be wrong.
        """
        names = self.card.domains
        sets = [group.split(",") for group in self.card.attribute_sets] or [list(names)]
        wanted = set(edit.names)
        chosen = [wanted <= set(members) for members in sets]
        if not any(chosen):
            raise UsageError(
                f"{', '.join(sorted(wanted))} come from different data sets",
                "change the attributes of one set at a time",
            )
        active = set(sets[chosen.index(True)])
        own = {name: np.zeros(len(faces_NCHW), bool) for name in names}
        if edit.source is not None:
            own |= {name: np.full(len(faces_NCHW), name in edit.source) for name in names}
        elif self._looks(edit):
            own |= self._seen(faces_NCHW)
        target = dict(own)
        for name in (*edit.on, *edit.off, *edit.flip):
            value = ~own[name] if name in edit.flip else np.full(len(faces_NCHW), name in edit.on)
            for group in self._groups():
                if name in group:
                    for other in group:
                        target[other] = target[other] & ~value
            target[name] = value
        labels_NA = np.stack([target[name] for name in names], axis=1).astype(np.float32)
        if self.card.relative:
            own |= {name: ~target[name] for name in wanted}
            labels_NA -= np.stack([own[name] for name in names], axis=1)
        labels_NA *= np.array([name in active for name in names], np.float32)
        if len(sets) > 1:
            mask_NM = np.repeat(np.array([chosen], np.float32), len(faces_NCHW), axis=0)
            labels_NA = np.concatenate([labels_NA, mask_NM], axis=1)
        return labels_NA

    def _seen(self, faces_NCHW: np.ndarray) -> dict[str, np.ndarray]:
        """The attributes that the model's own classifier sees, (N,) bool each."""
        logits_NA = self.backend.run("classifier", faces_NCHW)
        seen = {name: logits_NA[:, i] > 0 for i, name in enumerate(self.card.domains)}
        for group in self._groups():
            # At most the likeliest; a bald head has no hair colour, an expression is always one.
            columns = [self.card.domains.index(name) for name in group]
            best = logits_NA[:, columns].argmax(axis=1)
            always = self._is_whole_set(group)
            for place, name in enumerate(group):
                seen[name] = (best == place) & (always | seen[name])
        return seen

    def _groups(self) -> list[list[str]]:
        return [group.split(",") for group in self.card.exclusive]

    def _is_whole_set(self, group: Sequence[str]) -> bool:
        sets = self.card.attribute_sets or (",".join(self.card.domains),)
        return any(set(group) == set(members.split(",")) for members in sets)

    def _looks(self, edit: Edit) -> bool:
        """Whether the edit depends on what the face has.

        Attributes that all exclude each other leave nothing of it; of differences only those
        depend on it that reverse something, or take the place of others.
        """
        if self.card.relative:
            grouped = {name for group in self._groups() for name in group}
            return bool(edit.flip or grouped & set(edit.on))
        return not any(
            bool(edit.on) and set(edit.on) <= set(group) and self._is_whole_set(group)
            for group in self._groups()
        )

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


def open_translator(
    name_or_path: str | Path,
    *,
    domains: Sequence[str] | None = None,
    runtime: str = "auto",
    device: str = "cpu",
    precision: str = "fp32",
    offline: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> Translator:
    """Load a model: a name of ``facestyle models list``, a checkpoint of a known family, or an
    ONNX bundle (``facestyle export``).

    Args:
        domains: names for the domains of a checkpoint that has none, in its own order; on
            one that has, they must agree.
        runtime: ``torch`` for checkpoints, ``onnx`` or ``openvino`` for bundles; ``auto`` takes
            onnxruntime for bundles and for what ships as one, torch for all else. OpenVINO is
            never taken unasked: its start costs more than a picture gains, it takes one picture
            at a time, and whether it is installed must not change the result's bytes.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``; ``auto`` is the first GPU, else the CPU.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: on a CPU fp32, since less keeps one
            model's picture and not the next one's; on CUDA fp16 for a checkpoint, and for a
            bundle what it was exported in.
        warn: told of each result that came out broken in reduced precision and was made again.

    Raises:
        WeightsError: the file, or another that it needs, is not here.
        CheckpointError: the file is refused, damaged, or of no known family.
        UsageError: the domain names, the runtime, the device or the precision do not fit.
    """
    path = model_file(
        name_or_path,
        runtime=runtime,
        device=device,
        precision=precision,
        offline=offline,
        progress=progress,
    )
    if is_onnx(path):
        card, backend = _open_bundle(path, domains, runtime, device, precision)
    else:
        card, backend = _open_checkpoint(path, domains, runtime, device, precision)
    return Translator(card, backend if backend.precision == "fp32" else Watched(backend, warn))


def model_file(
    name_or_path: str | Path,
    *,
    runtime: str = "auto",
    device: str = "cpu",
    precision: str = "fp32",
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The file that ``open_translator`` would open.

    A model that ships as a checkpoint and as an ONNX bundle is opened as the bundle where that
    can do what was asked: its first picture comes without the seconds that torch takes to load.

    Raises:
        UsageError: an unknown runtime, or a checkpoint for onnxruntime or OpenVINO.
        WeightsError: the file is not here.
    """
    wanted = file_of(name_or_path, runtime, device, precision)
    path = weights.resolve(wanted, offline=offline, progress=progress)
    if runtime in ("onnx", "openvino") and not is_onnx(path):
        raise UsageError(
            f"runtime '{runtime}' needs an ONNX bundle, {path.name} is none",
            f"make one: facestyle export {path} -o {path.stem}.onnx",
        )
    return path


def file_of(name_or_path: str | Path, runtime: str, device: str, precision: str) -> str | Path:
    """The entry, or the path, behind what the user named; see ``model_file``."""
    if runtime not in RUNTIMES:
        raise UsageError(f"unknown runtime '{runtime}'", f"known: {', '.join(RUNTIMES)}")
    entry = None if Path(name_or_path).exists() else weights.index().get(str(name_or_path))
    light = device.startswith(("auto", "cpu")) and precision in ("auto", "fp32")
    if entry and entry.onnx and (runtime in ("onnx", "openvino") or (runtime == "auto" and light)):
        return entry.onnx
    return name_or_path


def device_for(path: Path | None, asked: str) -> str:
    """Where a model's file would run; raises UsageError for a device that is not here."""
    if path is not None and is_onnx(path):
        from facestyle.backend_onnx import gpu

        return asked if asked != "auto" else "cuda" if gpu() else "cpu"
    from facestyle.backend_torch import best_device

    return best_device(asked)


def reasons(path: Path, backend: Backend, runtime: str, device: str, precision: str) -> list[str]:
    """Why ``open_translator`` took what it took where the user said ``auto``, for people."""
    on_cpu, bundle = " on cpu" in backend.about, is_onnx(path)
    if bundle and not on_cpu:
        why_precision = "which the bundle was exported in"
    elif backend.precision == "fp32":
        why_precision = "since less does not keep every model's picture"
    else:
        why_precision = "several times as fast; a broken picture is made again in fp32"
    chosen = {
        "runtime": (
            "onnxruntime, the first of those that run bundles to have a picture ready"
            if bundle
            else "torch, which alone runs checkpoints"
        ),
        "device": "cpu, this runtime finds no GPU here" if on_cpu else "the GPU, far faster",
        "precision": f"{backend.precision}, {why_precision}",
    }
    asked = {"runtime": runtime, "device": device, "precision": precision}
    return [f"--{what} auto: {why}" for what, why in chosen.items() if asked[what] == "auto"]


def _open_bundle(
    path: Path, domains: Sequence[str] | None, runtime: str, device: str, precision: str
) -> tuple[ModelCard, Backend]:
    if runtime == "torch":
        raise UsageError(
            f"{path.name} is an ONNX bundle, which torch does not run",
            "use --runtime auto, or give the checkpoint that it was made of",
        )
    bundle = load_bundle(path)
    bundle = bundle.with_card(_renamed(bundle.card, domains))
    if runtime == "openvino":
        from facestyle.backend_openvino import OpenVinoBackend

        return bundle.card, OpenVinoBackend(bundle, device, precision)
    from facestyle.backend_onnx import OnnxBackend

    return bundle.card, OnnxBackend(bundle, device, precision)


def _open_checkpoint(
    path: Path, domains: Sequence[str] | None, runtime: str, device: str, precision: str
) -> tuple[ModelCard, Backend]:
    from facestyle.backend_torch import TorchBackend, best_device
    from facestyle.checkpoint import load_checkpoint
    from facestyle.families import detect

    checkpoint = load_checkpoint(path)
    card = card_of(checkpoint, domains)
    modules = detect(checkpoint).modules(checkpoint, card)
    return card, TorchBackend(modules, best_device(device), precision)


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
    new = dict(zip(card.domains, domains, strict=True))

    def renamed(groups: Sequence[str]) -> tuple[str, ...]:
        return tuple(",".join(new[name] for name in group.split(",")) for group in groups)

    return replace(
        card,
        domains=tuple(domains),
        attribute_sets=renamed(card.attribute_sets),
        exclusive=renamed(card.exclusive),
        on_skin=renamed(card.on_skin),
        on_hair=renamed(card.on_hair),
        drawings=renamed(card.drawings),
    )
