"""The flag that keeps GCC 12 from making kernels that crash."""

import firedrake  # noqa: F401  (before PyOP2)
import pytest
from pyop2.configuration import configuration

from spon.fem import compiler


@pytest.mark.parametrize(
    ("has_avx512", "version", "flags", "wanted"),
    [
        (True, 12, "", "-mno-avx512f"),
        (True, 12, "-g", "-g -mno-avx512f"),
        (True, 12, "-mavx512f", "-mavx512f"),
        (True, 13, "", ""),
        (True, None, "", ""),
        (False, 12, "", ""),
    ],
)
def test_the_flag_is_set_where_it_is_needed(monkeypatch, has_avx512, version, flags, wanted):
    monkeypatch.setattr(compiler, "_has_avx512", lambda: has_avx512)
    monkeypatch.setattr(compiler, "_gcc_version", lambda: version)
    before = configuration["cflags"]
    try:
        configuration["cflags"] = flags
        assert compiler.avoid_misaligned_stacks() == (flags != wanted)
        assert configuration["cflags"] == wanted
        assert not compiler.avoid_misaligned_stacks() or wanted == ""
    finally:
        configuration["cflags"] = before


def test_this_compiler_is_known():
    assert compiler._gcc_version() is None or compiler._gcc_version() > 4
