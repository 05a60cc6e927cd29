"""A finished run's model → the two files that ship, with its scores on the card.

    python recipes/ship.py --model work/models/runs/attributes-1/model.safetensors \
        --name attributes --about "hair colours, age, ..." --out work/ship
    python recipes/score.py --model work/ship/attributes.safetensors ... --work work/score
    python recipes/ship.py --model work/ship/attributes.safetensors --name attributes \
        --scores work/score/scores.json --out weights

The first line halves the weights (float16), because what is scored is to be what ships; the last
writes the scores on the card, exports the ONNX twin, and prints both files' entries for
``weights/index.toml``. ``--without`` leaves out attributes of a StarGAN painter that came to
nothing worth showing: a face is taken to lack them. ``--strength`` makes a painter's changes larger
than it learned to make them: in training a change has a cost, which keeps it where it belongs and
smaller than what was asked for. ``--mean`` takes the mean with the model of the stage before.
``--both-ways`` has users get the mean with the mirrored face's result, ``--as-shade`` the light
alone of what it does for some attributes, and ``--mouth`` the photo's own mouth in its drawings,
see ``facestyle.card``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from facestyle.checkpoint import load_checkpoint, save_model
from facestyle.export import export_model
from facestyle.nn.painter import is_painter
from facestyle.opening import open_translator

Parts = Mapping[str, Mapping[str, Tensor]]


def kept_alone(parts: Parts, known: Sequence[str], kept: Sequence[str]) -> Parts:
    """A painter and its judge by attribute that know these attributes alone."""
    at = [known.index(name) for name in kept]
    judgements = [*at, *(len(known) + one for one in at)]  # lacking, then having
    return {
        "G": {
            name: tensor[:, at] if name.endswith("film.weight") else tensor
            for name, tensor in parts["G"].items()
        },
        "D": {
            name: tensor[{"conv1.weight": judgements, "conv2.weight": at}[name]]
            if name in ("conv1.weight", "conv2.weight")
            else tensor
            for name, tensor in parts["D"].items()
        },
    }


def strengthened(parts: Parts, strength: float) -> Parts:
    """A painter whose every change is ``strength`` times as large: its last layer is the change."""
    painters = [
        part for part, state in parts.items() if is_painter({n: t.shape for n, t in state.items()})
    ]
    if not painters:
        raise ValueError("no painter: its last layer is not the change")
    last = ("painted.weight", "painted.bias")
    (part,) = painters
    scaled = {name: strength * parts[part][name] for name in last}
    return {**parts, part: {**parts[part], **scaled}}


def mean_of(parts: Parts, others: Parts) -> Parts:
    """The mean of two states of the same networks: where one of them is on its way about what it
    seeks, the mean is nearer (stochastic weight averaging, Izmailov et al., UAI 2018)."""
    shapes, other_shapes = (
        {(part, name): t.shape for part, state in one.items() for name, t in state.items()}
        for one in (parts, others)
    )
    if shapes != other_shapes:
        raise ValueError("other networks")
    return {
        part: {name: (t.float() + others[part][name].float()) / 2 for name, t in state.items()}
        for part, state in parts.items()
    }


def main() -> None:
    """Write the files; what is not given stays as the card has it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a file with a card")
    parser.add_argument("--name", required=True, help="what users call it")
    parser.add_argument("--about", help="one line for the card")
    parser.add_argument("--without", default="", help="attributes to leave out, comma-joined")
    parser.add_argument("--strength", type=float, help="of a painter's changes")
    parser.add_argument("--mean", type=Path, help="another state of it, to take the mean with")
    parser.add_argument("--as-shade", default="", help="attributes, comma-joined, for the card")
    parser.add_argument("--mouth", type=float, help="how many times as large, for the card")
    parser.add_argument("--both-ways", action="store_true", help="for the card")
    parser.add_argument("--scores", type=Path, help="recipes/score.py's JSON of this very file")
    parser.add_argument("--out", type=Path, required=True, help="folder for both files")
    options = parser.parse_args()

    checkpoint = load_checkpoint(options.model)
    if checkpoint.card is None:
        parser.error(f"{options.model} has no card: give what facestyle train wrote")
    card, parts = replace(checkpoint.card, name=options.name), checkpoint.parts
    if options.mean:
        try:
            parts = mean_of(parts, load_checkpoint(options.mean).parts)
        except ValueError as error:
            parser.error(f"--mean: {options.mean}: {error}")
    if options.without:
        left_out = options.without.split(",")
        if strangers := [name for name in left_out if name not in card.domains]:
            parser.error(f"{options.model} does not know {', '.join(strangers)}")
        if set(left_out) & set(",".join(card.exclusive).split(",")):
            parser.error("one of an exclusive group cannot be left out")
        kept = tuple(name for name in card.domains if name not in left_out)
        parts = kept_alone(parts, card.domains, kept)
        card = replace(
            card,
            domains=kept,
            **{
                field: tuple(name for name in getattr(card, field) if name in kept)
                for field in ("on_skin", "as_shade", "on_hair")
            },
        )
    if options.strength:
        try:
            parts = strengthened(parts, options.strength)
        except ValueError as error:
            parser.error(f"--strength: {options.model}: {error}")
    given = {
        "without": options.without,
        "strength": options.strength,
        "as-shade": options.as_shade,
        "mouth": options.mouth,
        "mean": options.mean and "/".join(options.mean.parts[-2:]),  # the run's folder says which
    }
    changed = [f"--{name} {value}" for name, value in given.items() if value]
    changed += ["--both-ways"] * options.both_ways
    if changed:
        card = replace(card, command=f"{card.command}; recipes/ship.py {' '.join(changed)}")
    if options.both_ways:
        card = replace(card, both_ways=True)
    if options.mouth:
        card = replace(card, mouth=options.mouth)
    if options.as_shade:
        card = replace(card, as_shade=tuple(options.as_shade.split(",")))
        if strangers := [name for name in card.as_shade if name not in card.domains]:
            parser.error(f"{options.model} does not know {', '.join(strangers)}")
    if options.about:
        card = replace(card, about=options.about)
    if options.scores:
        measured = json.loads(options.scores.read_text(encoding="utf-8"))
        found = hashlib.sha256(options.model.read_bytes()).hexdigest()
        if measured["sha256"]["model"] != found:
            parser.error(f"{options.scores} is not of {options.model}: score it again")
        card = replace(card, scores=measured["card"])
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.name.replace('-', '_')}.safetensors"
    save_model(path, parts, card, half=True)
    written = [path]
    if options.scores:
        model = open_translator(path, device="cpu", runtime="torch", precision="fp32")
        bundle = path.with_suffix(".onnx")
        export_model(model, bundle)
        written.append(bundle)
    for file in written:
        content = file.read_bytes()
        print(f'file = "{file.name}"\nsha256 = "{hashlib.sha256(content).hexdigest()}"')
        print(f"size = {len(content):_}\n")


if __name__ == "__main__":
    main()
