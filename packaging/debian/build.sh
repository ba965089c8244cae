#!/bin/sh
# Builds dist/ringd_VERSION_ARCH.deb for the Debian or Ubuntu that this runs on.
# PYTHON=... is the system's own interpreter, PIP=... any pip from 23.1 on.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
python=${PYTHON:-/usr/bin/python3}
pip=${PIP:-"$python -m pip"}

fail() {
    echo "deb: $1" >&2
    exit 1
}

command -v dpkg-deb >/dev/null || fail "no dpkg-deb here; a Debian package is built on Debian or Ubuntu"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$python is not Python 3.10 or newer; name this system's own with PYTHON=..."

minor=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
program=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$source/ringd/__init__.py")
release=$(. /etc/os-release && echo "$ID${VERSION_ID:-}")
version="$program-1~$release"
architecture=$(dpkg --print-architecture)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
home=$tree/usr/lib/ringd
site=$home/lib/$minor/site-packages

# A virtual environment by hand: one that is made elsewhere names the place of its making.
mkdir -p "$site" "$home/bin" "$tree/DEBIAN"
ln -s "/usr/bin/$minor" "$home/bin/python"
printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$home/pyvenv.cfg"
$pip --python "$python" install --quiet --disable-pip-version-check --no-compile --root-user-action=ignore \
    --target "$site" "$source[bf16,metrics,watch]"
rm -rf "$site/bin"
for command in ringd:ringd.daemon.main ringd-cli:ringd.cli.main; do
    name=${command%%:*}
    cat >"$home/bin/$name" <<EOF
#!/usr/lib/ringd/bin/python -I
import sys
from ${command#*:} import main
sys.exit(main())
EOF
    chmod 0755 "$home/bin/$name"
    mkdir -p "$tree/usr/bin"
    ln -s "../lib/ringd/bin/$name" "$tree/usr/bin/$name"
done
# What only tests the dependencies; then all is compiled, for nobody may write there later.
find "$site/numpy" -type d -name tests -prune -exec rm -rf {} +
"$python" -m compileall -q --invalidation-mode unchecked-hash -s "$tree" -p / "$site" >/dev/null

PYTHONPATH=$source "$python" "$here/files.py" "$tree"
PYTHONPATH=$site:$source "$python" "$here/../manual.py" "$tree"
gzip -9n "$tree"/usr/share/man/man*/*
install -D -m 0644 "$here/default" "$tree/etc/default/ringd"
echo /etc/default/ringd >"$tree/DEBIAN/conffiles"
mkdir -p "$tree/etc/ringd"
documents=$tree/usr/share/doc/ringd
install -D -m 0644 "$source/LICENSE" "$documents/copyright"
install -m 0644 "$source/README.md" "$documents/"
install -D -m 0644 "$source/etc/ringd.toml" "$documents/examples/ringd.toml"
install -m 0755 "$here/postinst" "$here/prerm" "$here/postrm" "$tree/DEBIAN/"
cat >"$tree/DEBIAN/control" <<EOF
Package: ringd
Version: $version
Architecture: $architecture
Maintainer: The ringd authors <ringd@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$tree" | cut -f1)
Depends: $minor, libc6, libgcc-s1, libstdc++6, init-system-helpers, systemd
Section: net
Priority: optional
Description: daemon that keeps a ring of machines together
 One daemon per machine holds that machine's place in a ring, and runs collectives (all-reduce and
 the like) on the tensors of the programs beside it.
EOF
mkdir -p "$source/dist"
dpkg-deb --root-owner-group -Zxz -z2 --build "$tree" "$source/dist/ringd_${version}_$architecture.deb"
