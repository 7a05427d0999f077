"""Inputs to compare models on: seeded noise of Polygraphy, arrays, pictures, or texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import ShapeError, TokenrtError
from tokenrt.passes.checking import texts
from tokenrt.passes.checking.inputs import Array as Array
from tokenrt.passes.checking.inputs import Input as Input
from tokenrt.passes.checking.pictures import PICTURES, picture

Feed = dict[str, Array]

MAP = "segments"
"""The input by which a host says where each token goes."""

NOISE = (-2.0, 2.0)
"""Range of seeded float inputs: about that of a picture after ImageNet normalisation."""

PASSING = frozenset(
    {"Cast", "Clip", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)
"""Operators between an input of indices and the table it looks up."""


def inputs_of(original: ir.Model, reduced: ir.Model) -> tuple[Input, ...]:
    """The inputs of the original, with every size one of the models fixes, and those that the reduced model has beside them.

    Raises: ShapeError where the two disagree on type, rank or a size.
    """
    other = {str(value.name): value for value in reduced.graph.inputs}
    found = []
    for value in original.graph.inputs:
        if value.name in original.graph.initializers:
            continue
        name, twin = str(value.name), other.get(str(value.name), value)
        left, right = _dims(value), _dims(twin)
        fits = len(left) == len(right) and all(
            a is None or b is None or a == b for a, b in zip(left, right, strict=True)
        )
        if value.dtype != twin.dtype or not fits:
            raise ShapeError(
                f"input {name!r} is {value.dtype} {_text(left)} in the original and {twin.dtype} "
                f"{_text(right)} in the reduced model; compare models made from one another"
            )
        sizes = tuple(b if a is None else a for a, b in zip(left, right, strict=True))
        found.append(Input(name, _numpy(value), sizes))
    own = {item.name for item in found}
    more = (value for value in reduced.graph.inputs if value.name not in reduced.graph.initializers)
    found.extend(
        Input(str(value.name), _numpy(value), _dims(value)) for value in more if value.name not in own
    )
    return tuple(found)


def feeds(
    inputs: Sequence[Input],
    model: ir.Model,
    *,
    data: str | Path | Mapping[str, Any] | None,
    batch: int,
    seed: int,
    samples: int,
    most: int | None = None,
) -> tuple[list[Feed], str]:
    """The inputs of every run, and where they are from in a few words.

    samples: runs of noise, where there is no data. most: of the files of a folder, in the order of their names, so many are read.

    Raises: TokenrtError, ShapeError.
    """
    if batch < 1 or samples < 1:
        raise TokenrtError(f"batch {batch} and samples {samples}: both count from 1")
    if data is None:
        return _noise(inputs, model, batch, seed, samples), f"seeded noise (seed {seed})"
    if isinstance(data, Mapping):
        return _cut(
            inputs, {name: np.asarray(array) for name, array in data.items()}, batch, "data"
        ), "arrays"
    path = Path(data)
    if path.is_dir():
        return _folder(inputs, path, batch, most)
    if path.suffix == ".npz" and path.exists():
        return _cut(inputs, _archive(path), batch, str(path)), path.name
    if path.suffix == ".txt" and path.exists():
        rows, described = texts.read(inputs, path)
        return _cut(inputs, rows, batch, str(path)), described
    raise TokenrtError(
        f"data {path}: {'not an .npz or .txt file' if path.exists() else 'no such file or directory'}; give an .npz "
        "with one array per input, a .txt with a text in each line, or a directory of .npz, .npy or pictures"
    )


def first(runs: Sequence[Feed], samples: int) -> Iterator[Feed]:
    """Runs until so many samples are there."""
    taken = 0
    for run in runs:
        if taken >= samples:
            return
        taken += samples_of(run)
        yield run


def samples_of(run: Feed) -> int:
    """Samples of a run."""
    return max((len(array) for array in run.values() if array.ndim), default=1)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Polygraphy, which logs to standard output, silent."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield


def _noise(inputs: Sequence[Input], model: ir.Model, batch: int, seed: int, samples: int) -> list[Feed]:
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator import DataLoader

    metadata, ranges = TensorMetadata(), {}
    values = {str(value.name): value for value in model.graph.inputs}
    for item in inputs:
        dims = tuple(batch if size is None and not axis else size for axis, size in enumerate(item.dims))
        if None in dims:
            axis = dims.index(None)
            raise ShapeError(
                f"axis {axis} of input {item} is dynamic, so no noise of its size can be made: give --data, "
                "or fix the size when reducing with --shape"
            )
        value = values.get(item.name)
        if value is None and item.dtype.kind in "iu" and item.name != MAP:
            raise TokenrtError(
                f"input {item} is the reduced model's alone and holds integers, of which noise makes no sense: give --data "
                "with an array for it"
            )
        metadata.add(item.name, dtype=item.dtype, shape=dims)
        ranges[item.name] = _range(item, value)
    with quiet():
        loader = DataLoader(seed=seed, iterations=samples, input_metadata=metadata, val_range=ranges)
        return [dict(loader[index]) for index in range(samples)]


def _range(item: Input, value: ir.Value | None) -> tuple[float, float]:
    """Ones for masks and for integers that look up no table, indices within the table, else noise; value: in the original.

    Of a map of segments, which only the reduced model has: any of as many outputs as there are tokens, or none.
    """
    if "mask" in item.name.lower() or item.dtype.kind == "b":
        return 1, 1
    if item.dtype.kind == "f":
        return NOISE
    if value is None:
        return -1, (item.dims[1] or 1) - 1
    rows = None if value is None else _table_rows(value)
    return (0, rows - 1) if rows else (1, 1)


def _table_rows(value: ir.Value) -> int | None:
    """Fewest rows of the tables that `value` indexes."""
    found, open_values, seen = [], [value], set[str]()
    while open_values:
        for node, index in open_values.pop().uses():
            if node.op_type in PASSING and not index:
                output = node.outputs[0]
                if output.name not in seen:
                    seen.add(str(output.name))
                    open_values.append(output)
            elif node.op_type == "Gather" and index == 1 and not node.attributes.get_int("axis", 0):
                table = node.inputs[0]
                tensor = None if table is None else ir.convenience.get_const_tensor(table)
                shape = None if table is None else (table.shape if tensor is None else tensor.shape)
                if shape is not None and len(shape) and isinstance(shape[0], int):
                    found.append(shape[0])
    return min(found, default=None)


def _folder(inputs: Sequence[Input], folder: Path, batch: int, most: int | None) -> tuple[list[Feed], str]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    kinds = {
        "npz": [path for path in files if path.suffix == ".npz"],
        "npy": [path for path in files if path.suffix == ".npy"],
        "pictures": [path for path in files if path.suffix.lower() in PICTURES],
    }
    there = {kind: paths for kind, paths in kinds.items() if paths}
    if len(there) != 1:
        held = " and ".join(f"{len(paths)} {kind}" for kind, paths in there.items()) or "none of them"
        raise TokenrtError(
            f"data {folder}: expected .npz, .npy or pictures, and one kind only; it holds {held}"
        )
    kind, paths = there.popitem()
    every, paths = len(paths), paths[:most]
    of = f" of {every}" if len(paths) < every else ""
    described = f"{len(paths)}{of} {kind if kind == 'pictures' else f'.{kind} files'} of {folder.name}"
    if kind == "npz":
        return [feed for path in paths for feed in _cut(inputs, _archive(path), batch, str(path))], described
    if len(inputs) != 1:
        names = ", ".join(item.name for item in inputs)
        raise TokenrtError(
            f"data {folder}: {kind} serve models with one input, this has {names}; use .npz files"
        )
    if kind == "npy":
        rows = [_rows(inputs[0], path) for path in paths]
        return _cut(inputs, {inputs[0].name: _joined(rows, folder)}, batch, str(folder)), described
    pictures = np.stack([picture(inputs[0], path) for path in paths])
    return _cut(inputs, {inputs[0].name: pictures}, batch, str(folder)), described


def _archive(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as cause:
        raise TokenrtError(f"data {path}: not a readable .npz file: {cause}") from cause


def _rows(item: Input, path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except Exception as cause:
        raise TokenrtError(f"data {path}: not a readable .npy file: {cause}") from cause
    if array.ndim == len(item.dims) - 1:
        return array[None]
    if array.ndim == len(item.dims):
        return array
    raise TokenrtError(
        f"data {path}: shape {_text(array.shape)}, expected one sample or several of input {item}"
    )


def _joined(rows: list[Array], folder: Path) -> Array:
    try:
        return np.concatenate(rows)
    except ValueError as cause:
        raise TokenrtError(f"data {folder}: the .npy files differ in shape: {cause}") from cause


def _cut(inputs: Sequence[Input], arrays: dict[str, Array], batch: int, source: str) -> list[Feed]:
    """Arrays by input name, cut into runs.

    An array of the input's rank counts samples on its first axis; one axis more counts runs.
    """
    if len(inputs) == 1 and len(arrays) == 1:
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    names = {item.name for item in inputs}
    if missing := names - arrays.keys():
        raise TokenrtError(
            f"{source}: no array for input {', '.join(sorted(missing))}; "
            f"it holds {', '.join(sorted(arrays)) or 'none'}"
        )
    if extra := arrays.keys() - names:
        raise TokenrtError(
            f"{source}: {', '.join(sorted(extra))} is no input; inputs: {', '.join(sorted(names))}"
        )
    runs = {item.name: _runs(item, arrays[item.name], batch, source) for item in inputs}
    counts = {name: len(list_of) for name, list_of in runs.items()}
    count = max(counts.values())
    if any(number not in (1, count) for number in counts.values()):
        raise TokenrtError(f"{source}: the arrays make different numbers of runs: {counts}")
    return [{name: list_of[index % len(list_of)] for name, list_of in runs.items()} for index in range(count)]


def _runs(item: Input, array: Array, batch: int, source: str) -> list[Array]:
    where = f"{source}: array {item.name!r}"
    integers = array.dtype.kind in "iub"
    if integers != (item.dtype.kind in "iub") or not (
        integers or np.can_cast(array.dtype, item.dtype, "same_kind")
    ):
        raise TokenrtError(
            f"{where} is {array.dtype}, the input takes {item.dtype}: convert it first, scaled and "
            "normalised as the model wants it"
        )
    array = array.astype(item.dtype)
    if array.ndim == len(item.dims):
        if not array.ndim:
            return [array]
        size = item.dims[0] or batch
        whole = len(array) // size if item.dims[0] else -(-len(array) // size)
        if not whole:
            raise TokenrtError(f"{where} holds {len(array)} samples, the model takes batches of {size}")
        cut = [array[index * size : (index + 1) * size] for index in range(whole)]
    elif array.ndim == len(item.dims) + 1 and len(array):
        cut = list(array)
    else:
        raise TokenrtError(f"{where} has shape {_text(array.shape)}, expected samples of input {item}")
    for part in cut:
        if any(want not in (None, got) for want, got in zip(item.dims, part.shape, strict=True)):
            raise TokenrtError(f"{where} has shape {_text(array.shape)}, expected samples of input {item}")
    return cut


def _dims(value: ir.Value) -> tuple[int | None, ...]:
    if value.shape is None:
        raise ShapeError(
            f"input {value.name!r} has no shape; export the model again, or run shape inference on it"
        )
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _numpy(value: ir.Value) -> np.dtype[Any]:
    if value.dtype is None:
        raise ShapeError(f"input {value.name!r} has no type; export the model again")
    return np.dtype(value.dtype.numpy())


def _text(dims: Sequence[int | None]) -> str:
    return f"[{','.join('?' if size is None else str(size) for size in dims)}]"
