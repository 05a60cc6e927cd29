"""``export``: a model as one ONNX file, which runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from facestyle.cli import options
from facestyle.cli.report import reporting
from facestyle.errors import UsageError


def export(
    model: Annotated[str, typer.Argument(help="A name of 'facestyle models list', or a file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, FILE.onnx.")],
    precision: Annotated[
        str,
        typer.Option("--precision", help="fp32, or fp16: half the size, for graphics cards."),
    ] = "fp32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    domains: options.Domains = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a model with all its networks as one ONNX file, and compare it with torch.

    Example: facestyle export female-male -o female_male.onnx
    """
    with reporting(as_json=as_json, quiet=quiet, debug=debug) as report:
        _check_output(output, overwrite)

        from facestyle.export import export_model
        from facestyle.opening import open_translator

        with report.progress(f"fetching {model}", unit=" bytes") as update:
            translator = open_translator(
                model,
                domains=options.domain_names(domains),
                runtime="torch",
                device="cpu",
                precision="fp32",
                offline=offline,
                progress=update,
            )
        with report.progress(f"exporting {model}", unit=" networks") as update:
            made = export_model(translator, output, precision, update)
        for role in made.left_out:
            report.note(f"{role}: left out, it draws noise from a seed, which ONNX cannot")
        for role, difference in made.differences.items():
            size = "any picture size" if role in made.any_size else ""
            report.note(f"{role}: differs from torch by {difference:.1e}; {size}".rstrip("; "))
        largest = max(made.differences.values())
        report.note(f"largest difference from torch: {largest:.1e}")
        values = {
            "output": str(output),
            "precision": precision,
            "largest_difference": largest,
            "differences": dict(made.differences),
            "any_size": made.any_size,
            "left_out": made.left_out,
            "bytes": output.stat().st_size,
        }
        report.result(values, str(output))


def _check_output(output: Path, overwrite: bool) -> None:
    """Before a minute's work, not after it."""
    if output.suffix.lower() != ".onnx":
        raise UsageError(f"-o {output} is no name of an ONNX file", "such as -o model.onnx")
    if not output.parent.is_dir():
        raise UsageError(f"no folder {output.parent}", "make it, or name another file")
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "--overwrite replaces it")
