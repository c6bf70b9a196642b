"""Fix the quadrature of a form, so that its derivatives are integrated at the same points.

Firedrake estimates a degree for each form that it assembles. A derivative is another form with
another estimate: that of ``exp(k)`` with respect to ``k`` for example. What is then assembled is
not the derivative of what was assembled before, by a percent on a coarse mesh. Here the degree that
Firedrake would choose for a form is written into it, and its derivatives inherit it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ufl
from ufl.algorithms import compute_form_data, extract_arguments, extract_coefficients

__all__ = ["with_fixed_quadrature"]

Degree = int | tuple[int, ...]


def with_fixed_quadrature(form: Any) -> Any:
    """The same form with the quadrature degree that assembling it would use in each integral.

    Parameters
    ----------
    form : ufl.Form

    Returns
    -------
    ufl.Form

    Raises
    ------
    ValueError
        If functions from several Quadrature spaces meet in an integral without a given degree.
    """
    groups = defaultdict(list)
    for integral in form.integrals():
        metadata = tuple(sorted((k, repr(v)) for k, v in integral.metadata().items()))
        groups[integral.ufl_domain(), integral.integral_type(), metadata].append(integral)
    result = []
    for group in groups.values():
        result += [i for i in _fixed(group)]
    return ufl.Form(result)


def _fixed(group: Sequence[Any]) -> list[Any]:
    """One kind of integral over one mesh with one set of options."""
    if "quadrature_degree" in group[0].metadata():
        return list(group)
    everywhere = [i for i in group if _regions(i) is None]
    base = _rule(everywhere)
    result = [_with(i, base) for i in everywhere]
    on_region = defaultdict(list)
    for integral in group:
        for region in _regions(integral) or ():
            on_region[region].append(integral)
    for region, integrals in on_region.items():
        # Firedrake adds what is integrated everywhere to the integrand on each region, and
        # integrates the sum with the rule that it needs.
        rule = _rule([*everywhere, *integrals])
        result += [_with(i, rule, region) for i in integrals]
        if rule != base:
            for integral in everywhere:
                negative = integral.reconstruct(integrand=-integral.integrand())
                result += [_with(integral, rule, region), _with(negative, base, region)]
    return result


def _rule(integrals: Sequence[Any]) -> tuple[Degree, str | None]:
    """Degree and, if one is asked for, scheme for a sum of integrals."""
    found = _rule_of_quadrature_spaces(integrals)
    return found or (_highest([_estimate(i) for i in integrals]), None)


def _with(integral: Any, rule: tuple[Degree, str | None], region: Any = None) -> Any:
    metadata = {**integral.metadata(), "quadrature_degree": rule[0]}
    if rule[1] is not None:
        metadata["quadrature_rule"] = rule[1]
    if region is None:
        return integral.reconstruct(metadata=metadata)
    return integral.reconstruct(metadata=metadata, subdomain_id=region)


def _regions(integral: Any) -> tuple[Any, ...] | None:
    """The subdomains of an integral one by one, None for everywhere."""
    region = integral.subdomain_id()
    if region == "everywhere":
        return None
    return region if isinstance(region, tuple) else (region,)


def _estimate(integral: Any) -> Degree:
    # With the scaling to the reference cell, whose degree counts on cells that are not affine.
    data = compute_form_data(ufl.Form([integral]), do_apply_integral_scaling=True)
    return _highest(
        [
            i.metadata()["estimated_polynomial_degree"]
            for d in data.integral_data
            for i in d.integrals
        ]
    )


def _highest(degrees: Sequence[Degree]) -> Degree:
    known = [d for d in degrees if d != -1]
    if not known:
        return -1  # no integral: below every degree
    if any(isinstance(d, tuple) for d in known):
        return tuple(max(d) for d in zip(*known, strict=True))  # type: ignore[arg-type]
    return max(known)


def _rule_of_quadrature_spaces(group: Sequence[Any]) -> tuple[Any, Any] | None:
    """Degree and scheme of the Quadrature spaces whose functions are integrated, if there are."""
    found = set()
    for integral in group:
        integrand = integral.integrand()
        for f in (*extract_arguments(integrand), *extract_coefficients(integrand)):
            element = f.ufl_element()
            for part in getattr(element, "sub_elements", ()) or (element,):
                if part.family() in ("Quadrature", "Boundary Quadrature"):
                    found.add((part.degree(), part.quadrature_scheme() or "default"))
    if len(found) > 1:
        raise ValueError(
            f"Functions from several Quadrature spaces meet in one integral ({sorted(found)}): "
            "give the measure its degree, dx(degree=...)."
        )
    return next(iter(found), None)
