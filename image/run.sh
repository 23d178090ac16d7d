#!/bin/sh
# Runs a program of an unpacked image where no container engine runs: image/run.sh ROOTFS sparselane serve
#
# As a container would: read-only root file system, user 10001, of this machine's files /dev, /proc and /sys alone. The
# process stays one, so signals reach it. Needs root. An image for the other architecture is emulated (qemu-user-static,
# binfmt_misc), which shows that it works, not how fast.
set -eu
rootfs=$(readlink -f "$1")
shift
# What the Dockerfile's ENV says; SPARSELANE_* of the caller are kept.
export PATH="/opt/sparselane/bin:$PATH" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
unset PYTHONPATH PYTHONHOME
# shellcheck disable=SC2016
exec unshare --mount --propagation private sh -euc '
    cd "$1"
    shift
    mount --bind . .
    cd "$PWD"
    for folder in dev proc sys; do mount --rbind "/$folder" "$folder"; done
    mount -o remount,bind,ro .
    exec chroot --userspec=10001:10001 --groups= . "$@"
' "$0" "$rootfs" "$@"
