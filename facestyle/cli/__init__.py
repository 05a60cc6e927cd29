"""The command line: parse, call one function, report.

Heavy imports stand inside command bodies, so that ``--help`` costs only typer.
Exit codes are those of ``facestyle.errors``, and 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from facestyle import __version__
from facestyle.cli import doctor, export, models, pictures, prepare, train
from facestyle.cli.report import Reporter
from facestyle.errors import UsageError


class _Group(TyperGroup):
    """Says what the parser finds wrong as every other error is said: two lines, or JSON."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse, run, and leave with the exit code."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.TyperException as error:
            if not standalone_mode:
                raise
            code, message = error.exit_code, error.format_message()
            if message.startswith("Usage:"):  # nothing was given: this is the help
                print(message, file=sys.stderr)
            else:
                context = getattr(error, "ctx", None)
                path = context.command_path if context else self.name
                report = Reporter(as_json="--json" in given)
                report.error(UsageError(message[0].lower() + message[1:], f"see '{path} --help'"))
        if standalone_mode:
            sys.exit(code)
        return code


app = typer.Typer(
    name="facestyle",
    cls=_Group,
    no_args_is_help=True,
    # Plain help: the same on a terminal, in a pipe and in CI, without one ANSI byte.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(pictures.translate)
app.command()(pictures.reference)
app.command()(prepare.prepare)
app.command()(train.train)
app.command("train-report")(train.train_report)
app.command()(export.export)
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
