#!/bin/sh
# Prints a hash of everything that decides what is in .venv; make compares it with .venv/.ready-*.
# `stamp.sh kernels` prints one of what compiled kernels depend on: the packages, system, processor.
cd "$(dirname "$0")" || exit 1
if [ "$1" = kernels ]; then
    cat constraints.txt /etc/os-release /proc/cpuinfo 2>/dev/null |
        grep -vE '^(processor|cpu MHz|bogomips|apicid|initial apicid|core id|microcode)' |
        sort -u
    cat ../.venv/pyvenv.cfg 2>/dev/null | grep '^version'
else
    cat setup.sh system.sh probe.py settle.py constraints.txt ../setup.cfg
fi | sha256sum | cut -c1-12
