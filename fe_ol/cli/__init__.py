"""The command line, ``python -m fe_ol rve|sample|fit|evaluate|macro``."""

from fe_ol.cli.app import app, main

__all__ = ["app", "main"]
