#!/bin/sh
# Installs this checkout as a systemd service: the program in /opt/ringd, its commands in
# /usr/local/bin, and the rest as `ringd-cli service install` does. Run again to upgrade. Needs root.
# PYTHON=... chooses the interpreter; the user "ringd" must be able to run it.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-/usr/bin/python3}
program=/opt/ringd

fail() {
    echo "install-service: $1" >&2
    exit 1
}

[ "$(uname -s)" = Linux ] || fail "this is for Linux; on macOS: pipx install . && sudo ringd-cli service install"
command -v systemctl >/dev/null || fail "no systemctl here; run ringd under this system's own service manager"
[ "$(id -u)" = 0 ] || fail "root is needed; run: sudo make install-service"
"$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$python is not Python 3.10 or newer with venv (Debian, Ubuntu: apt install python3-venv)"

echo "Installing ringd into $program ..."
"$python" -m venv "$program"
"$program/bin/python" -m pip install --quiet --disable-pip-version-check "$here/../..[bf16,metrics,watch]"
mkdir -p /usr/local/bin
ln -sf "$program/bin/ringd" "$program/bin/ringd-cli" /usr/local/bin/
exec "$program/bin/ringd-cli" service install
