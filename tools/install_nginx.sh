#!/bin/sh
# install_nginx.sh DIRECTORY: nginx as DIRECTORY/bin/nginx, for tests: the installed one, or else Debian's, unpacked with
# the libraries that it needs. No service is set up, no root is needed.
set -eu
directory=$1

rm -rf "$directory"
mkdir -p "$directory/bin"
if installed=$(PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v nginx); then
    ln -s "$installed" "$directory/bin/nginx"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "error: there is no \`nginx\`, and no apt-get to fetch it with: install nginx" >&2
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
apt download nginx >/dev/null 2>&1 || {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    set -- -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
    apt "$@" update
    apt "$@" download nginx
}
# Not the C library: it goes with the loader.
libraries=$(apt-cache "$@" depends nginx | awk '$1 == "Depends:" && $2 ~ /^(lib|zlib)/ && $2 != "libc6" { print $2 }')
# shellcheck disable=SC2086 # several packages
apt "$@" download $libraries
for package in "$work"/*.deb; do
    dpkg-deb -x "$package" "$work/unpacked"
done

mkdir "$directory/lib"
cp "$work/unpacked/usr/sbin/nginx" "$directory/lib/nginx"
find "$work/unpacked" -name 'lib*.so*' -exec cp -P {} "$directory/lib/" \;
cat >"$directory/bin/nginx" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$root/lib"
exec "$root/lib/nginx" "\$@"
END
chmod +x "$directory/bin/nginx"
"$directory/bin/nginx" -v 2>/dev/null
