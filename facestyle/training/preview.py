"""Preview sheets and scores: what the model does now, through the path that inference takes.

Rows are fixed sources, columns fixed styles of each domain, so that sheets of different
iterations can be compared cell by cell.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facestyle.backends.on_torch import TorchBackend
from facestyle.checkpoint import Checkpoint
from facestyle.images import Picture, from_model, write_picture
from facestyle.training.loop import Sheet
from facestyle.training.score import sliced_wasserstein
from facestyle.translator import Style, Translator

if TYPE_CHECKING:
    from facestyle.card import ModelCard
    from facestyle.families import ModelFamily, Task
    from facestyle.training.data import Pictures

ROWS = 6  # sources
LATENTS = 3  # columns a domain
REFERENCES = 2  # columns a domain
SCORED = 64  # pictures a domain; few, but the same ones each time
PER_STYLE = 4  # of the scored pictures, where styles are drawn


class Previewer:
    """Called with a step, writes ``<folder>/<step>.png``."""

    def __init__(
        self,
        family: ModelFamily,
        task: Task,
        card: ModelCard,
        pictures: Pictures,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        """``pictures`` are those that are held out, where there are any."""
        self.family = family
        self.task = task
        self.card = card
        self.folder = folder
        self.device = device
        side, load_side = card.image_size, card.load_size or 0
        self.sources = _stack(pictures.sources(ROWS, side, load_side), side)
        self.members = {
            domain: _stack(pictures.members(domain, SCORED, side, load_side), side)
            for domain in card.domains
        }
        # Where every picture is of one domain, only the others' are translated to it.
        apart = len(card.domains) > 1 and "attributes" not in card.styles
        anyone = (
            np.empty((0,)) if apart else _stack(pictures.sources(SCORED, side, load_side), side)
        )
        share = -(-SCORED // max(1, len(card.domains) - 1))
        self.scored = {
            domain: np.concatenate([self.members[o][-share:] for o in card.domains if o != domain])
            if apart
            else anyone
            for domain in card.domains
        }

    def __call__(self, step: int) -> Sheet:
        """Draw the sheet of an iteration; its score is the mean distance over the domains."""
        # As a file of the model would be loaded; the tensors are the task's own.
        parts = {part: dict(state) for part, state in self.task.model_parts().items()}
        checkpoint = Checkpoint(path=self.folder, parts=parts, card=self.card)
        modules = self.family.modules(checkpoint, self.card)
        translator = Translator(self.card, TorchBackend(modules, self.device))
        columns: list[tuple[np.ndarray | None, np.ndarray]] = [(None, self.sources)]
        distances = []
        for domain in self.card.domains:
            for head_CHW, style in _styles(translator, domain, self.members[domain]):
                columns.append((head_CHW, translator.translate(self.sources, style)))
            if len(self.members[domain]) and len(self.scored[domain]):
                fakes_NCHW = self._restyled(translator, domain)
                distances.append(sliced_wasserstein(fakes_NCHW, self.members[domain]))
        sheet_HWC = from_model(_sheet(columns)[None])[0]
        self.folder.mkdir(exist_ok=True)
        picture = Picture(pixels_HWC=sheet_HWC, alpha_HW=None, icc=None, exif=None, note=None)
        path = self.folder / f"{step:07d}.png"
        write_picture(path, picture, mark=False)
        score = math.fsum(distances) / len(distances) if distances else None
        return Sheet(step=step, path=path, score=score)

    def _restyled(self, translator: Translator, domain: str) -> np.ndarray:
        """The scored pictures, each few in a style of their own where styles are drawn."""
        faces_NCHW, drawn = self.scored[domain], "latent" in self.card.styles
        return np.concatenate(
            [
                translator.translate(
                    faces_NCHW[start : start + PER_STYLE],
                    translator.style(domain, seed=start if drawn else None),
                )
                for start in range(0, len(faces_NCHW), PER_STYLE)
            ]
        )


def _styles(
    translator: Translator, domain: str, members_NCHW: np.ndarray
) -> list[tuple[np.ndarray | None, Style]]:
    """The columns of a domain: each style, under the reference that it comes from."""
    kinds = translator.card.styles
    if "latent" not in kinds and "reference" not in kinds:
        return [(None, translator.style(domain))]
    found: list[tuple[np.ndarray | None, Style]] = []
    if "latent" in kinds:
        found += [(None, translator.sample_style(domain, seed)) for seed in range(LATENTS)]
    if "reference" in kinds:
        for member_CHW in members_NCHW[:REFERENCES]:
            found.append((member_CHW, translator.style_of(member_CHW[None], domain)))
    return found


def _stack(pictures: list[np.ndarray], side: int) -> np.ndarray:
    return np.stack(pictures) if pictures else np.empty((0, 3, side, side), np.float32)


def _sheet(columns: list[tuple[np.ndarray | None, np.ndarray]]) -> np.ndarray:
    """(3, H, W): each column's faces under its reference, or under a white cell where only other
    columns have one."""
    white_CHW = np.ones_like(columns[0][1][0])
    headed = any(head_CHW is not None for head_CHW, _ in columns)
    stacks = []
    for head_CHW, faces_NCHW in columns:
        head = [white_CHW if head_CHW is None else head_CHW] if headed else []
        stacks.append(np.concatenate([*head, *faces_NCHW], axis=1))
    return np.concatenate(stacks, axis=2)
