"""What a processor is: weights, and the geometry that they act on.

The weights are the parameters and do not know a mesh. The geometry (positions, interpolations,
eigenfunctions, edges) is plain tensors that `spon.fem.geometry` builds from the spaces. Putting a
trained network on another mesh means building another geometry, nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from spon.processors.levels import Graph, Hierarchy, Resolvents
from spon.processors.points import Points, lift, read
from spon.sparse import SparseMap

__all__ = [
    "Basis",
    "Field",
    "Geometry",
    "GeometryRequest",
    "Graph",
    "Processor",
    "Spectrum",
    "available",
    "create",
    "register",
]


@dataclass(frozen=True)
class Field:
    """What a processor knows of a function space.

    Attributes
    ----------
    dim : int
        Number of dofs.
    channels : int
        Scalar components of the function's value at a point (sum over the parts of a mixed space).
    gdim : int
        Coordinates of a point of the mesh.
    """

    dim: int
    channels: int
    gdim: int


@dataclass(frozen=True)
class GeometryRequest:
    """What geometry a processor needs.

    Attributes
    ----------
    nodes : bool
        Latent nodes with the maps into and out of them. Without, the geometry is empty.
    degree : int or None
        Degree of the latent CG space; None chooses it from the output space.
    modes : int
        Number of eigenfunctions in each family, 0 for none.
    vector : bool
        Whether the family that vanishes on the constrained boundary consists of vector fields,
        eigenfunctions of an elasticity operator, instead of eigenfunctions of the Laplacian.
    points : int
        About this many patches of nodes for the inner layers; 0 for the nodes themselves.
    edges : bool
        The graph of latent nodes that share a cell; with `levels`, a graph on each level.
    levels : {"", "auto", "meshes", "lattice"}
        What multigrid levels are made from; none by default.
    alphas : tuple of float
        Resolvents of the Laplacian, in units of the square of the domain's length.
    elliptic : bool
        Quadrature points, and batches of elliptic problems with coefficients given there.
    solutions : int or None
        Degree of the continuous space of their solutions; None chooses it from the output space.
    """

    nodes: bool = True
    degree: int | None = None
    modes: int = 0
    vector: bool = False
    points: int = 0
    edges: bool = False
    levels: str = ""
    alphas: tuple[float, ...] = ()
    elliptic: bool = False
    solutions: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The request as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GeometryRequest:
        """Build a request from what `to_json` returned."""
        # JSON has no tuples.
        return cls(**{**data, "alphas": tuple(data.get("alphas", ()))})


class Spectrum(nn.Module):
    """One family of eigenfunctions at some points, and the way back.

    Lengths are in units of the domain's length ``|domain|^(1/gdim)``, and integrals are means over
    the domain, so that nothing depends on the unit of length. Vector fields have their components
    one after the other on the axis of points. Where several meshes lie side by side, the matrices
    have an axis for the meshes in front, and the eigenvalues of one follow those of another.

    Parameters
    ----------
    eigenvalues : Tensor, shape (modes,)
        Ascending, without a unit.
    window : Tensor, shape (modes,)
        Smooth cut-off: one for most, falling to zero at the last. A group of equal eigenvalues
        that the last one splits has weight zero, so that functions of the operator do not depend
        on which of its eigenfunctions were found.
    analysis : Tensor, shape (modes, components * points)
        Values at the points to coefficients: weighted sums, left inverse of `synthesis`.
    synthesis : Tensor, shape (components * points, modes)
        Values at the points; the mean of the square of each mode is one.
    gradient : Tensor, shape (points, gdim * modes), optional
        Partial derivatives of scalar modes at the points, one direction after the other.
    """

    eigenvalues: Tensor
    window: Tensor
    analysis: Tensor
    table: Tensor

    def __init__(
        self,
        eigenvalues: Tensor,
        window: Tensor,
        analysis: Tensor,
        synthesis: Tensor,
        gradient: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("eigenvalues", eigenvalues, persistent=False)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("analysis", analysis, persistent=False)
        # Side by side, so that values and derivatives are one product with a large matrix.
        table = synthesis if gradient is None else torch.cat([synthesis, gradient], dim=1)
        self.register_buffer("table", table.contiguous(), persistent=False)

    @property
    def modes(self) -> int:
        """Number of eigenfunctions (of one mesh)."""
        return int(self.analysis.shape[-2])

    @property
    def synthesis(self) -> Tensor:
        """Values at the points, shape (components * points, modes)."""
        return self.table[..., : self.modes]

    @property
    def gradient(self) -> Tensor:
        """Derivatives at the points, shape (points, gdim * modes)."""
        return self.table[..., self.modes :]


class Basis(nn.Module):
    """The families of eigenfunctions of a domain at one set of points.

    Parameters
    ----------
    constrained : Spectrum or None
        Those that vanish on the constrained boundary; None if nothing is constrained and the
        family is scalar.
    free : Spectrum
        Eigenfunctions of the Laplacian with a natural boundary everywhere, with gradients.
    """

    def __init__(self, constrained: Spectrum | None, free: Spectrum) -> None:
        super().__init__()
        self.constrained, self.free = constrained, free


class Geometry(nn.Module):
    """Everything that a processor sees of the mesh and of the spaces on it.

    Parameters
    ----------
    positions : Tensor, shape (nodes, gdim)
        Latent nodes relative to the centroid, in units of the domain's length.
    weights : Tensor, shape (nodes,)
        Positive shares of the volume, sum one.
    torsion : Tensor, shape (nodes,)
        Solution of -Laplace(t) = 1, zero on the constrained boundary, over its maximum: how far a
        node is from that boundary. Zero everywhere if there is none.
    lifts : sequence of SparseMap, shapes (nodes * channels_i, dim_i)
        Coefficients of an input to its values at the nodes, channels fastest.
    read : SparseMap, shape (dim_out, nodes * channels_out)
        Values at the nodes, channels fastest, to coefficients of the output.
    basis : Basis or None
        Eigenfunctions at the nodes.
    patches : SparseMap or None, shape (patches, nodes)
        Weighted means over patches of nodes.
    patch_basis : Basis or None
        The same eigenfunctions, averaged over the patches.
    graph : Graph or None
    hierarchy : Hierarchy or None
        Multigrid levels; the finest one has the latent nodes.
    resolvents : Resolvents or None
    points : Points or None
        Quadrature points of the latent space.
    """

    positions: Tensor
    weights: Tensor
    torsion: Tensor

    def __init__(
        self,
        positions: Tensor,
        weights: Tensor,
        torsion: Tensor,
        lifts: Sequence[SparseMap],
        read: SparseMap,
        basis: Basis | None = None,
        patches: SparseMap | None = None,
        patch_basis: Basis | None = None,
        graph: Graph | None = None,
        hierarchy: Hierarchy | None = None,
        resolvents: Resolvents | None = None,
        points: Points | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("torsion", torsion, persistent=False)
        self.lifts = nn.ModuleList(lifts)
        self.read = read
        self.basis = basis
        self.patches = patches
        self.patch_basis = patch_basis
        self.graph = graph
        self.hierarchy = hierarchy
        self.resolvents = resolvents
        self.points = points

    @property
    def nodes(self) -> int:
        """Number of latent nodes."""
        return int(self.positions.shape[0])

    @property
    def gdim(self) -> int:
        """Number of coordinates."""
        return int(self.positions.shape[1])

    def lift(self, xs: Sequence[Tensor]) -> Tensor:
        """Values of the inputs at the latent nodes.

        Parameters
        ----------
        xs : sequence of Tensor, shapes (dim_i, batch)

        Returns
        -------
        Tensor, shape (nodes, batch, channels of all inputs)

        Raises
        ------
        ValueError
            If there are more or fewer inputs than the geometry was built for.
        """
        if len(xs) != len(self.lifts):
            raise ValueError(f"Got {len(xs)} inputs for a geometry of {len(self.lifts)}.")
        return lift(self.lifts, xs, self.nodes)

    def coefficients(self, values: Tensor) -> Tensor:
        """Interpolate nodal values into the output space.

        Parameters
        ----------
        values : Tensor, shape (nodes, batch, channels)

        Returns
        -------
        Tensor, shape (dim, batch)
        """
        return read(self.read, values)

    def features(self) -> Tensor:
        """What is known of each node without looking at an input.

        Returns
        -------
        Tensor, shape (nodes, gdim + 1)
            Position and torsion function.
        """
        return torch.cat([self.positions, self.torsion[:, None]], dim=1)


class Processor(nn.Module, ABC):
    """A learned map between coefficient vectors, given the geometry of their spaces.

    Attributes
    ----------
    name : str
        Name in the registry and in files.
    mesh_independent : bool
        Whether the same weights serve on another mesh.
    mergeable : bool
        Whether `forward` takes geometries that `spon.processors.merging.merged` made.
    """

    name: ClassVar[str]
    mesh_independent: ClassVar[bool]
    mergeable: ClassVar[bool] = False

    @abstractmethod
    def configure(self, inputs: Sequence[Field], output: Field) -> None:
        """Create the weights for these spaces.

        Raises
        ------
        ValueError
            If an argument of the constructor does not fit them.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able: ``create(name, config())`` makes an equal processor."""

    @abstractmethod
    def request(self) -> GeometryRequest:
        """The geometry that `forward` needs."""

    def fit_linear(self, xs: Sequence[Tensor], y: Tensor, geometry: Geometry, rows: Tensor) -> None:
        """Fit the weights of a linear path from inputs to output in closed form, if there is one.

        For fresh weights: what reads the nonlinear part begins anew, at zero.

        Parameters
        ----------
        xs : sequence of Tensor, shapes (dim_i, samples)
        y : Tensor, shape (dim_out, samples)
        geometry : Geometry
        rows : bool Tensor, shape (dim_out,)
            Coefficients of the output that count; conditions prescribe the others.

        Raises
        ------
        ValueError
            As `forward`.
        """

    @abstractmethod
    def forward(self, xs: Sequence[Tensor], geometry: Geometry) -> Tensor:
        """Map input coefficients to output coefficients.

        Parameters
        ----------
        xs : sequence of Tensor, shapes (dim_i, batch)
        geometry : Geometry

        Returns
        -------
        Tensor, shape (dim_out, batch)

        Raises
        ------
        ValueError
            If the geometry was not built from `request()` and lacks what the processor needs, or
            was built for another number of inputs.
        """


_REGISTRY: dict[str, type[Processor]] = {}
P = TypeVar("P", bound=Processor)


def register(cls: type[P]) -> type[P]:
    """Class decorator: make a processor known by its `name`, so that files can hold it.

    Raises
    ------
    ValueError
        If another class has the name already.
    """
    known = _REGISTRY.setdefault(cls.name, cls)
    if known is not cls:
        raise ValueError(
            f"The name {cls.name!r} belongs to {known.__qualname__} already: give "
            f"{cls.__qualname__} another `name`."
        )
    return cls


def create(name: str, config: Mapping[str, Any]) -> Processor:
    """Build a processor from its name and what its `config` returned.

    Raises
    ------
    ValueError
        If no processor has the name, or it does not take these arguments.
    """
    if name not in _REGISTRY:
        raise ValueError(f"No processor is called {name!r}; known are {', '.join(available())}.")
    try:
        return _REGISTRY[name](**config)
    except TypeError as error:
        raise ValueError(
            f"Processor {name!r} cannot be built from {dict(config)}: {error}"
        ) from error


def available() -> list[str]:
    """Names of the registered processors."""
    return sorted(_REGISTRY)
