"""Constant linear maps as torch modules.

Every linear operation between finite element spaces (interpolation, derivatives, transfers,
mass and stiffness) is a constant sparse matrix. It is assembled once; after that only this file
is needed. Nothing here knows of Firedrake.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from spon.copying import deepcopy_sharing

__all__ = ["InverseMap", "SparseMap"]

_DTYPES = (torch.float32, torch.float64)
_PARTS = ("rows", "cols", "values")


class SparseMap(nn.Module):
    """A constant sparse matrix ``A`` that acts on the first axis of a tensor.

    The matrix is stored as CSR together with its transpose, so that the backward pass costs the
    same as the forward pass. Both live in buffers that move with ``.to`` but never enter a
    ``state_dict``: a map is geometry, not a weight.

    Parameters
    ----------
    matrix : scipy sparse matrix or array, shape (rows, cols)
        The matrix. Explicit zeros are kept, duplicates are summed.
    dtype : torch.dtype, optional
        ``torch.float64`` (default) or ``torch.float32``.

    Raises
    ------
    TypeError
        If `matrix` is not a real, two-dimensional scipy sparse matrix, or `dtype` is neither
        float32 nor float64.
    ValueError
        If `matrix` holds NaN or infinity.
    """

    def __init__(self, matrix: Any, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        csr = _checked_csr(matrix, dtype)
        rows, cols = csr.shape
        self._shape = (int(rows), int(cols))
        # Rows, columns and values as plain tensors: a torch sparse tensor can be neither copied
        # nor pickled as a buffer, and wrapping them at each call costs microseconds.
        double = torch.float64
        self._register(_csr_arrays(csr, double), _csr_arrays(sp.csr_matrix(csr.T), double))
        if dtype != double:
            self.to(dtype)

    @classmethod
    def of_arrays(
        cls, shape: tuple[int, int], forward: Sequence[Tensor], transpose: Sequence[Tensor]
    ) -> SparseMap:
        """Put a map together from its CSR arrays, without copying or checking them.

        Parameters
        ----------
        shape : tuple of int
        forward, transpose : sequence of Tensor
            Row pointers, columns and values of the matrix and of its transpose.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._shape = shape
        made._register(forward, transpose)
        return made

    def _register(self, forward: Sequence[Tensor], transpose: Sequence[Tensor]) -> None:
        # The values as they were assembled: a way through float32 and back must not round them.
        self._exact = {"forward": forward[2], "transpose": transpose[2]}
        for side, arrays in (("forward", forward), ("transpose", transpose)):
            for part, array in zip(_PARTS, arrays, strict=True):
                self.register_buffer(f"_{side}_{part}", array, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> SparseMap:
        super()._apply(fn, recurse)
        for side, exact in self._exact.items():
            values = getattr(self, f"_{side}_values")
            if values.dtype == torch.float64:
                setattr(self, f"_{side}_values", exact.to(values.device, torch.float64))
        return self

    def _arrays(self, side: str) -> list[Tensor]:
        return [getattr(self, f"_{side}_{part}") for part in _PARTS]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self._shape

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return int(self._arrays("forward")[2].numel())

    @property
    def dtype(self) -> torch.dtype:
        """Scalar type of the entries."""
        return self._arrays("forward")[2].dtype

    @property
    def device(self) -> torch.device:
        """Device of the entries."""
        return self._arrays("forward")[2].device

    @property
    def T(self) -> SparseMap:
        """The transpose. It shares its storage with this map."""
        shape = self._shape[::-1]
        transpose = SparseMap.of_arrays(shape, self._arrays("transpose"), self._arrays("forward"))
        transpose._exact = {
            "forward": self._exact["transpose"],
            "transpose": self._exact["forward"],
        }
        return transpose

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map.

        Parameters
        ----------
        x : Tensor, shape (cols, ...)
            Dofs first; all further axes (batch, channels) are columns of one dense matrix.

        Returns
        -------
        Tensor, shape (rows, ...)

        Raises
        ------
        ValueError
            If the first axis of `x` is not ``cols`` long.
        TypeError
            If the dtype of `x` is not the dtype of the map.
        """
        _check_operand(x, self.shape[1], self.dtype, f"a map of shape {self.shape}")
        columns = x.reshape(x.shape[0], -1)
        y: Tensor = _Apply.apply(columns, self._pair())
        return y.reshape(self.shape[0], *x.shape[1:])

    def _pair(self) -> _Pair:
        return _Pair(self._shape, self._arrays("forward"), self._arrays("transpose"))

    def batch(self, x: Tensor) -> Tensor:
        """Apply the map to coefficient vectors stored row by row.

        Parameters
        ----------
        x : Tensor, shape (batch, cols) or (cols,)

        Returns
        -------
        Tensor, shape (batch, rows) or (rows,)
        """
        return self(x) if x.ndim == 1 else self(x.T).T

    def __matmul__(self, other: SparseMap) -> SparseMap:
        """Compose: ``(A @ B)(x) == A(B(x))``, assembled once."""
        if not isinstance(other, SparseMap):
            return NotImplemented
        if self.shape[1] != other.shape[0]:
            raise ValueError(
                f"Cannot compose maps of shapes {self.shape} and {other.shape}: the columns of the "
                "first must be as many as the rows of the second."
            )
        if self.dtype != other.dtype:
            raise TypeError(
                f"Cannot compose a {self.dtype} map with a {other.dtype} map: bring one to the "
                "dtype of the other with .to(dtype)."
            )
        product = SparseMap(self.to_scipy() @ other.to_scipy(), self.dtype)
        return product.to(self.device)

    def to_scipy(self) -> sp.csr_matrix:
        """Return a copy as ``scipy.sparse.csr_matrix``, in double precision as assembled."""
        rows, cols, _ = (array.cpu().numpy() for array in self._arrays("forward"))
        values = self._exact["forward"].cpu().double().numpy()
        return sp.csr_matrix((values, cols, rows), shape=self.shape, copy=True)

    def extra_repr(self) -> str:
        """Shape, entries and dtype, for ``print``."""
        return f"{self.shape[0]} x {self.shape[1]}, nnz={self.nnz}, {self.dtype}"


class InverseMap(nn.Module):
    """The inverse of a constant square sparse matrix, factorised once.

    Forward and backward passes reuse one factorisation in double precision on the CPU; float32 and
    device tensors are converted on the way in and out.

    Parameters
    ----------
    matrix : scipy sparse matrix, shape (n, n)
        A regular matrix.
    dtype : torch.dtype, optional
        Dtype of the operands, float64 by default.
    factorise : callable, optional
        From the matrix as CSC to something with SciPy's ``solve(right, side)``; SciPy's own
        ``splu`` (SuperLU) by default, which is slow in three dimensions.

    Raises
    ------
    ValueError
        If `matrix` is not square or is singular.
    """

    _like: Tensor

    def __init__(
        self,
        matrix: Any,
        dtype: torch.dtype = torch.float64,
        factorise: Callable[[Any], Any] = splu,
    ) -> None:
        super().__init__()
        csr = _checked_csr(matrix, dtype)
        if csr.shape[0] != csr.shape[1]:
            raise ValueError(f"Only a square matrix has an inverse, this one is {csr.shape}.")
        try:
            self._lu = factorise(sp.csc_matrix(csr))
        except (RuntimeError, ArithmeticError) as error:
            raise ValueError(
                f"The {csr.shape[0]} x {csr.shape[1]} matrix is singular and cannot be inverted."
            ) from error
        self.size = int(csr.shape[0])
        # An empty buffer makes `.to(dtype)` reach this module as it reaches every other.
        self.register_buffer("_like", torch.empty(0, dtype=dtype), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> InverseMap:
        return deepcopy_sharing(self, memo, [self._lu])

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return self.size, self.size

    def forward(self, x: Tensor) -> Tensor:
        """Solve for each column.

        Parameters
        ----------
        x : Tensor, shape (n, ...)

        Returns
        -------
        Tensor, shape (n, ...)
        """
        _check_operand(x, self.size, self._like.dtype, f"an inverse of shape {self.shape}")
        columns = x.reshape(x.shape[0], -1)
        y: Tensor = _Apply.apply(columns, _Factor(self._lu, "N"))
        return y.reshape(x.shape)


class _Pair:
    """A matrix and its transpose: what the autograd function below needs to go both ways."""

    __slots__ = ("forward", "shape", "transpose")

    def __init__(
        self, shape: tuple[int, int], forward: Sequence[Tensor], transpose: Sequence[Tensor]
    ) -> None:
        self.shape, self.forward, self.transpose = shape, forward, transpose

    @property
    def T(self) -> _Pair:
        return _Pair(self.shape[::-1], self.transpose, self.forward)

    def __call__(self, x: Tensor) -> Tensor:
        # Inside the autograd function, where no transform of torch.func looks at the matrix.
        # A transposed view costs two to three times the copy that makes it contiguous.
        return _wrap(self.forward, self.shape) @ x.contiguous()


class _Factor:
    """A factorisation and the side from which it is used."""

    __slots__ = ("lu", "side")

    def __init__(self, lu: Any, side: str) -> None:
        self.lu, self.side = lu, side

    @property
    def T(self) -> _Factor:
        return _Factor(self.lu, "T" if self.side == "N" else "N")

    def __call__(self, x: Tensor) -> Tensor:
        right = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float64)
        return torch.from_numpy(self.lu.solve(right, self.side)).to(x)


class _Apply(torch.autograd.Function):
    """``operator(x)`` for a constant linear operator; its backward pass is the transpose."""

    @staticmethod
    def forward(x: Tensor, operator: Any) -> Tensor:
        return operator(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Apply.apply(gradients[0], ctx.operator.T), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        result: Tensor = _Apply.apply(tangents[0], ctx.operator)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, operator: Any) -> tuple[Tensor, int]:
        # The mapped axis becomes further columns of the same dense matrix.
        x = x.movedim(in_dims[0], -1)
        y: Tensor = _Apply.apply(x.reshape(x.shape[0], -1), operator)
        return y.reshape(y.shape[0], *x.shape[1:]), x.ndim - 1


def _checked_csr(matrix: Any, dtype: torch.dtype) -> sp.csr_matrix:
    if dtype not in _DTYPES:
        raise TypeError(f"A map is float32 or float64, not {dtype}.")
    if not sp.issparse(matrix):
        raise TypeError(
            f"Expected a scipy sparse matrix, got {type(matrix).__name__}: wrap it in "
            "scipy.sparse.csr_matrix."
        )
    if np.iscomplexobj(matrix.data if hasattr(matrix, "data") else matrix.tocsr().data):
        raise TypeError("Expected a real matrix, got a complex one.")
    csr = sp.csr_matrix(matrix)
    csr.sum_duplicates()
    if not np.isfinite(csr.data).all():
        raise ValueError(f"The {csr.shape[0]} x {csr.shape[1]} matrix holds NaN or infinity.")
    return csr


def _csr_arrays(csr: sp.csr_matrix, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    # MKL takes 32-bit indices without a conversion at each product.
    index = np.int32 if max(csr.nnz, *csr.shape) < np.iinfo(np.int32).max else np.int64
    return (
        torch.from_numpy(csr.indptr.astype(index)),
        torch.from_numpy(csr.indices.astype(index)),
        torch.from_numpy(csr.data.astype(np.float64)).to(dtype),
    )


def _wrap(arrays: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
    rows, cols, values = arrays
    return torch.sparse_csr_tensor(rows, cols, values, size=shape, check_invariants=False)


def _silence_beta_warning() -> None:
    # torch says once per process that its CSR layout is in beta; our tests hold it to account.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _wrap(_csr_arrays(sp.csr_matrix(np.eye(1)), torch.float64), (1, 1))


def _check_operand(x: Tensor, size: int, dtype: torch.dtype, what: str) -> None:
    if x.ndim == 0 or x.shape[0] != size:
        raise ValueError(
            f"Got a tensor of shape {tuple(x.shape)} for {what}: its first axis must have {size} "
            "entries (dofs first; use .batch for coefficient vectors stored row by row)."
        )
    if x.dtype != dtype:
        raise TypeError(
            f"Got a {x.dtype} tensor for {what} of {dtype}: convert the tensor or the map with "
            ".to(dtype)."
        )


_silence_beta_warning()
