"""The only folder of spon that talks to Firedrake: what leaves it and what goes back."""

from spon.fem.compiler import avoid_misaligned_stacks
from spon.fem.constraints import boundary_violation
from spon.fem.curved import curved_mesh
from spon.fem.elements import element_from_json, element_to_json, space_from_element
from spon.fem.external import (
    ExternalSolver,
    assemble,
    external_operator,
    solution_operator,
    solve,
)
from spon.fem.forms import TorchForm, torch_form
from spon.fem.maps import clear_cache, evaluation_map, interpolation_map, mean_mass, sparse_map
from spon.fem.meshes import mesh_tags, read_mesh
from spon.fem.problem import fill
from spon.fem.shared_kernels import agree_on_kernels
from spon.fem.solvers import LinearSolver, NonlinearSolver, SingularMatrixError, SolveReport
from spon.fem.spaces import (
    is_function,
    mesh_of,
    require_mesh,
    require_primal_space,
    require_serial,
    signature,
    space_on,
    to_function,
    to_tensor,
)
from spon.fem.tape import fem_operator
from spon.fem.vtk import write_vtk

avoid_misaligned_stacks()
agree_on_kernels()

__all__ = [
    "ExternalSolver",
    "LinearSolver",
    "NonlinearSolver",
    "SingularMatrixError",
    "SolveReport",
    "TorchForm",
    "assemble",
    "boundary_violation",
    "clear_cache",
    "curved_mesh",
    "element_from_json",
    "element_to_json",
    "evaluation_map",
    "external_operator",
    "fem_operator",
    "fill",
    "interpolation_map",
    "is_function",
    "mean_mass",
    "mesh_of",
    "mesh_tags",
    "read_mesh",
    "require_mesh",
    "require_primal_space",
    "require_serial",
    "signature",
    "solution_operator",
    "solve",
    "space_from_element",
    "space_on",
    "sparse_map",
    "to_function",
    "to_tensor",
    "torch_form",
    "write_vtk",
]
