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

/* Aligned like a double, so that no array of a caller can be at fault. */
typedef double lanes_8 __attribute__((vector_size(64), aligned(8)));
typedef double lanes_4 __attribute__((vector_size(32), aligned(8)));

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

/* Columns of each row of the factor L, unsorted. Without cols they are counted only, and so are
   the rows of each column, which begin at zero in below. mark holds -1. */
int64_t row_pattern(int n, const int *p, const int *c, const int *parent, int *mark,
                    int64_t *rows, int *cols, int *below) {
  int64_t count = 0;
  for (int i = 0; i < n; i++) {
    mark[i] = i;
    rows[i] = count;
    for (int q = p[i]; q < p[i + 1]; q++)
      for (int k = c[q]; k < i && mark[k] != i; k = parent[k]) {
        mark[k] = i;
        if (cols) cols[count] = k; else below[k]++;
        count++;
      }
  }
  rows[n] = count;
  return count;
}

/* Blocks of 4, 2 or 1 rows of L whose columns are much the same: first[b] is the first row of one,
   and bc[bp[b]] to bc[bp[b + 1]] are the columns before it of any of its rows. Returns how many
   blocks there are. bc has room for as many columns as L has. mark holds -1. */
int row_blocks(int n, const int *lp, const int *lc, double waste, int *first, int *bp, int *bc,
               int *mark) {
  int blocks = 0, count = 0, stamp = 0;
  for (int i = 0; i < n;) {
    int size = 4;
    for (;; size /= 2) {
      if (i + size > n) continue;
      int found = 0, all = 0;
      stamp++;
      for (int t = 0; t < size; t++)
        for (int q = lp[i + t]; q < lp[i + t + 1] && lc[q] < i; q++) {
          all++;
          if (mark[lc[q]] != stamp) {
            mark[lc[q]] = stamp;
            found++;
          }
        }
      if (size > 1 && size * (double)found > waste * all) continue;
      /* The columns of each row ascend: merge them. */
      int at[4];
      for (int t = 0; t < size; t++) at[t] = lp[i + t];
      first[blocks] = i;
      bp[blocks++] = count;
      for (int k = 0; k < found; k++) {
        int least = n;
        for (int t = 0; t < size; t++)
          if (at[t] < lp[i + t + 1] && lc[at[t]] < least) least = lc[at[t]];
        for (int t = 0; t < size; t++)
          if (at[t] < lp[i + t + 1] && lc[at[t]] == least) at[t]++;
        bc[count++] = least;
      }
      break;
    }
    i += size;
  }
  first[blocks] = n;
  bp[blocks] = count;
  return blocks;
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

/* Triangular solves of K vectors of columns. V is what an entry of the factor is: one number for
   all columns, or one for each of as many matrices; T is one vector of columns. */
#define TRIANGULAR(NAME, V, T, K)                                                               \
  static void NAME(int n, const int *lp, const int *lc, const int *up, const int *uc,           \
                   const V *lx, const V *ux, const V *inverse, T *w) {                          \
    for (int i = 0; i < n; i++) {                                                               \
      T sum[K];                                                                                 \
      for (int t = 0; t < K; t++) sum[t] = w[(int64_t)i * K + t];                               \
      for (int q = lp[i]; q < lp[i + 1]; q++)                                                   \
        for (int t = 0; t < K; t++) sum[t] -= lx[q] * w[(int64_t)lc[q] * K + t];                \
      for (int t = 0; t < K; t++) w[(int64_t)i * K + t] = sum[t];                               \
    }                                                                                           \
    for (int i = n - 1; i >= 0; i--) {                                                          \
      T sum[K];                                                                                 \
      for (int t = 0; t < K; t++) sum[t] = w[(int64_t)i * K + t];                               \
      for (int r = up[i]; r < up[i + 1]; r++)                                                   \
        for (int t = 0; t < K; t++) sum[t] -= ux[r] * w[(int64_t)uc[r] * K + t];                \
      for (int t = 0; t < K; t++) w[(int64_t)i * K + t] = sum[t] * inverse[i];                  \
    }                                                                                           \
  }                                                                                             \
  static void NAME##_transposed(int n, const int *lp, const int *lc, const int *up,             \
                                const int *uc, const V *lx, const V *ux, const V *inverse,      \
                                T *w) {                                                         \
    for (int i = 0; i < n; i++) {                                                               \
      T x[K];                                                                                   \
      for (int t = 0; t < K; t++) x[t] = w[(int64_t)i * K + t] *= inverse[i];                   \
      for (int r = up[i]; r < up[i + 1]; r++)                                                   \
        for (int t = 0; t < K; t++) w[(int64_t)uc[r] * K + t] -= ux[r] * x[t];                  \
    }                                                                                           \
    for (int i = n - 1; i >= 0; i--) {                                                          \
      T x[K];                                                                                   \
      for (int t = 0; t < K; t++) x[t] = w[(int64_t)i * K + t];                                 \
      for (int q = lp[i]; q < lp[i + 1]; q++)                                                   \
        for (int t = 0; t < K; t++) w[(int64_t)lc[q] * K + t] -= lx[q] * x[t];                  \
    }                                                                                           \
  }

TRIANGULAR(wide, double, lanes_8, 4)
TRIANGULAR(narrow, double, lanes_8, 1)

#define FACTOR n, lp, lc, up, uc, lx, ux, inverse, w

/* One matrix, `count` right-hand sides, of which b holds entry i of the t-th at
   t * stride + i * step. w holds n * 32 numbers. */
void solve_one(int n, int count, int64_t size, int64_t stride, int64_t step, int transposed,
               const int *dof, const int *place, const int *lp, const int *lc, const int *up,
               const int *uc, const double *lx, const double *ux, const double *inverse,
               const double *b, double *x, lanes_8 *w) {
  for (int start = 0; start < count;) {
    const int left = count - start, width = left > 8 ? 32 : 8;
    const int now = left < width ? left : width;
    gather(n, now, width, stride, step, dof, place, b + start * stride, (double *)w);
    if (width > 8) {
      if (transposed) wide_transposed(FACTOR); else wide(FACTOR);
    } else {
      if (transposed) narrow_transposed(FACTOR); else narrow(FACTOR);
    }
    scatter(n, now, width, size, dof, place, (const double *)w, x + start * size);
    start += now;
  }
}

/* `count` matrices, at most W of them, each with its own right-hand side; row t of a holds the
   values of the t-th. The columns of L in L D L^T have the pattern of the rows of U. */
#define EACH(W)                                                                                 \
  void factor_##W(int n, int count, int64_t stride, const int *ap, const int *ac,               \
                  const int *source, const double *a, const int *lp, const int *lc,             \
                  const int *up, const int *uc, lanes_##W *lx, lanes_##W *ux,                   \
                  lanes_##W *inverse, lanes_##W *w) {                                           \
    const lanes_##W zero = {0}, one = zero + 1.0;                                               \
    const double *rows[W];                                                                      \
    for (int t = 0; t < W; t++) rows[t] = a + (t < count ? t : count - 1) * stride;             \
    for (int i = 0; i < n; i++) {                                                               \
      for (int q = lp[i]; q < lp[i + 1]; q++) w[lc[q]] = zero;                                  \
      for (int r = up[i]; r < up[i + 1]; r++) w[uc[r]] = zero;                                  \
      w[i] = zero;                                                                              \
      for (int q = ap[i]; q < ap[i + 1]; q++) {                                                 \
        double *entry = (double *)(w + ac[q]);                                                  \
        for (int t = 0; t < W; t++) entry[t] += rows[t][source[q]];                             \
      }                                                                                         \
      for (int q = lp[i]; q < lp[i + 1]; q++) {                                                 \
        const int j = lc[q];                                                                    \
        const lanes_##W m = w[j] * inverse[j];                                                  \
        lx[q] = m;                                                                              \
        for (int r = up[j]; r < up[j + 1]; r++) w[uc[r]] -= m * ux[r];                          \
      }                                                                                         \
      inverse[i] = one / w[i];                                                                  \
      for (int r = up[i]; r < up[i + 1]; r++) ux[r] = w[uc[r]];                                 \
    }                                                                                           \
  }                                                                                             \
  TRIANGULAR(each_##W, lanes_##W, lanes_##W, 1)                                                 \
  void solve_##W(int n, int count, int64_t stride, int transposed, const int *dof,              \
                 const int *place, const int *lp, const int *lc, const int *up, const int *uc,  \
                 const lanes_##W *lx, const lanes_##W *ux, const lanes_##W *inverse,            \
                 const double *b, double *x, lanes_##W *w) {                                    \
    gather(n, count, W, stride, 1, dof, place, b, (double *)w);                                 \
    if (transposed) each_##W##_transposed(FACTOR); else each_##W(FACTOR);                       \
    scatter(n, count, W, stride, dof, place, (const double *)w, x);                             \
  }                                                                                             \
  void solve_symmetric_##W(int n, int count, int64_t stride, const int *dof, const int *place,  \
                           const int *up, const int *uc, const lanes_##W *lx,                   \
                           const lanes_##W *inverse, const double *b, double *x,                \
                           lanes_##W *w) {                                                      \
    gather(n, count, W, stride, 1, dof, place, b, (double *)w);                                 \
    for (int i = 0; i < n; i++) {                                                               \
      const lanes_##W y = w[i];                                                                 \
      for (int r = up[i]; r < up[i + 1]; r++) w[uc[r]] -= lx[r] * y;                            \
      w[i] = y * inverse[i];                                                                    \
    }                                                                                           \
    for (int i = n - 1; i >= 0; i--) {                                                          \
      lanes_##W sum = w[i];                                                                     \
      for (int r = up[i]; r < up[i + 1]; r++) sum -= lx[r] * w[uc[r]];                          \
      w[i] = sum;                                                                               \
    }                                                                                           \
    scatter(n, count, W, stride, dof, place, (const double *)w, x);                             \
  }

/* R rows of L D L^T from row i on: what they have of a column in common is read once for all.
   Their entries in column k stand at w[k * R]; bc holds the columns of any of them, and filled[j]
   is the place of the next entry of column j. */
#define ROWS(W, R)                                                                              \
  static void rows_##W##_##R(int i, int size, const int *bc, const int *ap, const int *ac,      \
                             const int *source, const double *const *rows, const int *up,       \
                             const int *uc, lanes_##W *lx, lanes_##W *inverse, lanes_##W *w,    \
                             int *filled) {                                                     \
    const lanes_##W zero = {0}, one = zero + 1.0;                                               \
    lanes_##W corner[R][R];                                                                     \
    for (int q = 0; q < size; q++)                                                              \
      for (int t = 0; t < R; t++) w[(int64_t)bc[q] * R + t] = zero;                             \
    for (int s = 0; s < R; s++) {                                                               \
      for (int t = 0; t < R; t++) corner[s][t] = zero;                                          \
      for (int q = ap[i + s]; q < ap[i + s + 1] && ac[q] <= i + s; q++) {                       \
        lanes_##W *at = ac[q] < i ? w + (int64_t)ac[q] * R + s : &corner[s][ac[q] - i];         \
        for (int t = 0; t < W; t++) ((double *)at)[t] += rows[t][source[q]];                    \
      }                                                                                         \
    }                                                                                           \
    for (int q = 0; q < size; q++) {                                                            \
      const int j = bc[q], start = up[j], end = up[j + 1];                                      \
      int now = filled[j];                                                                      \
      lanes_##W m[R];                                                                           \
      for (int t = 0; t < R; t++) m[t] = w[(int64_t)j * R + t];                                 \
      for (int r = start; r < now; r++) {                                                       \
        lanes_##W *at = w + (int64_t)uc[r] * R;                                                 \
        const lanes_##W l = lx[r];                                                              \
        for (int t = 0; t < R; t++) at[t] -= m[t] * l;                                          \
      }                                                                                         \
      for (int s = 0; s < R; s++)                                                               \
        if (now < end && uc[now] == i + s) {                                                    \
          const lanes_##W l = lx[now++] = m[s] * inverse[j];                                    \
          for (int t = s; t < R; t++) corner[t][s] -= m[t] * l;                                 \
        }                                                                                       \
      filled[j] = now;                                                                          \
    }                                                                                           \
    for (int s = 0; s < R; s++) {                                                               \
      int now = up[i + s];                                                                      \
      inverse[i + s] = one / corner[s][s];                                                      \
      for (int t = s + 1; t < R; t++)                                                           \
        if (now < up[i + s + 1] && uc[now] == i + t) {                                          \
          const lanes_##W l = lx[now++] = corner[t][s] * inverse[i + s];                        \
          for (int v = t; v < R; v++) corner[v][t] -= corner[v][s] * l;                         \
        }                                                                                       \
      filled[i + s] = now;                                                                      \
    }                                                                                           \
  }

#define SYMMETRIC(W)                                                                            \
  ROWS(W, 1)                                                                                    \
  ROWS(W, 2)                                                                                    \
  ROWS(W, 4)                                                                                    \
  void factor_symmetric_##W(int count, int64_t stride, const int *ap, const int *ac,            \
                            const int *source, const double *a, int blocks, const int *first,   \
                            const int *bp, const int *bc, const int *up, const int *uc,         \
                            lanes_##W *lx, lanes_##W *inverse, lanes_##W *w, int *filled) {     \
    const double *rows[W];                                                                      \
    for (int t = 0; t < W; t++) rows[t] = a + (t < count ? t : count - 1) * stride;             \
    for (int b = 0; b < blocks; b++) {                                                          \
      const int i = first[b], r = first[b + 1] - i, size = bp[b + 1] - bp[b];                   \
      (r == 4 ? rows_##W##_4 : r == 2 ? rows_##W##_2 : rows_##W##_1)(                           \
          i, size, bc + bp[b], ap, ac, source, rows, up, uc, lx, inverse, w, filled);           \
    }                                                                                           \
  }

EACH(8)
EACH(4)
SYMMETRIC(8)
SYMMETRIC(4)

/* Whether matrices of one pattern are symmetric on the free dofs: each entry and the one at
   mirror[q] (-1 if there is none) differ by little against the largest in the row of either. */
int symmetric(int n, int count, int64_t stride, double tolerance, const int *p, const int *c,
              const int *mirror, const char *is_free, const double *a) {
  for (int t = 0; t < count; t++, a += stride)
    for (int i = 0; i < n; i++) {
      if (!is_free[i]) continue;
      double largest = 0, difference = 0;
      for (int q = p[i]; q < p[i + 1]; q++) {
        if (!is_free[c[q]]) continue;
        const double x = a[q], other = mirror[q] < 0 ? 0 : a[mirror[q]];
        const double size = x < 0 ? -x : x, apart = x < other ? other - x : x - other;
        if (size > largest) largest = size;
        if (!(apart <= difference)) difference = apart;
      }
      /* Asked in this direction, NaN is not symmetric. */
      if (!(difference <= tolerance * largest)) return 0;
    }
  return 1;
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
