"""Operator learning inside FE² multiscale simulation.

Nothing is public here yet: representative volume elements, surrogates and the macroscopic problem
are to come, see the README for what works today.
"""
