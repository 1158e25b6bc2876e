#!/usr/bin/env bash
# install_nginx.sh DIRECTORY: nginx as DIRECTORY/bin/nginx, for tests: the installed one, or else Debian's, unpacked with
# the libraries that it needs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/unpack_debian.sh"
take_installed nginx "$1"
directory=$(cd "$1" && pwd)

unpack_debian --libraries-of nginx "$work/unpacked" nginx
mkdir "$directory/lib"
cp "$work/unpacked/usr/sbin/nginx" "$directory/lib/nginx"
find "$work/unpacked" -name 'lib*.so*' -exec cp -P {} "$directory/lib/" \;
cat >"$directory/bin/nginx" <<SCRIPT
#!/bin/sh
export LD_LIBRARY_PATH="$directory/lib"
exec "$directory/lib/nginx" "\$@"
SCRIPT
chmod +x "$directory/bin/nginx"
"$directory/bin/nginx" -v 2>/dev/null
