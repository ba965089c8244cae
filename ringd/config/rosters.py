"""Lists of machines as other systems write them: read into members, and written for MLX.

Text in, members out, and a *remark* for everything that the other side has no place for. Sources:
MLX's ring backend (``MLX_HOSTFILE``), ``mlx.launch`` and ``mlx.distributed_config`` (0.32), exo's
placement (``hosts_by_node``), and the ``[cluster]`` tables of providers that build on MLX.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli

from ringd.config.settings import DEFAULT_PORT, Config, Member
from ringd.config.units import format_address, parse_address
from ringd.wire.text import printable

NOWHERE = "invalid"
"""The top-level domain that never leads anywhere (RFC 2606)."""

_NOBODY = "198.51.100.1"
"""What exo writes for machines that the file's reader is no neighbour of."""

_SHOWN = 60
_LONGEST_NAME = 63
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Roster:
    """What a file says of a ring.

    Attributes:
        name: The ring's; empty where the file has none.
        members: In ring order.
        remarks: What could not be carried over, and what to do; one sentence each.
    """

    name: str
    members: tuple[Member, ...]
    remarks: tuple[str, ...]


def read_roster(text: str) -> Roster:
    """Return what *text* says: an MLX hostfile, one of exo's, or TOML with ``[cluster]``.

    Raises:
        ValueError: It is none of these; says what is wrong.
    """
    reading = _Reading()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        name, members = reading.cluster(_toml(text))
    else:
        name, members = "", reading.hostfile(document)
    return Roster(name, tuple(members), tuple(reading.remarks))


def mlx_hostfile(config: Config) -> tuple[str, tuple[str, ...]]:
    """Return the members as MLX's ring backend reads them (``MLX_HOSTFILE``), and remarks.

    Raises:
        ValueError: A member has no address that MLX could use.
    """
    remarks = []
    hosts = []
    for member in config.ring.members:
        kept: list[str] = []
        left: list[str] = []
        for address in member.addresses:
            (left if ":" in parse_address(address)[0] else kept).append(address)
        if not kept:
            raise ValueError(f"{member.name} has IPv6 addresses alone, and MLX's ring has IPv4")
        if left:
            remarks.append(f"{member.name}: {', '.join(left)}: MLX's ring has IPv4 alone")
        if len(kept) > 1:
            remarks.append(
                f"{member.name} has {len(kept)} addresses: MLX connects to all at once, and ringd "
                "to one, the first that it can reach"
            )
        hosts.append(kept)
    ranks = ", ".join(f"{rank} {m.name}" for rank, m in enumerate(config.ring.members))
    remarks.append(f"names are not carried over: MLX_RANK is, by member: {ranks}")
    if config.ring.key:
        remarks.append("the key is not carried over: whoever reaches an MLX program can join it")
    remarks.append("MLX binds these ports itself: it cannot while ringd has them")
    return json.dumps(hosts, indent=2) + "\n", tuple(remarks)


def _toml(text: str) -> Mapping[str, Any]:
    try:
        return tomli.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("neither JSON, as hostfiles are, nor TOML") from None


class _Reading:
    """One file, as far as it is read."""

    def __init__(self) -> None:
        self.remarks: list[str] = []

    def hostfile(self, document: object) -> list[Member]:
        """Return the members in a hostfile of MLX or exo, which is JSON."""
        hosts = document
        if isinstance(document, dict):
            self._left_out("", document, {"hosts"})
            hosts = document.get("hosts")
        if not isinstance(hosts, list) or not hosts:
            raise ValueError('a hostfile is a list of hosts, or has one under "hosts"')
        if all(isinstance(host, dict) for host in hosts):
            return self._launched(hosts)
        return self._ranks([[host] if isinstance(host, str) else host for host in hosts])

    def cluster(self, document: Mapping[str, Any]) -> tuple[str, list[Member]]:
        """Return ring's name and members of ``[cluster]``."""
        if "ring" in document:
            raise ValueError("this is a config of ringd already")
        cluster = document.get("cluster")
        tables = cluster.get("members") if isinstance(cluster, dict) else None
        if not isinstance(cluster, dict) or not isinstance(tables, list) or not tables:
            raise ValueError("this TOML has no [[cluster.members]]")
        self._left_out("", document, {"cluster"})
        called = "cluster_id" if "cluster_id" in cluster else "name"
        self._left_out("cluster.", cluster, {called, "node_id", "members"})
        members = []
        for index, table in enumerate(tables):
            where = f"cluster.members[{index}]"
            if not isinstance(table, dict):
                raise ValueError(f"{where} is not a table")  # noqa: TRY004  one kind of error
            self._left_out(where + ".", table, {"node_id", "address"})
            name = self._name(table.get("node_id"), index)
            members.append(self._member(name, [table.get("address")], where))
        if "node_id" in cluster:
            name = self._name(cluster["node_id"], None)
            self.remarks.append(
                "cluster.node_id is not carried over, as ringd's config is the same on all "
                f"machines: start ringd here with --node {name}, if the host has another name"
            )
        ring = cluster.get(called)
        return (_clean(ring) if isinstance(ring, str) else ""), members

    def _launched(self, hosts: Sequence[Mapping[str, Any]]) -> list[Member]:
        """Return the members of a file for ``mlx.launch``: an "ssh" name and "ips" for each."""
        found: dict[str, list[object]] = {}
        entries: Counter[str] = Counter()
        for index, host in enumerate(hosts):
            ssh, ips = host.get("ssh"), host.get("ips") or []
            if not isinstance(ssh, str) or not isinstance(ips, list):
                raise ValueError(f'hosts[{index}] has no "ssh" name, or no list of "ips"')  # noqa: TRY004
            self._left_out(f"hosts[{index}].", host, {"ssh", "ips"})
            user, at, machine = ssh.rpartition("@")
            if at:
                self.remarks.append(f"hosts[{index}]: the user {user!r} of ssh is not carried over")
            entries[machine] += 1
            found.setdefault(machine, []).extend(ips or [machine])
        members = []
        for index, (machine, addresses) in enumerate(found.items()):
            name = self._node(index) if _is_ip(machine) else self._name(machine, index)
            members.append(self._member(name, list(dict.fromkeys(addresses)), f"hosts[{index}]"))
            if entries[machine] > 1:
                self.remarks.append(
                    f"{machine} stands there {entries[machine]} times and is one member, {name}: "
                    f"its programs connect with local_rank= and local_size={entries[machine]}"
                )
        self._ask_for_names(members)
        return members

    def _ranks(self, hosts: Sequence[object]) -> list[Member]:
        """Return the members of a file with nothing but addresses, by rank."""
        names = []
        for rank, addresses in enumerate(hosts):
            if not isinstance(addresses, list) or not addresses:
                raise ValueError(f"hosts[{rank}] is neither an address nor a list of addresses")
            host = _endpoint(addresses[0], f"hosts[{rank}]")[0]
            names.append(self._node(rank) if _is_ip(host) else _clean(host))
        if len({name.casefold() for name in names}) < len(names):
            names = [self._node(rank) for rank in range(len(hosts))]
        members = [
            self._member(name, list(addresses), f"hosts[{rank}]")  # type: ignore[call-overload]  # a list, see above
            for rank, (name, addresses) in enumerate(zip(names, hosts, strict=True))
        ]
        self._ask_for_names(members)
        machines: dict[str, list[str]] = {}
        for member in members:
            machines.setdefault(parse_address(member.addresses[0])[0], []).append(member.name)
        for host, here in machines.items():
            if len(here) > 1:
                self.remarks.append(
                    f"{' and '.join(here)} are on one machine ({host}): start a daemon for each, "
                    "with a --socket and a --state-dir of its own, or keep one of them, whose "
                    "programs connect with local_rank="
                )
        return members

    def _member(self, name: str, addresses: Iterable[object], where: str) -> Member:
        """Return the member *name*, with a name that leads nowhere if no address is known."""
        good, placeholders = [], []
        lasting = DEFAULT_PORT
        for address in addresses:
            host, port = _endpoint(address, where)
            lasting = port or lasting
            if port == 0 or host == _NOBODY or (_is_ip(host) and _unspecified(host)):
                placeholders.append(str(address))
            else:
                good.append(format_address(host, DEFAULT_PORT if port is None else port))
        if placeholders and not good:
            good = [format_address(f"{name}.{NOWHERE}", lasting)]
            self.remarks.append(
                f"{name}: {', '.join(placeholders)} is a placeholder and no address that others "
                f"could reach; {good[0]} stands there: write the machine's address instead"
            )
        elif placeholders:
            self.remarks.append(f"{name}: {', '.join(placeholders)} is left out, a placeholder")
        return Member(name, tuple(good))

    def _name(self, value: object, index: int | None) -> str:
        text = value if isinstance(value, str) else "" if value is None else str(value)
        name = _clean(text) or ("NAME" if index is None else self._node(index))
        if name != text:
            self.remarks.append(f"{_show(text)} is no name in a ring: {name} stands there")
        return name

    @staticmethod
    def _node(index: int) -> str:
        return f"node{index}"

    def _ask_for_names(self, members: Sequence[Member]) -> None:
        made = [m.name for index, m in enumerate(members) if m.name == self._node(index)]
        if made:
            self.remarks.append(
                f"the file has no name for {', '.join(made)}: rename them to the machines' host "
                "names, or start ringd there with --node"
            )

    def _left_out(self, prefix: str, table: Mapping[str, Any], known: set[str]) -> None:
        left = [
            prefix + str(key) for key in table if key not in known and table[key] not in ("", [])
        ]
        if left:
            names = ", ".join(printable(key, _SHOWN) for key in left)
            self.remarks.append(f"{names}: not carried over, ringd has no such setting")


def _endpoint(value: object, where: str) -> tuple[str, int | None]:
    """Return host and port of *value*; None for one without a port, 0 for none that could be used.

    Raises:
        ValueError: It is no address.
    """
    if isinstance(value, str):
        alone = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if _is_ip(alone) or ":" not in alone:
            return _checked(alone, where), None
        if value.endswith(":0"):
            return _checked(value.removesuffix(":0").strip("[]"), where), 0
    try:
        return parse_address(value)
    except ValueError as error:
        raise ValueError(f"{where}: {_show(value)}: {error}") from None


def _checked(host: str, where: str) -> str:
    try:
        return parse_address(format_address(host, DEFAULT_PORT))[0]
    except ValueError as error:
        raise ValueError(f"{where}: {_show(host)}: {error}") from None


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _unspecified(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified


def _clean(text: str) -> str:
    """Return *text* as a name in a ring may be; empty if nothing is left of it."""
    return _NO_NAME.sub("-", text).strip("._-")[:_LONGEST_NAME].strip("._-")


def _show(value: object) -> str:
    return printable(json.dumps(value, ensure_ascii=False, default=str), _SHOWN)
