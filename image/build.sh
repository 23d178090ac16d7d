#!/bin/sh
# Builds the Dockerfile's image where no container engine runs, and unpacks it: image/build.sh [FOLDER]
#
# Needs root and Debian's buildah and debootstrap, which makes the base image. Each RUN runs in a plain chroot and each
# layer is a copy, so neither user namespaces nor an overlay file system is needed. Variables:
#   SUITE    release of Debian (trixie)
#   ARCH     amd64 or arm64 (this machine's); the other one needs qemu-user-static and binfmt_misc
#   MIRROR   of Debian (debootstrap's)
#   OPTIONS  more for buildah: "--volume FILE:/etc/pip.conf:ro" where pip needs settings of this machine
# FOLDER (build/image) then has rootfs/, and image.tar.gz for `docker load`.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-build/image}
suite=${SUITE:-trixie}
arch=${ARCH:-$(dpkg --print-architecture)}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
base=$folder/$suite-$arch

buildah() { command buildah --root "$folder/store" --runroot "$folder/run" --storage-driver vfs "$@"; }

if [ ! -e "$base.tar" ]; then
    rm -rf "$base"
    debootstrap --arch "$arch" --variant=minbase "$suite" "$base" ${MIRROR:-}
    tar -cf "$base.unfinished" --numeric-owner -C "$base" .
    mv "$base.unfinished" "$base.tar"
    rm -rf "$base"
fi
if ! buildah inspect --type image "localhost/debian:$suite" >/dev/null 2>&1; then
    container=$(buildah from scratch)
    buildah config --arch "$arch" "$container"
    buildah add --quiet "$container" "$base.tar" /
    buildah commit --quiet --rm "$container" "localhost/debian:$suite"
fi
# shellcheck disable=SC2086
buildah build --arch "$arch" --isolation chroot --format docker --build-arg "DEBIAN_IMAGE=localhost/debian:$suite" \
    ${OPTIONS:-} --tag sparselane .
container=$(buildah from localhost/sparselane)
rm -rf "$folder/rootfs"
cp -a "$(buildah mount "$container")" "$folder/rootfs"
buildah rm "$container" >/dev/null
rm -f "$folder/image.tar"
buildah push --quiet localhost/sparselane "docker-archive:$folder/image.tar:sparselane:latest"
gzip --force "$folder/image.tar"
ls -l "$folder/image.tar.gz"
