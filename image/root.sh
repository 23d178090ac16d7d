#!/bin/sh
# Lays out the root file system of the image: image/root.sh ROOT FOLDER, in the builder stage of the Dockerfile.
#
# Debian's Python, the packages whose shared libraries it or anything in FOLDER needs, and nothing else: no shell, no
# package manager, no pip. dpkg's list of packages is there, so that scanners know what to look for.
set -eu
root=$1
python=$(basename "$(readlink -f /usr/bin/python3)")
libraries=$(find "/usr/bin/$python" "/usr/lib/$python" "$2" \
    -type f \( -name '*.so*' -o -name "$python" \) -exec ldd {} + | sed -n 's|.* => .*/\([^/ ]*\) (.*|\1|p' | sort -u)
packages=$(
    echo base-files "$python-minimal" "lib$python-minimal" "lib$python-stdlib"
    for library in $libraries; do
        # A wheel brings some of its own, which no package has.
        dpkg-query --search "*/$library" 2>/dev/null | sed -n '/^diversion /!s/:.*//p' || true
    done | sort -u
)
mkdir -p "$root/var/lib/dpkg" /tmp/packages
cd /tmp/packages
# shellcheck disable=SC2086
apt-get download $packages
# Where /lib is part of /usr, as on every Debian since 12.
for folder in bin lib lib64 sbin; do mkdir -p "$root/usr/$folder" && ln -sfn "usr/$folder" "$root/$folder"; done
for package in *.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
    dpkg-deb --field "$package" | sed '/^Package: /a Status: install ok installed' >>"$root/var/lib/dpkg/status"
    echo >>"$root/var/lib/dpkg/status"
done
rm -r /tmp/packages
# Licences stay.
find "$root/usr/share/doc" -type f ! -name copyright -delete
rm -rf "$root/usr/share/man" "$root/usr/share/lintian" "$root/usr/share/locale" "$root/usr/share/info"
printf 'root:x:0:0::/:/none\nsparselane:x:10001:10001::/nonexistent:/none\n' >"$root/etc/passwd"
printf 'root:x:0:\nsparselane:x:10001:\n' >"$root/etc/group"
chmod 1777 "$root/tmp"
# Debian compiles these when it installs; a read-only root file system would do it again with every start, for a second.
"$python" -m compileall -q --invalidation-mode unchecked-hash -s "$root" "$root/usr/lib/$python"
# Here, and not on the day of the roll-out.
chroot "$root" "/usr/bin/$python" -c 'import asyncio, ctypes, json, ssl'
