"""Properties of constant maps as torch modules, against dense algebra."""

import copy

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from spon.sparse import InverseMap, SparseMap

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def matrix(rows=23, cols=17, seed=0):
    return sp.random(rows, cols, density=0.3, random_state=seed, format="csr")


def dominant(n=15):
    return (sp.eye(n) * 4 + sp.random(n, n, density=0.2, random_state=1)).tocsr()


def operators():
    a, b = matrix(), dominant()
    return [
        pytest.param(SparseMap(a), a.toarray(), id="sparse"),
        pytest.param(SparseMap(a).T, a.T.toarray(), id="transpose"),
        pytest.param(SparseMap(a) @ SparseMap(a).T, (a @ a.T).toarray(), id="composed"),
        pytest.param(InverseMap(b), np.linalg.inv(b.toarray()), id="inverse"),
    ]


def pytest_generate_tests(metafunc):
    if {"operator", "dense"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("operator", "dense"), operators())


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("trailing", [(), (5,), (3, 4), (2, 3, 2)])
def test_application_equals_the_dense_product(operator, dense, trailing):
    x = random(operator.shape[1], *trailing)
    expected = np.tensordot(dense, x.numpy(), axes=1)
    torch.testing.assert_close(operator(x), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_first_and_second_derivatives_pass_gradcheck(operator, dense):
    x = random(operator.shape[1], 2).requires_grad_()
    assert torch.autograd.gradcheck(operator, x)
    assert torch.autograd.gradgradcheck(lambda y: operator(y) ** 2, x)


def test_function_transforms_give_the_dense_jacobian(operator, dense):
    x, dense = random(operator.shape[1]), torch.from_numpy(dense)
    torch.testing.assert_close(jacrev(operator)(x), dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(jacfwd(operator)(x), dense, rtol=1e-12, atol=1e-12)
    square = hessian(lambda y: (operator(y) ** 2).sum())(x)
    torch.testing.assert_close(square, 2 * dense.T @ dense, rtol=1e-11, atol=1e-11)
    v = random(operator.shape[1], seed=1)
    torch.testing.assert_close(jvp(operator, (x,), (v,))[1], dense @ v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_vmap_equals_a_loop(operator, dense, axis):
    shape = [operator.shape[1], 3]
    shape.insert(axis, 4)
    x = random(*shape)
    loop = torch.stack([operator(y) for y in x.unbind(axis)])
    torch.testing.assert_close(vmap(operator, in_dims=axis)(x), loop, rtol=0, atol=1e-14)


def test_single_precision_agrees_to_its_round_off():
    a = matrix()
    x = random(17, 6, dtype=torch.float32)
    y = SparseMap(a, torch.float32)(x)
    assert y.dtype == torch.float32
    np.testing.assert_allclose(y.numpy(), a @ x.numpy().astype(float), rtol=2e-6, atol=1e-6)


def test_to_dtype_reaches_the_map_inside_a_module():
    module = torch.nn.ModuleDict({"a": SparseMap(matrix()), "b": InverseMap(dominant())}).float()
    assert module["a"](random(17, dtype=torch.float32)).dtype == torch.float32
    assert module["b"](random(15, dtype=torch.float32)).dtype == torch.float32


def test_a_map_is_no_weight_and_can_be_copied():
    a = SparseMap(matrix())
    assert not a.state_dict()
    b = copy.deepcopy(a)
    assert (b.to_scipy() != a.to_scipy()).nnz == 0


def test_transpose_shares_its_storage():
    a = SparseMap(matrix())
    assert a.T.T._forward_values.data_ptr() == a._forward_values.data_ptr()


def test_batch_acts_on_rows():
    a, x = SparseMap(matrix()), random(4, 17)
    torch.testing.assert_close(a.batch(x), a(x.T).T)
    torch.testing.assert_close(a.batch(x[0]), a(x[0]))


def test_empty_rows_and_empty_batch():
    a = SparseMap(sp.csr_matrix((3, 2)))
    assert torch.equal(a(random(2, 5)), torch.zeros(3, 5, dtype=torch.float64))
    assert SparseMap(matrix())(random(17, 0)).shape == (23, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SparseMap(np.eye(2)), TypeError, "scipy sparse matrix, got ndarray"),
        (
            lambda: SparseMap(matrix(), torch.int32),
            TypeError,
            "float32 or float64, not torch.int32",
        ),
        (lambda: SparseMap(sp.eye(2) * 1j), TypeError, "real matrix, got a complex one"),
        (lambda: SparseMap(sp.eye(2) * np.nan), ValueError, "2 x 2 matrix holds NaN"),
        (lambda: SparseMap(matrix())(random(18)), ValueError, r"shape \(18,\).*must have 17"),
        (
            lambda: SparseMap(matrix())(random(17, dtype=torch.float32)),
            TypeError,
            "float32 tensor for a map .* of torch.float64",
        ),
        (lambda: SparseMap(matrix()) @ SparseMap(matrix()), ValueError, "Cannot compose"),
        (
            lambda: SparseMap(matrix()) @ SparseMap(matrix(17, 3), torch.float32),
            TypeError,
            "float64 map with a torch.float32 map",
        ),
        (lambda: InverseMap(matrix()), ValueError, "Only a square matrix"),
        (lambda: InverseMap(sp.csr_matrix((3, 3))), ValueError, "singular"),
    ],
)
def test_wrong_calls_say_what_was_given(call, error, message):
    with pytest.raises(error, match=message):
        call()
