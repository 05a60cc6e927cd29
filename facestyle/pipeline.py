"""A picture's whole journey: detect → align → translate → paste. Read this file first.

Pure functions of their arguments: no files, no options, no printing. Knows neither torch
nor how a detector or a network works.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from facestyle.card import ModelCard
from facestyle.edits import Edit
from facestyle.errors import UsageError
from facestyle.faces import Detector, Face, choose_faces, find_faces
from facestyle.faces.align import AlignedFace, align, finer, template_points, whole
from facestyle.faces.masks import hair, soft
from facestyle.faces.paste import (
    DETAIL,
    DRAWN,
    DRAWN_FINE,
    OwnFeatures,
    as_shade,
    drawn,
    in_own_colour,
    overlay,
    paste,
    reshape,
    with_long_hair,
)  # fmt: skip
from facestyle.images import from_model, to_model
from facestyle.translator import Style, Translator

# Result, crop and its flow → what of the result is kept, each (H, W, 3) in [-1, 1].
Correction = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """What a model computed for aligned faces."""

    images_NCHW: np.ndarray
    """float32 in [-1, 1], the crops in the style."""
    flow_NHW2: np.ndarray | None = None
    """What of their shapes moved, see ``Translator.flow``."""
    colours_NHW: np.ndarray | None = None
    """Where their hair is, see ``Translator.hair_colours``."""

    def of(self, faces: slice) -> Made:
        """The same of some of them."""
        flow_NHW2, colours_NHW = self.flow_NHW2, self.colours_NHW
        return Made(
            images_NCHW=self.images_NCHW[faces],
            flow_NHW2=None if flow_NHW2 is None else flow_NHW2[faces],
            colours_NHW=None if colours_NHW is None else colours_NHW[faces],
        )


def joined(calls: Sequence[Made]) -> Made:
    """All of several calls' faces, in their order."""
    flows = [one.flow_NHW2 for one in calls if one.flow_NHW2 is not None]
    colours = [one.colours_NHW for one in calls if one.colours_NHW is not None]
    return Made(
        images_NCHW=np.concatenate([one.images_NCHW for one in calls]),
        flow_NHW2=np.concatenate(flows) if flows else None,
        colours_NHW=np.concatenate(colours) if colours else None,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Restyled:
    """What became of an aligned face."""

    aligned: AlignedFace
    """As it was cut."""
    result_HWC: np.ndarray
    """uint8, its crop in the style."""
    flow_HW2: np.ndarray | None = None
    """What of its shape moved, see ``paste.reshape``."""
    drawing: bool = False
    """Whether the style's domain is a drawing's, see ``paste.drawn``."""
    features: OwnFeatures | None = None
    """What a drawing has of its photo."""


def restyle(
    picture_HWC: np.ndarray,
    model: Translator,
    style: Style,
    face: str | int = "largest",
    *,
    detector: Detector | None = None,
    min_score: float | None = None,
    detail: float | None = None,
    tone: float | None = None,
    crop_only: bool | None = None,
) -> np.ndarray:
    """The picture with its face, or faces, in another style.

    Args:
        picture_HWC: uint8 RGB of any size.
        face: ``largest``, ``all``, or the N-th largest from 1. For a model whose alignment is
            ``none`` the whole picture is the crop, and this is not looked at.
        detector: what finds faces; by default YuNet where its file is present, else the
            built-in one, opened anew: for many pictures open one, ``faces.registry``.
        min_score: the detector's score from which a candidate counts as a face.
        detail: how much of the photo's own detail stays, 0 to 1, see ``paste.paste``; by
            default ``usual_detail``.
        tone: how much of its skin tone and light stays, 0 to 1, see ``paste.paste``; by default
            ``usual_tone``.
        crop_only: whether the face's crop alone is the result, see ``alone``; by default
            ``usual_crop_only``.

    Returns:
        uint8 RGB of the same size; pixels outside the faces' masks are bit-equal, and of a model
        that moves shapes those outside their crops. Only a colour of long hair reaches beyond a
        crop. Or the crop alone, which is square.

    Raises:
        NoFaceError: no face was found.
        UsageError: no such picture, the style's domain or the face choice does not exist, or
            ``all`` faces are to be one crop.
    """
    if not isinstance(picture_HWC, np.ndarray) or (
        picture_HWC.dtype != np.uint8
        or picture_HWC.ndim != 3
        or picture_HWC.shape[2] != 3
        or not picture_HWC.size
    ):
        dtype, shape = getattr(picture_HWC, "dtype", ""), getattr(picture_HWC, "shape", "")
        raise UsageError(
            f"the picture is {type(picture_HWC).__name__} {dtype} {shape}".rstrip(),
            "expected a uint8 array of RGB, (height, width, 3): images.read_picture gives one",
        )
    for value, kind in ((model, Translator), (style, Style)):
        if not isinstance(value, kind):
            raise UsageError(
                f"the {kind.__name__.lower()} is a {type(value).__name__}",
                "expected what load() gives, and a style of it, such as model.style('female')",
            )
    face = str(face)
    finish = finish_for(
        model.card, model.card.alignment, style, face, detail=detail, tone=tone, crop_only=crop_only
    )
    aligned = aligned_faces(picture_HWC, model, face, detector=detector, min_score=min_score)
    return finished(picture_HWC, translate_crops(aligned, model, style), finish)


@dataclass(frozen=True, kw_only=True)
class Finish:
    """How results become a picture."""

    detail: float
    """How much of the photo's own detail stays, see ``paste.paste``."""
    tone: float
    """How much of its skin tone and light, see ``paste.paste``."""
    crop_only: bool
    """Whether the crop alone is the picture, see ``alone``."""


def finish_for(
    card: ModelCard,
    template: str,
    style: Style,
    face: str = "largest",
    *,
    detail: float | None = None,
    tone: float | None = None,
    crop_only: bool | None = None,
) -> Finish:
    """What was asked for, and what is usual where nothing was.

    Raises:
        UsageError: one crop of all faces.
    """
    if crop_only:
        one_crop(face)
    return Finish(
        detail=usual_detail(card, template, style) if detail is None else detail,
        tone=usual_tone(card, template, style) if tone is None else tone,
        crop_only=usual_crop_only(card, template, style, face) if crop_only is None else crop_only,
    )


def finished(picture_HWC: np.ndarray, faces: Sequence[Restyled], finish: Finish) -> np.ndarray:
    """The picture with its restyled faces, or the one face alone."""
    if finish.crop_only:
        return alone(picture_HWC, faces[0], tone=finish.tone)
    return paste_all(picture_HWC, faces, detail=finish.detail, tone=finish.tone)


def usual_crop_only(card: ModelCard, template: str, style: Style, face: str) -> bool:
    """A drawn face in a photo is a mask on it, a drawing with its own hair is a picture. All of a
    photo's faces are no one crop, though, and a ready crop has nothing around it."""
    return template != "none" and style.domain in card.drawings and face != "all"


def one_crop(face: str) -> None:
    """Raises UsageError where a face choice is none of one crop."""
    if face == "all":
        raise UsageError("--crop-only writes one crop", "choose it with --face largest or --face N")


def usual_detail(card: ModelCard, template: str, style: Style) -> float:
    """``DETAIL`` for faces. All of it for a colour of hair: its strands are the photo's. Of a model
    that changes hair otherwise, all of the change: what is new is no edge of the photo's. 0
    between photo and drawing, and for ready crops: the one's detail does not belong in the other.
    """
    if template == "none" or card.drawings:
        return 0.0
    if style.edit is not None and set(style.edit.names) <= set(card.on_hair):
        return 1.0
    return 0.5 if card.pasted == "crop" else DETAIL


def usual_tone(card: ModelCard, template: str, style: Style) -> float:
    """All of a face's own where a seed draws the style, or it becomes a drawing: asked for is
    another face or another manner, not another skin. Half of it by reference, whose tone is part
    of what it is given for, but ears and neck keep theirs."""
    if template == "none" or card.pasted == "crop":
        return 0.0
    if style.drawn or style.domain in card.drawings:
        return 1.0
    return 0.0 if style.code_NS is None else 0.5


def aligned_faces(
    picture_HWC: np.ndarray,
    model: Translator,
    face: str = "largest",
    *,
    detector: Detector | None = None,
    min_score: float | None = None,
    template: str | None = None,
) -> list[AlignedFace]:
    """The chosen faces of a picture as the model's crops, largest first.

    ``template`` replaces the alignment of the model's card; ``none`` takes the whole picture.
    """
    side, template = model.card.image_size, template or model.card.alignment
    if template == "none":
        return [whole(picture_HWC, side)]
    if detector is None:
        from facestyle.faces.registry import open_detector

        detector = open_detector("auto")
    faces: Sequence[Face] = choose_faces(find_faces(picture_HWC, detector, min_score), face)
    return [
        align(picture_HWC, one.landmarks_52, template, side, model.card.pasted, model.card.zoom)
        for one in faces
    ]


def translate_crops(
    aligned: Sequence[AlignedFace], model: Translator, style: Style
) -> list[Restyled]:
    """The crops, all cut to one template, in the style."""
    crops_NCHW = to_model(np.stack([one.crop_HWC for one in aligned]))
    made = networks(crops_NCHW, model, style, aligned[0].template_52)
    return restyled(aligned, made, model.card, style)


def networks(
    crops_NCHW: np.ndarray, model: Translator, style: Style, template_52: np.ndarray | None
) -> Made:
    """All that the model computes for crops in a style."""
    card, edit = model.card, style.edit
    # Of a ready crop, which has no landmarks, all goes back.
    if edit is None or template_52 is None:
        images_NCHW = model.translate(crops_NCHW, style, template_52)
        return Made(images_NCHW=images_NCHW, flow_NHW2=model.flow(crops_NCHW, style))
    # Each kind of change by itself: asked for two, a model does of each a little to the other, and
    # of each something else goes back.
    coloured = edit.among(card.on_hair)
    others = set(card.domains).difference(card.on_hair, card.on_skin, card.as_shade)
    shades = set(card.as_shade).difference(edit.off)  # what goes takes no light
    kinds: list[tuple[Collection[str], Correction | None]] = [
        (card.on_skin, in_own_colour), (others.union(card.as_shade) - shades, None),
        (shades, as_shade),
    ]  # fmt: skip
    rest = [(part, correct) for names, correct in kinds if (part := edit.among(names)).names]
    if not rest:
        made = _changed(crops_NCHW, model, coloured, None, template_52)
        return replace(made, colours_NHW=model.hair_colours(crops_NCHW))
    each = [_changed(crops_NCHW, model, *one, template_52) for one in rest]
    made = _together(crops_NCHW, each, shaded=rest[-1][1] is as_shade)
    if not coloured.names:
        return made
    colours_NHW = model.hair_colours(crops_NCHW)
    hair_NCHW = model.translate(crops_NCHW, model.edited(coloured), template_52)
    masks_N1HW = np.stack(
        [
            cv2.resize(soft(crop, hair(crop, colours_HW, template_52)), colours_HW.shape)[None]
            for crop, colours_HW in zip(from_model(crops_NCHW), colours_NHW, strict=True)
        ]
    )
    images_NCHW = made.images_NCHW + masks_N1HW * (hair_NCHW - made.images_NCHW)
    return replace(made, images_NCHW=images_NCHW, colours_NHW=colours_NHW)


def _changed(
    crops_NCHW: np.ndarray,
    model: Translator,
    edit: Edit,
    correct: Correction | None,
    template_52: np.ndarray,
) -> Made:
    """What a model makes of crops by one kind of edit, and what of it is kept."""
    style = model.edited(edit)
    images_NCHW = model.translate(crops_NCHW, style, template_52)
    flow_NHW2 = model.flow(crops_NCHW, style)
    if correct is not None:
        flows = [None] * len(images_NCHW) if flow_NHW2 is None else flow_NHW2
        images_NHWC, crops_NHWC = (x.transpose(0, 2, 3, 1) for x in (images_NCHW, crops_NCHW))
        triples = zip(images_NHWC, crops_NHWC, flows, strict=True)
        images_NCHW = np.stack([correct(*three).transpose(2, 0, 1) for three in triples])
    return Made(images_NCHW=images_NCHW, flow_NHW2=flow_NHW2)


def _together(crops_NCHW: np.ndarray, made: Sequence[Made], *, shaded: bool) -> Made:
    """Several changes of the same crops, added, and all of that behind the last one where it is
    ``shaded``, for what becomes lighter does not shine through glass."""
    if len(made) == 1:
        return made[0]
    added = made[:-1] if shaded else made
    images_NCHW = crops_NCHW + np.sum([one.images_NCHW - crops_NCHW for one in added], axis=0)
    if shaded:
        before_NCHW, behind_NCHW = crops_NCHW + 1, made[-1].images_NCHW + 1
        light_NCHW = np.divide(
            behind_NCHW, before_NCHW, out=np.ones_like(before_NCHW), where=before_NCHW > 0
        )
        images_NCHW = (images_NCHW + 1) * light_NCHW - 1
    flows = [one.flow_NHW2 for one in made if one.flow_NHW2 is not None]
    return Made(
        images_NCHW=np.clip(images_NCHW, -1, 1),
        flow_NHW2=np.sum(flows, axis=0) if flows else None,
    )


def restyled(
    aligned: Sequence[AlignedFace], made: Made, card: ModelCard, style: Style
) -> list[Restyled]:
    """Each face with what a model made of it, and how that goes back."""
    flows = [None] * len(aligned) if made.flow_NHW2 is None else made.flow_NHW2
    parts = parts_changed(card, style)
    # Of a ready crop, which has no landmarks, all goes back.
    if parts != (card.pasted,) and aligned[0].template_52 is not None:
        aligned = [one.only(*parts) for one in aligned]
    if made.colours_NHW is not None:
        aligned = [
            replace(one, hair_HW=hair(one.crop_HWC, colours_HW, one.template_52))
            for one, colours_HW in zip(aligned, made.colours_NHW, strict=True)
            if one.template_52 is not None
        ]
    results_NHWC, drawing = from_model(made.images_NCHW), style.domain in card.drawings
    return [
        Restyled(
            aligned=one,
            result_HWC=result_HWC,
            flow_HW2=flow_HW2,
            drawing=drawing,
            features=features_of(card, one) if drawing else None,
        )
        for one, result_HWC, flow_HW2 in zip(aligned, results_NHWC, flows, strict=True)
    ]


def features_of(card: ModelCard, aligned: AlignedFace) -> OwnFeatures | None:
    """What a drawing of a face is to have of its photo, as the card says. A ready crop, which has
    no landmarks, is taken to be cut as the model's own."""
    if card.mouth is None:
        return None
    template_52 = aligned.template_52
    if template_52 is None:
        template_52 = template_points(card.alignment, card.zoom)
    return OwnFeatures(template_52=template_52, mouth=card.mouth, eyes=card.eyes or 1.0)


def parts_changed(card: ModelCard, style: Style) -> tuple[str, ...]:
    """What of a face's crop a style changes, as the card says: of ``masks.MASKS``, or ``hair``."""
    edit = style.edit
    changed = set(edit.names) if edit else {style.domain}
    rest = changed - set(card.on_hair)
    parts = [] if rest == changed else ["hair"]
    if rest:
        parts.append("skin" if rest <= {*card.on_skin, *card.as_shade} else card.pasted)
    return tuple(parts)


def reshaped(picture_HWC: np.ndarray, face: Restyled) -> tuple[np.ndarray, AlignedFace]:
    """Picture and crop with the face's shape moved, into which its result is pasted; both as they
    are of a model that moves none."""
    if face.flow_HW2 is None:
        return picture_HWC, face.aligned
    return reshape(picture_HWC, face.aligned, face.flow_HW2)


def laid_out(
    picture_HWC: np.ndarray, face: Restyled
) -> tuple[np.ndarray, list[tuple[AlignedFace, np.ndarray]]]:
    """The picture into which a face's result is pasted, and what is, one after the other: of long
    hair more than the crop holds."""
    picture_HWC, aligned = reshaped(picture_HWC, face)
    parts = set(aligned.pasted)
    if "hair" in parts and parts <= {"hair", "skin"}:
        longer = with_long_hair(picture_HWC, aligned, face.result_HWC)
        if longer is not None:
            rest = [(aligned.only("skin"), face.result_HWC)] if "skin" in parts else []
            return picture_HWC, [longer, *rest]
    return picture_HWC, [(aligned, face.result_HWC)]


def paste_all(
    picture_HWC: np.ndarray,
    faces: Sequence[Restyled],
    *,
    detail: float = DETAIL,
    tone: float = 0.0,
) -> np.ndarray:
    """Put crops back one after the other, the largest face first."""
    photo_HWC = picture_HWC  # what a drawing is of, whatever became of faces beside it
    for face in faces:
        picture_HWC, pieces = laid_out(picture_HWC, face)
        if face.drawing:
            times = _times_larger(face.aligned)
            ((aligned, _),) = pieces
            drawing_HWC = alone(photo_HWC, face, times=times, tone=tone)
            picture_HWC = paste(
                picture_HWC, finer(aligned, picture_HWC, times), drawing_HWC, detail=0
            )
            continue
        for aligned, result_HWC in pieces:
            picture_HWC = paste(picture_HWC, aligned, result_HWC, detail=detail, tone=tone)
    return picture_HWC


def _times_larger(aligned: AlignedFace) -> int:
    """How many times the crop's side a drawing is to be, to be as large as the face or larger:
    1, 2 or ``DRAWN``."""
    return next((times for times in (1, DRAWN_FINE) if times * aligned.scale >= 1), DRAWN)


def alone(
    picture_HWC: np.ndarray, face: Restyled, *, times: int = DRAWN, tone: float = 0.0
) -> np.ndarray:
    """A crop as a picture of its own: a face's as the networks made it, a drawing's ``times`` as
    large, and with the photo's ``tone``, see ``paste.drawn``."""
    if not face.drawing:
        return face.result_HWC
    picture_HWC, aligned = reshaped(picture_HWC, face)
    photo = finer(aligned, picture_HWC, min(times, DRAWN_FINE))
    return drawn(photo, face.result_HWC, times=times, tone=tone, features=face.features)


def attention_overlay(
    picture_HWC: np.ndarray, aligned: Sequence[AlignedFace], model: Translator, style: Style
) -> np.ndarray:
    """The picture under the generator's attention: red where it looks most, blue where least.

    Raises:
        UsageError: the model has no attention.
    """
    crops_NCHW = to_model(np.stack([one.crop_HWC for one in aligned]))
    heat_N1HW = model.attention(crops_NCHW, style, aligned[0].template_52)
    for one, heat_1HW in zip(aligned, heat_N1HW, strict=True):
        picture_HWC = overlay(picture_HWC, one, heat_1HW[0])
    return picture_HWC


def reference_style(
    reference_HWC: np.ndarray,
    model: Translator,
    domain: str | None,
    *,
    detector: Detector | None = None,
    min_score: float | None = None,
    template: str | None = None,
    origin: str = "reference",
) -> Style:
    """The style of the largest face of a reference picture, as a member of ``domain``.

    Without a domain it is the one that the model itself takes the face for, see
    ``Translator.likely_domain``.

    Raises:
        NoFaceError: no face in the reference.
        UsageError: the model takes no references, or has no such domain.
    """
    (aligned,) = aligned_faces(
        reference_HWC, model, detector=detector, min_score=min_score, template=template
    )
    crop_NCHW = to_model(aligned.crop_HWC[None])
    return model.style_of(crop_NCHW, domain or model.likely_domain(crop_NCHW), origin)
