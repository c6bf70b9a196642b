# make demo    what the project does, on a plate with holes        (make demo DEMO=demos/other.py)
# make demos   all demos
# make test    the test suite                                      (make test TESTS=tests/test_sparse.py)
# make lint    style, types and layers
# Each makes the environment in .venv first if it is not ready: see install/setup.sh.

PYTHON = .venv/bin/python
DEMO = demos/darcy_plate.py
TESTS = tests
READY = .venv/.ready-$(shell sh install/stamp.sh)
# Tests run in so many processes; JOBS=1 runs them in one.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -le 4 ] && echo $$n || echo 4)

# One thread a process: on small problems more threads cost more than they bring.
export OMP_NUM_THREADS ?= 1
# Another PETSc must not be found before the environment's own.
unexport PETSC_DIR PETSC_ARCH PYTHONPATH PYTHONHOME
# Compiled kernels are kept beside the wheels, for every clone on a machine with these packages and
# this processor (they are compiled for it).
CACHE = $(or $(SPON_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/spon)
KERNELS = $(CACHE)/kernels/$(shell sh install/stamp.sh kernels)
export PYOP2_CACHE_DIR ?= $(KERNELS)/pyop2
export FIREDRAKE_TSFC_KERNEL_CACHE_DIR ?= $(KERNELS)/tsfc
# Open MPI refuses to start as root unless it is told that this is meant (containers).
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
endif

.PHONY: setup demo demos test lint doctor
setup: $(READY)

demo: $(READY)
	$(PYTHON) $(DEMO)

demos: $(READY)
	set -e; for demo in demos/*.py; do echo "== $$demo"; $(PYTHON) $$demo; done

test: $(READY)
	$(PYTHON) -m pytest -n $(JOBS) --dist worksteal $(TESTS)

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

doctor: $(READY)
	$(PYTHON) -m spon.doctor

$(READY):
	bash install/setup.sh
