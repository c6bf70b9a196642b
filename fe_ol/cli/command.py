"""A command whose options may take lists of numbers, and that ends with a message, not a trace."""

from __future__ import annotations

import math
from typing import Any

import typer
from typer.core import TyperCommand

from fe_ol.guarded import GuardError
from spon.fem.problem import SOLVE_FAILURES

__all__ = ["FREE", "Command", "numbers"]

FREE = "free"
# What is wrong with files, numbers and names that were given; exit status 2, as for usage. No
# TypeError: types are checked before, so that one of these is a mistake of ours, to be seen.
_WRONG = (ValueError, OSError, NotImplementedError)
# What is wrong with a problem that was stated well; exit status 1.
_FAILED = (*SOLVE_FAILURES, GuardError)
_LISTS = ("--strain", "--stress", "--clamp", "--move", "--traction", "--body-force")


class Command(TyperCommand):
    """A typer command with options such as ``--strain 0.02 0 -0.01``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; the numbers after an option of `_LISTS` belong to it."""
        rest: list[str] = super().parse_args(ctx, _gathered(args))
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run; errors of the user, and solves that fail, become a message."""
        try:
            return super().invoke(ctx)
        except (*_WRONG, *_FAILED) as error:
            if ctx.find_root().params.get("traceback"):
                raise
            typer.echo(f"{ctx.command_path}: {type(error).__name__}: {error}", err=True)
            # LinAlgError is a ValueError, FloatingPointError an ArithmeticError.
            raise typer.Exit(1 if isinstance(error, _FAILED) else 2) from error


def _gathered(args: list[str]) -> list[str]:
    """Words with the lists joined by commas: ``--strain=0.02,0,-0.01``."""
    out: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name, equals, first = word.partition("=")
        if name not in _LISTS:
            out.append(word)
            continue
        # The first one may be the name of a tag; those after it are numbers, or it would swallow
        # the command's arguments.
        values = [first] if equals else words[:1] if not words[:1] or _may_follow(words[0]) else []
        words = words if equals else words[len(values) :]
        while words and _is_value(words[0]):
            values.append(words.pop(0))
        out.append(f"{name}={','.join(values)}" if values else name)
    return out


def _may_follow(word: str) -> bool:
    return _is_value(word) or not word.startswith("-")


def _is_value(word: str) -> bool:
    if word == FREE:
        return True
    try:
        return all(math.isfinite(float(part)) for part in word.split(","))
    except ValueError:
        return False


def numbers(text: str, option: str, free: bool = False) -> list[float | None]:
    """Numbers of a list.

    Parameters
    ----------
    text : str
        Joined by commas.
    option : str
        For messages.
    free : bool, optional
        Whether a place may be left open by the word "free", which becomes None.

    Returns
    -------
    list of float or None

    Raises
    ------
    ValueError
        If something else is among them.
    """
    values: list[float | None] = []
    for word in text.split(","):
        if word == FREE and free:
            values.append(None)
            continue
        try:
            values.append(float(word))
        except ValueError:
            allowed = f'numbers, or "{FREE}",' if free else "numbers"
            raise ValueError(f"{option} takes {allowed} got {word!r}.") from None
        if not math.isfinite(float(word)):
            raise ValueError(f"{option} takes finite numbers, got {word!r}.")
    return values
