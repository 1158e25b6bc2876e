#!/bin/sh
# install_perf_analyzer.sh PYTHON DIRECTORY: Triton's perf_analyzer as DIRECTORY/perf_analyzer.
#
# Its wheel needs a newer C library than Debian 12 has: the libraries of Debian 13 are unpacked beside it, from the mirror
# that this machine takes its own packages from, and the program is started through their loader.
set -eu
python=$1
mkdir -p "$2"
directory=$(cd "$2" && pwd)
release=trixie
packages="libc6 libgcc-s1 libssl3t64 libstdc++6 libzstd1 zlib1g"

fail() {
    echo "error: $1" >&2
    exit 1
}

"$python" -m pip --disable-pip-version-check install --quiet --upgrade --no-deps --platform manylinux_2_38_x86_64 \
    --only-binary :all: --target "$directory/wheel" perf-analyzer==2.60.0
program=$directory/wheel/perf_analyzer/bin/perf_analyzer
chmod +x "$program"

if ldd "$program" >/dev/null 2>&1 && ! ldd "$program" 2>&1 | grep -q 'not found'; then
    ln -sf "$program" "$directory/perf_analyzer"
    exit 0
fi

command -v apt-get >/dev/null || fail "perf_analyzer needs glibc 2.38, and without apt-get its libraries cannot be fetched"
own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk -v own="$own" '$2 == own && $1 ~ /debian\/$/ { print $1; exit }')
[ -n "$mirror" ] || fail "perf_analyzer needs glibc 2.38, and apt's sources name no mirror of Debian $own to fetch its libraries from"

state=$directory/apt
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$directory/packages"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$state/sources.list"
: >"$state/status"
apt() {
    apt-get -qq -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" \
        -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root "$@"
}
apt update
# Into the working folder is where `download` puts them.
cd "$directory/packages"
# shellcheck disable=SC2086 # several packages
apt download $packages
for package in ./*.deb; do
    dpkg-deb --extract "$package" "$directory/libraries"
done
rm -rf "$state" "$directory/packages"

libraries=$directory/libraries/usr/lib/x86_64-linux-gnu
cat >"$directory/perf_analyzer" <<END
#!/bin/sh
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$program" "\$@"
END
chmod +x "$directory/perf_analyzer"
