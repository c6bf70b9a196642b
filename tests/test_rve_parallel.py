"""Processes share the cells of an RVE, and get what one process gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_script

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from firedrake import COMM_WORLD as world, COMM_SELF, PeriodicUnitSquareMesh
from small_rve import FINITE, LAWS, corner, tagged
from fe_ol import RVE, NeoHookean, NoEquilibriumError

def mesh(n):
    return tagged(PeriodicUnitSquareMesh(n, n, comm=COMM_SELF), corner)

rve = RVE(mesh(3), LAWS)
strain = 0.02 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
state = rve(strain / 2).state
for options in ({{}}, {{"state": state}}, {{"tangent": False}}):
    alone, shared = rve.solve(strain, **options), rve.solve(strain, comm=world, **options)
    for name in vars(alone):
        a, b = getattr(alone, name), getattr(shared, name)
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        else:
            assert type(a) is type(b) and (a is None or len(a) == len(b)), name
loads = [0.01, None, None], [None, 0.0, 0.0]
assert len(rve.solve(*loads, comm=world)) == 1  # fewer cells than processes
assert len(rve.solve(strain[:0], comm=world)) == 0

# What one of them cannot solve, all hear of.
rve = RVE(mesh(3), FINITE)
loads = torch.eye(2).double().flatten().repeat(2, 1)
loads[1, 0] = -1.0
try:
    rve.solve(loads, comm=world)
except NoEquilibriumError as error:
    assert "Cell number 1" in str(error), error
    assert world.rank == 1 or "Process 1 failed" in str(error), error
    print("heard of it")
print("the same " + str(len(shared)))  # in one piece: two processes write to one pipe
"""


@pytest.mark.parallel
def test_two_processes_give_the_solutions_of_one(tmp_path):
    tests = str(Path(__file__).resolve().parent)
    said = run_script(SCRIPT.format(tests=tests), tmp_path)
    assert said.count("the same 5") == 2 and said.count("heard of it") == 2
