#!/bin/sh
# install_buildah.sh: what `make image-check` builds and runs images with, from Debian's packages, unless it is there.
# Installed, not unpacked: building an image needs root in any case.
set -eu

for program in buildah crun debootstrap; do
    command -v "$program" >/dev/null || missing="${missing:-} $program"
done
[ -n "${missing:-}" ] || exit 0
[ "$(id -u)" = 0 ] || {
    echo "error: missing:$missing; as root: apt-get install buildah crun debootstrap debian-archive-keyring" >&2
    exit 1
}
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --yes --no-install-recommends buildah crun debootstrap debian-archive-keyring
