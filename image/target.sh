#!/bin/sh
# Which machine is the image for? `. image/target.sh` in the builder stage of the Dockerfile tells pip, CMake and the
# compiler: TARGETARCH, Debian's name of it, or this one.
#
# Debian's own cross builds say the same: what Python says of the other machine comes with libpython3-dev:ARCH, and from
# that follow the wheels that pip takes, the name of the extension and the tag of its wheel. Nothing is emulated.
arch=${TARGETARCH:-$(dpkg --print-architecture)}
multiarch=$(dpkg-architecture --host-arch "$arch" --query DEB_HOST_MULTIARCH)
machine=${multiarch%%-*}
export "_PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata__$multiarch" "_PYTHON_HOST_PLATFORM=linux-$machine"
export "CXX=$multiarch-g++" "STRIP=$multiarch-strip"
export "CMAKE_ARGS=-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$machine"
