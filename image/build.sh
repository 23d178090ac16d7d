#!/bin/sh
# Builds the Dockerfile's image where no container engine runs, and unpacks it: image/build.sh [FOLDER]
#
# Needs root and Debian's buildah and debootstrap, which makes the base image. Each RUN runs in a plain chroot and each
# layer is a copy, so neither user namespaces nor an overlay file system is needed. Variables:
#   SUITE    release of Debian (trixie)
#   ARCH     amd64 or arm64 (this machine's). The other one is cross-compiled; where qemu-user-static and binfmt-support are
#            installed, its Python is tried
#   MIRROR   of Debian (debootstrap's)
#   OPTIONS  more for buildah: "--volume FILE:/etc/pip.conf:ro" where pip needs settings of this machine
# FOLDER/ARCH (build/image/amd64) then has rootfs/, and image.tar.gz for `docker load`.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-build/image}
suite=${SUITE:-trixie}
native=$(dpkg --print-architecture)
arch=${ARCH:-$native}
mkdir -p "$folder/$arch"
folder=$(cd "$folder" && pwd)
base=$folder/$suite-$native
image=localhost/sparselane:$arch

buildah() { command buildah --root "$folder/store" --runroot "$folder/run" --storage-driver vfs "$@"; }

if [ ! -e "$base.tar" ]; then
    rm -rf "$base"
    debootstrap --arch "$native" --variant=minbase "$suite" "$base" ${MIRROR:-}
    tar -cf "$base.unfinished" --numeric-owner -C "$base" .
    mv "$base.unfinished" "$base.tar"
    rm -rf "$base"
fi
if ! buildah inspect --type image "localhost/debian:$suite" >/dev/null 2>&1; then
    container=$(buildah from scratch)
    buildah config --arch "$native" "$container"
    buildah add --quiet "$container" "$base.tar" /
    buildah commit --quiet --rm "$container" "localhost/debian:$suite"
fi
# buildah 1.28 knows the platform of the build only where it is told.
# shellcheck disable=SC2086
buildah build --platform "linux/$arch" --build-arg "BUILDPLATFORM=linux/$native" --isolation chroot --format docker \
    --build-arg "DEBIAN_IMAGE=localhost/debian:$suite" ${OPTIONS:-} --tag "$image" .
container=$(buildah from --arch "$arch" "$image")
rm -rf "$folder/$arch/rootfs"
cp -a "$(buildah mount "$container")" "$folder/$arch/rootfs"
buildah rm "$container" >/dev/null
rm -f "$folder/$arch/image.tar"
buildah push --quiet "$image" "docker-archive:$folder/$arch/image.tar:sparselane:latest"
gzip --force "$folder/$arch/image.tar"
ls -l "$folder/$arch/image.tar.gz"
