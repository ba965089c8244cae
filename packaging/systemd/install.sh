#!/bin/sh
# Installs this checkout as a systemd service: the program in /opt/ringd, its commands in
# /usr/local/bin, the unit and the user "ringd". Run again to upgrade. Needs root.
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

[ "$(uname -s)" = Linux ] || fail "this installs a systemd service; on macOS see packaging/launchd"
command -v systemctl >/dev/null || fail "no systemctl here; run ringd under this system's own service manager"
[ "$(id -u)" = 0 ] || fail "root is needed; run: sudo make install-service"
"$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$python is not Python 3.10 or newer with venv (Debian, Ubuntu: apt install python3-venv)"

echo "Installing ringd into $program ..."
"$python" -m venv "$program"
"$program/bin/python" -m pip install --quiet --disable-pip-version-check "$here/../..[bf16]"
mkdir -p /usr/local/bin
ln -sf "$program/bin/ringd" "$program/bin/ringd-cli" /usr/local/bin/

mkdir -p /etc/sysusers.d /etc/systemd/system /etc/ringd
install -m 0644 "$here/ringd.sysusers" /etc/sysusers.d/ringd.conf
systemd-sysusers /etc/sysusers.d/ringd.conf
runuser -u ringd -- /usr/local/bin/ringd-cli --version >/dev/null ||
    fail "the user ringd cannot run $python; name another with PYTHON=..."
install -m 0644 "$here/ringd.service" /etc/systemd/system/ringd.service
install -m 0644 "$here/../../etc/ringd.toml" /etc/ringd/ringd.toml.sample
if [ -f /etc/ringd/ring.key ]; then
    chown ringd:ringd /etc/ringd/ring.key
    chmod 0600 /etc/ringd/ring.key
fi

systemctl enable --quiet ringd
if [ ! -d /run/systemd/system ]; then
    echo "Installed. systemd does not run here, so nothing was started."
elif [ -f /etc/ringd/ringd.toml ]; then
    systemctl daemon-reload
    systemctl restart ringd
    echo "Installed and started: systemctl status ringd; ringd-cli status"
else
    systemctl daemon-reload
    echo "Installed. Put ringd.toml and ring.key into /etc/ringd (ringd-cli init, keygen), then"
    echo "    chown ringd:ringd /etc/ringd/ring.key && systemctl start ringd"
fi
echo "Users whose programs may use the ring join its group: usermod --append --groups ringd USER"
