"""An ONNX bundle: all networks of a model and its card in one ``.onnx`` file.

The file is one valid graph that any ONNX program can open. The networks (roles) stand in it side
by side and share equal weights: an output is called after its role, its inputs
``<role>.image``, ``<role>.code`` and so on. A runtime would want every input of such a graph, so
``Bundle.network`` cuts one role out of it, by walking back from the role's output.

A bundle made for float16 also holds each network in float32 on the same weights
(``exact/<role>``), for machines without float16 and for pictures that it spoils.

Knows protobuf's wire format and the few fields of ONNX that it copies: neither the ``onnx``
package nor a runtime. Whatever it does not know is left out; what reads other files is refused.

    ModelProto   1 ir_version   7 graph   8 opset_import   14 metadata_props
    GraphProto   1 node   2 name   5 initializer   11 input   12 output
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from facestyle.card import METADATA_KEY, ModelCard
from facestyle.errors import CheckpointError, UsageError, WeightsError

TWIN = "exact/"  # before the name of a role that computes in float32 where the others do not
DIGEST_KEY = b"facestyle.sha256"  # in the last metadata entry: over all bytes before that entry
MAX_VARINT = 10  # bytes, of a protobuf number

Fields = Iterator[tuple[int, memoryview, memoryview]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Node:
    """One operation of the graph: names read and written, and its bytes."""

    reads: Sequence[bytes]
    writes: Sequence[bytes]
    field: memoryview


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A bundle's card and, by role, ONNX models of one network each."""

    path: Path
    """Where it came from."""
    card: ModelCard
    """The card in its metadata."""
    roles: tuple[str, ...]
    """The networks' names, ``generator`` or ``generator.<domain>`` first."""
    precisions: tuple[str, ...]
    """What it can compute in: ``fp32``, or ``fp16`` and ``fp32``."""
    _names: Mapping[str, str]  # role → output in the file
    _header: bytes
    _nodes: Sequence[_Node]
    _weights: Mapping[bytes, memoryview]
    _inputs: Mapping[bytes, memoryview]
    _outputs: Mapping[bytes, memoryview]

    def network(self, role: str, precision: str) -> bytes:
        """The ONNX model of one role alone, with float32 inputs and outputs."""
        exact = precision == "fp32" and len(self.precisions) > 1
        output = f"{TWIN if exact else ''}{self._names[role]}".encode()
        wanted, nodes = {output}, []
        for node in reversed(self._nodes):
            if not wanted.isdisjoint(node.writes):
                nodes.append(node.field)
                wanted.update(node.reads)
        graph: list[bytes | memoryview] = [
            *reversed(nodes),
            b"\x12\x05model",
            *(field for name, field in self._weights.items() if name in wanted),
            *(field for name, field in self._inputs.items() if name in wanted),
            self._outputs[output],
        ]
        size = sum(map(len, graph))
        return b"".join((self._header, b"\x3a", _varint(size), *graph))

    def with_card(self, card: ModelCard) -> Bundle:
        """The same networks under another card, whose domains may have other names."""
        new = dict(zip(self.card.domains, card.domains, strict=True))

        def renamed(role: str) -> str:
            kind, _, domain = role.partition(".")
            return f"{kind}.{new[domain]}" if domain else kind

        names = {renamed(role): output for role, output in self._names.items()}
        return replace(self, card=card, roles=tuple(names), _names=names)


def is_onnx(path: Path) -> bool:
    """Whether a file begins as ONNX models do; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return re.match(rb"\x08[\x01-\x7f][\x12\x3a\x42]", file.read(3)) is not None
    except OSError:
        return False


def load_bundle(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        WeightsError: no such file, or one that may not be read.
        CheckpointError: truncated, corrupt, no bundle of ours, or one that reads other files.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    return parse_bundle(content, path)


def parse_bundle(content: bytes, path: Path) -> Bundle:
    """``load_bundle`` for what is already in memory; ``path`` is for messages."""
    if METADATA_KEY.encode() not in content and DIGEST_KEY not in content:
        raise CheckpointError(
            f"{path.name} has no model card, expected an ONNX file of 'facestyle export'",
            "export the model's own checkpoint: facestyle export MODEL -o FILE.onnx",
        )
    body = memoryview(content)[: -len(_seal(b""))]
    if content[len(body) :] != _seal(body):
        raise _corrupt(path, "its contents do not match its own sha256")
    if refers_to_files(content):
        raise CheckpointError(
            f"{path.name} is refused: it keeps weights in other files, expected one file",
            "export it again: facestyle export MODEL -o FILE.onnx",
        )
    try:
        return _parsed(content, path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise _corrupt(path, str(error) or type(error).__name__) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error.message}", error.hint) from None


def sealed(content: bytes) -> bytes:
    """A finished model with its own sha256 as one more metadata entry."""
    return content + _seal(content)


def refers_to_files(content: bytes) -> bool:
    """Whether any tensor, at any depth, names a file that holds its values.

    Such a tensor has an entry with the key ``location``. In protobuf a string stands in one
    piece behind its length, and a length of 8 has these spellings only.
    """
    at = content.find(b"location")
    while at >= 0:
        if re.search(rb"(\x08|\x88\x80*\x00)\Z", content[max(0, at - MAX_VARINT) : at]):
            return True
        at = content.find(b"location", at + 1)
    return False


def _parsed(content: bytes, path: Path) -> Bundle:
    header, nodes, metadata = b"", [], {}
    weights: dict[bytes, memoryview] = {}
    inputs: dict[bytes, memoryview] = {}
    outputs: dict[bytes, memoryview] = {}
    for number, field, model_part in _fields(memoryview(content)):
        if number in (1, 8):
            header += bytes(field)
        elif number == 14:
            entry = {key: bytes(value) for key, _, value in _fields(model_part)}
            metadata[entry[1]] = entry[2]
        elif number == 7:
            for kind, graph_field, value in _fields(model_part):
                if kind == 1:
                    nodes.append(_node(graph_field, value))
                elif kind == 5:
                    weights[_name(value, 8)] = graph_field
                elif kind == 11:
                    inputs[_name(value, 1)] = graph_field
                elif kind == 12:
                    outputs[_name(value, 1)] = graph_field
    names = [name.decode() for name in outputs]
    exact = [name.removeprefix(TWIN) for name in names if name.startswith(TWIN)]
    roles = tuple(name for name in names if not name.startswith(TWIN))
    if not roles or (exact and sorted(exact) != sorted(roles)):
        raise ValueError("its networks are not complete")
    return Bundle(
        path=path,
        card=ModelCard.from_json(metadata[METADATA_KEY.encode()].decode()),
        roles=roles,
        precisions=("fp16", "fp32") if exact else ("fp32",),
        _names={role: role for role in roles},
        _header=header,
        _nodes=nodes,
        _weights=weights,
        _inputs=inputs,
        _outputs=outputs,
    )


def _node(field: memoryview, message: memoryview) -> _Node:
    names: dict[int, list[bytes]] = {1: [], 2: []}
    for number, _, value in _fields(message):
        if number in names:
            names[number].append(bytes(value))
    return _Node(reads=names[1], writes=names[2], field=field)


def _name(message: memoryview, wanted: int) -> bytes:
    for number, _, value in _fields(message):
        if number == wanted:
            return bytes(value)
    raise ValueError("a value without a name")


def _fields(message: memoryview) -> Fields:
    """A protobuf message's fields in order: number, the whole field, its payload."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, end = _read_varint(message, at)
        elif kind == 2:
            size, at = _read_varint(message, at)
            end = at + size
        elif kind in (1, 5):
            end = at + (8 if kind == 1 else 4)
        else:
            raise ValueError("a field of no known kind")
        if end > len(message):
            raise ValueError("a field that ends behind its message")
        yield tag >> 3, message[start:end], message[at:end]
        at = end


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(MAX_VARINT):
        byte = message[at + shift]
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise ValueError("a number without end")


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _seal(body: bytes | memoryview) -> bytes:
    """The metadata entry (field 14: key, value) with the sha256 of all before it."""
    value = hashlib.sha256(body).hexdigest().encode()
    entry = b"\x0a" + _varint(len(DIGEST_KEY)) + DIGEST_KEY + b"\x12" + _varint(len(value)) + value
    return b"\x72" + _varint(len(entry)) + entry


def _corrupt(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is corrupt ({detail})", "export or download it again")


def choose_precision(bundle: Bundle, asked: str, usual: str) -> str:
    """``auto`` → ``usual`` where the bundle has it, else what it has; else as asked.

    Raises:
        UsageError: the bundle does not hold what was asked for.
    """
    if asked == "auto":
        return usual if usual in bundle.precisions else bundle.precisions[0]
    if asked not in bundle.precisions:
        raise UsageError(
            f"{bundle.path.name} computes in {' or '.join(bundle.precisions)}, not in {asked}",
            "export it again with --precision, or use another --runtime",
        )
    return asked
