"""A weights file on disk → named parts of tensors, and back, safely.

Knows file formats (safetensors of our own, published torch archives) and what can be
wrong with them; knows nothing of networks. Never runs code from a file: torch archives
are read with ``weights_only``, always.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickletools
import re
import secrets
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from facestyle.card import METADATA_KEY, ModelCard
from facestyle.errors import CheckpointError, FacestyleError, WeightsError

MODEL_KEY = "model"  # in a checkpoint of ``facestyle train``, beside the card and the task's state
DIGEST_KEY = "facestyle.sha256"  # neither safetensors nor torch notices a flipped bit
WHOLE = ""  # the name of the one part of a file that is a plain state dict
HEAD_BYTES = 64  # enough to tell formats apart
LEGACY_PICKLES = 5  # in torch's older format: magic, version, system, content, storage keys
NOT_WEIGHTS = {  # what is given in place of weights, by its first bytes
    "a web page": re.compile(rb"\s*<"),
    "a Git LFS pointer": re.compile(rb"version https://git-lfs"),
    "a JPEG picture": re.compile(rb"\xff\xd8\xff"),
    "a PNG picture": re.compile(rb"\x89PNG"),
    "an ONNX model": re.compile(rb"\x08.\x12", re.DOTALL),
}
PLAIN_GLOBALS = re.compile(  # all that a pickled state dict names
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.((cuda|storage)\.)?[A-Z]\w*Storage|torch\.(Size|bool|b?float\d+|u?int\d+)"
)
PLAIN_TYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool}
    | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What a weights file holds."""

    path: Path
    """Where it came from."""
    parts: Mapping[str, State]
    """Network name → state dict on the CPU; a plain state dict is the one part ``""``."""
    card: ModelCard | None
    """The card in its metadata; published files have none."""

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Part → tensor name → shape: all that recognition looks at."""
        return {
            part: {name: tuple(tensor.shape) for name, tensor in state.items()}
            for part, state in self.parts.items()
        }


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a weights file of any known format; of a checkpoint of ``facestyle train``, the model
    as it was at that iteration.

    Raises:
        WeightsError: no such file, or one that may not be read.
        CheckpointError: refused (pickled code), truncated, corrupt, not finite, or no weights.
    """
    if path.is_dir():
        inside = ", ".join(sorted(one.name for one in path.glob("*.safetensors"))[:3])
        raise CheckpointError(
            f"{path} is a folder, expected a weights file",
            f"give a file in it: {inside}" if inside else "give a file in it",
        )
    if not path.is_file():
        raise WeightsError(f"no weights file {path}", "give a file or a name of 'models list'")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    if len(head) < 16:
        raise CheckpointError(f"{path} holds {len(head)} bytes, expected a weights file")
    if head[8:9] == b"{":
        parts, card = _read_safetensors(path)
    else:
        content = _items(_read_torch(path, head))
        card = _card(content.get(METADATA_KEY), path)
        parts = _parts(content if card is None else content.get(MODEL_KEY), path)
    vetted = {
        part: {name: _vetted(path, part, name, tensor) for name, tensor in state.items()}
        for part, state in parts.items()
    }
    return Checkpoint(path=path, parts=vetted, card=card)


def _vetted(path: Path, part: str, name: str, tensor: Tensor) -> Tensor:
    """A plain finite tensor that owns all it claims; half precision widened to float32."""
    where = f"{path.name}: {_full(part, name)}"
    plain = (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in PLAIN_TYPES
    )
    # A stride of 0 lets four bytes claim to be a terabyte.
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{where} is no plain tensor", "export plain state dicts")
    tensor = tensor.detach()
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{where} has NaN or infinite weights",
            "the training run diverged or the file is damaged; use an earlier checkpoint",
        )
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _read_safetensors(path: Path) -> tuple[dict[str, State], ModelCard | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # damage shows as any type, as in _read_torch
        raise _corrupt(path, _shown(str(error))) from None
    if not flat:
        raise CheckpointError(f"{path.name} holds no tensor, expected a network's weights")
    card_text = metadata.get(METADATA_KEY)
    # One flipped bit can rename either key.
    ours = METADATA_KEY in metadata or DIGEST_KEY in metadata
    if ours and (card_text is None or metadata.get(DIGEST_KEY) != _digest(flat, card_text)):
        raise _corrupt(path, "its contents do not match its own sha256")
    parts: dict[str, State] = {}
    for name, tensor in flat.items():
        part, _, leaf = name.partition("/")
        part, leaf = (part, leaf) if leaf else (WHOLE, part)
        parts.setdefault(part, {})[leaf] = tensor
    return parts, _card(card_text, path)


def _card(text: Any, path: Path) -> ModelCard | None:
    if not isinstance(text, str):
        return None
    try:
        return ModelCard.from_json(text)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error.message}", error.hint) from None


def _read_torch(path: Path, head: bytes) -> Any:
    # Zip archives start with PK; torch's older format is a pickle of protocol 2 or newer.
    if not (head.startswith(b"PK\x03\x04") or head[0] == 0x80):
        kind = next((kind for kind, start in NOT_WEIGHTS.items() if start.match(head)), None)
        raise CheckpointError(
            f"{path.name} is {kind or 'something else'}, "
            "expected safetensors or a torch checkpoint",
            "download it again, from the place that 'models list' names",
        )
    try:
        _scan(path, head)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and old storages
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except MemoryError:
        raise _corrupt(path, "it asks for more memory than there is") from None
    except Exception:
        # A damaged file can fail inside zipfile, pickletools and torch in any way at all (seen:
        # RuntimeError, UnpicklingError, EOFError, KeyError, IndexError, AttributeError,
        # UnicodeDecodeError, OverflowError, struct.error, AssertionError): whatever it is, the
        # file is at fault. The text is never shown: torch's advises to turn the safety off.
        raise _corrupt(path, "truncated, damaged, or no torch checkpoint") from None


def _scan(path: Path, head: bytes) -> None:
    """Refuse what ``weights_only`` lets pass (a bytearray of any length, compressed records,
    wrong checksums), and name what it would refuse."""
    if head[0] == 0x80:
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                _refuse_code(path, file)
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        if not stored or sum(record.file_size for record in records) > path.stat().st_size:
            raise CheckpointError(
                f"{path.name} is a compressed zip archive, expected a torch checkpoint",
                "if the checkpoint is inside, unpack it first",
            )
        # torch itself does not look at the checksums.
        if (damaged := archive.testzip()) is not None:
            raise _corrupt(path, f"{_shown(damaged)} does not match its checksum")
        pickles = [record for record in records if record.filename.endswith(".pkl")]
        if not pickles:
            raise CheckpointError(f"{path.name} is a zip archive, expected a torch checkpoint")
        for record in pickles:
            with archive.open(record) as file:
                _refuse_code(path, file)


def _refuse_code(path: Path, file: IO[bytes]) -> None:
    """Read one pickle without running it; refuse every global but those of plain tensors."""
    texts = ["", ""]
    for operation, argument, _ in pickletools.genops(file):
        name = None
        if operation.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL":
            name = ".".join(texts)
        elif isinstance(argument, str):
            texts = [texts[1], argument]
        if name is not None and not PLAIN_GLOBALS.fullmatch(name):
            raise CheckpointError(
                f"{path.name} is refused: it holds pickled code ({_shown(name)}), "
                "expected tensors alone",
                "export its state dicts with the program that wrote it, if you trust it",
            )


def _corrupt(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is corrupt ({detail})", "download it again, or take another copy"
    )


def _shown(text: str) -> str:
    """A file's own text, fit for one line of an error message."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 80 else f"{text[:79]}…"


def _parts(content: Any, path: Path) -> dict[str, State]:
    """Unwrap the layouts in use: {part: state}, {"state_dict": state}, or a state itself."""
    content = _items(content)
    content = _items(content.get("state_dict")) or content
    if not content:
        raise CheckpointError(f"{path.name} holds no dict of weights")
    if all(isinstance(value, Tensor) for value in content.values()):
        return {WHOLE: _bare(content, path)}
    networks = {part: _items(state) for part, state in content.items()}
    parts = {
        part: _bare(state, path)
        for part, state in networks.items()
        if isinstance(part, str)
        and state
        and all(isinstance(value, Tensor) for value in state.values())
    }
    if not parts:
        keys = ", ".join(_shown(str(key)) for key in list(content)[:3])
        raise CheckpointError(
            f"{path.name} holds no network (its keys: {_shown(keys)})",
            "give the checkpoint with the networks, not the one with optimisers",
        )
    return parts


def _items(content: Any) -> dict[Any, Any]:
    """A plain copy of a dict, {} for anything else; a pickle may have replaced its methods."""
    return dict(dict.items(content)) if isinstance(content, dict) else {}


def _bare(state: Mapping[Any, Tensor], path: Path) -> State:
    """Without the ``module.`` that DataParallel puts before every name."""
    if not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path.name} has a tensor whose name is no text")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def check_fit(
    path: Path, part: str, state: Mapping[str, Tensor], wanted: Mapping[str, Any]
) -> None:
    """Refuse a state dict that differs from a network's own in names or shapes.

    Raises:
        CheckpointError: names the first bad key.
    """
    for name, tensor in wanted.items():
        if name not in state:
            raise CheckpointError(
                f"{path.name}: {_full(part, name)} is missing",
                "the file is incomplete, or of a variant that facestyle does not know",
            )
        found, expected = tuple(state[name].shape), tuple(tensor.shape)
        if found != expected:
            raise CheckpointError(
                f"{path.name}: {_full(part, name)} has shape {found}, expected {expected}"
            )
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{path.name}: {_full(part, name)} holds {state[name].dtype}, "
                f"expected {tensor.dtype}"
            )
    for name in state:
        if name not in wanted:
            raise CheckpointError(
                f"{path.name}: {_full(part, name)} is not part of this network",
                "the file is of a variant that facestyle does not know",
            )


def _full(part: str, name: str) -> str:
    return _shown(f"{part}.{name}" if part else name)


def save_model(
    path: Path, parts: Mapping[str, Mapping[str, Tensor]], card: ModelCard, *, half: bool = False
) -> None:
    """Write our own format: safetensors, the card and a sha256 of it all in the metadata.

    Args:
        half: float16 tensors, half the size; loading widens them again. A tensor with a value
            beyond 65504 stays as it is.
    """
    flat = {
        f"{part}/{name}": (_halved(tensor) if half else tensor).detach().cpu().contiguous().clone()
        for part, state in parts.items()
        for name, tensor in state.items()
    }
    text = card.to_json()
    metadata = {METADATA_KEY: text, DIGEST_KEY: _digest(flat, text)}
    content = _in_order(safetensors.torch.save(flat, metadata))
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _halved(tensor: Tensor) -> Tensor:
    fits = tensor.is_floating_point() and bool(tensor.abs().le(torch.finfo(torch.half).max).all())
    return tensor.half() if fits else tensor


def _in_order(content: bytes) -> bytes:
    """The same file with sorted metadata: safetensors leaves their order to chance, and equal
    models shall be equal files."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def _digest(flat: Mapping[str, Tensor], card_text: str) -> str:
    """sha256 over the card and every tensor's name, type, shape and bytes, in order of name."""
    digest = hashlib.sha256(card_text.encode())
    for name in sorted(flat):
        tensor = flat[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step.

    Whatever happens, ``path`` is either the old file or the whole new one.

    Raises:
        FacestyleError: the disk is full or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch(exist_ok=False)  # with the permissions that the user's files have
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    except RuntimeError as error:
        # torch.save says nothing better when the disk is full.
        if not re.search("inline_container|iostream", str(error)):
            raise
        raise _unwritable(path, OSError(errno.ENOSPC, "")) from None
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> FacestyleError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FacestyleError(f"disk full while writing {path}", "free some space and resume")
    return FacestyleError(f"cannot write {path}: {error.strerror or error}")
