"""Preview sheets: what the averaged networks do now, through the path that inference takes.

Rows are fixed sources, columns fixed latent styles and fixed references of each domain, so
sheets of different iterations can be compared cell by cell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from facestyle.backend_torch import TorchBackend
from facestyle.card import ModelCard
from facestyle.images import Picture, from_model, write_picture
from facestyle.training.data import plain
from facestyle.translator import Translator

SOURCES = 3  # a domain
LATENTS = 3  # a domain
REFERENCES = 2  # a domain


class Previewer:
    """Called with a step, writes ``<folder>/<step>.png``."""

    def __init__(self, task: Any, card: ModelCard, pictures: Any, folder: Path) -> None:
        self.task = task
        self.card = card
        self.folder = folder
        # The last files of each domain; the same ones in every sheet of every run.
        side = card.image_size
        self.sources = [plain(f, side) for files in pictures.files for f in files[-SOURCES:]]
        self.references = {
            domain: [plain(f, side) for f in files[-SOURCES - REFERENCES : -SOURCES]]
            for domain, files in zip(pictures.domains, pictures.files, strict=True)
        }

    def __call__(self, step: int) -> None:
        """Draw the sheet of an iteration."""
        translator = Translator(self.card, TorchBackend(self.task.roles()))
        sources_NCHW = np.stack(self.sources)
        columns = [np.concatenate([np.ones_like(sources_NCHW[:1]), sources_NCHW])]
        for domain in self.card.domains:
            for seed in range(LATENTS):
                style = translator.sample_style(domain, seed=seed)
                columns.append(_column(None, translator.translate(sources_NCHW, style)))
            for reference in self.references[domain]:
                style = translator.style_of(reference[None], domain)
                columns.append(_column(reference, translator.translate(sources_NCHW, style)))
        sheet_HWC = from_model(
            np.concatenate([np.concatenate(c, axis=1) for c in columns], axis=2)[None]
        )[0]
        self.folder.mkdir(exist_ok=True)
        picture = Picture(pixels_HWC=sheet_HWC, alpha_HW=None, icc=None, exif=None, note=None)
        write_picture(self.folder / f"{step:07d}.png", picture, mark=False)


def _column(head_CHW: np.ndarray | None, faces_NCHW: np.ndarray) -> np.ndarray:
    """A column of pictures under its reference, or under a white cell."""
    head = np.ones_like(faces_NCHW[:1]) if head_CHW is None else head_CHW[None]
    return np.concatenate([head, faces_NCHW])
