#!/bin/sh
# Lays out the root file system of the image: image/root.sh ROOT FOLDER, in the builder stage of the Dockerfile.
#
# Debian's Python, the packages whose shared libraries it or anything in FOLDER needs, and nothing else: no shell, no
# package manager, no pip. dpkg's list of packages is there, so that scanners know what to look for.
set -eu
. "$(dirname "$0")/target.sh"
root=$1 folder=$2
python=$(basename "$(readlink -f /usr/bin/python3)")

# Where /lib is part of /usr, as on every Debian since 12.
for part in bin lib lib64 sbin; do mkdir -p "$root/usr/$part" && ln -sfn "usr/$part" "$root/$part"; done
mkdir -p "$root/var/lib/dpkg" /tmp/packages
cd /tmp/packages
unpack() {
    apt-get download "$@"
    for package in *.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
        dpkg-deb --field "$package" | sed '/^Package: /a Status: install ok installed' >>"$root/var/lib/dpkg/status"
        echo >>"$root/var/lib/dpkg/status"
    done
    rm ./*.deb
}

# What is needed and not there yet, until nothing is. A wheel brings some libraries of its own.
missing=$python packages="base-files $python-minimal lib$python-minimal lib$python-stdlib"
while [ -n "$missing" ]; do
    # shellcheck disable=SC2046
    unpack $(printf "%s:$arch\n" $packages)
    find "$root" "$folder" -name '*.so*' -printf '%f\n' | sort -u >there
    find "$root" "$folder" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec "$multiarch-readelf" --dynamic {} + \
        2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p' | sort -u >needed
    grep --quiet '^libc\.so' needed
    missing=$(comm -13 there needed) before=$packages
    packages=$(
        for library in $missing; do
            dpkg-query --search "*/$multiarch/$library" | sed -n '/^diversion /!s/:.*//p'
        done | sort -u
    )
    if [ -n "$missing" ] && { [ -z "$packages" ] || [ "$packages" = "$before" ]; }; then
        echo "error: needed, and in no package that is installed here:" $missing >&2
        exit 1
    fi
done
cd /
rm -r /tmp/packages
# Licences stay.
find "$root/usr/share/doc" -type f ! -name copyright -delete
rm -rf "$root/usr/share/man" "$root/usr/share/lintian" "$root/usr/share/locale" "$root/usr/share/info"
printf 'root:x:0:0::/:/none\nsparselane:x:10001:10001::/nonexistent:/none\n' >"$root/etc/passwd"
printf 'root:x:0:\nsparselane:x:10001:\n' >"$root/etc/group"
chmod 1777 "$root/tmp"
# Debian compiles these when it installs; a read-only root file system would do it again with every start, for a second.
"$python" -m compileall -q --invalidation-mode unchecked-hash -s "$root" "$root/usr/lib/$python"
# Here, and not on the day of the roll-out: all libraries of the server are loaded. For the other architecture that needs
# an emulator (qemu-user-static, binfmt_misc).
if chroot "$root" "/usr/bin/$python" -c '' || [ "$arch" = "$(dpkg --print-architecture)" ]; then
    cp -a --parents "$folder" "$root"
    chroot "$root" "$folder/bin/python" -c 'import asyncio, ctypes, ssl, service.server'
    rm -r "${root:?}$folder"
else
    echo "note: nothing here runs programs for $arch, so the image's Python was not tried" >&2
fi
