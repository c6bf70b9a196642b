"""On a mesh that is distributed over processes everything refuses, and says what to do."""

import pytest
from processes import run_script

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
    assert run_script(SCRIPT, tmp_path).count("refused 8") == 2


# The second process looks for kernels only when the first has compiled them. Then it used to miss
# the name of the first kernel, took that for the name of the second, and computed the wrong one.
LATE = """
import time
import numpy as np
from firedrake import *
import spon.fem
from pyop2 import caching, compilation
look = caching.get_cache_entry
def late(comm, cache, key):
    global wait
    if isinstance(cache, compilation.CompilerDiskAccess) and COMM_WORLD.rank == 1:
        time.sleep(wait)
        wait = 0
    return look(comm, cache, key)
mesh, wait = UnitSquareMesh(4, 4), 5
x, y = SpatialCoordinate(mesh)
assemble(x**2 * dx)
caching.get_cache_entry = late
found = [assemble(f * dx) for f in (x, 2 * y + 3 * x, 7 * x * y + y)]
assert np.allclose(found, [0.5, 2.5, 2.25]), found
print("agreed on kernels")
"""


@pytest.mark.parallel
def test_a_process_that_looks_late_takes_no_other_kernel(tmp_path):
    empty = {"PYOP2_CACHE_DIR": str(tmp_path / "kernels")}
    assert run_script(LATE, tmp_path, more=empty).count("agreed on kernels") == 2
