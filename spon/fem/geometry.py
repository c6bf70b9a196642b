"""From function spaces to the geometry that a processor sees: plain tensors and sparse maps.

Latent nodes are the nodes of a scalar continuous space on the output's mesh. Values of any input
reach them by interpolation into the discontinuous version of that space, where every input has
values, followed by a mean over the cells around a node weighted by their volumes. That is bounded
on every mesh, and exact for continuous functions of the latent space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import finat.ufl
import firedrake as fd
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from spon.fem.constraints import has_own_nodes
from spon.fem.eigen import cutoff_window, eigenpairs
from spon.fem.elements import shaped
from spon.fem.elliptic import build_points
from spon.fem.factor import solve_definite
from spon.fem.graphs import cell_graph, on_held_pieces
from spon.fem.hierarchy import build_hierarchy
from spon.fem.lifting import interleaved, lifted
from spon.fem.maps import sparse_map
from spon.fem.resolvents import build_resolvents
from spon.fem.spaces import mesh_of, name_of, require_serial
from spon.processors.base import Basis, Geometry, GeometryRequest, Spectrum
from spon.processors.levels import Graph, Hierarchy, Resolvents
from spon.processors.points import Points
from spon.sparse import SparseMap

__all__ = ["build_geometry"]

_MAX_DEGREE = 2  # default for latent spaces: above it nodes cost more than they tell


def build_geometry(
    request: GeometryRequest,
    input_spaces: Sequence[Any],
    output_space: Any,
    bcs: Sequence[Any] = (),
) -> Geometry:
    """Build what a processor needs to know of the mesh and of the spaces.

    Parameters
    ----------
    request : GeometryRequest
    input_spaces : sequence of FunctionSpace
        Any elements, mixed ones too, all on the mesh of the output.
    output_space : FunctionSpace
    bcs : sequence of DirichletBC
        Conditions on `output_space`, its components or its parts. Only where they hold matters.

    Returns
    -------
    Geometry
        In float64; ``.to(dtype)`` casts it.

    Raises
    ------
    ValueError
        If the spaces live on different meshes, an input has no values but those at quadrature
        points, the conditions leave no node free, or there is nothing to build coarse levels from.
    NotImplementedError
        If the mesh is distributed over several processes.
    """
    mesh = mesh_of(output_space)
    require_serial(mesh, "build_geometry")
    for space in input_spaces:
        if mesh_of(space) != mesh:
            raise ValueError(
                f"The input space {space} lives on {mesh_of(space)}, the output space on {mesh}: "
                "interpolate the input into a space on the output's mesh first."
            )
    if not request.nodes:
        return _empty(len(input_spaces), output_space)
    _require_values_between_points(input_spaces)
    latent = _Latent(mesh, request.degree or _default_degree(output_space))
    fixed = latent.constrained(bcs)
    basis = patch_basis = None
    patches = _patches(latent, request.points) if request.points else None
    if request.modes:
        basis = _basis(request, latent, output_space, bcs)
        patch_basis = None if patches is None else _averaged(basis, patches, latent)
    hierarchy = _hierarchy(request, latent, fixed) if request.levels else None
    return Geometry(
        positions=_tensor(latent.positions()),
        weights=_tensor(latent.weights),
        torsion=_tensor(_torsion(latent, fixed)),
        lifts=[SparseMap(_lift(latent, space)) for space in input_spaces],
        read=SparseMap(_read(latent, output_space)),
        basis=basis,
        patches=None if patches is None else SparseMap(patches),
        patch_basis=patch_basis,
        graph=latent.graph(latent.length) if request.edges and hierarchy is None else None,
        hierarchy=hierarchy,
        resolvents=_resolvents(request.alphas, latent, fixed) if request.alphas else None,
        points=_quadrature(request, latent, input_spaces, output_space, bcs)
        if request.elliptic
        else None,
    )


def _require_values_between_points(spaces: Sequence[Any]) -> None:
    for position, space in enumerate(spaces):
        for part in space.subspaces:
            if part.ufl_element().family() in ("Quadrature", "Boundary Quadrature"):
                raise ValueError(
                    f"The space of input {position} is {name_of(space)}: functions of a Quadrature "
                    "space have no values at the nodes that this processor looks at. Project such "
                    'data in the encoder, Encoder(FunctionSpace(mesh, "DG", 1), source=V, '
                    'method="project"), or take an MLP, which looks at coefficients alone.'
                )


class _Latent:
    """The latent space, its discontinuous version, and the mean that leads back."""

    def __init__(self, mesh: Any, degree: int) -> None:
        self.degree = degree
        self.space, self.broken = _continuous_and_broken(mesh, degree)
        scalar = fd.FunctionSpace(mesh, self.broken)
        constant = fd.FunctionSpace(mesh, "DG", 0)
        self.cell_volumes = fd.assemble(fd.TestFunction(constant) * fd.dx).dat.data_ro.copy()
        # Which node, and which cell, a dof of the discontinuous space belongs to: 0/1 matrices.
        node = _indicator(fd.interpolate(fd.TrialFunction(self.space), scalar))
        cell = _indicator(fd.interpolate(fd.TrialFunction(constant), scalar))
        shares = cell @ self.cell_volumes * (constant.dim() / scalar.dim())
        volumes = node.T @ shares
        self.volume = float(self.cell_volumes.sum())
        self.weights = volumes / self.volume
        self.mean = sp.csr_matrix(sp.diags(1.0 / volumes) @ node.T @ sp.diags(shares))
        self.cells_of_node = sp.csr_matrix(node.T @ cell)
        self.node_of, self.cell_of = node.indices, cell.indices
        self.gdim = int(mesh.geometric_dimension)
        self.tdim = int(mesh.topological_dimension)
        self.length = self.volume ** (1.0 / self.tdim)

    def lift(self, expression: Any, shape: tuple[int, ...]) -> sp.csr_matrix:
        """Values of an expression of one trial function, shape (nodes * components, dim)."""
        target = fd.FunctionSpace(self.space.mesh(), shaped(self.broken, shape))
        values = sparse_map(fd.interpolate(expression, target)).to_scipy()
        mean = sp.kron(self.mean, sp.identity(int(np.prod(shape))), format="csr")
        return _pruned(mean @ values)

    def positions(self) -> NDArray[np.float64]:
        """Nodes relative to the centroid in units of the domain's length, (nodes, gdim)."""
        space = fd.VectorFunctionSpace(self.space.mesh(), self.space.ufl_element())
        x = fd.Function(space).interpolate(fd.SpatialCoordinate(self.space.mesh()))
        points = x.dat.data_ro.reshape(-1, self.gdim)
        return (points - self.weights @ points) / self.length

    def constrained(self, bcs: Sequence[Any]) -> NDArray[np.bool_]:
        """Nodes on the parts of the boundary where a condition holds, (nodes,)."""
        fixed = np.zeros(self.space.dim(), dtype=bool)
        for bc in bcs:
            # A single node is no part of the boundary; the decoder holds it.
            if has_own_nodes(bc):
                continue
            fixed[fd.DirichletBC(self.space, 0.0, bc.sub_domain).nodes] = True
        return fixed

    def graph(self, length: float) -> Graph:
        """Nodes that share a cell, in units of a length."""
        space = fd.FunctionSpace(self.space.mesh(), shaped(self.broken, (self.gdim,)))
        points = fd.Function(space).interpolate(fd.SpatialCoordinate(space.mesh()))
        points = points.dat.data_ro.reshape(-1, self.gdim) / length
        return cell_graph(points, self.node_of, self.cell_of, self.cell_volumes)

    def forms(self) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Stiffness and mass matrix."""
        u, v = fd.TrialFunction(self.space), fd.TestFunction(self.space)
        stiffness = sparse_map(fd.inner(fd.grad(u), fd.grad(v)) * fd.dx).to_scipy()
        return stiffness, sparse_map(u * v * fd.dx).to_scipy()

    def gradient(self) -> sp.csr_matrix:
        """Mean gradient around each node, (nodes * gdim, nodes)."""
        return self.lift(fd.grad(fd.TrialFunction(self.space)), (self.gdim,))

    def vector_forms(self) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Stiffness and mass matrix of vector fields, components one after the other.

        The stiffness is that of an isotropic elastic body with equal Lame parameters, which knows
        rigid motions and couples the components: right up to two coefficients for elasticity and
        for viscous flow.
        """
        space = fd.VectorFunctionSpace(self.space.mesh(), self.space.ufl_element())
        u, v = fd.TrialFunction(space), fd.TestFunction(space)
        strain = 2 * fd.inner(fd.sym(fd.grad(u)), fd.sym(fd.grad(v)))
        form = (strain + fd.div(u) * fd.div(v)) * fd.dx
        order = np.arange(space.dim()).reshape(-1, self.gdim).T.ravel()
        stiffness = sparse_map(form).to_scipy()[order][:, order]
        return stiffness, sparse_map(fd.inner(u, v) * fd.dx).to_scipy()[order][:, order]


def _lift(latent: _Latent, space: Any) -> sp.csr_matrix:
    """Coefficients in a space to nodal values, (nodes * channels, dim), channels fastest."""

    def values(part: Any) -> sp.csr_matrix:
        return latent.lift(fd.TrialFunction(part), part.value_shape)

    return lifted(space, len(latent.weights), values)


def _read(latent: _Latent, space: Any) -> sp.csr_matrix:
    """Nodal values, channels fastest, to coefficients in a space, (dim, nodes * channels)."""
    if len(space) == 1:
        if space.ufl_element().family() == "Real":
            mean = sp.csr_matrix(latent.weights[None, :])
            return sp.kron(mean, sp.identity(int(np.prod(space.value_shape))), format="csr")
        source = fd.FunctionSpace(
            latent.space.mesh(), shaped(latent.space.ufl_element(), space.value_shape)
        )
        return _pruned(sparse_map(fd.interpolate(fd.TrialFunction(source), space)).to_scipy())
    blocks = [_read(latent, part) for part in space.subspaces]
    columns = interleaved([block.shape[1] for block in blocks], len(latent.weights))
    return sp.csr_matrix(sp.block_diag(blocks, format="csr")[:, columns])


def _basis(
    request: GeometryRequest, latent: _Latent, output_space: Any, bcs: Sequence[Any]
) -> Basis:
    forms = latent.forms()
    nothing = np.zeros(len(latent.weights), dtype=bool)
    free = _spectrum(request.modes, latent, *forms, nothing)
    gradient = (latent.gradient() @ free.synthesis.numpy()).reshape(
        len(nothing), -1
    ) * latent.length
    free = Spectrum(free.eigenvalues, free.window, free.analysis, free.synthesis, _tensor(gradient))
    if request.vector:
        fixed = _fixed_components(latent, output_space, bcs)
        return Basis(_spectrum(request.modes, latent, *latent.vector_forms(), fixed), free)
    fixed = latent.constrained(bcs)
    return Basis(_spectrum(request.modes, latent, *forms, fixed) if fixed.any() else None, free)


def _spectrum(
    count: int,
    latent: _Latent,
    stiffness: sp.csr_matrix,
    mass: sp.csr_matrix,
    fixed: NDArray[np.bool_],
) -> Spectrum:
    values, functions = eigenpairs(stiffness, mass, count, fixed, -1.0 / latent.length**2)
    # Integrals become means over the domain.
    scale = np.sqrt(latent.volume)
    return Spectrum(
        eigenvalues=_tensor(values * latent.length**2),
        window=_tensor(cutoff_window(values)),
        analysis=_tensor((mass @ functions).T / scale),
        synthesis=_tensor(functions * scale),
    )


def _fixed_components(latent: _Latent, output_space: Any, bcs: Sequence[Any]) -> NDArray[np.bool_]:
    """Constrained components of nodes, one component after the other, (gdim * nodes,).

    A condition on a normal or tangential trace says nothing about single components.
    """
    fixed = np.zeros((latent.gdim, len(latent.weights)), dtype=bool)
    if output_space.ufl_element().mapping() == "identity":
        for bc in bcs:
            component = bc.function_space().component
            fixed[slice(None) if component is None else component, latent.constrained([bc])] = True
    return fixed.ravel()


def _torsion(latent: _Latent, fixed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Solution of -Laplace(t) = 1 with t = 0 at fixed nodes, over its maximum.

    Zero on the pieces of a domain where no node is fixed: there is no solution there.
    """
    t = np.zeros(len(fixed))
    if not fixed.any():
        return t
    stiffness, mass = latent.forms()
    free = np.flatnonzero(~fixed & on_held_pieces(stiffness, fixed))
    if len(free):
        load = mass @ np.ones(len(fixed))
        t[free] = solve_definite(stiffness[free][:, free], load[free])
        t /= t.max()
    return t


def _hierarchy(request: GeometryRequest, latent: _Latent, fixed: NDArray[np.bool_]) -> Hierarchy:
    def graph(space: Any) -> Graph:
        degree = int(np.max(space.ufl_element().embedded_superdegree))
        return _Latent(mesh_of(space), degree).graph(latent.length)

    return build_hierarchy(
        request.levels,
        latent.space,
        latent.weights,
        latent.positions(),
        fixed,
        latent.length,
        graph if request.edges else None,
    )


def _resolvents(alphas: Sequence[float], latent: _Latent, fixed: NDArray[np.bool_]) -> Resolvents:
    return build_resolvents(alphas, *latent.forms(), latent.gradient(), fixed, latent.length)


def _quadrature(
    request: GeometryRequest,
    latent: _Latent,
    inputs: Sequence[Any],
    output: Any,
    bcs: Sequence[Any],
) -> Points:
    degree = request.solutions or _default_degree(output)
    solutions = latent if degree == latent.degree else _Latent(mesh_of(output), degree)
    return build_points(
        solutions.space,
        latent.space,
        inputs,
        solutions.constrained(bcs),
        latent.length,
        _read(solutions, output),
    )


def _patches(latent: _Latent, count: int) -> sp.csr_matrix | None:
    """Means over patches, (patches, nodes): nodes that share a box of a lattice and a part of it.

    The lattice depends on the domain, not on its mesh, so patches converge under refinement.
    Nodes in one box that no chain of cells joins within the box (both sides of a slit) lie in
    different patches.
    """
    positions, nodes = latent.positions(), len(latent.weights)
    size = count ** (-1.0 / latent.tdim)
    # The offset keeps the nodes of regular meshes away from the faces of boxes.
    box = np.floor(positions / size + 0.0137 * np.arange(1, latent.gdim + 1)).astype(np.int64)
    _, label = np.unique(box, axis=0, return_inverse=True)
    label = label.ravel()
    near = sp.coo_matrix(latent.cells_of_node @ latent.cells_of_node.T)
    same = label[near.row] == label[near.col]
    joined = sp.coo_matrix((np.ones(same.sum()), (near.row[same], near.col[same])), near.shape)
    number, label = connected_components(joined, directed=False)
    if number == nodes:
        return None
    member = sp.csr_matrix((latent.weights, (label, np.arange(nodes))), shape=(number, nodes))
    return sp.csr_matrix(sp.diags(1.0 / np.asarray(member.sum(axis=1)).ravel()) @ member)


def _averaged(basis: Basis, patches: sp.csr_matrix, latent: _Latent) -> Basis:
    """The same eigenfunctions seen by means over patches."""
    weights = (patches > 0) @ latent.weights
    constrained = basis.constrained
    if constrained is not None:
        constrained = _averaged_spectrum(constrained, patches, weights)
    return Basis(constrained, _averaged_spectrum(basis.free, patches, weights))


def _averaged_spectrum(
    spectrum: Spectrum, patches: sp.csr_matrix, weights: NDArray[np.float64]
) -> Spectrum:
    gradient = spectrum.gradient.numpy()
    components = spectrum.analysis.shape[1] // patches.shape[1]
    means = sp.kron(sp.identity(components), patches, format="csr")
    values = means @ spectrum.synthesis.numpy()
    # Back by weighted least squares. High modes nearly vanish in the means: the ridge bounds what
    # dividing by them can do.
    weighted = values.T * np.tile(weights, components)
    gram = weighted @ values
    gram[np.diag_indices_from(gram)] += 1e-2
    return Spectrum(
        eigenvalues=spectrum.eigenvalues,
        window=spectrum.window,
        analysis=_tensor(np.linalg.solve(gram, weighted)),
        synthesis=_tensor(values),
        gradient=_tensor(patches @ gradient) if gradient.size else None,
    )


def _empty(inputs: int, output_space: Any) -> Geometry:
    nothing = SparseMap(sp.csr_matrix((0, 0)))
    gdim = int(mesh_of(output_space).geometric_dimension)
    zeros = torch.zeros(0, dtype=torch.float64)
    return Geometry(zeros.reshape(0, gdim), zeros, zeros, [nothing] * inputs, nothing)


def _default_degree(space: Any) -> int:
    degrees = [np.max(part.ufl_element().embedded_superdegree) for part in space.subspaces]
    return int(min(max(*degrees, 1), _MAX_DEGREE))


def _continuous_and_broken(mesh: Any, degree: int) -> tuple[Any, Any]:
    """A continuous space, and the element with the same nodes in each cell for itself."""
    cell = mesh.ufl_cell()
    if cell.cellname == "hexahedron":
        # Firedrake takes no BrokenElement there; equispaced nodes of Q and DQ are the same.
        q, dq = (
            finat.ufl.FiniteElement(family, cell, degree, variant="equispaced")
            for family in ("Q", "DQ")
        )
        return fd.FunctionSpace(mesh, q), dq
    space = fd.FunctionSpace(mesh, "CG", degree)
    return space, finat.ufl.BrokenElement(space.ufl_element())


def _indicator(expression: Any) -> sp.csr_matrix:
    """An interpolation between nodal spaces with the same nodes is 0 or 1 up to round-off."""
    matrix = sp.coo_matrix(sparse_map(expression).to_scipy())
    one = matrix.data > 0.5
    ones = np.ones(one.sum())
    return sp.csr_matrix((ones, (matrix.row[one], matrix.col[one])), shape=matrix.shape)


def _pruned(matrix: Any) -> sp.csr_matrix:
    """Drop what is zero up to round-off: interpolation between equal nodes is the identity."""
    csr = sp.csr_matrix(matrix)
    if csr.nnz:
        csr.data[np.abs(csr.data) < 1e-14 * np.abs(csr.data).max()] = 0.0
    csr.eliminate_zeros()
    return csr


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
