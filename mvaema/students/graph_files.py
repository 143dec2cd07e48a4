"""The files of exported graphs: weights in half precision, and once for all graphs.

What is special about it:
- graphs name the file beside them and the place in it, so that the folder can be moved. Each weight
  begins where a page of memory may, so that a runtime can map the file instead of reading it;
- what the exporter notes of each operator is removed: lines of code, with paths of this machine.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data

LARGE = 1024  # elements from which a weight is stored in half precision
SHARED = 1024  # bytes from which one lies in the file that graphs share
PAGE = 4096  # bytes; where a weight in that file begins is a multiple of it


def store_halves(path: Path) -> None:
    """Store large weights in half precision; the runtime turns them back once, as it loads them.

    Raises:
        ValueError: a weight is larger than half precision allows.
    """
    graph = onnx.load(path)
    casts = []
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < LARGE:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ValueError(f"{tensor.name} is too large for float16: export it as float32.")
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=1))
    for cast in reversed(casts):
        graph.graph.node.insert(0, cast)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def remove_notes(path: Path) -> None:
    """Leave out of a graph all that says where it came from."""
    graph = onnx.load(path)
    parts = graph.graph
    for part in (*parts.node, *parts.input, *parts.output, *parts.value_info, *parts.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for part in (graph, parts):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(graph, path)


def share_weights(graphs: Sequence[Path], target: Path) -> None:
    """Move the weights of several graphs to one file beside them, equal ones to the same place."""
    places: dict[bytes, int] = {}
    with target.open("wb") as file:
        for path in graphs:
            graph = onnx.load(path)
            for tensor in graph.graph.initializer:
                # In the order of bytes in which ONNX stores a tensor, whatever field holds it.
                weight = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
                content = weight.raw_data
                if len(content) < SHARED:
                    continue
                digest = hashlib.sha256(content).digest()
                if digest not in places:
                    file.write(bytes(-file.tell() % PAGE))
                    places[digest] = file.tell()
                    file.write(content)
                tensor.CopyFrom(weight)
                set_external_data(tensor, target.name, places[digest], len(content))
                tensor.ClearField("raw_data")
            onnx.save(graph, path)
