"""Options that several commands share, written once."""

from __future__ import annotations

from typing import Annotated

import typer

from facestyle.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON line a result, errors too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing on success.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what was chosen and why.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an expected error.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never use the network (also FACESTYLE_OFFLINE=1).")
]
Model = Annotated[
    str, typer.Option("--model", "-m", help="A name of 'facestyle models list', or a file.")
]
Domains = Annotated[
    str | None,
    typer.Option("--domains", help="Domain names of a checkpoint without a card, e.g. cat,dog."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Runtime = Annotated[str, typer.Option("--runtime", help="auto, torch, onnx or openvino.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")]


def domain_names(text: str | None) -> tuple[str, ...] | None:
    """``"cat,dog"`` → ("cat", "dog"). Raises UsageError for an empty name."""
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(f"a domain without a name in --domains '{text}'", "such as cat,dog,wild")
    return names
