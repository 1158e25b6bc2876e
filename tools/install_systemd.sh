#!/usr/bin/env bash
# install_systemd.sh DIRECTORY: systemd-analyze as DIRECTORY/bin/systemd-analyze, for tests: the installed one, or else
# Debian's, unpacked with its libraries and the units that others refer to.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/unpack_debian.sh"
take_installed systemd-analyze "$1"
directory=$(cd "$1" && pwd)

# The shared library of systemd has needs of its own.
unpack_debian --libraries-of systemd --libraries-of libsystemd-shared "$directory" systemd
cp "$directory/usr/bin/systemd-analyze" "$directory/bin/systemd-analyze.bin"
libraries=$(find "$directory" \( -name '*.so' -o -name '*.so.*' \) -exec dirname {} + | sort -u | tr '\n' ':')
units=$(find "$directory" -type d -path '*lib/systemd/system' -print -quit)
cat >"$directory/bin/systemd-analyze" <<SCRIPT
#!/bin/sh
export LD_LIBRARY_PATH="$libraries" SYSTEMD_UNIT_PATH="$units:"
exec "$directory/bin/systemd-analyze.bin" "\$@"
SCRIPT
chmod +x "$directory/bin/systemd-analyze"
"$directory/bin/systemd-analyze" --version >/dev/null
