#!/bin/sh
# Takes away what install.sh put here. /etc/ringd, /var/lib/ringd and the user stay. Needs root.
set -eu

[ "$(id -u)" = 0 ] || { echo "uninstall-service: root is needed; use sudo" >&2; exit 1; }

if [ -d /run/systemd/system ] && [ -f /etc/systemd/system/ringd.service ]; then
    systemctl stop ringd
fi
if [ -f /etc/systemd/system/ringd.service ]; then
    systemctl disable --quiet ringd
fi
rm -f /etc/systemd/system/ringd.service /etc/sysusers.d/ringd.conf /etc/ringd/ringd.toml.sample
for command in ringd ringd-cli; do
    if [ "$(readlink "/usr/local/bin/$command")" = "/opt/ringd/bin/$command" ]; then
        rm "/usr/local/bin/$command"
    fi
done
rm -rf /opt/ringd
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
echo "Removed. Still there: /etc/ringd (config and key), /var/lib/ringd (state), the user ringd."
