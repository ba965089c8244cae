#!/bin/sh
# Installs this checkout as a systemd service: the program in /opt/ringd, its commands in
# /usr/local/bin, and the rest as `ringd-cli service install` does. Run again to upgrade. Needs root.
# PYTHON=... chooses the interpreter; the user "ringd" must be able to run it. What ringd needs is
# installed from wheels by their hashes.
set -eu
umask 022

here=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-/usr/bin/python3}
program=/opt/ringd
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
cd / # and -I: no module of the caller's directory or environment is run as root

fail() {
    echo "install-service: $1" >&2
    exit 1
}

[ "$(uname -s)" = Linux ] || fail "this is for Linux; on macOS: sudo pipx install --global '.[bf16,metrics,watch]' && sudo ringd-cli service install"
command -v systemctl >/dev/null || fail "no systemctl here; run ringd under this system's own service manager"
[ "$(id -u)" = 0 ] || fail "root is needed; run: sudo make install-service"
"$python" -I -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$python is not Python 3.10 or newer with venv (Debian, Ubuntu: apt install python3-venv)"

# Root builds nothing: a build runs code of the checkout and of the tools that it names.
if [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    sudo -u "$SUDO_USER" -H make -C "$here" wheel
fi
wheel=$(ls -t "$here"/dist/ringd-*.whl 2>/dev/null | head -n 1)
[ -n "$wheel" ] || fail "no wheel in $here/dist; as the checkout's user: make wheel"

echo "Installing ringd into $program ..."
"$python" -I -m venv "$program"
pip="$program/bin/python -I -m pip install --quiet --disable-pip-version-check --no-deps"
$pip --only-binary :all: --require-hashes -r "$here/packaging/systemd/requirements.txt"
$pip --force-reinstall "$wheel"
mkdir -p /usr/local/bin
ln -sf "$program/bin/ringd" "$program/bin/ringd-cli" /usr/local/bin/
exec "$program/bin/ringd-cli" service install
