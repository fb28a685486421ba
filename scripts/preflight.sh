#!/bin/sh
# Says what is missing, and how to get it, before a build would fail halfway.
# Usage: scripts/preflight.sh [PYTHON]
set -u
python=${1:-python3}
missing=0

lacks() {
    missing=1
    printf 'fastsn: %s\n    %s\n' "$1" "$2" >&2
}

if ! command -v "$python" >/dev/null 2>&1; then
    lacks "no '$python' found" "install it (Debian, Ubuntu: apt-get install python3 python3-venv python3-dev) or run: make PYTHON=/path/to/python3"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    lacks "expected Python 3.10 or newer, got $("$python" -V 2>&1)" "name a newer one: make PYTHON=/path/to/python3"
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        lacks "this Python cannot make virtual environments" "install its venv package (Debian, Ubuntu: apt-get install python3-venv)"
    if [ "${FASTSN_BUILD_CPU:-1}" != 0 ]; then
        "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
            lacks "this Python has no headers (Python.h)" "install them (Debian, Ubuntu: apt-get install python3-dev), or build without the CPU kernels: make FASTSN_BUILD_CPU=0"
    fi
fi

if [ "${FASTSN_BUILD_CPU:-1}" != 0 ] && ! command -v "${CXX:-c++}" >/dev/null 2>&1; then
    lacks "no C++ compiler '${CXX:-c++}' found" "install one (Debian, Ubuntu: apt-get install g++), name one (CXX=clang++ make), or build without the CPU kernels: make FASTSN_BUILD_CPU=0"
fi

exit "$missing"
