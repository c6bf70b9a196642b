"""The commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from fe_ol.cli.command import Command
from fe_ol.cli.evaluate import evaluate
from fe_ol.cli.fit import fit
from fe_ol.cli.macro import macro
from fe_ol.cli.petsc import keep_command_line_from_petsc
from fe_ol.cli.rve import rve
from fe_ol.cli.sample import sample

__all__ = ["app", "main"]

app = typer.Typer(
    name="fe_ol",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (rve, sample, fit, evaluate, macro):
    app.command(cls=Command)(command)


@app.callback()
def fe_ol(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Operator learning inside FE² multiscale simulations.

    Lengths are in the unit of the meshes, stresses in that of the moduli of the laws. Strains are
    (E_xx, E_yy, 2 E_xy), in 3D (xx, yy, zz, 2 yz, 2 xz, 2 xy); for laws of finite strain the
    deformation gradient, row by row.
    """


def main() -> None:
    """Run the command line."""
    keep_command_line_from_petsc()
    app()
