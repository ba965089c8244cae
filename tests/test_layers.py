"""The layers: what each room imports is what docs/design.md says, and no files go in a circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

from ringd.collective.kinds import KINDS

ROOT = Path(__file__).parent.parent
PURE_WITHOUT = {
    "asyncio",
    "os",
    "random",
    "secrets",
    "select",
    "selectors",
    "socket",
    "threading",
    "time",
    "zmq",
}
ROW = re.compile(r"\| `([\w/]+)` \| (pure|) *\| [^|]+ \| (.*?) *\|")

PART = re.compile(r"^\| `(\w+)` \| [^|]+ \| ?(.*?) *\|$", re.MULTILINE)
VALUES = {"actions", "op", "words"}


def room_of(module: str) -> str:
    """Return the room of ringd that *module* is in; empty for the package's own face."""
    parts = module.split(".")[1:]
    if parts[:1] == ["wire"] and parts[1:2] in (["link"], ["border"]):
        return "/".join(parts[:2])
    return parts[0] if parts else ""


def modules() -> dict[str, Path]:
    """Return every module of ringd and its file."""
    found = {}
    for path in sorted((ROOT / "ringd").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Return what a file imports: modules of ringd, and top-level names of others."""
    known = modules()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0
            if node.module.partition(".")[0] != "ringd":
                found.add(node.module.partition(".")[0])
                continue
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return found


def table() -> dict[str, tuple[bool, set[str]]]:
    """Return, by room, whether it is pure, and what it may import, as the document says."""
    text = (ROOT / "docs" / "design.md").read_text()
    rows: dict[str, tuple[bool, set[str]]] = {}
    for name, pure, allowed in ROW.findall(text):
        names = set(rows) if allowed == "all of the above" else set(re.findall(r"`(.+?)`", allowed))
        rows[name] = (bool(pure), names)
    return rows


def test_rooms_import_what_the_table_says() -> None:
    """No more, and no less: a row that allows what nobody needs is out of date."""
    rows = table()
    actual: dict[str, set[str]] = {room: set() for room in rows}
    for module, path in modules().items():
        room = room_of(module)
        if room:
            targets = {room_of(name) for name in imports(path) if name.startswith("ringd.")}
            actual[room] |= targets - {room, ""}
    for room, (_, allowed) in rows.items():
        if room == "daemon":
            assert actual[room] <= allowed
        else:
            assert actual[room] == allowed, room


def test_the_parts_of_groups_know_what_their_table_says() -> None:
    """Each knows the parts below it, and none in a circle."""
    text = (ROOT / "docs" / "design.md").read_text()
    text = text[text.index("### The parts of `groups`") :]
    rows = {part: re.findall(r"`(\w+)`", known) for part, known in PART.findall(text)}
    actual = {}
    for module, path in modules().items():
        room, _, part = module.removeprefix("ringd.").rpartition(".")
        if room == "groups" and part not in VALUES:
            names = {name.removeprefix("ringd.groups.") for name in imports(path)}
            actual[part] = sorted(names & set(rows))
    assert actual == rows


def test_no_layers_import_each_other() -> None:
    """There is an order in which each room stands above all that it imports."""
    order = TopologicalSorter({room: allowed for room, (_, allowed) in table().items()})
    assert tuple(order.static_order())


def test_no_files_import_each_other() -> None:
    """Not even for types."""
    graph = {
        module: {name for name in imports(path) if name.startswith("ringd.")} - {module}
        for module, path in modules().items()
        if module != "ringd"
    }
    assert tuple(TopologicalSorter(graph).static_order())


def test_pure_rooms_reach_for_nothing() -> None:
    """No sockets, clocks, threads, nor chance of their own."""
    pure = {room for room, (is_pure, _) in table().items() if is_pure}
    assert len(pure) == 10
    for module, path in modules().items():
        if room_of(module) in pure:
            assert not imports(path) & PURE_WITHOUT, module


CALL_KINDS = set(KINDS)
PLACE = re.compile(r"config\.(rank|size)\b")
OWN_PLACE = {"ringd.daemon.daemon", "ringd.ring.neighbours", "ringd.ring.reach"}
"""They wire, or know the roster; all others are given a view."""


def test_no_kind_of_call_is_known_by_its_name_but_to_the_table_and_the_face() -> None:
    """So a new one is a row, a plan and a method."""
    for module, path in modules().items():
        if module not in {"ringd.collective.kinds", "ringd.client.ring"}:
            words = {
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not words & CALL_KINDS, module


def test_only_who_wires_reads_its_place_in_the_config() -> None:
    """Whoever else needs a rank or a size has a view."""
    users = {module for module, path in modules().items() if PLACE.search(path.read_text())}
    assert users == OWN_PLACE
