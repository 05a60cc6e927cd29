"""A loaded torch model → one ONNX bundle (see ``bundle``), compared with torch before it is kept.

A generic loop over roles: knows no family, only what each kind of role takes. Needs the extra
``facestyle[export]`` (onnx and onnxscript); what it writes needs neither, nor torch.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from facestyle import __version__
from facestyle.backends.on_onnx import OnnxBackend
from facestyle.backends.on_torch import TorchBackend
from facestyle.bundle import TWIN, Bundle, parse_bundle, sealed
from facestyle.card import METADATA_KEY, ModelCard
from facestyle.checkpoint import write_atomically
from facestyle.errors import CheckpointError, FacestyleError, UsageError
from facestyle.translator import Translator

if TYPE_CHECKING:
    import onnx

OPSET = 20  # of the ONNX standard; onnxruntime knows it since 1.17
IR_VERSION = 10
EXACT = 1e-3  # the largest difference from torch that a float32 bundle may have
LARGEST_DIFFERENCE = {"fp32": EXACT, "fp16": 0.5}
LEFT_OUT = ("sampler",)  # kinds of role that draw noise from a seed, which ONNX cannot
HALF_FROM = 64  # numbers in a weight from which storing it in float16 is worth a cast
# What gains from float16, and what may stay in it; all else computes in float32, as under
# torch.autocast.
HALF = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
EITHER = frozenset(
    {"Add", "AveragePool", "Concat", "Expand", "Identity", "LeakyRelu", "MaxPool", "Pad", "Relu"}
    | {"Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)

USUAL_SIZE, OTHER_SIZE = (1, 1), (2, 3)  # height and width in sides of the card's picture

Arrays = tuple[np.ndarray, ...]
Scale = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What became of a model."""

    path: Path
    """The bundle."""
    differences: Mapping[str, float]
    """Role → largest difference from torch, relative where outputs are larger than 1."""
    any_size: tuple[str, ...]
    """Roles that take pictures of other sizes than the card's."""
    left_out: tuple[str, ...]
    """Roles of the model that ONNX cannot hold."""


def export_model(
    model: Translator,
    path: Path,
    precision: str = "fp32",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Exported:
    """Write a bundle, after comparing every role with torch on several inputs.

    Args:
        model: opened with the torch runtime, on the CPU, in fp32.
        precision: ``fp32``, or ``fp16``: half the size, meant for GPUs, with a float32 twin.

    Raises:
        UsageError: an unknown precision, or onnx and onnxscript are not installed.
        FacestyleError: a result differs by too much; nothing is written.
    """
    _check_installed()
    if precision not in LARGEST_DIFFERENCE:
        raise UsageError(
            f"cannot export in '{precision}'", f"known: {', '.join(LARGEST_DIFFERENCE)}"
        )
    assert isinstance(model.backend, TorchBackend), "only torch modules can be exported"
    modules = {
        role: module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for role, module in sorted(model.backend.modules.items(), key=_generators_first)
        if _kind(role) not in LEFT_OUT
    }
    styles = tuple(style for style in model.card.styles if style != "dropout")
    card = replace(model.card, styles=styles)
    samples = _Samples(model, np.random.default_rng(0))
    networks, any_size = {}, []
    for number, (role, module) in enumerate(modules.items()):
        progress(number, len(modules))
        network = _traced_any_size(role, module, samples, card)
        if network is not None:
            any_size.append(role)
        networks[role] = network or _traced(role, module, samples)
    content = _written(networks, precision, card)
    bundle = parse_bundle(content, path)
    differences = _differences(bundle, samples, any_size)
    worst = max(differences, key=differences.__getitem__)
    if not differences[worst] <= LARGEST_DIFFERENCE[precision]:
        raise FacestyleError(
            f"{worst} differs from torch by {differences[worst]:.2g}, expected at most "
            f"{LARGEST_DIFFERENCE[precision]:g}: nothing was written",
            "keep the checkpoint itself, and report this",
        )
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return Exported(
        path=path,
        differences=differences,
        any_size=tuple(any_size),
        left_out=tuple(role for role in model.backend.roles if role not in modules),
    )


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"exporting needs {error.name}", "pip install 'facestyle[export]'"
        ) from None


def _kind(role: str) -> str:
    return role.partition(".")[0]


def _generators_first(item: tuple[str, Any]) -> bool:
    return _kind(item[0]) != "generator"


class _Samples:
    """Inputs of every role: smooth pictures, codes of the model's own making."""

    def __init__(self, model: Translator, rng: np.random.Generator) -> None:
        self.card = model.card
        self.backend = model.backend
        self.rng = rng

    def names(self, role: str) -> tuple[str, ...]:
        """What a role takes (see ``backends.Backend``)."""
        of_domain = ("domain",) if "mapping" in self.backend.roles else ()
        return {
            "generator": ("image", "code") if role == "generator" else ("image",),
            "flow": ("image", "code"),
            "mapping": ("latent", "domain"),
            "encoder": ("image", *of_domain),
        }.get(_kind(role), ("image",))

    def draw(self, role: str, count: int, scale: Scale = USUAL_SIZE) -> Arrays:
        """Random inputs; ``scale`` multiplies height and width of pictures."""
        return tuple(self._one(name, count, scale) for name in self.names(role))

    def _one(self, name: str, count: int, scale: Scale) -> np.ndarray:
        if name == "image":
            size = [self.card.image_size * factor for factor in scale]
            coarse = torch.from_numpy(self.rng.uniform(-1, 1, (count, 3, 8, 8)))
            smooth = F.interpolate(coarse, size=size, mode="bilinear").numpy()
            grain = 0.1 * self.rng.standard_normal(smooth.shape)
            return np.clip(smooth + grain, -1, 1).astype(np.float32)
        if name == "domain":
            return self.rng.integers(len(self.card.domains), size=count)
        if name == "code" and "mapping" in self.backend.roles:
            return self.backend.run("mapping", *self.draw("mapping", count))
        if self.card.latent_dim is not None:
            return self.rng.standard_normal((count, self.card.latent_dim), np.float32)
        sets = len(self.card.attribute_sets)
        least = -1 if self.card.relative else 0
        labels_NA = self.rng.integers(least, 2, size=(count, len(self.card.domains)))
        mask_NM = (
            np.eye(sets)[self.rng.integers(sets, size=count)] if sets > 1 else labels_NA[:, :0]
        )
        return np.concatenate([labels_NA, mask_NM], axis=1).astype(np.float32)

    def fit(self, role: str, scale: Scale) -> bool:
        """Whether torch takes pictures of another size: a picture comes out as much larger,
        anything else the same."""
        if "image" not in self.names(role):
            return False
        usual = self.backend.run(role, *self.draw(role, 1))
        try:
            other = self.backend.run(role, *self.draw(role, 1, scale))
        except RuntimeError:
            return False
        factor = (1, 1, *scale) if usual.ndim == 4 else (1,) * usual.ndim
        return other.shape == tuple(np.multiply(usual.shape, factor))

    def difference(self, role: str, backend: OnnxBackend, count: int, scale: Scale) -> float:
        """The largest difference of a backend from torch, relative where outputs are larger
        than 1; infinite where they cannot be compared."""
        arrays = self.draw(role, count, scale)
        wanted = self.backend.run(role, *arrays)
        try:
            found = backend.run(role, *arrays)
        except CheckpointError:  # torch took a size for fixed that is not
            return float("inf")
        if wanted.shape != found.shape or not np.isfinite(found).all():
            return float("inf")
        return float(np.abs(wanted - found).max() / max(1, np.abs(wanted).max()))


def _differences(bundle: Bundle, samples: _Samples, any_size: Sequence[str]) -> dict[str, float]:
    """Every role, in all that it computes in, on one input, on three at once, on another size."""
    backends = [OnnxBackend(bundle, "cpu", precision) for precision in bundle.precisions]
    cases = [(1, USUAL_SIZE), (3, USUAL_SIZE), (1, OTHER_SIZE)]
    return {
        role: max(
            samples.difference(role, backend, count, scale)
            for backend in backends
            for count, scale in cases
            if scale == USUAL_SIZE or role in any_size
        )
        for role in bundle.roles
    }


def _traced_any_size(
    role: str, module: nn.Module, samples: _Samples, card: ModelCard
) -> onnx.ModelProto | None:
    """One network for pictures of any size, or None where it takes one size alone."""
    if not samples.fit(role, OTHER_SIZE):
        return None
    try:
        network = _traced(role, module, samples, any_size=True)
    except FacestyleError:
        return None
    # torch may take a branch that hangs on the size for the only one there is.
    bundle = parse_bundle(_written({role: network}, "fp32", card), Path(role))
    error = samples.difference(role, OnnxBackend(bundle, "cpu"), 1, OTHER_SIZE)
    return network if error <= EXACT else None


def _traced(
    role: str, module: nn.Module, samples: _Samples, *, any_size: bool = False
) -> onnx.ModelProto:
    """One network as torch exports it, inputs and output named after the role."""
    batch, side = torch.export.Dim("batch"), torch.export.Dim.AUTO
    names = samples.names(role)
    dims = {name: {0: batch} for name in names}
    if any_size:
        dims["image"] = {0: batch, 2: side, 3: side}
    logger = logging.getLogger("onnxscript")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)  # it tells what it does not optimise
        try:
            program = torch.onnx.export(
                module,
                tuple(map(torch.from_numpy, samples.draw(role, 2))),
                dynamo=True,
                dynamic_shapes=tuple(dims[name] for name in names),
                input_names=[f"{role}.{name}" for name in names],
                output_names=[role],
                opset_version=OPSET,
                custom_translation_table={torch.ops.aten.var_mean.correction: _var_mean},
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise FacestyleError(
                f"torch cannot export {role} ({str(error).strip().splitlines()[0][:120]})",
                "keep the checkpoint itself, and report this",
            ) from error
        finally:
            logger.setLevel(level)
    assert program is not None, "without a file name the program comes back"
    return program.model_proto


def _var_mean(
    x: Any, dim: Sequence[int], correction: float = 1, keepdim: bool = False
) -> tuple[Any, Any]:
    """torch.var_mean in five operations; torch's own translation takes some twenty."""
    from onnxscript import opset20

    op: Any = opset20
    axes = op.Constant(value_ints=list(dim))
    mean = op.ReduceMean(x, axes, keepdims=1)
    squares = op.Mul(centred := op.Sub(x, mean), centred)
    variance = op.ReduceMean(squares, axes, keepdims=int(keepdim))
    if correction:
        count = op.Cast(op.Div(op.Size(x), op.Size(mean)), to=1)
        variance = op.Mul(
            variance, op.Div(count, op.Sub(count, op.Constant(value_float=float(correction))))
        )
    return variance, mean if keepdim else op.Squeeze(mean, axes)


def _written(networks: Mapping[str, onnx.ModelProto], precision: str, card: ModelCard) -> bytes:
    """The whole file."""
    writer = _Writer(precision)
    for role, network in networks.items():
        writer.add(role, network)
    return writer.finish(card)


def _name_dims(value: onnx.ValueInfoProto, role: str, names: Sequence[str]) -> None:
    """Call free dimensions by name in place of torch's ``s53`` and ``4*(s53//4)``.

    Equal names promise equal sizes, so each role has its own; dimensions beyond stay nameless.
    """
    for dim, name in zip_longest(value.type.tensor_type.shape.dim, names):
        if dim is not None and dim.HasField("dim_param"):
            dim.ClearField("dim_param")
            if name:
                dim.dim_param = f"{role}.{name}"


class _Writer:
    """Puts networks side by side into one graph; equal weights are stored once."""

    def __init__(self, precision: str) -> None:
        import onnx

        self.half = precision == "fp16"
        self.graph = onnx.GraphProto(name="model")
        self.weights: dict[bytes, str] = {}  # digest → name
        self.halves: set[str] = set()  # names of all values that are float16
        self.casts: dict[tuple[str, bool], str] = {}  # (name, to half?) → name

    def add(self, role: str, model: onnx.ModelProto) -> None:
        """Append one network, and where it computes in float16 its float32 twin."""
        import onnx

        assert not model.functions, "the exporter inlines functions"
        model = onnx.shape_inference.infer_shapes(model)
        for value in model.graph.input:
            _name_dims(value, role, ("batch", "", "height", "width"))
            self.graph.input.add(name=value.name, type=value.type)
        _name_dims(model.graph.output[0], role, ("batch",))
        names = {"": "", **{value.name: value.name for value in model.graph.input}}
        names |= {tensor.name: self._store(role, tensor) for tensor in model.graph.initializer}
        self._copy(role, model.graph, dict(names), self.half)
        if self.half:
            self._copy(f"{TWIN}{role}", model.graph, names, False)

    def finish(self, card: ModelCard) -> bytes:
        """The whole file."""
        import onnx

        model = onnx.ModelProto(
            ir_version=IR_VERSION,
            producer_name="facestyle",
            producer_version=__version__,
            doc_string="Networks side by side, each with inputs and an output of its own.",
            graph=self.graph,
            opset_import=[onnx.OperatorSetIdProto(version=OPSET)],
            metadata_props=[onnx.StringStringEntryProto(key=METADATA_KEY, value=card.to_json())],
        )
        return sealed(model.SerializeToString(deterministic=True))

    def _store(self, role: str, tensor: onnx.TensorProto) -> str:
        """Keep a weight, in float16 where that is asked for or loses nothing; its name."""
        from onnx import numpy_helper

        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size >= HALF_FROM:
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if np.isfinite(half).all() if self.half else np.array_equal(half, array):
                array = half
        key = hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).digest()
        if key not in self.weights:
            name = self.weights[key] = f"{role}/{tensor.name}"
            self.graph.initializer.append(numpy_helper.from_array(array, name))
            if array.dtype == np.float16:
                self.halves.add(name)
        return self.weights[key]

    def _copy(self, output: str, graph: onnx.GraphProto, names: dict[str, str], half: bool) -> None:
        """Append a network's nodes, in float32 or, where it pays, in float16.

        Args:
            output: the name that its one output gets, before which its nodes' names stand.
            names: name in the network → name in the file, of inputs and weights.
        """
        import onnx

        (result,) = graph.output
        values = [*graph.input, *graph.value_info, *graph.output]
        floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        weights = {w.name for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT}
        for number, node in enumerate(graph.node):
            # Resize takes its scales in float32 always.
            read = list(node.input[:1] if node.op_type == "Resize" else node.input)
            passing = [names[name] for name in read if name in floats]
            in_half = half and (
                node.op_type in HALF
                or (node.op_type in EITHER and bool(passing) and self.halves.issuperset(passing))
            )
            copy = onnx.NodeProto(
                op_type=node.op_type,
                name=f"{output}/{node.op_type}_{number}",
                attribute=node.attribute,
            )
            for place, name in enumerate(node.input):
                is_float = name in floats or name in weights
                to_half = in_half and place < len(read)
                copy.input.append(self._cast(names[name], to_half) if is_float else names[name])
            for place, name in enumerate(node.output):
                names[name] = f"{copy.name}.{place}"
                if name == result.name and not in_half:
                    names[name] = output
                elif in_half and name in floats:
                    self.halves.add(names[name])
                copy.output.append(names[name])
            self.graph.node.append(copy)
        if names[result.name] != output:
            self.graph.node.append(
                onnx.helper.make_node("Cast", [names[result.name]], [output], to=1)
            )
        self.graph.output.add(name=output, type=result.type)

    def _cast(self, name: str, half: bool) -> str:
        """A value of the file as float16 or as float32, cast once if it is not."""
        import onnx

        if (name in self.halves) == half:
            return name
        if (name, half) not in self.casts:
            wanted = self.casts[name, half] = f"{name}.{'half' if half else 'wide'}"
            kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
            node = onnx.helper.make_node("Cast", [name], [wanted], name=wanted, to=kind)
            self.graph.node.append(node)
            if half:
                self.halves.add(wanted)
        return self.casts[name, half]
