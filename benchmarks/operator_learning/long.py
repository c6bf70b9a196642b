"""Rivals that get more than the budget: is it the time that they lack?"""

from __future__ import annotations

from dataclasses import replace

from operator_learning.rivals import RIVALS

__all__ = ["LONG"]

_TIMES = 6

LONG = {
    network.name: network
    for network in (
        replace(
            RIVALS["message passing"],
            name="message passing (long)",
            settings=lambda problem: RIVALS["message passing"].settings(problem)[:1],
            note=f"one setting and one seed, {_TIMES} times the budget",
            patience=_TIMES,
            seeds=1,
        ),
    )
}
