#!/bin/sh
# write_constraints.sh PYTHON: the constraints files, from what pip chooses today. Then run every target that tests.
set -eu
cd "$(dirname "$0")/.."
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# freeze DIRECTORY: name==version of every package there but pip and Trivec, without a build's local label (+cpu).
freeze() {
    "$1/bin/python" -m pip freeze --all --exclude pip --exclude-editable --exclude trivec |
        sed 's/+.*//' | grep '==' | LC_ALL=C sort -f
}

tools/make_venv.sh "$python" "$work/check"
"$work/check/bin/python" -m pip install --quiet --upgrade setuptools
# redis needs async-timeout with Python 3.11.0 to 3.11.2 only, which Debian 12 has.
"$work/check/bin/python" -m pip install --quiet --no-build-isolation -e '.[check]' async-timeout
{
    echo "# Written by \`make pins\`: one version of each package, for serving, tests and checks."
    freeze "$work/check"
} >"$work/constraints.txt"

tools/make_venv.sh "$python" "$work/torch"
"$work/torch/bin/python" -m pip install --quiet -c "$work/constraints.txt" setuptools torch==2.13.0
"$work/torch/bin/python" -m pip install --quiet -c "$work/constraints.txt" FlagEmbedding==1.4.2 matplotlib
{
    echo "# Written by \`make pins\`: what \`make test-torch\` and the benchmarks of engines need beyond constraints.txt."
    echo "-c constraints.txt"
    freeze "$work/torch" | grep -vxFf "$work/constraints.txt"
} >"$work/constraints-torch.txt"

# Old generators on purpose: docs/decisions/0002-stubs-from-older-generators.md.
tools/make_venv.sh "$python" "$work/stubs"
"$work/stubs/bin/python" -m pip install --quiet --upgrade setuptools grpcio-tools==1.76.0 mypy-protobuf==3.7.0 \
    googleapis-common-protos==1.72.0
{
    echo "# Written by \`make pins\`: what generates protos/python."
    freeze "$work/stubs"
} >"$work/constraints-stubs.txt"

cp "$work"/constraints*.txt .
