#!/usr/bin/env python3
"""Stands for the commands of a service manager: records what it is told, answers as they do.

Called as ``NAME WORDS...`` under the name of the command. ``SERVICE_FAKES`` names its directory:
``calls`` has a JSON list for each call, ``busy`` how many bootstraps fail yet, ``loaded`` is there
while the job is, ``accounts`` are the dscl records made so far. The forms of launchctl's answers
and exit codes are those of macOS 13 to 15, as they are found in public reports.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

PLACE = Path(os.environ["SERVICE_FAKES"])

USERS = """\
_amavisd                 83
_www                     70
_taken                   300
ann                      501
nobody                   -2
"""
GROUPS = """\
_amavisd                                83
_taken                                  301
nogroup                                 -1
staff                                   20
"""

PRINTED = """\
{target} = {{
\tactive count = 1
\tpath = /Library/LaunchDaemons/dev.ringd.ringd.plist
\ttype = LaunchDaemon
\tstate = running

\tprogram = /usr/local/bin/ringd
\targuments = {{
\t\t/usr/local/bin/ringd
\t}}

\tenvironment = {{
\t\tRINGD_NODE => mini
\t}}

\tdomain = system
\tminimum runtime = 10
\texit timeout = 30
\truns = 1
\tpid = 4711
\timmediate reason = speculative
\tforks = 0
\tlast exit code = (never exited)
\tproperties = keepalive | runatload
}}
"""


def fail(code: int, text: str) -> None:
    """End as the command does when it fails."""
    sys.stderr.write(text + "\n")
    sys.exit(code)


def launchctl(verb: str, *words: str) -> None:
    """Keep one job, which takes a while to go."""
    loaded, busy = PLACE / "loaded", PLACE / "busy"
    if verb == "bootstrap":
        left = int(busy.read_text()) if busy.exists() else 0
        if left or loaded.exists():
            busy.write_text(str(left - 1))
            fail(5, "Bootstrap failed: 5: Input/output error")
        loaded.touch()
    elif verb == "enable":
        pass
    elif not loaded.exists():
        if verb == "bootout":
            fail(3, "Boot-out failed: 3: No such process")
        fail(113, f'Could not find service "{words[-1]}" in domain for system')
    elif verb == "bootout":
        loaded.unlink()
    elif verb == "print":
        sys.stdout.write(PRINTED.format(target=words[-1]))


def dscl(_node: str, verb: str, record: str, *words: str) -> None:
    """Keep records of users and groups."""
    path = PLACE / "accounts"
    accounts = json.loads(path.read_text()) if path.exists() else {}
    if verb == "-list":
        sys.stdout.write({"/Users": USERS, "/Groups": GROUPS}[record])
        for name, values in accounts.items():
            if name.startswith(record) and words[0] in values:
                sys.stdout.write(f"{name.rpartition('/')[2]} {values[words[0]]}\n")
    elif verb == "-create":
        accounts.setdefault(record, {}).update([words] if words else [])
    elif accounts.pop(record, None) is None:
        fail(185, "<dscl_cmd> DS Error: -14136 (eDSRecordNotFound)")
    path.write_text(json.dumps(accounts))


def systemctl(*words: str) -> None:
    """Know a unit that runs, or none."""
    if "show" in words:
        path = PLACE / "shown"
        sys.stdout.write(path.read_text() if path.exists() else "ActiveState=inactive\n")
    elif "restart" in words and (PLACE / "broken").exists():
        fail(1, "Job for ringd.service failed because the control process exited with error code.")


def main() -> None:
    """Record the call and answer it."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    with (PLACE / "calls").open("a") as file:
        file.write(json.dumps(words) + "\n")
    answer = {"launchctl": launchctl, "dscl": dscl, "systemctl": systemctl}.get(words[0])
    if answer is not None:
        answer(*words[1:])


if __name__ == "__main__":
    main()
