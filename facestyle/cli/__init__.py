"""The command line: parse, call one function, report.

Heavy imports stand inside command bodies, so that ``--help`` costs only typer.
Exit codes are those of ``facestyle.errors``, and 130 interrupted, 143 terminated.
"""

from __future__ import annotations

from typing import Annotated

import typer

from facestyle import __version__
from facestyle.cli import doctor, models, pictures, train

app = typer.Typer(
    name="facestyle",
    no_args_is_help=True,
    # Plain help: the same on a terminal, in a pipe and in CI, without one ANSI byte.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(pictures.translate)
app.command()(pictures.reference)
app.command()(train.train)
app.add_typer(models.app, name="models")
app.command()(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        print(f"facestyle {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Style-guided face transformation on your own photos.

    Exit codes: 0 ok, 1 failure, 2 usage, 3 no face, 4 weights missing or offline, 5 bad input,
    6 bad checkpoint, 7 part of a batch failed, 130 interrupted, 143 terminated.
    """
