"""One self-contained HTML page of a run: what was set, how the curves went, what it drew.

Reads a run folder (running, stopped or finished) and changes nothing in it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facestyle.errors import InputError
from facestyle.training.loop import read_metrics
from facestyle.training.settings import read_settings

SHEETS = 6  # evenly over the run, the first and the last among them
SHEET_WIDTH = 1280  # px at most, so that a page of a large model can still be sent
POINTS = 300  # a curve; more would be thinner than a pixel
WIDTH, HEIGHT, MARGIN = 460, 200, 44  # px of one panel
COLOURS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2", "#be185d", "#65a30d")

Curve = list[tuple[float, float]]


def run_report(folder: Path) -> str:
    """The page as HTML.

    Raises:
        UsageError: not a run folder.
        InputError: it has no metrics yet.
    """
    settings = read_settings(folder)
    lines = read_metrics(folder)
    if not lines:
        raise InputError(f"{folder} has no metrics yet", "wait for run.log_every iterations")
    done = max(line["step"] for line in lines)
    parts = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f"<p>{done:,} of {settings['run']['steps']:,} iterations of "
        f"{html.escape(settings['family'])}, {html.escape(', '.join(settings['domains']))}</p>",
        *(_panel(title, curves) for title, curves in _panels(lines).items()),
        "<h2>Samples</h2>",
        *(_sheet(path) for path in _chosen(sorted((folder / "samples").glob("*.png")))),
        "<h2>Settings</h2>",
        f"<pre>{html.escape(json.dumps(settings, indent=2))}</pre>",
    ]
    return PAGE.format(title=html.escape(folder.name), body="\n".join(parts))


def _panels(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Curves by panel: losses by network and source, then gradients, rates, speed, score."""
    panels: dict[str, dict[str, Curve]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for name, value in line.items():
            if name == "step" or value is None:
                continue
            panel, _, curve = name.rpartition("/")
            panels[panel or name][curve or name].append((line["step"], value))
    return panels


def _panel(title: str, curves: Mapping[str, Curve]) -> str:
    """An SVG with its axes' ends and each curve's last value."""
    thinned = {name: _thinned(curve) for name, curve in curves.items()}
    points = [point for curve in thinned.values() for point in curve]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    across, up = right - left or 1, high - low or 1

    def place(x: float, y: float) -> str:
        return (
            f"{MARGIN + (x - left) / across * (WIDTH - MARGIN):.1f},"
            f"{HEIGHT - (y - low) / up * HEIGHT:.1f}"
        )

    drawn, legend = [], []
    for index, (name, curve) in enumerate(thinned.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in curve)
        drawn.append(f'<polyline points="{path}" stroke="{colour}" fill="none"/>')
        last = curves[name][-1][1]
        legend.append(f'<span style="color:{colour}">{html.escape(name)} {last:.4g}</span>')
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 -8 {WIDTH + 8} {HEIGHT + 30}">'
        f'<text x="0" y="8">{high:.3g}</text><text x="0" y="{HEIGHT}">{low:.3g}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT + 18}">{left:.0f}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 18}" text-anchor="end">{right:.0f}</text>'
        f"{''.join(drawn)}</svg><div>{' '.join(legend)}</div></figure>"
    )


def _thinned(curve: Curve) -> Curve:
    """Means of neighbours, at most ``POINTS`` of them."""
    size = math.ceil(len(curve) / POINTS)
    chunks = (curve[start : start + size] for start in range(0, len(curve), size))
    return [tuple(np.mean(chunk, axis=0).tolist()) for chunk in chunks]


def _chosen(sheets: Sequence[Path]) -> list[Path]:
    places = np.linspace(0, len(sheets) - 1, min(SHEETS, len(sheets))).round().astype(int)
    return [sheets[place] for place in places]


def _sheet(path: Path) -> str:
    with Image.open(path) as sheet:
        small = sheet.convert("RGB")
    small.thumbnail((SHEET_WIDTH, 10 * SHEET_WIDTH))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    title = f"iteration {int(path.stem):,}"
    return f'<h3>{title}</h3><img alt="{title}" src="data:image/jpeg;base64,{data}">'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
figure {{ display: inline-block; width: 470px; margin: 0 1em 1em 0; vertical-align: top }}
figcaption {{ font-weight: 600 }} svg {{ width: 100%; background: #f6f6f6 }}
svg text {{ font-size: 11px; fill: #666 }} polyline {{ stroke-width: 1.4 }}
figure span {{ margin-right: .8em; white-space: nowrap }} img {{ max-width: 100% }}
pre {{ background: #f6f6f6; padding: 1em; overflow: auto }}
</style></head><body>
{body}
</body></html>
"""
