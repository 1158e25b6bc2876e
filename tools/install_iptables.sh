#!/usr/bin/env bash
# install_iptables.sh DIRECTORY: iptables as DIRECTORY/bin/iptables, for the partition of the cluster test: the installed
# one, or else Debian's, unpacked with the libraries that it needs. To use it takes root; to unpack it does not.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/unpack_debian.sh"
take_installed iptables "$1"
directory=$(cd "$1" && pwd)

unpack_debian --libraries-of iptables "$work/unpacked" iptables
mkdir -p "$directory/lib/xtables"
cp "$work/unpacked/usr/sbin/xtables-nft-multi" "$directory/lib/"
find "$work/unpacked" -name 'lib*.so*' -not -path '*/xtables/*' -exec cp -P {} "$directory/lib/" \;
find "$work/unpacked" -path '*/xtables/*.so' -exec cp -P {} "$directory/lib/xtables/" \;
cat >"$directory/bin/iptables" <<SCRIPT
#!/bin/sh
export LD_LIBRARY_PATH="$directory/lib" XTABLES_LIBDIR="$directory/lib/xtables"
exec "$directory/lib/xtables-nft-multi" iptables "\$@"
SCRIPT
chmod +x "$directory/bin/iptables"
"$directory/bin/iptables" --version >/dev/null
