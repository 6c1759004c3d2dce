#!/usr/bin/env bash
# What builds and runs an image without a daemon, and what makes a base of Debian's packages. Where it cannot be had, the tests say so.
set -euo pipefail

tools=(podman runc catatonit netavark aardvark-dns iptables debootstrap)
missing=0
for tool in podman runc catatonit iptables debootstrap; do
    command -v "$tool" >/dev/null || missing=1
done
[ "$missing" = 1 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "images: not installed: ${tools[*]} need root and apt-get"
elif ! { apt-get -qq update && apt-get -qq install --yes --no-install-recommends -o DPkg::Lock::Timeout=600 "${tools[@]}"; } >/dev/null; then
    echo "images: not installed: apt-get has no ${tools[*]}"
fi
