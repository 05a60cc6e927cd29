"""What facestyle tells a user when something is wrong.

    FacestyleError        1  failure
    ├── UsageError        2  an option, a name or a combination that does not exist
    ├── NoFaceError       3  no face where one is needed
    ├── WeightsError      4  a weights file is missing or could not be fetched
    ├── InputError        5  a picture that is missing, unreadable or refused
    ├── CheckpointError   6  a checkpoint that is refused, corrupt or of no known family
    └── PartialBatchError 7  some pictures of a batch failed, the others are done

Each carries a message (what was found, what was expected), a hint (the remedy) and
the exit code of the process. The command line catches these alone: anything else is
a bug and keeps its traceback. Errors among our own invariants are ``assert``.
"""

from __future__ import annotations


class FacestyleError(Exception):
    """An expected failure. ``message`` says found and expected, ``hint`` the remedy."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}; {hint}")
        self.message = message
        self.hint = hint


class UsageError(FacestyleError):
    """What was asked for does not exist or does not go together."""

    exit_code = 2


class NoFaceError(FacestyleError):
    """No face was found in a picture that needs one."""

    exit_code = 3


class WeightsError(FacestyleError):
    """A weights file is not on this machine and could not be fetched."""

    exit_code = 4


class InputError(FacestyleError):
    """A picture or a data folder is missing, unreadable or refused."""

    exit_code = 5


class CheckpointError(FacestyleError):
    """A checkpoint is refused, corrupt, or belongs to no known family."""

    exit_code = 6


class PartialBatchError(FacestyleError):
    """Some pictures of a batch failed; the others are written."""

    exit_code = 7
