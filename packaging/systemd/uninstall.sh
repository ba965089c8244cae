#!/bin/sh
# Takes away what install.sh put here. /etc/ringd, /var/lib/ringd and the user stay; with --purge
# they go, too. Needs root.
set -eu

[ "$(id -u)" = 0 ] || { echo "uninstall-service: root is needed; use sudo" >&2; exit 1; }

/opt/ringd/bin/ringd-cli service uninstall "$@"
for command in ringd ringd-cli; do
    if [ "$(readlink "/usr/local/bin/$command")" = "/opt/ringd/bin/$command" ]; then
        rm "/usr/local/bin/$command"
    fi
done
rm -rf /opt/ringd
