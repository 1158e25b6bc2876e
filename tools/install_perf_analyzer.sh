#!/usr/bin/env bash
# install_perf_analyzer.sh PYTHON DIRECTORY: Triton's perf_analyzer as DIRECTORY/perf_analyzer.
#
# Its wheel needs a newer C library than Debian 12 has: the libraries of Debian 13 are unpacked beside it, from the mirror
# that this machine takes its own packages from, and the program is started through their loader.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/unpack_debian.sh"
python=$1
mkdir -p "$2"
directory=$(cd "$2" && pwd)
release=trixie

"$python" -m pip --disable-pip-version-check install --quiet --upgrade --no-deps --platform manylinux_2_38_x86_64 \
    --only-binary :all: --target "$directory/wheel" perf-analyzer==2.60.0
program=$directory/wheel/perf_analyzer/bin/perf_analyzer
chmod +x "$program"

if found=$(ldd "$program" 2>&1) && [[ $found != *"not found"* ]]; then
    ln -sf "$program" "$directory/perf_analyzer"
    exit 0
fi

command -v apt-get >/dev/null || fail "perf_analyzer needs glibc 2.38, and without apt-get its libraries cannot be fetched"
own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
# shellcheck disable=SC2016 # apt's names, not the shell's
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' |
    awk -v own="$own" '$2 == own && $1 ~ /debian\/$/ && !found++ { print $1 }')
[ -n "$mirror" ] || fail "perf_analyzer needs glibc 2.38, and apt's sources name no mirror of Debian $own to fetch its libraries from"

echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$work/sources.list"
# With a list of no packages as the installed ones: none of the system's is preferred.
apt_options=(-o Dir::State::status=/dev/null -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=-)
unpack_debian "$directory/libraries" libc6 libgcc-s1 libssl3t64 libstdc++6 libzstd1 zlib1g

libraries=$directory/libraries/usr/lib/x86_64-linux-gnu
cat >"$directory/perf_analyzer" <<END
#!/bin/sh
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$program" "\$@"
END
chmod +x "$directory/perf_analyzer"
