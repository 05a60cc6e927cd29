"""``translate`` and ``reference``: pictures in, restyled pictures out.

One journey (``restyling``) with two ways to a style. Here stand the options alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facestyle.cli import options
from facestyle.cli.report import reporting
from facestyle.cli.restyling import restyle_all
from facestyle.cli.session import Wish, naming, template_of
from facestyle.errors import InputError, NoFaceError, UsageError

if TYPE_CHECKING:
    from facestyle.faces import Detector
    from facestyle.translator import Style, Translator

Inputs = Annotated[list[str], typer.Argument(help="Pictures, folders, globs, or - for stdin.")]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", help="A file, a folder (DIR/), or - for stdout."),
]
FaceChoice = Annotated[str, typer.Option("--face", help="largest, all, or N for the N-th largest.")]
DetectorName = Annotated[
    str, typer.Option("--detector", help="auto, yunet, retinaface or builtin.")
]
MinScore = Annotated[
    float | None,
    typer.Option("--min-score", min=0, max=1, help="The detector's score that makes a face."),
]
Align = Annotated[
    str | None,
    typer.Option("--align", help="none for ready crops, or another template than the model's."),
]
CropOnly = Annotated[
    bool | None,
    typer.Option(
        "--crop-only/--paste",
        help="Write the crop alone, or put it back into the photo (default: a drawing alone, "
        "a face back).",
    ),
]
Detail = Annotated[
    float | None,
    typer.Option(
        "--detail",
        min=0,
        max=1,
        help="How much of the photo's fine detail stays (default: 0.65; 0.5 for changes of hair; "
        "0 for drawings).",
    ),
]
Tone = Annotated[
    float | None,
    typer.Option(
        "--tone",
        min=0,
        max=1,
        help="How much of the photo's skin tone stays (default: 1 by seed and for drawings, "
        "0.5 by reference).",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Redo results that exist.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Folders and all below.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first bad picture.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")]
NoMark = Annotated[
    bool, typer.Option("--no-mark", help="Leave out the AI mark and the recipe (XMP).")
]
KeepMetadata = Annotated[bool, typer.Option("--keep-metadata", help="Keep the GPS position too.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="png (the default), jpg, webp, avif or tif, if -o names none."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Pictures at a time (default: one a core, up to 16)."),
]
Engine = Annotated[
    str, typer.Option("--engine", help="local, or ray: a folder by many processes or machines.")
]

DEFAULT_MODEL = "female-male"


def translate(
    inputs: Inputs,
    domain: Annotated[
        str | None,
        typer.Option("--domain", "-d", help="The domain to go to, if the model has several."),
    ] = None,
    output: Output = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="A name of 'models list', or a file; else one that knows DOMAIN."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of the latent code (0), or of dropout noise."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Styles a picture: seeds SEED, SEED+1, ...")
    ] = 1,
    psi: Annotated[
        float | None,
        typer.Option("--psi", min=0, max=2, help="Truncation: 0 the mean style, 1 as sampled."),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option("--direction", help="AtoB or BtoA: the domain of a two-way model."),
    ] = None,
    set_on: Annotated[
        list[str] | None,
        typer.Option("--set", help="Attributes to switch on, e.g. Blond_Hair,Young."),
    ] = None,
    set_off: Annotated[
        list[str] | None, typer.Option("--unset", help="Attributes to switch off.")
    ] = None,
    flip: Annotated[
        list[str] | None, typer.Option("--flip", help="Attributes to reverse, e.g. Male.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Attributes that the picture has; else the model looks."),
    ] = None,
    cam: Annotated[
        bool,
        typer.Option("--cam", help="Write the attention heatmap beside the result (U-GAT-IT)."),
    ] = False,
    face: FaceChoice = "largest",
    detector: DetectorName = "auto",
    min_score: MinScore = None,
    align: Align = None,
    crop_only: CropOnly = None,
    detail: Detail = None,
    tone: Tone = None,
    overwrite: Overwrite = False,
    recursive: Recursive = False,
    fail_fast: FailFast = False,
    workers: Workers = None,
    engine: Engine = "local",
    dry_run: DryRun = False,
    no_mark: NoMark = False,
    keep_metadata: KeepMetadata = False,
    format: Format = None,
    domains: options.Domains = None,
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    precision: options.Precision = "auto",
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Take faces to a domain, or change their attributes, in the model's own way.

    Example: facestyle translate photo.jpg --domain female
    """

    def styles(translator: Translator, _: Callable[[], Detector]) -> list[Style]:
        if edits:
            return [translator.edited(Edit(**edits))]
        to = domain if direction is None else translator.domain_after(direction)
        if count == 1:
            return [translator.style(to, seed=seed, psi=psi)]
        return [translator.style(to, seed=(seed or 0) + i, psi=psi) for i in range(count)]

    with reporting(as_json=as_json, quiet=quiet, verbose=verbose, debug=debug) as report:
        from facestyle.edits import Edit
        from facestyle.weights import shipped_model

        given = {"on": set_on, "off": set_off, "flip": flip, "source": source}
        edits = {key: _names(texts) for key, texts in given.items() if texts}
        asked = {key: names for key, names in edits.items() if key != "source"}
        ways = {"--domain": domain, "--direction": direction, "--set, --unset, --flip": asked}
        if len(chosen := [way for way, value in ways.items() if value]) > 1:
            raise UsageError(f"{' and '.join(chosen)} do not go together", "give one of them")
        if source and not asked:
            raise UsageError(
                "--source says what a picture has, and nothing of it is to change",
                "--set, --unset or --flip beside it",
            )
        drawn = {"--seed": seed is not None, "--psi": psi is not None, "--count": count > 1}
        if edits and (idle := [option for option, is_given in drawn.items() if is_given]):
            raise UsageError(f"{', '.join(idle)}: no effect on attributes", "leave it out")
        words = [word for key in ("on", "off", "flip") for word in _words(key, edits)]
        base = domain or direction or "-".join(words) or "translated"
        named = count > 1 or seed is not None
        suffixes = [f"{base}-{(seed or 0) + i}" for i in range(count)] if named else [base]
        wanted = {domain} if domain else {name for names in edits.values() for name in names}
        wish = Wish(
            inputs=inputs, output=output, model=model or shipped_model(sorted(wanted)),
            domains=domains, face=face, detector=detector, min_score=min_score, align=align,
            crop_only=crop_only, detail=detail, tone=tone, overwrite=overwrite, recursive=recursive,
            fail_fast=fail_fast, dry_run=dry_run, mark=not no_mark, keep_metadata=keep_metadata,
            format=format, device=device, runtime=runtime, precision=precision, offline=offline,
            cam=cam, workers=workers, engine=engine,
        )  # fmt: skip
        restyle_all(wish, styles, suffixes, report)


def _names(texts: Sequence[str]) -> tuple[str, ...]:
    """Of an option given once or more: ``["Young,Male", "Smiling"]`` → ("Young", "Male",
    "Smiling"); ``[""]`` → ()."""
    return tuple(name.strip() for name in ",".join(texts).split(",") if name.strip())


def _words(key: str, edits: Mapping[str, tuple[str, ...]]) -> list[str]:
    """For the result's name: ``Young``, ``no-Young``, ``flip-Young``."""
    before = {"on": "", "off": "no-", "flip": "flip-"}[key]
    return [f"{before}{name}" for name in edits.get(key, ())]


def reference(
    source: Annotated[str, typer.Argument(help="The picture to restyle (or a folder, or -).")],
    style: Annotated[Path, typer.Argument(help="The picture whose style is taken.")],
    output: Output = None,
    domain: Annotated[
        str | None,
        typer.Option("--domain", "-d", help="The reference's domain; found out when not given."),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    face: FaceChoice = "largest",
    detector: DetectorName = "auto",
    min_score: MinScore = None,
    align: Align = None,
    crop_only: CropOnly = None,
    detail: Detail = None,
    tone: Tone = None,
    overwrite: Overwrite = False,
    recursive: Recursive = False,
    fail_fast: FailFast = False,
    workers: Workers = None,
    engine: Engine = "local",
    dry_run: DryRun = False,
    no_mark: NoMark = False,
    keep_metadata: KeepMetadata = False,
    format: Format = None,
    domains: options.Domains = None,
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    precision: options.Precision = "auto",
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Take a face to the style of another picture's face.

    Example: facestyle reference photo.jpg style.jpg
    """
    wish = Wish(
        inputs=[source], output=output, model=model, domains=domains,
        face=face, detector=detector, min_score=min_score, align=align, crop_only=crop_only,
        detail=detail, tone=tone, overwrite=overwrite, recursive=recursive, fail_fast=fail_fast,
        dry_run=dry_run, mark=not no_mark, keep_metadata=keep_metadata, format=format,
        device=device, runtime=runtime, precision=precision, offline=offline, cam=False,
        workers=workers, engine=engine,
    )  # fmt: skip

    def styles(translator: Translator, detector: Callable[[], Detector]) -> list[Style]:
        from facestyle.images import read_picture
        from facestyle.pipeline import reference_style

        pixels_HWC = read_picture(style).pixels_HWC
        with naming(style, NoFaceError):
            return [
                reference_style(
                    pixels_HWC,
                    translator,
                    domain,
                    detector=detector() if template_of(wish, translator) != "none" else None,
                    min_score=min_score,
                    template=align,
                    origin=f"reference {style.name}",
                )
            ]

    with reporting(as_json=as_json, quiet=quiet, verbose=verbose, debug=debug) as report:
        if not style.is_file():
            raise InputError(f"no reference picture {style}", "give an existing picture")
        restyle_all(wish, styles, [style.stem], report)
