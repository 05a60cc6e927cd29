"""A watcher that also writes TensorBoard events into the run folder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from facestyle.errors import UsageError
from facestyle.training.loop import Progress, Sheet, Watcher


class TensorBoard:
    """Passes everything on to another watcher and writes it as scalars and pictures."""

    def __init__(self, watcher: Watcher, folder: Path) -> None:
        """Raises UsageError where the package is missing."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "tensorboard was asked for and is not installed",
                "pip install facestyle[tensorboard]",
            ) from None
        self._watcher = watcher
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def announce(self, text: str) -> None:
        """See ``Watcher.announce``."""
        self._watcher.announce(text)

    def tick(self, step: int, steps: int) -> None:
        """See ``Watcher.tick``."""
        self._watcher.tick(step, steps)

    def progress(self, progress: Progress) -> None:
        """Losses, gradients, learning rates and speed as scalars."""
        step = progress.step
        scalars = {
            **progress.losses,
            **{f"gradient/{name}": norm for name, norm in progress.gradients.items()},
            **{f"lr/{name}": rate for name, rate in progress.rates.items()},
            "run/seconds": progress.seconds,
            "run/waiting": progress.waiting,
            "run/memory": progress.memory,
            "run/skipped": float(progress.skipped),
        }
        for name, value in scalars.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._watcher.progress(progress)

    def sheet(self, sheet: Sheet) -> None:
        """The preview sheet as a picture."""
        with Image.open(sheet.path) as picture:
            pixels_HWC = np.asarray(picture.convert("RGB"))
        self._writer.add_image("samples", pixels_HWC, sheet.step, dataformats="HWC")
        if sheet.score is not None:
            self._writer.add_scalar("run/swd", sheet.score, sheet.step)
        self._writer.flush()
        self._watcher.sheet(sheet)
