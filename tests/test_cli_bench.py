"""``ringd-cli bench``: what it measures, in which columns, and what it calls slow."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from ringd.cli import measure
from ringd.cli.bench import GROUP, missing_members, run_bench, sizes
from ringd.cli.figures import HEAD, CallFigure, LinkFigure, call_line, link_lines, slowest
from ringd.cli.main import main
from ringd.cli.plot import svg
from tests.cluster import Cluster
from tests.ringkit import Call, connected, everywhere
from tests.test_ring_commands import cli

EVEN = [
    LinkFigure("studio", "mini", 0.0004, 1.0e9),
    LinkFigure("mini", "air", 0.0005, 1.1e9),
    LinkFigure("air", "studio", 0.0004, 1.0e9),
]


def call(size: int, busbw: float, wrong: tuple[int, int] = (0, 0)) -> CallFigure:
    """Return the figures of a ring of three in which each link carries *busbw*."""
    return CallFigure(size, 3, size * 4 / 3 / busbw, size * 4 / 3 / busbw, wrong)


def test_columns_are_those_of_nccl_tests() -> None:
    """The same names and units in the same order; busbw is algbw times 2(n-1)/n."""
    figure = CallFigure(1 << 20, 4, 0.001, 0.002, (0, 3))
    assert figure.algbw(0.001) == pytest.approx(1.048576e9)
    assert figure.busbw(0.001) == pytest.approx(1.5 * 1.048576e9)
    kind = ["time", "algbw", "busbw", "#wrong"]
    assert HEAD[1].split() == ["#", "size", "count", "type", "redop", "root", *kind, *kind]
    assert HEAD[2].split() == ["#", "(B)", "(elements)", *2 * ["(us)", "(GB/s)", "(GB/s)"]]
    cells = ["1048576", "262144", "float", "sum", "-1"]
    cells += ["1000.0", "1.05", "1.57", "0", "2000.0", "0.52", "0.79", "3"]
    assert call_line(figure).split() == cells
    assert len(call_line(figure)) == len(HEAD[1])


def test_links_have_a_line_each() -> None:
    """From whom to whom, the time there and back, and how much a second."""
    head, *lines = link_lines(EVEN[:1])
    assert head == "# link            round trip (us)  bandwidth (GB/s)"
    assert lines == ["  studio -> mini            400.0             1.000"]


@pytest.mark.parametrize(
    ("links", "calls", "expected"),
    [
        ([], [], ["There is one member, and so no link"]),
        (EVEN, [], ["All links are much alike: studio -> mini carries 1.000 GB/s at least."]),
        (
            EVEN,
            [call(1 << 22, 0.9e9), call(1 << 24, 0.95e9), call(64, 2e9)],
            ["All links", "Large all-reduces carry 0.95 GB/s over each link, 95% of what studio"],
        ),
        (EVEN, [call(1 << 22, 0.3e9)], ["All links", "30% of what studio -> mini can: they wait"]),
        (
            [*EVEN[:2], LinkFigure("air", "studio", 0.0004, 0.2e9)],
            [call(1 << 22, 0.19e9)],
            [
                "The slowest link: air -> studio carries 0.200 GB/s, 19% of what the others do.",
                "95% of what air -> studio can: that link is what they wait for.",
            ],
        ),
        (
            [*EVEN[:2], LinkFigure("air", "studio", 0.009, 1e9)],
            [],
            ["The longest round trip is that of air -> studio, 9.00 ms, 20.0 times that of the"],
        ),
        (
            EVEN,
            [call(64, 1e6, (2, 1))],
            ["3 elements were WRONG", "All links"],
        ),
    ],
)
def test_what_is_slowest(
    links: list[LinkFigure], calls: list[CallFigure], expected: list[str]
) -> None:
    """It is named, with a figure and what it stands beside."""
    said = slowest(links, calls)
    assert len(said) == len(expected)
    for sentence, part in zip(said, expected, strict=True):
        assert part in sentence


def test_whom_it_waits_for() -> None:
    """The members on which it does not run yet, by name."""
    members = [{"name": name} for name in ("studio", "mini", "air")]
    others = {"name": "default", "present": ["mini"]}
    ours = {"name": GROUP, "present": ["studio", "air"]}
    assert missing_members({"members": members, "groups": [others, ours]}) == ["mini"]
    assert missing_members({"members": members, "groups": []}) == ["studio", "mini", "air"]


def test_sizes() -> None:
    """Fourfold from the smallest, and the largest in any case."""
    assert list(sizes(8, 128)) == [8, 32, 128]
    assert list(sizes(8, 100)) == [8, 32, 100]
    assert list(sizes(8, 8)) == [8]


@pytest.mark.parametrize("calls", [[call(64, 1e6)], [call(8, 1e3), call(1 << 26, 9e9)]])
def test_the_picture_is_good_svg(calls: list[CallFigure]) -> None:
    """A point for each size and bandwidth, all within the picture; the title is only text."""
    root = ET.fromstring(svg(calls, "<a> & b"))  # noqa: S314 - our own
    name = "{http://www.w3.org/2000/svg}"
    assert "<a> & b" in [text.text for text in root.iter(name + "text")]
    points = list(root.iter(name + "circle"))
    assert len(points) == 2 * len(calls)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for point in points:
        assert 0 < float(point.attrib["cx"]) < width
        assert 0 < float(point.attrib["cy"]) < height


def test_measured_on_real_links(calm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each link has its figures, the same on all ranks; no element is wrong."""
    monkeypatch.setattr(measure, "_FOR", 0.001)
    monkeypatch.setattr(measure, "_ROUNDS", 3)
    told: list[str] = []
    with connected(calm_cluster, "bench") as rings:
        links = everywhere(rings, lambda ring: measure.links(ring, told.append))
        assert links[0] == links[1] == links[2]
        names = [(link.source, link.to) for link in links[0]]
        assert names == [("n0", "n1"), ("n1", "n2"), ("n2", "n0")]
        assert all(link.round_trip > 0 and link.bandwidth > 0 for link in links[0])
        assert "link 2 of 3: n1 -> n2" in told
        calls = everywhere(
            rings, lambda ring: list(measure.all_reduces(ring, [8, 1 << 18], told.append))
        )
        assert calls[0] == calls[1] == calls[2]
        assert [(figure.size, figure.ranks, figure.wrong) for figure in calls[0]] == [
            (8, 3, (0, 0)),
            (1 << 18, 3, (0, 0)),
        ]


def test_the_command(place: Path) -> None:
    """JSON, and the picture; sizes that make no sense are wrong usage."""
    picture = place / "bench.svg"
    with Cluster(place, 1) as cluster:
        cluster.start().wait_ready()
        done = cli(cluster, 0, "bench", "--max", "8", "--json", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert ET.parse(picture).getroot().tag.endswith("svg")  # noqa: S314 - our own
    body = json.loads(done.stdout)
    assert (body["schema_version"], body["nodes"], body["links"]) == (1, ["n0"], [])
    (row,) = body["sizes"]
    assert (row["size"], row["in_place"]["wrong"]) == (8, 0)
    for words in (["--max", "many"], ["--max", "2"], ["--min", "1MiB", "--max", "8"]):
        assert CliRunner().invoke(main, ["bench", *words]).exit_code == 2
    assert CliRunner().invoke(main, ["bench", "--socket", str(place / "none")]).exit_code == 3


def test_a_picture_without_a_place(place: Path) -> None:
    """That is said before anybody waits or measures, and so is that one is there already."""
    words = ["bench", "--socket", str(place / "none"), "--plot"]
    done = CliRunner().invoke(main, [*words, str(place / "nowhere" / "bench.svg")])
    assert (done.exit_code, "cannot be written: No such file" in done.output) == (1, True)
    kept, new = place / "kept.svg", place / "new.svg"
    kept.write_text("of yesterday")
    assert CliRunner().invoke(main, [*words, str(kept)]).exit_code == 1
    for more in ([str(new)], [str(kept), "--force"]):
        assert CliRunner().invoke(main, [*words, *more]).exit_code == 3  # there is no daemon
    assert (kept.read_text(), new.exists()) == ("of yesterday", False)


def test_what_is_printed(
    calm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each member prints the same: links, sizes, and the words at the end."""
    monkeypatch.setattr(measure, "_FOR", 0.001)
    printed: list[list[str]] = [[], [], []]
    calls = [
        Call(lambda r=rank: run_bench(Path(calm_cluster.sockets[r]), iter([8]), printed[r].append))
        for rank in range(3)
    ]
    bodies = [call.result()[0] for call in calls]
    assert bodies[0] == bodies[1] == bodies[2]
    assert printed[0] == printed[1] == printed[2]
    text = "\n".join(printed[0])
    for part in ("n2 -> n0", HEAD[1], "           8             2     float     sum      -1"):
        assert part in text
    assert printed[0][-1] == bodies[0]["slowest"][-1]
    assert "link 1 of 3" not in capsys.readouterr().err  # that is for terminals
