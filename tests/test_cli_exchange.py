"""ringd-cli import and export: what other systems' lists of machines become, and what not."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from ringd.cli.main import main
from ringd.config.keyfile import create_key
from ringd.config.load import load
from ringd.config.rosters import read_roster
from ringd.config.settings import Member

CLUSTER = """
[provider]
name = "studio"
[cluster]
enabled = true
cluster_id = "lab"
node_id = "studio"
backend = "jaccl"
[[cluster.members]]
node_id = "studio"
address = "169.254.1.1:9000"
memory_gb = 24
[[cluster.members]]
node_id = "mini"
address = "fd00::2"
"""


def run(*arguments, text=None):
    """Run ringd-cli; returns (exit code, standard output, standard error)."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)
    return result.exit_code, result.stdout, result.stderr


def imported(document):
    """Return the members, and the remarks in one text, of a hostfile."""
    roster = read_roster(document if isinstance(document, str) else json.dumps(document))
    return roster.members, "\n".join(roster.remarks)


@pytest.mark.parametrize(
    "hosts",
    [
        [["10.0.0.1:5000", "10.1.0.1:5001"], ["mini.local:5000"]],
        {"hosts": [["10.0.0.1:5000", "10.1.0.1:5001"], ["mini.local:5000"]]},
    ],
)
def test_a_nested_hostfile(hosts):
    """Ranks become members in their order, with all addresses; a host name is a member's name."""
    members, remarks = imported(hosts)
    assert members == (
        Member("node0", ("10.0.0.1:5000", "10.1.0.1:5001")),
        Member("mini.local", ("mini.local:5000",)),
    )
    assert remarks == (
        "the file has no name for node0: rename them to the machines' host names, or start ringd "
        "there with --node"
    )


def test_a_flat_hostfile():
    """One address for each rank; two on one machine are said to be."""
    members, remarks = imported(["127.0.0.1:5000", "127.0.0.1:5001"])
    assert members == (Member("node0", ("127.0.0.1:5000",)), Member("node1", ("127.0.0.1:5001",)))
    assert "node0 and node1 are on one machine (127.0.0.1): start a daemon for each" in remarks


def test_a_file_of_mlx_launch():
    """The ssh names become members; ranks of one machine one member; RDMA and users are left."""
    hosts = [
        {"ssh": "me@studio", "ips": ["10.0.0.1", "fd00::1"], "rdma": [None, "rdma_en2"]},
        {"ssh": "10.0.0.2", "ips": ["10.0.0.2"]},
        {"ssh": "mini.local", "ips": []},
        {"ssh": "mini.local", "ips": []},
    ]
    members, remarks = imported({"backend": "jaccl", "envs": ["A=1"], "hosts": hosts})
    assert members == (
        Member("studio", ("10.0.0.1:5680", "[fd00::1]:5680")),
        Member("node1", ("10.0.0.2:5680",)),
        Member("mini.local", ("mini.local:5680",)),
    )
    for part in (
        "backend, envs: not carried over",
        "hosts[0].rdma: not carried over",
        "the user 'me' of ssh is not carried over",
        "mini.local stands there 2 times and is one member, mini.local",
        "the file has no name for node1:",
    ):
        assert part in remarks


def test_a_file_of_exo():
    """Its placeholders become a name that leads nowhere, at the port of that rank, and are said."""
    hosts = ["192.168.1.10:52415", "0.0.0.0:52415", "192.168.1.12:52415", "198.51.100.1:0"]
    members, remarks = imported(hosts)
    assert [member.addresses for member in members] == [
        ("192.168.1.10:52415",),
        ("node1.invalid:52415",),
        ("192.168.1.12:52415",),
        ("node3.invalid:5680",),
    ]
    assert "node1: 0.0.0.0:52415 is a placeholder" in remarks
    assert "node3: 198.51.100.1:0 is a placeholder" in remarks


def test_a_placeholder_beside_an_address_is_left_out():
    """A member with an address needs no name that leads nowhere."""
    members, remarks = imported([["0.0.0.0:5000", "10.0.0.1:5000"], ["10.0.0.2:5000"]])
    assert members[0] == Member("node0", ("10.0.0.1:5000",))
    assert "node0: 0.0.0.0:5000 is left out, a placeholder" in remarks


def test_a_cluster(tmp_path):
    """The members in their order, the ring's name, a port where there is none; the rest is said."""
    file, config = tmp_path / "provider.toml", tmp_path / "ringd.toml"
    file.write_text(CLUSTER)
    code, out, err = run("import", file, "-o", config)
    assert (code, out) == (0, "")
    for part in (
        f"Wrote {config}.",
        "Note: provider: not carried over",
        "Note: cluster.enabled, cluster.backend: not carried over",
        "Note: cluster.members[0].memory_gb: not carried over",
        "Note: cluster.node_id is not carried over, as ringd's config is the same on all",
        f'Next: "ringd-cli keygen {tmp_path / "ring.key"}"',
    ):
        assert part in err
    create_key(tmp_path / "ring.key")
    ring = load(config, "mini").ring
    assert ring.name == "lab"
    assert ring.members == (
        Member("studio", ("169.254.1.1:9000",)),
        Member("mini", ("[fd00::2]:5680",)),
    )


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ('name = "attic"\n', "attic"),
        ('cluster_id = "lab"\nname = "attic"\n', "lab"),
        ("", "home"),
    ],
)
def test_what_a_cluster_is_called(tmp_path, keys, name):
    """That is the ring's name; a second name is not carried over, and that is said."""
    file, config = tmp_path / "provider.toml", tmp_path / "ringd.toml"
    members = '[[cluster.members]]\nnode_id = "a"\naddress = "10.0.0.1:5680"\n'
    file.write_text(f"[cluster]\n{keys}{members}")
    code, _, err = run("import", file, "-o", config)
    assert (code, "cluster.name: not carried over" in err) == (0, "cluster_id" in keys)
    create_key(tmp_path / "ring.key")
    assert load(config, "a").ring.name == name


def test_no_text_of_a_file_moves_the_cursor():
    """What is shown of it is harmless to a terminal."""
    _, remarks = imported({"\x1b[2Jenvs": 1, "hosts": ["10.0.0.1:5000"]})
    assert remarks.startswith("?[2Jenvs: not carried over")


def test_names_that_a_ring_cannot_have():
    """They are changed, and that is said."""
    members, remarks = imported(
        '[[cluster.members]]\nnode_id = "Anna\'s Mac"\naddress = "10.0.0.1"\n'
        '[[cluster.members]]\nnode_id = 7\naddress = "10.0.0.2"\n'
    )
    assert [member.name for member in members] == ["Anna-s-Mac", "7"]
    assert '"Anna\'s Mac" is no name in a ring: Anna-s-Mac stands there' in remarks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "this TOML has no [[cluster.members]]"),
        ("{", "neither JSON, as hostfiles are, nor TOML"),
        ("[]", 'a hostfile is a list of hosts, or has one under "hosts"'),
        ('{"nodes": []}', 'a hostfile is a list of hosts, or has one under "hosts"'),
        ("[1]", "hosts[0] is neither an address nor a list of addresses"),
        ("[[]]", "hosts[0] is neither an address nor a list of addresses"),
        ('["a:b"]', 'hosts[0]: "a:b": port "b" is not a number'),
        ('[["10.0.0.1:1", 5]]', "hosts[0]: 5: not an address"),
        ('[{"ips": []}]', 'hosts[0] has no "ssh" name'),
        ('["a:1", "a:1"]', "the same as ring.members[0].addresses[0]"),
        ('[ring]\nname = "home"', "this is a config of ringd already"),
        ("[cluster]\nmembers = [1]", "cluster.members[0] is not a table"),
        ('[[cluster.members]]\nnode_id = "a"', "cluster.members[0]: null: not an address"),
    ],
)
def test_what_cannot_be_used(text, expected):
    """It is said where the fault is; nothing is written."""
    code, out, err = run("import", "-", text=text)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert expected in err


def test_export_gives_back_what_was_imported(tmp_path):
    """MLX's own file comes back as it was; what it has no place for is said."""
    config = tmp_path / "ringd.toml"
    hosts = [["10.0.0.1:5000", "10.1.0.1:5001"], ["10.0.0.2:5000"]]
    code, out, _ = run("import", "-", text=json.dumps(hosts))
    assert code == 0
    config.write_text(out)
    create_key(tmp_path / "ring.key")
    code, out, err = run("export", "--mlx", "--config", config)
    assert (code, json.loads(out)) == (0, hosts)
    for part in (
        "Note: node0 has 2 addresses: MLX connects to all at once",
        "MLX_RANK is, by member: 0 node0, 1 node1",
        "the key is not carried over",
        "it cannot while ringd has them",
    ):
        assert part in err
    assert run("export", "--config", config)[0] == 2


def test_export_without_ipv4(tmp_path):
    """A member that MLX could not reach ends it; an address too many is only said."""
    config = tmp_path / "ringd.toml"
    for addresses, code in ((["[::1]:5000", "127.0.0.1:5000"], 0), (["[::1]:5000"], 1)):
        text = f'[ring]\nname = "x"\n[[ring.members]]\nname = "a"\naddresses = {addresses}\n'
        config.write_text(text)
        got, out, err = run("export", "--mlx", "--config", config)
        assert got == code, err
        assert "IPv4" in err
        assert out == ("" if code else '[\n  [\n    "127.0.0.1:5000"\n  ]\n]\n')


def test_files_are_overwritten_only_when_told(tmp_path):
    """As with init."""
    path = tmp_path / "ringd.toml"
    path.write_text("precious")
    arguments = ("import", "-", "-o", path)
    code, _, err = run(*arguments, text='["10.0.0.1:5000"]')
    assert (code, path.read_text()) == (1, "precious")
    assert "--force overwrites it" in err
    assert run(*arguments, "--force", text='["10.0.0.1:5000"]')[0] == 0
    assert "10.0.0.1:5000" in path.read_text()
