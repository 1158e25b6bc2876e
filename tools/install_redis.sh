#!/usr/bin/env bash
# install_redis.sh DIRECTORY: a Redis server as DIRECTORY/bin/redis-server, for tests: the installed one, or else Debian's,
# unpacked with the libraries that it needs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "$0")/unpack_debian.sh"
take_installed redis-server "$1"
directory=$(cd "$1" && pwd)

unpack_debian --libraries-of redis-tools "$work/unpacked" redis-tools
# Debian's redis-server is a link to this program, which goes by the name that it is started under.
mkdir "$directory/lib"
cp "$work/unpacked/usr/bin/redis-check-rdb" "$directory/lib/redis-server"
find "$work/unpacked" -name 'lib*.so*' -exec cp -P {} "$directory/lib/" \;
cat >"$directory/bin/redis-server" <<SCRIPT
#!/bin/sh
export LD_LIBRARY_PATH="$directory/lib"
exec "$directory/lib/redis-server" "\$@"
SCRIPT
chmod +x "$directory/bin/redis-server"
"$directory/bin/redis-server" --version >/dev/null
