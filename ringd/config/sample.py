"""Writes a commented config: the ring as given, every other setting as a comment.

``ringd-cli init``, the sample in etc/ and the manual come from here, so that none of them can
differ from the settings' real defaults.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from ringd.config.settings import SECTIONS, Member, Setting, settings_of

_WIDTH = 96

HEAD = """\
# ringd: one file, the same on every machine of the ring, with its key file beside it.
#
# A line that begins with "#" and a key holds that setting's default: take the "#" away to
# change it. Durations have a unit, ms, s, m or h ("2s"); sizes have KiB, MiB or GiB ("64MiB").
# "ringd --check-config" names all that is wrong with the file.

[ring]
# What the members call the ring; members of another ring are turned away.
"""

WITH_KEY = """\
# The file with the shared key, beside this one or with its full path: "ringd-cli keygen" makes
# it. Copy it to every machine; only the user that runs ringd may read it, or its group, if root
# owns it.
"""

PROTECT = """\
# What is done to what the machines send each other: "integrity" seals it, so that nobody can alter
# it on its way; "encrypt" also hides it; "off" does neither. Equal on all machines.
#protect = "integrity"
"""

NEED_KEY = """\
# Whether to do without a key off loopback, where anybody on the network could join.
#insecure = false
"""

WITHOUT_KEY = """\
# Without a key anybody who reaches these addresses can join the ring and see its tensors. With
# "insecure" that is accepted; otherwise a ring without a key stays on loopback addresses.
"""

MEMBERS = """\

# The machines in ring order: the first has rank 0, and each one's right neighbour is the next.
# "name" is the machine's host name, or what "ringd --node" says there. "addresses" are where
# the others reach it, preferred first: "10.0.0.1:5680", "studio.local:5680", "[fd00::1]:5680".
# "listen" names what it binds instead of every interface: listen = ["10.0.0.1:5680"].
"""

STREAMS = """
# Connections that go through the ring (docs/streams.md): a table for each port to be reached, with
# "to", the member and a port of its loopback; "from", the members from which, all others if it is
# left out; and "listen", if the daemons of those are to listen for it on a port of their loopback:
# [[streams]]
# to = "studio:5000"
# from = ["mini"]
# listen = 15000
"""

SECTION_HEADS = {
    "join": "How the members find each other, and how soon they notice that one is gone.",
    "ipc": "Between the programs of a machine and its daemon.",
    "ops": "The collective calls.",
    "log": "What the daemon writes to standard error.",
    "metrics": "For Prometheus, and for probes; needs prometheus_client (in ringd's checkout, pip "
    "install '.[metrics]').",
}


def render(
    name: str, members: Iterable[Member], *, key_file: str = "ring.key", insecure: bool = False
) -> str:
    """Return the text of a config for the ring *name* of *members*.

    With *insecure* it names no key file. The text is TOML with one comment for each setting.
    """
    lines = [HEAD + assign("name", name)]
    if insecure:
        lines.append(WITHOUT_KEY + assign("insecure", True))
    else:
        lines.append(WITH_KEY + assign("key_file", key_file) + PROTECT + NEED_KEY)
    lines.append(MEMBERS)
    for member in members:
        lines.append("[[ring.members]]\n" + assign("name", member.name))
        lines.append(assign("addresses", list(member.addresses)))
        if member.listen:
            lines.append(assign("listen", list(member.listen)))
        lines.append("\n")
    sections = (_section(section, settings_of(SECTIONS[section])) for section in SECTIONS)
    return "".join(lines) + "\n".join(sections) + STREAMS


def _section(name: str, settings: dict[str, Setting]) -> str:
    lines = [f"{_comment(SECTION_HEADS[name])}\n[{name}]\n"]
    for key, setting in settings.items():
        lines.append(f"{_comment(setting.help)}\n#{assign(key, setting.default)}")
    return "".join(lines)


def _comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def assign(key: str, value: Any) -> str:
    """Return the line of TOML that gives *key* a *value*."""
    # JSON's strings, numbers, booleans and lists are TOML's, too.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}\n"


def example() -> str:
    """Return the sample: a ring of two, one of which has two addresses."""
    studio = Member("studio", ("10.0.0.1:5680", "studio.local:5680"))
    return render("home", (studio, Member("mini", ("10.0.0.2:5680",))))


if __name__ == "__main__":
    sys.stdout.write(example())
