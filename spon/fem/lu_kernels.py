"""Compiled loops of the sparse factorisation: one matrix with many right-hand sides, or many
matrices with one pattern, side by side in the vector registers.

Libraries factorise and solve column by column. A batch is better served by one pass over the
pattern that carries eight numbers at each entry: eight right-hand sides of one matrix, or eight
matrices. The compiler is the one that Firedrake compiles its kernels with.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from pyop2.compilation import load
from pyop2.mpi import COMM_SELF
from torch import Tensor

from spon.fem.compiler import widest

__all__ = ["LANES", "call", "library"]

LANES = 8  # float64 numbers in the widest vector register in use

_SOURCE = r"""
#include <stdint.h>

#define W 8
/* Aligned like a double, so that no array of a caller can be at fault. */
typedef double lanes __attribute__((vector_size(8 * W), aligned(8)));

/* Elimination tree of a matrix with a symmetric pattern, after J. W. H. Liu (1990). */
void elimination_tree(int n, const int *p, const int *c, int *parent, int *ancestor) {
  for (int i = 0; i < n; i++) {
    parent[i] = -1;
    ancestor[i] = -1;
    for (int q = p[i]; q < p[i + 1]; q++)
      for (int k = c[q]; k != -1 && k < i;) {
        const int next = ancestor[k];
        ancestor[k] = i;
        if (next == -1) parent[k] = i;
        k = next;
      }
  }
}

/* Columns of each row of the factor L, unsorted; only counts without cols. mark holds -1. */
int64_t row_pattern(int n, const int *p, const int *c, const int *parent, int *mark,
                    int64_t *rows, int *cols) {
  int64_t count = 0;
  for (int i = 0; i < n; i++) {
    mark[i] = i;
    rows[i] = count;
    for (int q = p[i]; q < p[i + 1]; q++)
      for (int k = c[q]; k < i && mark[k] != i; k = parent[k]) {
        mark[k] = i;
        if (cols) cols[count] = k;
        count++;
      }
  }
  rows[n] = count;
  return count;
}

/* LU without pivoting, row by row. */
void factor_one(int n, const int *ap, const int *ac, const int *source, const double *a,
                const int *lp, const int *lc, const int *up, const int *uc,
                double *lx, double *ux, double *inverse, double *w) {
  for (int i = 0; i < n; i++) {
    for (int q = lp[i]; q < lp[i + 1]; q++) w[lc[q]] = 0;
    for (int r = up[i]; r < up[i + 1]; r++) w[uc[r]] = 0;
    w[i] = 0;
    for (int q = ap[i]; q < ap[i + 1]; q++) w[ac[q]] += a[source[q]];
    for (int q = lp[i]; q < lp[i + 1]; q++) {
      const int j = lc[q];
      const double m = w[j] * inverse[j];
      lx[q] = m;
      for (int r = up[j]; r < up[j + 1]; r++) w[uc[r]] -= m * ux[r];
    }
    inverse[i] = 1 / w[i];
    for (int r = up[i]; r < up[i + 1]; r++) ux[r] = w[uc[r]];
  }
}

/* The same for `count` matrices, at most W; row t of a holds the values of the t-th. */
void factor_lanes(int n, int count, int64_t stride, const int *ap, const int *ac,
                  const int *source, const double *a, const int *lp, const int *lc,
                  const int *up, const int *uc, lanes *lx, lanes *ux, lanes *inverse, lanes *w) {
  const lanes zero = {0}, one = zero + 1.0;
  const double *rows[W];
  for (int t = 0; t < W; t++) rows[t] = a + (t < count ? t : count - 1) * stride;
  for (int i = 0; i < n; i++) {
    for (int q = lp[i]; q < lp[i + 1]; q++) w[lc[q]] = zero;
    for (int r = up[i]; r < up[i + 1]; r++) w[uc[r]] = zero;
    w[i] = zero;
    for (int q = ap[i]; q < ap[i + 1]; q++) {
      double *entry = (double *)(w + ac[q]);
      for (int t = 0; t < W; t++) entry[t] += rows[t][source[q]];
    }
    for (int q = lp[i]; q < lp[i + 1]; q++) {
      const int j = lc[q];
      const lanes m = w[j] * inverse[j];
      lx[q] = m;
      for (int r = up[j]; r < up[j + 1]; r++) w[uc[r]] -= m * ux[r];
    }
    inverse[i] = one / w[i];
    for (int r = up[i]; r < up[i + 1]; r++) ux[r] = w[uc[r]];
  }
}

/* Rows of b and x are whole coefficient vectors. dof[i] is where these hold the unknown place[i];
   it grows with i. Eight at a time, so that what a row has in one line of the cache is moved while
   it is there: the rows of many sizes of problem displace one another from it. */
#define TILES                                                                                   \
  for (int begin = 0, end = n < 8 ? n : 8; begin < n; begin = end, end = n - end < 8 ? n : end + 8)

static void gather(int n, int count, int width, int64_t stride, int64_t step, const int *dof,
                   const int *place, const double *b, double *w) {
  TILES for (int t = 0; t < width; t++)
    for (int i = begin; i < end; i++)
      w[(int64_t)place[i] * width + t] = t < count ? b[t * stride + dof[i] * step] : 0;
}

static void scatter(int n, int count, int width, int64_t stride, const int *dof, const int *place,
                    const double *w, double *x) {
  TILES for (int t = 0; t < count; t++)
    for (int i = begin; i < end; i++)
      x[t * stride + dof[i]] = w[(int64_t)place[i] * width + t];
}

/* Triangular solves of K * W columns. V is what an entry of the factor is: one number for all
   columns, or one for each of W matrices. */
#define TRIANGULAR(NAME, V, K)                                                                  \
  static void NAME(int n, const int *lp, const int *lc, const int *up, const int *uc,           \
                   const V *lx, const V *ux, const V *inverse, lanes *w) {                      \
    for (int i = 0; i < n; i++) {                                                               \
      lanes sum[K];                                                                             \
      for (int t = 0; t < K; t++) sum[t] = w[(int64_t)i * K + t];                               \
      for (int q = lp[i]; q < lp[i + 1]; q++)                                                   \
        for (int t = 0; t < K; t++) sum[t] -= lx[q] * w[(int64_t)lc[q] * K + t];                \
      for (int t = 0; t < K; t++) w[(int64_t)i * K + t] = sum[t];                               \
    }                                                                                           \
    for (int i = n - 1; i >= 0; i--) {                                                          \
      lanes sum[K];                                                                             \
      for (int t = 0; t < K; t++) sum[t] = w[(int64_t)i * K + t];                               \
      for (int r = up[i]; r < up[i + 1]; r++)                                                   \
        for (int t = 0; t < K; t++) sum[t] -= ux[r] * w[(int64_t)uc[r] * K + t];                \
      for (int t = 0; t < K; t++) w[(int64_t)i * K + t] = sum[t] * inverse[i];                  \
    }                                                                                           \
  }                                                                                             \
  static void NAME##_transposed(int n, const int *lp, const int *lc, const int *up,             \
                                const int *uc, const V *lx, const V *ux, const V *inverse,      \
                                lanes *w) {                                                     \
    for (int i = 0; i < n; i++) {                                                               \
      lanes x[K];                                                                               \
      for (int t = 0; t < K; t++) x[t] = w[(int64_t)i * K + t] *= inverse[i];                   \
      for (int r = up[i]; r < up[i + 1]; r++)                                                   \
        for (int t = 0; t < K; t++) w[(int64_t)uc[r] * K + t] -= ux[r] * x[t];                  \
    }                                                                                           \
    for (int i = n - 1; i >= 0; i--) {                                                          \
      lanes x[K];                                                                               \
      for (int t = 0; t < K; t++) x[t] = w[(int64_t)i * K + t];                                 \
      for (int q = lp[i]; q < lp[i + 1]; q++)                                                   \
        for (int t = 0; t < K; t++) w[(int64_t)lc[q] * K + t] -= lx[q] * x[t];                  \
    }                                                                                           \
  }

TRIANGULAR(wide, double, 4)
TRIANGULAR(narrow, double, 1)
TRIANGULAR(each, lanes, 1)

#define FACTOR n, lp, lc, up, uc, lx, ux, inverse, w

/* One matrix, `count` right-hand sides, of which b holds entry i of the t-th at
   t * stride + i * step. w holds n * 4 * W numbers. */
void solve_one(int n, int count, int64_t size, int64_t stride, int64_t step, int transposed,
               const int *dof, const int *place, const int *lp, const int *lc, const int *up,
               const int *uc, const double *lx, const double *ux, const double *inverse,
               const double *b, double *x, lanes *w) {
  for (int start = 0; start < count;) {
    const int left = count - start, width = left > W ? 4 * W : W;
    const int now = left < width ? left : width;
    gather(n, now, width, stride, step, dof, place, b + start * stride, (double *)w);
    if (width > W) {
      if (transposed) wide_transposed(FACTOR); else wide(FACTOR);
    } else {
      if (transposed) narrow_transposed(FACTOR); else narrow(FACTOR);
    }
    scatter(n, now, width, size, dof, place, (const double *)w, x + start * size);
    start += now;
  }
}

/* `count` matrices, at most W, each with its own right-hand side. */
void solve_lanes(int n, int count, int64_t stride, int transposed, const int *dof,
                 const int *place, const int *lp, const int *lc, const int *up, const int *uc,
                 const lanes *lx, const lanes *ux, const lanes *inverse, const double *b,
                 double *x, lanes *w) {
  gather(n, count, W, stride, 1, dof, place, b, (double *)w);
  if (transposed) each_transposed(FACTOR); else each(FACTOR);
  scatter(n, count, W, stride, dof, place, (const double *)w, x);
}

/* Entries of an assembled matrix as sums of entries of element matrices. */
void sum_parts(int n, const int *shares, const int *parts, const double *elements, double *out) {
  for (int i = 0; i < n; i++) {
    double sum = 0;
    for (int q = shares[i]; q < shares[i + 1]; q++) sum += elements[parts[q]];
    out[i] = sum;
  }
}

/* y_t = A_t x_t for matrices of one pattern; step is 0 if there is one matrix for all. */
void multiply(int n, int count, int64_t step, int transposed, const int *p, const int *c,
              const double *a, const double *x, double *y) {
  for (int t = 0; t < count; t++, a += step, x += n, y += n) {
    if (transposed) {
      for (int i = 0; i < n; i++) y[i] = 0;
      for (int i = 0; i < n; i++)
        for (int q = p[i]; q < p[i + 1]; q++) y[c[q]] += a[q] * x[i];
    } else
      for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int q = p[i]; q < p[i + 1]; q++) sum += a[q] * x[c[q]];
        y[i] = sum;
      }
  }
}
"""


@cache
def library() -> Any:
    """The compiled loops; compiled once a machine and kept in Firedrake's cache of kernels."""
    loops = load(widest(_SOURCE), "c", comm=COMM_SELF)
    loops.row_pattern.restype = ctypes.c_int64
    return loops


def call(name: str, *arguments: Any) -> Any:
    """Call a loop with arrays, tensors and integers.

    Parameters
    ----------
    name : str
    *arguments : int, array, Tensor or None
        Python integers go as C ``int``, ``ctypes`` values as they are, arrays and tensors as their
        addresses.
    """
    return getattr(library(), name)(*map(_address, arguments))


def _address(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    return argument
