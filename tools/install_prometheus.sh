#!/bin/sh
# install_prometheus.sh DIRECTORY: Debian's prometheus, promtool, alertmanager, amtool and blackbox_exporter into
# DIRECTORY/bin, for tests. Unpacked, not installed: no service is set up, no root is needed.
set -eu
directory=$1
packages="prometheus prometheus-alertmanager prometheus-blackbox-exporter"

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "error: the packages $packages come from Debian's or Ubuntu's repositories; this system has no apt-get" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Only root's apt-get would download as another user, who cannot write into this directory.
apt() {
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root "$@")
}

# Where there are no package lists, or outdated ones, it takes lists of its own and leaves the system's as they are.
# shellcheck disable=SC2086 # several packages
apt download $packages >/dev/null 2>&1 || {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    set -- -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
    apt "$@" update
    apt "$@" download $packages
}
rm -rf "$directory"
mkdir -p "$directory/bin"
for package in "$work"/*.deb; do
    dpkg-deb -x "$package" "$work/unpacked"
done
for program in prometheus promtool prometheus-alertmanager amtool prometheus-blackbox-exporter; do
    cp "$work/unpacked/usr/bin/$program" "$directory/bin/"
done
"$directory/bin/promtool" --version >/dev/null
