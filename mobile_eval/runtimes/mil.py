"""A saved ML Program, evaluated with torch: each operation exactly, then rounded to the type the program declares.

Sums and transcendental functions run in float64, so a result depends neither on the batch, nor on the threads, nor on
the processor's vector width (in float32 a second thread alone moved logits).  float32 keeps the values: it holds fp16.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.metadata import SPEC, coreml_spec, corrupt_file
from gallery.errors import MissingBackend
from mobile_eval.runtimes.mil_ops import OPS

_ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "fp16": lambda value: value.half().float(), "fp32": lambda value: value.float(), "bool": lambda value: value.bool(),
    "int32": lambda value: value.to(torch.int32),
    "int8": lambda value: value.clamp(-128, 127).to(torch.int8),
    "uint8": lambda value: value.clamp(0, 255).to(torch.uint8),
}  # fmt: skip


@dataclass(frozen=True)
class _Step:
    """One operation: constants and earlier values by name go in, values come out; `spent` ones are freed.

    inputs: a name, or for a parameter that is a list the names and constants in it
    """

    operation: Callable[..., Any]
    constants: dict[str, Any]
    inputs: dict[str, str | list[str | Tensor]]
    outputs: dict[str, Callable[[Tensor], Tensor]]
    spent: tuple[str, ...]

    def run(self, values: dict[str, Tensor]) -> None:
        """Compute the outputs from `values`, into these."""
        inputs = {
            name: values[source] if isinstance(source, str) else [_value(values, one) for one in source]
            for name, source in self.inputs.items()
        }
        found = self.operation(**self.constants, **inputs)
        several = found if len(self.outputs) > 1 else [found]
        values |= {name: rounded(value) for (name, rounded), value in zip(self.outputs.items(), several, strict=True)}
        for name in self.spent:
            del values[name]


class MilProgram:
    """The main function of an .mlpackage with one image input.

    Raises `CorruptFile` for a damaged package, `MissingBackend` naming what is not in `mil_ops`.
    """

    def __init__(self, path: Path) -> None:
        function = _load(path)
        self._image, image = next(iter(function.inputs.items()))
        self._size = image.shape[2]
        self._outputs = [var.name for var in function.outputs]
        self._steps = _compile(function, self._outputs)

    def run(self, images: NDArray[np.uint8], threads: int = 1) -> dict[str, NDArray[Any]]:
        """Evaluate uint8 images `[N, S, S, 3]`; return the outputs by name, each with N rows."""
        values = {self._image: torch.from_numpy(np.array(images, order="C")).permute(0, 3, 1, 2).float()}
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                for step in self._steps:
                    step.run(values)
        finally:
            torch.set_num_threads(before)
        return {name: values[name].numpy() for name in self._outputs}

    def safe_batch(self, limit: int) -> int:
        """Return `limit` if three random images give the same numbers together and one by one, else 1.

        The program was saved for a batch of 1, and nothing forbids it an operation that mixes a larger one.
        """
        images = np.random.default_rng(0).integers(0, 256, (3, self._size, self._size, 3), np.uint8)
        alone = [self.run(images[i : i + 1]) for i in range(len(images))]
        try:
            together = self.run(images)
        except (RuntimeError, ValueError, IndexError):  # torch: shapes that only fit a batch of 1
            return 1
        same = all(np.array_equal(together[name], np.concatenate([one[name] for one in alone])) for name in together)
        return limit if same else 1


def _load(path: Path) -> Any:
    spec = coreml_spec(path)
    try:
        from coremltools.converters.mil.frontend.milproto.load import load

        program = load(spec, spec.specificationVersion, str(path / SPEC.parent / "weights"))
        return program.functions["main"]
    except Exception as error:  # RuntimeError, ValueError, KeyError: the loader documents none
        raise corrupt_file(path, error) from error


def _compile(function: Any, outputs: list[str]) -> list[_Step]:
    operations = [op for op in function.operations if op.op_type != "const" and not op.op_type.startswith("constexpr_")]
    _check_supported(operations)
    steps, read_later = [], set(outputs)
    for op in reversed(operations):
        given = {name: var for name, var in op.inputs.items() if var is not None}
        constants = {name: _to_python(name, var) for name, var in given.items() if _is_constant(var)}
        if "shape" in constants:
            constants["shape"] = [int(side) for side in op.outputs[0].shape]  # without the -1 that is to be derived
        sources = {name: _source(var) for name, var in given.items() if name not in constants}
        several = [source if isinstance(source, list) else [source] for source in sources.values()]
        read = {one for names in several for one in names if isinstance(one, str)}
        rounded = {output.name: _ROUND[_type(output)] for output in op.outputs}
        spent = tuple((read | set(rounded)) - read_later)
        read_later |= read
        steps.append(_Step(OPS[op.op_type], constants, sources, rounded, spent))
    return steps[::-1]


def _check_supported(operations: list[Any]) -> None:
    """Name each operation that is not known once, a known one with what is not known of it."""
    unknown: dict[str, set[str]] = {}
    for op in operations:
        if op.op_type not in OPS:
            unknown[op.op_type] = set()
            continue
        accepted = inspect.signature(OPS[op.op_type]).parameters
        given = {name for name, var in op.inputs.items() if var is not None}
        required = {name for name, one in accepted.items() if one.default is one.empty}
        wrong = {f"with {name}" for name in given - set(accepted)} | {f"without {name}" for name in required - given}
        wrong |= {f"to {_type(var)}" for var in op.outputs if _type(var) not in _ROUND}
        if wrong:
            unknown.setdefault(op.op_type, set()).update(wrong)
    if unknown:
        fix = "Evaluate this file on macOS, or add the operation to mobile_eval/runtimes/mil_ops.py."
        known = "ML Program operations that the reference evaluator knows"
        found = ", ".join(" ".join([name, *sorted(unknown[name])]) for name in sorted(unknown))
        raise MissingBackend(known, found, fix)


def _source(var: Any) -> str | list[str | Tensor]:
    """Where the value of an input comes from: see `_Step`."""
    if not isinstance(var, (tuple, list)):
        return str(var.name)
    return [torch.as_tensor(_to_python("", one)) if _is_constant(one) else str(one.name) for one in var]


def _value(values: dict[str, Tensor], source: str | Tensor) -> Tensor:
    return values[source] if isinstance(source, str) else source


def _type(var: Any) -> str:
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(var.dtype))


def _is_constant(var: Any) -> bool:
    return not isinstance(var, (tuple, list)) and (
        var.val is not None or (var.op and var.op.op_type.startswith("constexpr_"))
    )


def _to_python(name: str, var: Any) -> Any:
    """Return weights as float64 tensors, other float arrays as float32; sizes, flags and names as Python objects."""
    array = np.asarray(var.op.materialized_val_inference() if var.val is None else var.val)
    if array.dtype.kind == "f" and array.ndim:
        return torch.tensor(array.astype(np.float64 if name in ("weight", "bias") else np.float32))
    return array.tolist()
