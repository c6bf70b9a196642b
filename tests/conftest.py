"""Settings that every test shares."""

import os

# PETSc reads the command line of the process and would complain about pytest's options.
os.environ.setdefault("PETSC_OPTIONS", "-options_left no")
os.environ.setdefault("OMP_NUM_THREADS", "1")
