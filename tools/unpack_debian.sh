# shellcheck shell=bash
# unpack_debian.sh, sourced by the install_*.sh: programs from Debian's packages, unpacked, not installed: no service is
# set up, no root is needed. It gives them a scratch folder, $work, which goes when the script ends, and these:
#
#   take_installed PROGRAM DIRECTORY: empties DIRECTORY. Where PROGRAM is installed, links it as DIRECTORY/bin/PROGRAM and
#       ends the script.
#   unpack_debian [--libraries-of PACKAGE]... DIRECTORY PACKAGE...: the packages, and the libraries that those named by
#       --libraries-of need, into DIRECTORY.
#   apt_options: more options of apt's, for a script that takes packages from elsewhere than the system does.
#   fail MESSAGE
set -euo pipefail
apt_options=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "error: $1" >&2
    exit 1
}

take_installed() {
    local program=$1 directory=$2 installed
    rm -rf "$directory"
    mkdir -p "$directory/bin"
    # Not every user's PATH leads to where the servers are.
    if installed=$(PATH="$PATH:/usr/sbin:/usr/local/sbin:/sbin" command -v "$program"); then
        ln -s "$installed" "$directory/bin/$program"
        exit 0
    fi
    command -v apt-get >/dev/null || fail "there is no \`$program\`, and no apt-get to fetch it with: install it"
}

unpack_debian() {
    local needing=() directory package
    while [ "$1" = --libraries-of ]; do
        needing+=("$2")
        shift 2
    done
    directory=$1
    shift
    { command -v apt-get && command -v dpkg-deb; } >/dev/null ||
        fail "the packages $* come from Debian's or Ubuntu's repositories; this system has no apt-get"

    # Where there are no package lists, or outdated ones, it takes lists of its own and leaves the system's as they are.
    if ! download "$@" >/dev/null 2>&1; then
        rm -f "$work"/*.deb
        mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
        apt_options+=(-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
        { apt_get update && download "$@"; } ||
            fail "apt-get could not fetch $*: is there a network, and do apt's sources have these packages?"
    fi
    for package in "$work"/*.deb; do
        dpkg-deb -x "$package" "$directory"
    done
}

# download PACKAGE...: these, and the libraries that the packages in $needing need, into $work. No command's error ends
# the script where it is called: each must be passed on.
download() {
    local found needed
    apt_get download "$@" || return
    [ ${#needing[@]} -gt 0 ] || return 0
    # Not the C library: it goes with the loader.
    found=$(
        apt-cache "${apt_options[@]}" depends "${needing[@]}" |
            awk '$1 ~ /Depends:$/ && $2 ~ /^(lib|zlib|lua)/ && $2 != "libc6" { print $2 }' | sort -u
    ) && [ -n "$found" ] || return
    mapfile -t needed <<<"$found"
    apt_get download "${needed[@]}"
}

# Only root's apt-get would download as another user, who cannot write into this directory.
apt_get() {
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root "${apt_options[@]}" "$@")
}
