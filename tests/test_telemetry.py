"""ONNX Runtime reports to nobody. Its client would leave a file in the temporary folder."""

import os
import subprocess
import sys

import pytest
from support import ROOT

pytest.importorskip("onnx")

PROGRAM = """
import {module}
import onnxruntime
from onnx import TensorProto, helper

def value(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

node = helper.make_node("Identity", ["x"], ["y"])
graph = helper.make_graph([node], "graph", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("module", ["mvaema", "onnx_mvaema"])
def test_a_session_leaves_nothing_behind(module, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    program = PROGRAM.format(module=module)
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert not list(tmp_path.iterdir())
