#!/bin/sh
# Makes a base image with Python 3.11 where none can be pulled: Debian's packages, nothing else. Needs root, debootstrap.
#
#   docker/base.sh fedrl-base && BASE_IMAGE=fedrl-base docker compose up --build
set -eu
suite=bookworm
# The mirror that this machine uses, where it is a Debian with one.
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" "Component: main" 2>/dev/null | head -n 1)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$root" ${mirror:+"$mirror"} >&2
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/*
tar -C "$root" -c . | docker import --change 'CMD ["python3"]' - "$1"
