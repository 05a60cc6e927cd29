"""``models``: what can be loaded, where it is, and what is in a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facestyle.cli import options
from facestyle.cli.report import reporting
from facestyle.errors import CheckpointError, FacestyleError, UsageError, WeightsError

if TYPE_CHECKING:
    from facestyle.card import ModelCard
    from facestyle.weights import Verification

app = typer.Typer(
    help="List, inspect, fetch and verify weights.", no_args_is_help=True, rich_markup_mode=None
)
Name = Annotated[str, typer.Argument(help="A name of 'facestyle models list', or a file.")]


@app.command("list")
def list_models(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the weights that facestyle knows by name.

    Example: facestyle models list
    """
    with reporting(as_json=as_json, debug=debug) as report:
        from facestyle import weights

        entries = weights.index().values()
        width = max(len(entry.name) for entry in entries)
        for entry in entries:
            place = weights.locate(entry.name)
            state = "shipped" if entry.shipped else "here" if place else "not fetched"
            report.result(
                {"name": entry.name, "kind": entry.kind, "state": state, "about": entry.about,
                 "licence": entry.licence, "path": str(place) if place else None},
                f"{entry.name:<{width}}  {state:<11}  {entry.about}",
            )  # fmt: skip


@app.command()
def info(
    model: Name,
    domains: options.Domains = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say family, sizes, domains, licence and sha256 of a model.

    Example: facestyle models info female-male
    """
    about: dict[str, Any]
    with reporting(as_json=as_json, debug=debug) as report:
        from facestyle import weights

        known = weights.index().get(model)
        if known is not None and weights.locate(model) is None:
            about = {"name": known.name, "kind": known.kind, "licence": known.licence,
                     "about": known.about, "file": "not fetched", "url": known.url}  # fmt: skip
            report.result(about, "\n".join(f"{key:<11} {value}" for key, value in about.items()))
            return
        path = weights.resolve(model)
        entry = known or weights.entry_for(path)
        about = {"file": str(path), "sha256": weights.sha256_of(path)}
        if entry is not None and entry.kind != "model":
            about |= {"name": entry.name, "kind": entry.kind, "licence": entry.licence,
                      "about": entry.about}  # fmt: skip
        else:
            about |= _network_facts(path, options.domain_names(domains))
        lines = [f"{key.replace('_', ' '):<11} {_text(value)}" for key, value in about.items()]
        report.result(about, "\n".join(lines))


def _network_facts(path: Path, domains: tuple[str, ...] | None) -> dict[str, Any]:
    from facestyle.bundle import is_onnx, load_bundle
    from facestyle.opening import card_of, renamed

    if is_onnx(path):
        bundle = load_bundle(path)
        bundle = bundle.with_card(renamed(bundle.card, domains))
        return {"roles": bundle.roles, "precisions": bundle.precisions, **_said(bundle.card)}
    from facestyle.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    card = card_of(checkpoint, domains)
    parameters = {
        part or "network": sum(tensor.numel() for tensor in state.values())
        for part, state in checkpoint.parts.items()
    }
    return {"parameters": parameters, **_said(card)}


def _said(card: ModelCard) -> dict[str, Any]:
    return {key: value for key, value in asdict(card).items() if value not in (None, "", ())}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items())
    return ", ".join(value) if isinstance(value, tuple) else str(value)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of 'facestyle models list'.")],
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fetch weights, with what they need, into the cache.

    Example: facestyle models pull builtin
    """
    with reporting(as_json=as_json, quiet=quiet, debug=debug) as report:
        from facestyle import weights

        entries = weights.index()
        if name not in entries:
            weights.resolve(name, offline=True)  # says which name is near
            raise UsageError(f"'{name}' is a file, not a name", "see 'facestyle models list'")
        for needed in (name, *entries[name].needs):
            with report.progress(f"fetching {needed}", unit=" bytes") as update:
                path = weights.download(entries[needed], offline=offline, progress=update)
            report.result({"name": needed, "path": str(path)}, str(path))


@app.command()
def verify(
    model: Annotated[
        str | None, typer.Argument(help="A name or a file; without one, all that is here.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare files with the sha256 that is known of them.

    Example: facestyle models verify
    """
    with reporting(as_json=as_json, quiet=quiet, debug=debug) as report:
        from facestyle import weights

        entries = weights.index()
        if model is None:
            checked = [entry for entry in entries.values() if entry.shipped or _here(entry.name)]
            found = [weights.verify(entry) for entry in checked]
        else:
            found = [weights.verify(entries.get(model) or weights.resolve(model))]
        code = 0
        for one in found:
            if one.status in ("missing", "mismatch"):
                error = _not_itself(one)
                report.error(error, path=str(one.path), status=one.status, sha256=one.sha256)
                code = code or error.exit_code
            else:
                report.result(
                    {"path": str(one.path), "status": one.status, "sha256": one.sha256},
                    f"{one.status}: {one.path} sha256 {one.sha256}",
                )
        if code:
            raise typer.Exit(code)


def _not_itself(found: Verification) -> FacestyleError:
    from facestyle import weights

    names = [entry.name for entry in weights.index().values() if entry.file == found.path.name]
    hint = f"fetch it with: facestyle models pull {names[0] if names else 'NAME'}"
    if found.status == "missing":
        return WeightsError(f"{found.path} is missing", hint)
    return CheckpointError(
        f"{found.path} is damaged: sha256 {found.sha256}, expected {found.expected}", hint
    )


def _here(name: str) -> bool:
    from facestyle import weights

    return weights.locate(name) is not None


@app.command()
def path(model: Name, as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Print where a file is.

    Example: facestyle models path female-male
    """
    with reporting(as_json=as_json, debug=debug) as report:
        from facestyle import weights

        found = str(weights.resolve(model, offline=True))
        report.result({"path": found}, found)


@app.command()
def convert(
    model: Annotated[
        str, typer.Argument(help="A run folder, a file, or a name of 'facestyle models list'.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .safetensors file, or a folder.")
    ],
    layout: Annotated[
        str, typer.Option("--layout", help="facestyle (safetensors with a card) or published.")
    ] = "facestyle",
    half: Annotated[bool, typer.Option("--half", help="float16, half the size.")] = False,
    domains: options.Domains = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a finished run or a checkpoint in our layout, or in the published program's.

    Example: facestyle models convert runs/run-1 -o published/ --layout published
    """
    with reporting(as_json=as_json, debug=debug) as report:
        from facestyle.convert import convert as convert_model

        names = options.domain_names(domains)
        written = convert_model(
            model, output, layout, half=half, domains=names, overwrite=overwrite
        )
        for path in written:
            report.result({"path": str(path)}, str(path))
