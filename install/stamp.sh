#!/bin/sh
# Prints a hash of everything that decides what is in .venv; make compares it with .venv/.ready-*.
cd "$(dirname "$0")" && cat setup.sh system.sh probe.py settle.py constraints.txt ../setup.cfg | sha256sum | cut -c1-12
