#!/bin/sh
# install_triton.sh DIRECTORY: a real Triton server with its python backend into the virtual environment DIRECTORY, from
# the pins in constraints-triton.txt. `DIRECTORY/triton/backends` is what tritonserver's --backend-directory wants.
set -eu
cd "$(dirname "$0")/.."
directory=$1
python=$directory/bin/python

"$python" -m pip --disable-pip-version-check install --quiet --no-deps -r constraints-triton.txt
wheel=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pytriton/tritonserver
version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
stub=$wheel/python_backend_stubs/$version/triton_python_backend_stub
[ -f "$stub" ] || {
    echo "error: this Triton has no python backend for Python $version; it has: $(ls "$wheel/python_backend_stubs" | tr '\n' ' ')" >&2
    exit 1
}

# The backend starts the stub that lies beside it; the wheel has one for each Python elsewhere.
rm -rf "$directory/triton"
mkdir -p "$directory/triton/backends"
cp -R "$wheel/backends/python" "$directory/triton/backends/python"
cp "$stub" "$directory/triton/backends/python/"
chmod +x "$directory/triton/backends/python/triton_python_backend_stub" "$wheel/bin/tritonserver"
