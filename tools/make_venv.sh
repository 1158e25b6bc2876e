#!/bin/sh
# make_venv.sh PYTHON DIRECTORY: makes a virtual environment, unless a working one is there.
set -eu
python=$1
directory=$2

fail() {
    echo "error: $1" >&2
    exit 1
}

command -v "$python" >/dev/null ||
    fail "$python is not installed; on Debian and Ubuntu: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Trivec needs Python 3.11 or newer and $python is older ($("$python" --version 2>&1)); install a newer one and name it: make PYTHON=python3.12 ..."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments; on Debian and Ubuntu: apt-get install $("$python" -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))')"
"$directory/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$directory"
