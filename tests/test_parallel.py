"""On a mesh that is distributed over processes everything refuses, and says what to do."""

import os
import shutil
import subprocess
import sys

import pytest

SCRIPT = """
from firedrake import *
import numpy as np, torch
from spon import Decoder, Encoder, fem, losses

mesh = UnitSquareMesh(4, 4)
V = FunctionSpace(mesh, "CG", 1)
u, v = TrialFunction(V), TestFunction(V)
calls = {
    "to_tensor": lambda: fem.to_tensor(Function(V)),
    "to_function": lambda: fem.to_function(torch.zeros(V.dim(), dtype=torch.float64), V),
    "signature": lambda: fem.signature(V),
    "sparse_map": lambda: fem.sparse_map(u * v * dx),
    "evaluation_map": lambda: fem.evaluation_map(V, np.zeros((1, 2))),
    "Encoder": lambda: Encoder(V),
    "Decoder": lambda: Decoder(V, DirichletBC(V, 0, 1)),
    "RelativeError": lambda: losses.RelativeError(V),
}
for name, call in calls.items():
    try:
        call()
    except NotImplementedError as error:
        text = str(error)
        assert "distributed over 2" in text and "Ensemble(COMM_WORLD, 1)" in text, (name, text)
    else:
        raise SystemExit(f"{name} did not refuse")

# One mesh for each process works.
ensemble = Ensemble(COMM_WORLD, 1)
own = UnitSquareMesh(4, 4, comm=ensemble.comm)
W = FunctionSpace(own, "CG", 1)
mass = fem.sparse_map(TrialFunction(W) * TestFunction(W) * dx)
one = torch.ones(W.dim(), dtype=torch.float64)
assert abs(float(one @ mass(one)) - 1) < 1e-13
print(f"refused {len(calls)}")  # in one piece: two processes write to one pipe
"""


@pytest.mark.parallel
def test_distributed_meshes_are_refused(tmp_path):
    if shutil.which("mpiexec") is None:
        pytest.skip("mpiexec is not on the path")
    (tmp_path / "script.py").write_text(SCRIPT)
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    run = subprocess.run(
        ["mpiexec", "-n", "2", "--oversubscribe", sys.executable, tmp_path / "script.py"],
        capture_output=True,
        text=True,
        env={**os.environ, **root},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("refused 8") == 2
