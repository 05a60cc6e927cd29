"""What the commands say, and where: data on stdout, everything else on stderr.

Knows ``--json``, ``-q``, ``-v`` and ``--debug``; knows nothing of pictures or models.
Colour and progress bars appear on a terminal's stderr alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from facestyle.errors import FacestyleError

INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM, as shells count


class Terminated(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C, so that temporary files go."""


class Reporter:
    """Says results, notes and errors in the form that was asked for."""

    def __init__(self, *, as_json: bool, quiet: bool, verbose: bool, debug: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.debug = debug

    def result(self, values: Mapping[str, Any], text: str) -> None:
        """One result: ``values`` as a JSON line, or ``text``; data, so stdout."""
        if self.as_json:
            print(json.dumps(values, ensure_ascii=False), flush=True)
        elif not self.quiet:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        if not (self.quiet or self.as_json):
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """Something that only ``-v`` shows."""
        if self.verbose:
            self.note(text)

    def error(self, error: FacestyleError, **about: Any) -> None:
        """An expected error: cause, then remedy. As JSON it is data too."""
        if self.debug:
            traceback.print_exception(error)
        if self.as_json:
            values = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
            print(json.dumps({**about, **values}, ensure_ascii=False), flush=True)
            return
        print(f"error: {_one_line(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"  {_one_line(error.hint)}", file=sys.stderr, flush=True)

    @property
    def shows_progress(self) -> bool:
        """Whether a bar may be drawn."""
        plain = "CI" in os.environ or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        return not (self.quiet or self.as_json or plain) and sys.stderr.isatty()

    @contextmanager
    def progress(self, title: str, *, unit: str = "") -> Iterator[Any]:
        """``update(done, total)``, drawn where a bar may be and silent elsewhere."""
        if not self.shows_progress:
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}" + unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=1)
            yield lambda done, total: bar.update(task, completed=done, total=total or done + 1)


@contextmanager
def reporting(
    *, as_json: bool = False, quiet: bool = False, verbose: bool = False, debug: bool = False
) -> Iterator[Reporter]:
    """A command's body: expected errors become a line and an exit code, signals theirs.

    A bug is no expected error: it keeps its traceback.
    """
    report = Reporter(as_json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield report
    except FacestyleError as error:
        report.error(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        report.note("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Terminated:
        report.note("terminated")
        raise typer.Exit(TERMINATED) from None
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`): nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: Any) -> NoReturn:
    raise Terminated


def _one_line(text: str) -> str:
    return " ".join(text.split())
