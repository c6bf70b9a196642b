#!/usr/bin/env bash
# Makes .venv at the project's root ready: system packages, PETSc, h5py on parallel HDF5, Firedrake,
# torch, and this project. Safe to run again; what is there already is not made again.
#
#   SPON_PYTHON       the Python to build on (default: the first of python3, python3.13, ... >= 3.11)
#   SPON_CACHE        where wheels are kept (default: $XDG_CACHE_HOME/spon or ~/.cache/spon)
#   SPON_TORCH_INDEX  a package index for torch alone, such as PyTorch's own one for CPU builds
#   SPON_JOBS         compile on so many cores (default: all)
#   SPON_NO_SYSTEM    set it to leave system packages alone, whatever is missing
set -u -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
venv=$root/.venv
log_file=$here/setup.log
cache=${SPON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/spon}
constraints=$here/constraints.txt
started=$SECONDS
stamp=$(sh "$here/stamp.sh") # now: a file that is edited meanwhile asks for another set-up

# Nothing of another Firedrake, conda or PETSc may leak in.
unset PETSC_DIR PETSC_ARCH PYTHONPATH PYTHONHOME HDF5_DIR HDF5_MPI CC CXX FC F77 F90 CFLAGS CXXFLAGS FFLAGS
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 PIP_REQUIRE_VIRTUALENV=0
[ -z "${SPON_JOBS:-}" ] || export MAKEFLAGS="-j$SPON_JOBS" MAX_JOBS="$SPON_JOBS"

fail() { # fail "which step" "probable cause"
    printf '\nset-up failed at: %s. Probable cause: %s. Log: %s\n' "$1" "$2" "$log_file" >&2
    exit 1
}

probable_cause() { # reads what the failed step wrote to the log
    local last
    last=$(tail -c "+$1" "$log_file")
    if grep -q 'No space left on device' <<<"$last"; then echo "the disk is full"
    elif grep -qE 'Temporary failure|Could not resolve|Connection (refused|timed out)|NewConnectionError|Failed to fetch' <<<"$last"; then echo "no connection to the package servers"
    elif grep -qE 'CERTIFICATE_VERIFY_FAILED|certificate verify failed' <<<"$last"; then echo "the certificate of the package server is not trusted on this machine"
    elif grep -q 'Could not get lock' <<<"$last"; then echo "another apt is running"
    elif grep -qE 'Killed|internal compiler error|Cannot allocate memory' <<<"$last"; then echo "not enough memory; try SPON_JOBS=1"
    elif grep -qE 'No matching distribution|Could not find a version' <<<"$last"; then grep -E 'No matching distribution|Could not find a version' <<<"$last" | tail -n 1 | cut -c1-160
    elif grep -q 'Unable to locate package' <<<"$last"; then grep 'Unable to locate package' <<<"$last" | tail -n 1
    elif grep -q 'Python.h: No such file' <<<"$last"; then echo "the Python headers are missing (python3-dev)"
    elif grep -qE '^(ERROR|E:|error)' <<<"$last"; then grep -E '^(ERROR|E:|error)' <<<"$last" | tail -n 1 | cut -c1-160
    else tail -n 1 "$log_file" | cut -c1-160
    fi
}

ticker= # the process that counts the seconds of a step on a terminal
trap '[ -z "$ticker" ] || kill "$ticker" 2>/dev/null' EXIT

step() { # step "what" command args...: runs it with its output in the log, shows the time it took
    local what=$1 begun=$SECONDS mark status
    shift
    mark=$(($(stat -c %s "$log_file") + 1))
    printf '\n=== %s\n' "$what" >>"$log_file"
    printf '  %-58s' "$what"
    if [ -t 1 ]; then
        while sleep 1 && kill -0 $$ 2>/dev/null; do printf '\r  %-58s%4ds' "$what" $((SECONDS - begun)); done &
        ticker=$!
    fi
    ("$@") >>"$log_file" 2>&1 </dev/null
    status=$?
    if [ -n "$ticker" ]; then
        kill "$ticker" 2>/dev/null
        wait "$ticker" 2>/dev/null
        ticker=
        printf '\r  %-58s' "$what"
    fi
    if [ $status -ne 0 ]; then
        printf ' failed\n'
        fail "$what" "$(probable_cause "$mark")"
    fi
    printf '%4ds\n' $((SECONDS - begun))
}

find_python() {
    local name
    for name in ${SPON_PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        if command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

make_venv() {
    "$base_python" -m venv --clear "$venv" &&
        "$venv/bin/pip" install -c "$constraints" --upgrade pip setuptools wheel
}

# ---- wheels: $wheels is the cache's folder for machines like this one --------------------------

pin() { sed -n "s/^\($1==[^ ;#]*\).*/\1/p" "$constraints"; } # pin NAME: "name==version"

wheel_of() { # wheel_of NAME: the cached wheel of a compiled package in its pinned version, if there
    local version
    version=$(pin "$1")
    compgen -G "$wheels/$1-${version#*==}-*.whl"
}

# keep COMMAND...: runs it with $out as an empty folder, then moves what it made into the cache.
# A run that is interrupted leaves a folder that nobody looks at, and the next run removes.
keep() {
    local out
    out=$(mktemp -d "$wheels/.unfinished-XXXXXX") || return 1
    out=$out "$@" || return 1
    # -n: a wheel that is there stays, with its time, by which uv knows that it is the same
    mv -n "$out"/*.whl "$wheels/" && rm -rf "$out"
}

pip_install() { "$venv/bin/pip" install -c "$constraints" "$@"; }

build_tools() {
    pip_install "cython" numpy pkgconfig pybind11 mpi4py packaging rtree firedrake-rtree libsupermesh petsctools
}

make_petsc() {
    PETSC_CONFIGURE_OPTIONS="$petsc_options" "$venv/bin/pip" wheel -v --no-deps --no-build-isolation \
        -w "$out" "$(pin petsc)"
}

make_petsc4py() {
    # Cython's output for PETSc is huge: with -O3 -g its compilation takes many minutes and gigabytes
    CFLAGS="-O1 -g0" "$venv/bin/pip" wheel --no-deps --no-build-isolation -w "$out" \
        "$(pin petsc4py)"
}

make_h5py() {
    CC=mpicc HDF5_MPI=ON HDF5_DIR="$hdf5" "$venv/bin/pip" wheel --no-deps --no-build-isolation \
        --no-binary h5py -w "$out" "$(pin h5py)"
}

make_firedrake() {
    "$venv/bin/pip" wheel --no-deps --no-build-isolation -w "$out" \
        "$(pin firedrake)"
}

all_built() {
    local name
    for name in petsc petsc4py h5py firedrake; do wheel_of "$name" >/dev/null || return 1; done
}

install_built() { # install_built NAME...: from the cache, and nothing else
    local name files=()
    for name in "$@"; do files+=("$(wheel_of "$name")"); done
    "$venv/bin/pip" install --no-deps --no-index "${files[@]}" && "$venv/bin/python" "$here/settle.py"
}

fetch_torch() { # torch alone may come from an index of its own
    local from=()
    [ -z "${SPON_TORCH_INDEX:-}" ] || from=(--index-url "$SPON_TORCH_INDEX")
    rm -rf "$wheels/.unfinished-torch"
    "$venv/bin/pip" wheel --no-deps "${from[@]}" -w "$wheels/.unfinished-torch" "$(pin torch)"
}

# Every other wheel, and the list of all that belong together: a later environment needs only these.
make_rest() {
    local name built=("$wheels"/.unfinished-torch/*.whl)
    for name in petsc petsc4py h5py firedrake; do built+=("$(wheel_of "$name")"); done
    "$venv/bin/python" "$here/probe.py" requirements >"$out/requirements.txt" &&
        "$venv/bin/pip" wheel -c "$constraints" --find-links "$wheels" -w "$out" "${built[@]}" \
            pip setuptools wheel uv -r "$out/requirements.txt" &&
        (cd "$out" && ls -- *.whl) >"$wheels/.unfinished-list"
}

list_complete() {
    [ -s "$wheels/$list" ] || return 1
    local name
    while read -r name; do [ -f "$wheels/$name" ] || return 1; done <"$wheels/$list"
}

# uv unpacks each wheel once, into the cache, and links it into every .venv: a second clone takes
# seconds, and its gigabytes of torch no further space. pip does the same more slowly.
install_all() {
    "$venv/bin/pip" install --no-index --no-deps "$wheels/$(grep '^uv-' "$wheels/$list")" &&
        (cd "$wheels" && sed 's|^|./|' "$list" | UV_CACHE_DIR=$wheels/unpacked xargs "$venv/bin/uv" \
            pip install --no-config --offline --no-index --no-deps --link-mode hardlink \
            --compile-bytecode --python "$venv/bin/python") ||
        (cd "$wheels" && xargs -a "$list" "$venv/bin/pip" install --no-index --no-deps) || return 1
    "$venv/bin/python" "$here/settle.py"
}

install_project() {
    "$venv/bin/pip" install --no-index --no-deps --no-build-isolation -e "$root"
}

# ---- the work --------------------------------------------------------------------------------

: >"$log_file" || { echo "cannot write $log_file" >&2; exit 1; }
{ date; uname -a; cat /etc/os-release; env | grep -E '^(SPON_|PIP_|PATH=)'; } >>"$log_file" 2>/dev/null

base_python=$(find_python) ||
    fail "looking for Python" "no Python >= 3.11 found; install one, or name it by SPON_PYTHON"

# shellcheck source=install/system.sh
. "$here/system.sh"
if [ -n "${SPON_NO_SYSTEM:-}" ]; then
    :
elif ! command -v apt-get >/dev/null; then
    command -v mpicc >/dev/null ||
        fail "system packages" "this is not a Debian or Ubuntu; install what install/system.sh lists with your package manager"
elif system_packages_missing; then
    if ! root_prefix >/dev/null; then
        printf 'System packages are missing, and only root can install them. Run this, then start again:\n\n' >&2
        printf '  sudo apt-get update && sudo apt-get install -y --no-install-recommends %s\n\n' "$(system_missing | tr '\n' ' ')" >&2
        exit 1
    fi
    step "system packages (apt)" system_install
    [ -z "$(system_missing)" ] || fail "system packages" "apt did not install: $(system_missing | tr '\n' ' ')"
fi

petsc_options=$("$base_python" "$here/probe.py" options 2>>"$log_file") || fail "looking at the system's libraries" "$(tail -n 1 "$log_file")"
hdf5=$("$base_python" "$here/probe.py" hdf5)
key=$("$base_python" "$here/probe.py" key 2>>"$log_file") || fail "looking at the system's libraries" "$(tail -n 1 "$log_file")"
wheels=$cache/wheels/$key
list=list-$({ cat "$constraints"; "$base_python" "$here/probe.py" requirements; echo "${SPON_TORCH_INDEX:-}"; } | sha256sum | cut -c1-12).txt
mkdir -p "$wheels" || fail "making the cache" "cannot write to $cache"
printf 'key %s\noptions %s\n' "$key" "$petsc_options" >>"$log_file"

exec 9>"$wheels/.lock" # one set-up at a time fills the cache
if ! flock -n 9; then
    echo "  waiting for another set-up that fills $wheels"
    flock 9
fi
rm -rf "$wheels"/.unfinished-*

# An environment of another key holds another PETSc: begin anew.
if [ "$(cat "$venv/.spon-key" 2>/dev/null)" != "$key" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if list_complete; then
        step "environment .venv" "$base_python" -m venv --clear "$venv"
    else
        step "environment .venv" make_venv
    fi
    echo "$key" >"$venv/.spon-key"
fi
rm -f "$venv"/.ready-*

if ! list_complete; then
    if ! all_built; then
        step "build tools" build_tools
        wheel_of petsc >/dev/null || step "PETSc (six minutes or more on two cores)" keep make_petsc
        step "PETSc into .venv" install_built petsc
        wheel_of petsc4py >/dev/null || step "petsc4py (two minutes)" keep make_petsc4py
        wheel_of h5py >/dev/null || step "h5py on parallel HDF5 (two minutes)" keep make_h5py
        step "petsc4py, h5py into .venv" install_built petsc4py h5py
        wheel_of firedrake >/dev/null || step "Firedrake (two minutes)" keep make_firedrake
    fi
    step "torch" fetch_torch
    step "everything else, as wheels" keep make_rest
    mv -f "$wheels/.unfinished-list" "$wheels/$list"
    rm -rf "$wheels"/.unfinished-*
fi
step "packages into .venv" install_all
step "spon itself" install_project
flock -u 9

if [ "${1:-}" != "--no-check" ]; then
    step "self-check (python -m spon.doctor)" env OMP_NUM_THREADS=1 "$venv/bin/python" -m spon.doctor
fi
touch "$venv/.ready-$stamp"
printf 'ready after %dm%02ds: %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$venv"
