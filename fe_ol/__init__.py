"""Operator learning inside FE² multiscale simulation.

What is here so far: material laws (`fe_ol.materials`) and, written to the interface of a
representative volume element that is still to come, snapshots, modes and surrogates. See the README
for what works today.
"""
