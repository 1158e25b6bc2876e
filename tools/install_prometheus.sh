#!/usr/bin/env bash
# install_prometheus.sh DIRECTORY: Debian's prometheus, promtool, alertmanager, amtool and blackbox_exporter into
# DIRECTORY/bin, for tests.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/unpack_debian.sh"
directory=$1

unpack_debian "$work/unpacked" prometheus prometheus-alertmanager prometheus-blackbox-exporter
rm -rf "$directory"
mkdir -p "$directory/bin"
for program in prometheus promtool prometheus-alertmanager amtool prometheus-blackbox-exporter; do
    cp "$work/unpacked/usr/bin/$program" "$directory/bin/"
done
"$directory/bin/promtool" --version >/dev/null
