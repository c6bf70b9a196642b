# The system's packages. Sourced by setup.sh; needs `fail` and `log_file` from there.
# shellcheck shell=bash

# One line for each thing that is needed; "a|b" are names of the same thing on different systems.
system_wanted() {
    cat <<-END
	build-essential
	gfortran
	pkg-config|pkgconf
	bison
	flex
	cmake
	ninja-build
	patchelf
	ca-certificates
	libopenmpi-dev
	openmpi-bin
	libhdf5-openmpi-dev|libhdf5-mpi-dev
	libmumps-dev
	libscalapack-openmpi-dev|libscalapack-mpi-dev
	libptscotch-dev
	libmetis-dev
	libsuitesparse-dev
	libopenblas-dev
	libhwloc-dev
	zlib1g-dev
	libglu1-mesa
	libgl1
	libxrender1
	libxcursor1
	libxft2
	libxinerama1
	END
    # Python's own parts, only where the interpreter is the system's and lacks them
    local base
    base=$("$base_python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    case $(readlink -f "$(command -v "$base_python")") in
        /usr/bin/*) printf '%s\n' "$base-venv|python3-venv" "$base-dev|python3-dev" ;;
    esac
    # hypre older than 2.29 does not compile with PETSc 3.26: better none
    local hypre
    hypre=$(installed_version libhypre-dev)
    [ -n "$hypre" ] || hypre=$(candidate_version libhypre-dev)
    if [ -n "$hypre" ] && dpkg --compare-versions "$hypre" ge 2.29; then echo libhypre-dev; fi
}

installed_version() {
    dpkg-query -W -f='${db:Status-Abbrev} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^ii *//p' | head -n 1
}

candidate_version() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -v '(none)' | head -n 1
}

# Prints the packages that are not there yet, each under the name that this system knows.
system_missing() {
    local line
    system_wanted | while read -r line; do missing_name "$line"; done
}

missing_name() { # missing_name "a|b": nothing if one is installed, else the one that apt can get
    local name chosen=""
    for name in ${1//|/ }; do
        if [ -n "$(installed_version "$name")" ]; then return; fi
    done
    for name in ${1//|/ }; do
        if [ -z "$chosen" ] && [ -n "$(candidate_version "$name")" ]; then chosen=$name; fi
    done
    echo "${chosen:-${1%%|*}}"
}

# How to become root: nothing to do, sudo that asks nothing, or not at all.
root_prefix() {
    if [ "$(id -u)" -eq 0 ]; then echo "env"; return; fi
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then echo "sudo env"; return; fi
    return 1
}

system_packages_missing() { [ -n "$(system_missing)" ]; }

system_install() {
    local become
    become=$(root_prefix) || return 1
    $become DEBIAN_FRONTEND=noninteractive apt-get update || return 1
    local names
    names=$(system_missing | tr '\n' ' ') # again: now apt knows what it can get
    echo "installing: $names"
    # shellcheck disable=SC2086
    $become DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $names
}
