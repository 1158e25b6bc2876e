#!/bin/sh
# install_iptables.sh DIRECTORY: iptables as DIRECTORY/bin/iptables, for the partition of the cluster test: the installed
# one, or else Debian's, unpacked with the libraries that it needs. To use it takes root; to unpack it does not.
set -eu
directory=$1

rm -rf "$directory"
mkdir -p "$directory/bin"
if installed=$(PATH="$PATH:/usr/sbin:/sbin" command -v iptables); then
    ln -s "$installed" "$directory/bin/iptables"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "error: there is no \`iptables\`, and no apt-get to fetch it with: install iptables" >&2
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
apt download iptables >/dev/null 2>&1 || {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    set -- -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
    apt "$@" update
    apt "$@" download iptables
}
# Not the C library: it goes with the loader.
libraries=$(apt-cache "$@" depends iptables | awk '$1 == "Depends:" && $2 ~ /^lib/ && $2 != "libc6" { print $2 }')
# shellcheck disable=SC2086 # several packages
apt "$@" download $libraries
for package in "$work"/*.deb; do
    dpkg-deb -x "$package" "$work/unpacked"
done

mkdir -p "$directory/lib/xtables"
cp "$work/unpacked/usr/sbin/xtables-nft-multi" "$directory/lib/"
find "$work/unpacked" -name 'lib*.so*' -not -path '*/xtables/*' -exec cp -P {} "$directory/lib/" \;
find "$work/unpacked" -path '*/xtables/*.so' -exec cp -P {} "$directory/lib/xtables/" \;
cat >"$directory/bin/iptables" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$root/lib" XTABLES_LIBDIR="$root/lib/xtables"
exec "$root/lib/xtables-nft-multi" iptables "\$@"
END
chmod +x "$directory/bin/iptables"
"$directory/bin/iptables" --version >/dev/null
