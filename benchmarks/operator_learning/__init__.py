"""Operator networks against their rivals: the same data, the same budget, the same metric.

`problems` says what a problem is and lists them, `ours` and `rivals` list the networks with the
settings that are tried, `training` is the one loop that trains them all, `harness` tunes and
repeats, `report` makes tables and plots of the results. The command line is `run.py`. For fluxes
`facet_fluxes` and `tracers` measure what is lost and where particles go, `flux_report` shows it.
"""
