"""What the commands say, and where: data on stdout, everything else on stderr.

Knows ``--json``, ``-q``, ``-v`` and ``--debug``; knows nothing of pictures or models.
Colour and progress bars appear on a terminal's stderr alone.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import typer

from facestyle.errors import FacestyleError

INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT, 128 + SIGTERM, as shells count


class Terminated(BaseException):
    """SIGTERM arrived; unwinds like Ctrl-C, so that temporary files go."""


class Reporter:
    """Says results, notes and errors in the form that was asked for."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        debug: bool = False,
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.debug = debug

    def result(self, values: Mapping[str, Any], text: str) -> None:
        """One result: ``values`` as a JSON line, or ``text``; data, so stdout."""
        if self.as_json:
            _print_data(json.dumps(values))
        elif not self.quiet:
            _print_data(text)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        if not (self.quiet or self.as_json):
            _say(text)

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
            _print_data(json.dumps({**about, **values}))
            return
        _say(f"error: {_one_line(error.message)}")
        if error.hint:
            _say(f"  {_one_line(error.hint)}")

    @property
    def shows_progress(self) -> bool:
        """Whether a bar may be drawn."""
        plain = "CI" in os.environ or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        if self.quiet or self.as_json or plain or sys.stderr is None:
            return False
        return sys.stderr.isatty()

    @contextmanager
    def progress(self, title: str, *, unit: str = "") -> Iterator[Any]:
        """``update(done, total)``, drawn from its first call on where a bar may be."""
        if not self.shows_progress:
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Rate(TextColumn):
            """How many a second; bytes need none, their time left is enough."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                known = speed and unit.strip() != "bytes"
                return Text(f"{speed:.1f}{unit}/s" if known else "")

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}" + unit),
            Rate(""),
            TimeRemainingColumn(),
        )
        # By default rich takes over stdout as well: data would leave its pipe for the terminal.
        bar = Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        task = bar.add_task(title)

        def update(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total or done + 1)
            bar.start()

        try:
            yield update
        finally:
            bar.stop()


@contextmanager
def reporting(
    *, as_json: bool = False, quiet: bool = False, verbose: bool = False, debug: bool = False
) -> Iterator[Reporter]:
    """A command's body: expected errors become a line and an exit code, signals theirs.

    A bug is no expected error: it keeps its traceback.
    """
    report = Reporter(as_json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path is printed as its own bytes, or where those cannot be, as their numbers.
        unicode = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")
    arrived: list[int] = []

    def stop(number: int, frame: Any) -> NoReturn:
        arrived.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup and a shell's background jobs have it
            signal.signal(number, stop)
    try:
        yield report
    except FacestyleError as error:
        report.error(error)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, Terminated, ImportError):
        if not arrived:
            raise
        # A signal while numpy or torch are being loaded comes out of them as an ImportError.
        interrupted = arrived[0] == signal.SIGINT
        report.note("interrupted" if interrupted else "terminated")
        raise typer.Exit(INTERRUPTED if interrupted else TERMINATED) from None
    except BrokenPipeError:
        _drop(sys.stdout)  # its reader went away (`| head`): nothing is left to say to it
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        known = FacestyleError(
            f"a name is too long: {str(error.filename)[:60]}...", "give a shorter one"
        )
        report.error(known)
        raise typer.Exit(known.exit_code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_data(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop(sys.stdout)
        raise FacestyleError(f"cannot write to stdout: {error.strerror}") from None


def _say(text: str) -> None:
    """On stderr, if it is there: no word is worth a lost picture."""
    if sys.stderr is not None:
        # File names may hold anything, a terminal's own codes as well.
        text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Else Python would fail once more at its end, on what is still in the buffer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _one_line(text: str) -> str:
    return " ".join(text.split())
