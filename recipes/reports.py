"""What is reported of each kind of model: every photo in every style, judged and drawn.

``score.py`` says what the measures mean. Numbers come from ``measures``, opinions from
``judges``; nothing here is printed or written, but for how far it is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import judges
import measures
import numpy as np
from judges import GENDERS, KINDS, Classifier, Embed, Groups, KnownFace, Pixels, Portrait
from measures import Scores, mean
from sheets import Row, noted

import facestyle
from facestyle.edits import Edit
from facestyle.faces import Detector
from facestyle.faces.align import align, template_points, whole
from facestyle.faces.masks import paste_mask
from facestyle.images import from_model, read_picture, to_model
from facestyle.pipeline import aligned_faces, laid_out, translate_crops
from facestyle.translator import Style, Translator

STYLES = 10  # latent styles a photo behind the diversity
MATRIX = (6, 8)  # photos and references on the reference sheet
ANIME = (8, 3)  # rows of held-out pictures on their sheet, and pictures a row
ZOOM = 0.62  # of thumbnails of heads
KID = "KID on MobileFaceNet features"
BATCH = 16  # crops that a network takes at once

Sheet = tuple[Sequence[str], Sequence[Row]]  # titles of the columns, rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A photo in one style, pasted, and what was measured on it."""

    source: Portrait
    domain: str
    """Of the style."""
    head_HWC: Pixels
    """A thumbnail."""
    crop_HWC: Pixels
    embedding_E: np.ndarray
    p_A: np.ndarray
    """The classifier's answers."""
    identity: float
    change: float
    seam: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """The model, the photos, and what all kinds of scores need of the arguments."""

    model: Translator
    people: Sequence[Portrait]
    detector: Detector
    embed: Embed
    options: argparse.Namespace

    def archive(self, name: str) -> Path:
        """A zip of faces."""
        return Path(self.options.faces / f"{name}.zip")

    def result(self, source: Portrait, style: Style, classifier: Classifier) -> Result:
        """The photo in one style; the source's landmarks serve for all crops."""
        known, before_HWC = KnownFace(source.face), source.pixels_HWC
        picture_HWC = facestyle.restyle(
            before_HWC,
            self.model,
            style,
            detector=known,
            detail=self.options.detail,
            tone=self.options.tone,
            crop_only=False,
        )
        crop_HWC = judges.cut(picture_HWC, source.face.landmarks_52)
        embedding_E = self.embed(crop_HWC)
        # Of a model that moves shapes, the photo that is pasted into, and where it is, are moved.
        (face,) = translate_crops(
            aligned_faces(before_HWC, self.model, detector=known), self.model, style
        )
        into_HWC, pieces = laid_out(before_HWC, face)
        mask_HW = np.max([paste_mask(piece, into_HWC) for piece, _ in pieces], axis=0)
        return Result(
            source=source,
            domain=style.domain,
            head_HWC=self.head(source, picture_HWC),
            crop_HWC=crop_HWC,
            embedding_E=embedding_E,
            p_A=classifier.answers([classifier.view(picture_HWC, source.face)])[0],
            identity=float(self.embed(source.crop_HWC) @ embedding_E),
            change=measures.change(crop_HWC, source.crop_HWC),
            seam=measures.seam(picture_HWC, into_HWC, mask_HW),
        )

    def head(self, who: Portrait, picture_HWC: Pixels | None = None) -> Pixels:
        """A thumbnail of the head with its surroundings, of the photo if of no other picture."""
        shown_HWC = who.pixels_HWC if picture_HWC is None else picture_HWC
        side, white = self.options.thumbnail, cv2.BORDER_CONSTANT
        return judges.cut(shown_HWC, who.face.landmarks_52, side, ZOOM, white)

    def each(self) -> Iterable[Portrait]:
        """The people, while saying how far it is."""
        for person in self.people:
            print(f"\r{person.name} ", end="", flush=True, file=sys.stderr)
            yield person

    def identities(self) -> Groups:
        """What the identity of a result is to be held against."""
        crops = [person.crop_HWC for person in self.people]
        own_NE = np.stack([self.embed(crop_HWC) for crop_HWC in crops])
        soft_NE = np.stack([self.embed(judges.softened(crop_HWC)) for crop_HWC in crops])
        softened = mean((own_NE * soft_NE).sum(axis=1))
        return {"portraits": {"strangers": measures.strangers(own_NE), "softened": softened}}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a model's scores are."""

    scores: Mapping[str, Groups]
    """Tables by title."""
    card: Scores
    """The few that its card shall tell."""
    sheets: Mapping[str, Sheet]
    """By name."""
    files: Mapping[str, Path]
    """What the scores came from."""


def of_pasted(results: Sequence[Result]) -> Scores:
    """What is measured on results of any kind of model."""
    means = {key: mean(getattr(r, key) for r in results) for key in ("identity", "change", "seam")}
    return {**means, "worst_seam": mean([max(r.seam for r in results)])}


def trusted(source: str, accuracy: Groups) -> Groups:
    """A classifier's accuracy, its lines named by what it was tried on."""
    return {f"{source} {name}": values for name, values in accuracy.items()}


# --- Female and male -------------------------------------------------------------------


def of_latent(bench: Bench) -> Report:
    """Of a model of female and male, by seed and by reference."""
    model, people, options = bench.model, bench.people, bench.options
    files = {"classifier": options.work / "female-male.pt", "faces": bench.archive("utk8k")}
    classifier = judges.taught(
        judges.GENDER,
        files["classifier"],
        options.seed,
        [files["faces"]],
        lambda: judges.utkface(files["faces"], bench.detector),
        options.precision,
    )
    trust = trusted("utkface", classifier.held_out)
    tests = {"portraits": ([p.crop_HWC for p in people], [p.domain for p in people])}
    if options.held_out:
        paths = [path for d in GENDERS for path in sorted((options.held_out / d).iterdir())]
        pictures = [read_picture(path).pixels_HWC for path in paths]
        crops_NHWC = judges.cut_found(pictures, bench.detector)
        tests["held-out"] = (list(crops_NHWC), [path.parent.name for path in paths])
    for test, (crops, domains) in tests.items():
        labels_N1 = np.array([[GENDERS.index(domain)] for domain in domains])
        trust |= trusted(test, classifier.accuracy(crops, labels_N1))

    def latent(domain: str, seed: int) -> tuple[str, Style]:
        return f"{domain}, seed {seed}", model.sample_style(domain, seed=seed, psi=options.psi)

    def referring(to: Portrait) -> Style:
        known = KnownFace(to.face)
        return facestyle.reference_style(to.pixels_HWC, model, to.domain, detector=known)

    def in_styles(person: Portrait, styles: Iterable[Style]) -> list[Result]:
        return [bench.result(person, style, classifier) for style in styles]

    seeds = [latent(domain, seed) for domain in GENDERS for seed in range(options.seeds)]
    spare = [latent(domain, seed) for domain in GENDERS for seed in range(options.seeds, STYLES)]
    latents: list[Result] = []
    varied: list[Result] = []
    references: list[tuple[Result, Portrait]] = []
    for person in bench.each():
        latents += in_styles(person, (style for _, style in seeds))
        varied += in_styles(person, (style for _, style in spare if style.domain != person.domain))
        chosen = [p for d in GENDERS for p in others(person, people, d, options.references)]
        references += zip(in_styles(person, map(referring, chosen)), chosen, strict=True)

    scores = {
        "classifier": trust,
        "latent": by_direction(latents),
        "reference": by_direction([result for result, _ in references]),
        "diversity": {
            f"from {start}": measures.diversity(
                [
                    [
                        (r.embedding_E, r.crop_HWC)
                        for r in latents + varied
                        if r.source is person and r.domain != start
                    ]
                    for person in people
                    if person.domain == start
                ]
            )
            for start in GENDERS
        },
        "following": {"references": measures.following(colours_of(references))},
        "identity of": bench.identities(),
    }
    card = {
        f"{way} {source} to {goal}: {name}": round(scores[way][f"{source} to {goal}"][name], 2)
        for way in ("latent", "reference")
        for source, goal in (GENDERS, GENDERS[::-1])
        for name in ("identity", "domain", "seam")
    }

    own = {person: noted(bench.head(person)) for person in people}
    sheets: dict[str, Sheet] = {}
    for domain in GENDERS:
        rows = [
            [own[person], *(shown(r) for r in latents if r.source is person)]
            for person in people
            if person.domain == domain
        ]
        sheets[f"from-{domain}"] = ["photo", *(name for name, _ in seeds)], rows
    some, targets = (people[:: max(1, len(people) // n)][:n] for n in MATRIX)
    wanted = [referring(person) for person in targets]
    rows = [[np.full_like(own[people[0]], 255), *(own[person] for person in targets)]]
    rows += [[own[p], *(shown(r) for r in in_styles(p, wanted))] for p in some]
    sheets["references"] = ["photo", *(person.name for person in targets)], rows
    return Report(scores=scores, card=card, sheets=sheets, files=files)


def asked(result: Result) -> float:
    """The probability of the domain that was asked for."""
    return float(result.p_A[0] if result.domain == "male" else 1 - result.p_A[0])


def shown(result: Result) -> np.ndarray:
    """On a sheet."""
    note = f"{asked(result):.2f} {result.domain}, id {result.identity:.2f}"
    return noted(result.head_HWC, note)


def by_direction(results: Sequence[Result]) -> Groups:
    """Means over the results from each domain to each."""
    groups: Groups = {}
    for start, goal in itertools.product(GENDERS, GENDERS):
        group = [r for r in results if (r.source.domain, r.domain) == (start, goal)]
        groups[f"{start} to {goal}"] = {
            "count": len(group),
            "domain": mean(asked(r) > 0.5 for r in group),
            "probability": mean(asked(r) for r in group),
            **of_pasted(group),
        }
    return groups


def colours_of(references: Sequence[tuple[Result, Portrait]]) -> list[np.ndarray]:
    """As ``measures.following`` wants them: a group a photo and domain."""
    groups: dict[tuple[Portrait, str], list[np.ndarray]] = {}
    for result, reference in references:
        crops = (result.crop_HWC, reference.crop_HWC, result.source.crop_HWC)
        trio_33 = np.stack([measures.lab(crop_HWC).mean(axis=(0, 1)) for crop_HWC in crops])
        groups.setdefault((result.source, result.domain), []).append(trio_33)
    return [np.stack(group) for group in groups.values()]


def others(source: Portrait, people: Sequence[Portrait], domain: str, count: int) -> list[Portrait]:
    """The people of a domain who follow the source's place in its own."""
    place = [p for p in people if p.domain == source.domain].index(source) + 1
    there = [p for p in people if p.domain == domain]
    turned = [there[(place + i) % len(there)] for i in range(len(there))]
    return [p for p in turned if p is not source][:count]


# --- Attributes ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Edited:
    """A photo with one attribute changed, and what the classifier saw of that."""

    result: Result
    name: str
    on: bool
    """Or off."""
    asked: bool
    softened: bool
    kept: float


def of_attributes(bench: Bench) -> Report:
    """Of a model that changes attributes."""
    names, options = bench.model.card.domains, bench.options
    # In an order that is not the model's: one classifier serves all of them.
    watched = (*judges.WATCHED, *(name for name in names if name not in judges.WATCHED))
    files = {"classifier": options.work / "attributes.pt", "faces": bench.archive("celeba10k")}
    classifier = judges.taught(
        judges.attributes(watched),
        files["classifier"],
        options.seed,
        [files["faces"]],
        lambda: judges.celeba(files["faces"], watched, bench.detector),
        options.precision,
    )
    trust = trusted("celeba", classifier.held_out)
    groups = [group.split(",") for group in bench.model.card.exclusive]

    def edited(person: Portrait, name: str, before_A: np.ndarray, soft_A: np.ndarray) -> Edited:
        index, on = watched.index(name), not before_A[watched.index(name)]
        style = bench.model.edited(Edit(on=(name,)) if on else Edit(off=(name,)))
        result = bench.result(person, style, classifier)
        after_A = result.p_A > 0.5
        tied = {name, *(other for group in groups if name in group for other in group)}
        rest = [i for i, other in enumerate(watched) if other not in tied]
        return Edited(
            result=result,
            name=name,
            on=on,
            asked=bool(after_A[index] == on),
            softened=bool(soft_A[index] == on),
            kept=float((after_A == before_A)[rest].mean()) if rest else 1.0,
        )

    found: list[Edited] = []
    rows: list[Row] = []
    seen: list[np.ndarray] = []
    for person in bench.each():
        view_HWC = classifier.view(person.pixels_HWC, person.face)
        p_2A = classifier.answers([view_HWC, judges.softened(view_HWC)])
        before_A, soft_A = p_2A > 0.5
        seen.append(p_2A[0])
        has = [name for name, yes in zip(watched, before_A, strict=True) if yes]
        row = [noted(bench.head(person), " ".join(name[:3] for name in has))]
        for name in names:
            if name in has and any(name in group for group in groups):
                row.append(np.full_like(row[0], 255))
                continue
            edit = edited(person, name, before_A, soft_A)
            p = edit.result.p_A[watched.index(name)]
            note = f"{'on' if edit.on else 'off'} {p:.2f}, id {edit.result.identity:.2f}"
            row.append(noted(edit.result.head_HWC, note))
            found.append(edit)
        rows.append(row)

    # The one that the photos' names tell.
    p_N = np.array([p_A[watched.index("Male")] for p_A in seen])
    labels_N = np.array([GENDERS.index(person.domain) for person in bench.people])
    trust["portraits Male sharp"] = judges.shares(p_N, labels_N, ("without", "with"))
    ways = [(name, on) for name in names for on in (True, False)]
    both = {(name, on): [e for e in found if (e.name, e.on) == (name, on)] for name, on in ways}
    scores = {
        "classifier": trust,
        "edits": of_edits({name: both[name, True] + both[name, False] for name in names}),
        "on": of_edits({name: both[name, True] for name in names}),
        "off": of_edits({name: both[name, False] for name in names}),
        "all": of_edits({"edits": found}),
        "identity of": bench.identities(),
    }
    card = {
        f"{name}: {key}": round(values[key], 2)
        for name, values in scores["edits"].items()
        for key in ("asked", "identity")
    }
    card |= {f"all: {k}": round(scores["all"]["edits"][k], 2) for k in ("kept", "identity", "seam")}
    sheets = {"portraits": (["photo", *names], rows)}
    return Report(scores=scores, card=card, sheets=sheets, files=files)


def of_edits(groups: Mapping[str, Sequence[Edited]]) -> Groups:
    """Means over the edits of each group that has any."""
    return {
        name: {
            "count": len(group),
            **{key: mean(getattr(e, key) for e in group) for key in ("asked", "softened", "kept")},
            **of_pasted([e.result for e in group]),
        }
        for name, group in groups.items()
        if group
    }


# --- Portrait and anime ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Pictures as the model takes and makes them, and what the judges see in them."""

    squares_NHWC: np.ndarray
    embeddings_NE: np.ndarray
    p_N: np.ndarray
    """Probability of anime."""

    def kid(self, other: Seen) -> float:
        """KID on MobileFaceNet features."""
        return round(measures.kid(self._features_NE, other._features_NE), 4)

    def half(self, start: int) -> Seen:
        """Every other one."""
        every = slice(start, None, 2)
        return Seen(
            squares_NHWC=self.squares_NHWC[every],
            embeddings_NE=self.embeddings_NE[every],
            p_N=self.p_N[every],
        )

    @property
    def _features_NE(self) -> np.ndarray:
        """Of such a length that the kernel of ``measures.kid`` is (cosine + 1)³."""
        return self.embeddings_NE * np.sqrt(self.embeddings_NE.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Journey:
    """Pictures of one kind, the other kind of them, and back."""

    goal: str
    here: Seen
    there: Seen
    back: Seen
    mirrored_NHWC: np.ndarray
    """The other kind of the mirrored pictures, mirrored again: what a model is to make alike."""

    @property
    def cosines_N(self) -> np.ndarray:
        """Of the pictures and what came back."""
        return (self.here.embeddings_NE * self.back.embeddings_NE).sum(axis=1)


def of_fixed(bench: Bench) -> Report:
    """Of a model between portraits and anime."""
    model, options, people = bench.model, bench.options, bench.people
    template, side, zoom = model.card.alignment, model.card.image_size, model.card.zoom
    archives = {"portrait": bench.archive("celeba10k"), "anime": bench.archive("anime4k")}
    files = {"classifier": options.work / "portrait-anime.pt", **archives}
    held = {kind: sorted((options.held_out / kind).iterdir()) for kind in KINDS}
    # ``facestyle prepare`` names a crop after its picture and adds a mark after a hyphen.
    without = {kind: [path.stem.rsplit("-", 1)[0] for path in held[kind]] for kind in KINDS}
    classifier = judges.taught(
        judges.KIND,
        files["classifier"],
        options.seed,
        [*archives.values(), template, json.dumps(without)],
        lambda: judges.portraits_and_anime(archives, template, without),
        options.precision,
    )
    styles = {kind: model.style(kind) for kind in KINDS}

    def seen(squares_NHWC: np.ndarray, zoom: float) -> Seen:
        crops = [judges.cut_template(square_HWC, template, zoom) for square_HWC in squares_NHWC]
        return Seen(
            squares_NHWC=squares_NHWC,
            embeddings_NE=np.stack([bench.embed(crop_HWC) for crop_HWC in crops]),
            p_N=classifier.answers(crops)[:, 0],
        )

    def translated(squares_NHWC: np.ndarray, kind: str) -> np.ndarray:
        parts = [squares_NHWC[i : i + BATCH] for i in range(0, len(squares_NHWC), BATCH)]
        return np.concatenate(
            [from_model(model.translate(to_model(part), styles[kind])) for part in parts]
        )

    def journey(start: str, squares: Iterable[Pixels], zoom: float) -> Journey:
        print(f"\r{start} ", end="", flush=True, file=sys.stderr)
        goal, here_NHWC = KINDS[start == KINDS[0]], np.stack(list(squares))
        there_NHWC = translated(here_NHWC, goal)
        back_NHWC = translated(there_NHWC, start)
        mirrored_NHWC = translated(here_NHWC[:, :, ::-1], goal)[:, :, ::-1]
        here, there, back = (seen(one, zoom) for one in (here_NHWC, there_NHWC, back_NHWC))
        return Journey(goal=goal, here=here, there=there, back=back, mirrored_NHWC=mirrored_NHWC)

    aligned = [aligned_faces(p.pixels_HWC, model, detector=KnownFace(p.face))[0] for p in people]
    journeys = {"photos": journey(KINDS[0], (one.crop_HWC for one in aligned), zoom)}

    def as_users_get(kind: str, square_HWC: Pixels) -> Pixels:
        """Of an aligned crop what would be cut of its photo; a drawing is a ready crop."""
        if kind == "anime" or template == "none":
            return whole(square_HWC, side).crop_HWC
        landmarks_52 = template_points(template) * len(square_HWC)
        return align(square_HWC, landmarks_52, template, side, zoom=zoom).crop_HWC

    for kind in KINDS:
        squares = (as_users_get(kind, read_picture(path).pixels_HWC) for path in held[kind])
        journeys[f"held-out {kind}"] = journey(kind, squares, zoom if kind == KINDS[0] else 1.0)
    pasted = {
        kind: [bench.result(person, styles[kind], classifier) for person in bench.each()]
        for kind in KINDS
    }

    drawings = [
        facestyle.restyle(p.pixels_HWC, model, styles[KINDS[1]], detector=KnownFace(p.face))
        for p in people
    ]

    real = {kind: journeys[f"held-out {kind}"].here for kind in KINDS}
    ways = {f"{name} to {j.goal}": j for name, j in journeys.items()}
    tested_N = np.concatenate([real[kind].p_N for kind in KINDS])
    labels_N = np.repeat((0, 1), [len(real[kind].p_N) for kind in KINDS])
    scores: dict[str, Groups] = {
        "classifier": {
            **trusted("archives", classifier.held_out),
            "held-out sharp": judges.shares(tested_N, labels_N, KINDS),
        },
        KID: {
            way: {
                "count": len(j.here.p_N),
                "kid": j.there.kid(real[j.goal]),
                "untouched": j.here.kid(real[j.goal]),
                "halves": real[j.goal].half(0).kid(real[j.goal].half(1)),
            }
            for way, j in ways.items()
        },
        "domain": {
            way: {
                "count": len(j.here.p_N),
                "domain": mean((j.there.p_N > 0.5) == (j.goal == KINDS[1])),
                "untouched": mean((j.here.p_N > 0.5) == (j.goal == KINDS[1])),
            }
            for way, j in ways.items()
        },
        "cycle": {
            name: {
                "count": len(j.here.p_N),
                "identity": mean(j.cosines_N),
                "strangers": measures.strangers(j.here.embeddings_NE),
                "pixels": measures.apart(j.here.squares_NHWC, j.back.squares_NHWC),
            }
            for name, j in journeys.items()
        },
        "mirrored": {
            way: {
                "count": len(j.here.p_N),
                "pixels": measures.apart(j.there.squares_NHWC, j.mirrored_NHWC),
            }
            for way, j in ways.items()
        },
        "pasted": {
            f"photos to {kind}": {"count": len(results), **of_pasted(results)}
            for kind, results in pasted.items()
        },
        "identity of": bench.identities(),
    }
    sheets = {
        "photos": photo_sheet(bench, drawings, pasted, journeys["photos"]),
        "anime": anime_sheet(
            [path.stem for path in held["anime"]], journeys["held-out anime"], options.thumbnail
        ),
    }
    return Report(scores=scores, card=kind_card(scores), sheets=sheets, files=files)


def kind_card(scores: Mapping[str, Groups]) -> Scores:
    """What the model's card shall tell, of held-out pictures and of seams on photos."""
    card: Scores = {}
    for kind, goal in (KINDS, KINDS[::-1]):
        name = f"held-out {kind}"
        way, kid = f"{kind} to {goal}", scores[KID][f"{name} to {goal}"]
        card |= {f"{way}: KID": round(kid["kid"], 3)}
        card |= {f"{way}: KID untouched": round(kid["untouched"], 3)}
        card |= {f"{way}: KID of real halves": round(kid["halves"], 3)}
        card |= {f"{way}: domain": round(scores["domain"][f"{name} to {goal}"]["domain"], 2)}
        card |= {f"{way} and back: pixels": round(scores["cycle"][name]["pixels"], 2)}
    cycle = scores["cycle"]["held-out portrait"]
    card |= {
        f"portrait to anime and back: {k}": round(cycle[k], 2) for k in ("identity", "strangers")
    }
    mirrored = scores["mirrored"]["held-out portrait to anime"]["pixels"]
    card |= {"portrait to anime, mirrored: pixels": round(mirrored, 2)}
    card |= {"portrait to anime: seam": round(scores["pasted"]["photos to anime"]["seam"], 2)}
    return card


def photo_sheet(
    bench: Bench,
    drawings: Sequence[Pixels],
    pasted: Mapping[str, Sequence[Result]],
    trips: Journey,
) -> Sheet:
    """Every photo, its drawing as users get it, both kinds pasted, and its crop there and back."""
    side = bench.options.thumbnail
    rows: list[Row] = []
    for i, person in enumerate(bench.people):
        results = [pasted[kind][i] for kind in KINDS]
        notes = [f"id {result.identity:.2f}, seam {result.seam:.2f}" for result in results]
        heads = [noted(r.head_HWC, note) for r, note in zip(results, notes, strict=True)]
        photo_HWC = noted(bench.head(person), person.name)
        drawing_HWC = noted(cv2.resize(drawings[i], (side, side), interpolation=cv2.INTER_AREA))
        rows.append([photo_HWC, drawing_HWC, *heads, *trip(trips, i, side)])
    titles = ["photo", "anime", *(f"{kind}, pasted" for kind in KINDS), "anime, crop", "back"]
    return titles, rows


def anime_sheet(names: Sequence[str], trips: Journey, side: int) -> Sheet:
    """Some held-out drawings, there and back."""
    down, across = ANIME
    count = len(names)
    chosen = range(0, count, max(1, count // (down * across)))
    threes = [
        [enlarged(trips.here.squares_NHWC[i], names[i], side), *trip(trips, i, side)]
        for i in chosen
    ]
    lines = (threes[i * across : (i + 1) * across] for i in range(min(down, count // across)))
    rows = [[picture_HWC for three in line for picture_HWC in three] for line in lines]
    return ["held-out anime", "portrait", "back"] * across, rows


def trip(trips: Journey, i: int, side: int) -> list[np.ndarray]:
    """One picture there and back."""
    p = trips.there.p_N[i] if trips.goal == KINDS[1] else 1 - trips.there.p_N[i]
    return [
        enlarged(trips.there.squares_NHWC[i], f"{p:.2f} {trips.goal}", side),
        enlarged(trips.back.squares_NHWC[i], f"id {trips.cosines_N[i]:.2f}", side),
    ]


def enlarged(square_HWC: Pixels, note: str, side: int) -> np.ndarray:
    """A model's crop on a sheet."""
    return noted(cv2.resize(square_HWC, (side, side), interpolation=cv2.INTER_CUBIC), note)
