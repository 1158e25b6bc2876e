"""Builds the container image and tries it: `make image-check`. Needs root, and buildah, debootstrap and crun."""
