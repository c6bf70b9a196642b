"""The parts of a representative volume element: `fe_ol.rve` puts them together."""
