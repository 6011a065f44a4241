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
    """One operation: constants and earlier values by name go in, one value comes out; `spent` ones are freed."""

    operation: Callable[..., Tensor]
    constants: dict[str, Any]
    inputs: dict[str, str]
    output: str
    round: Callable[[Tensor], Tensor]
    spent: tuple[str, ...]


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
        values = {self._image: torch.tensor(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()}
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                for step in self._steps:
                    inputs = {name: values[source] for name, source in step.inputs.items()}
                    values[step.output] = step.round(step.operation(**step.constants, **inputs))
                    for name in step.spent:
                        del values[name]
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
        except RuntimeError:  # torch: shapes that only fit a batch of 1
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
        sources = {name: var.name for name, var in given.items() if name not in constants}
        spent = tuple(set(sources.values()) - read_later)
        read_later.update(sources.values())
        output = op.outputs[0]
        steps.append(_Step(OPS[op.op_type], constants, sources, output.name, _ROUND[_type(output)], spent))
    return steps[::-1]


def _check_supported(operations: list[Any]) -> None:
    unknown = set()
    for op in operations:
        accepted = inspect.signature(OPS[op.op_type]).parameters if op.op_type in OPS else {}
        given = {name for name, var in op.inputs.items() if var is not None}
        unknown |= {f"{op.op_type}({name})" for name in given - set(accepted)}
        unknown |= {f"{op.op_type} -> {_type(var)}" for var in op.outputs if _type(var) not in _ROUND}
    if unknown:
        fix = "Evaluate this file on macOS, or add the operation to mobile_eval/runtimes/mil_ops.py."
        known = "ML Program operations that the reference evaluator knows"
        raise MissingBackend(known, ", ".join(sorted(unknown)), fix)


def _type(var: Any) -> str:
    from coremltools.converters.mil.mil import types

    return str(types.builtin_to_string(var.dtype))


def _is_constant(var: Any) -> bool:
    return not isinstance(var, tuple) and (var.val is not None or (var.op and var.op.op_type.startswith("constexpr_")))


def _to_python(name: str, var: Any) -> Any:
    """Return weights as float64 tensors, other float arrays as float32; sizes, flags and names as Python objects."""
    array = np.asarray(var.op.materialized_val_inference() if var.val is None else var.val)
    if array.dtype.kind == "f" and array.ndim:
        return torch.tensor(array.astype(np.float64 if name in ("weight", "bias") else np.float32))
    return array.tolist()
