#!/bin/sh
# install_systemd.sh DIRECTORY: systemd-analyze as DIRECTORY/bin/systemd-analyze, for tests: the installed one, or else
# Debian's, unpacked with its library and the units that others refer to. No root is needed.
set -eu
directory=$1

rm -rf "$directory"
mkdir -p "$directory/bin"
if installed=$(command -v systemd-analyze); then
    ln -s "$installed" "$directory/bin/systemd-analyze"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "error: there is no \`systemd-analyze\`, and no apt-get to fetch it with: install systemd" >&2
    exit 1
}
root=$(cd "$directory" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Only root's apt-get would download as another user, who cannot write into this directory.
apt() {
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root "$@")
}

# Where there are no package lists, or outdated ones, it takes lists of its own and leaves the system's as they are.
set --
apt download systemd >/dev/null 2>&1 || {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    set -- -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
    apt "$@" update
    apt "$@" download systemd
}
# Not the C library: it goes with the loader. The shared library of systemd has needs of its own.
needs() {
    apt-cache "$@" | awk '$1 ~ /Depends:$/ && $2 ~ /^lib/ && $2 != "libc6" { print $2 }'
}
libraries=$({ needs "$@" depends systemd; needs "$@" depends libsystemd-shared; } | sort -u)
# shellcheck disable=SC2086 # several packages
apt "$@" download $libraries
for package in "$work"/*.deb; do
    dpkg-deb -x "$package" "$root"
done
cp "$root/usr/bin/systemd-analyze" "$root/bin/systemd-analyze.bin"
libraries=$(find "$root" \( -name '*.so' -o -name '*.so.*' \) -exec dirname {} + | sort -u | tr '\n' ':')
units=$(find "$root" -type d -path '*lib/systemd/system' | head -n 1)
cat >"$root/bin/systemd-analyze" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$libraries" SYSTEMD_UNIT_PATH="$units:"
exec "$root/bin/systemd-analyze.bin" "\$@"
END
chmod +x "$root/bin/systemd-analyze"
"$root/bin/systemd-analyze" --version >/dev/null
