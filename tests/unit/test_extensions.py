"""What other packages add: listed by name, loaded when asked for, named when it is broken."""

import re
import subprocess
import sys

import pytest

import edge
from edge import extensions
from edge.cli.main import main
from edge.errors import ConfigError

AGENT = '''
"""A made-up package."""
import typer

print("loaded")

def agent(*, hub: str = "none") -> None:
    """Say which hub it is."""
    typer.echo(f"agent of {hub}")

group = typer.Typer()

@group.command("first")
def first() -> None:
    """Do the first thing."""
    typer.echo("first done")

@group.command("second")
def second() -> None:
    """Do the second thing."""

class Agent:
    def __init__(self, runtime, url, **more):
        self.closed = 0
        runtime.made_agent = self
        runtime.made_url = url

    def close(self):
        self.closed += 1
'''
POINTS = """
[edge.commands]
agent = made_up_fleet:agent
fleet = made_up_fleet:group
broken = made_up_fleet:no_such_name
lacking = made_up_lacking:agent
run = made_up_fleet:agent

[edge.agents]
hub = made_up_fleet:Agent
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a made-up package."""
    (tmp_path / "made_up_fleet.py").write_text(AGENT, "utf-8")
    (tmp_path / "made_up_lacking.py").write_text("import no_such_library\n", "utf-8")
    info = tmp_path / "made_up_fleet-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up-fleet\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("made_up_fleet", None)


def edge_says(monkeypatch, capsys, *parts):
    monkeypatch.setattr(sys, "argv", ["edge", *parts])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out, " ".join(told.err.split())


def test_help_says_what_added_commands_do_and_what_is_missing(installed, monkeypatch, capsys):
    code, out, _ = edge_says(monkeypatch, capsys, "--help")
    assert code == 0
    listed = out.partition("Commands:")[2]
    names = [line.split()[0] for line in listed.splitlines() if line.strip()]
    assert {"agent", "fleet", "lacking", "run", "queue"} <= set(names)
    assert listed.count("  run ") == 1
    for name in ("broken", "lacking"):
        assert re.search(rf"  {name} +Install it", listed)


def test_a_command_of_ours_loads_none_that_was_added(installed, monkeypatch, capsys):
    edge_says(monkeypatch, capsys, "--version")
    assert "made_up_fleet" not in sys.modules


def test_an_added_command_runs_with_its_own_help(installed, monkeypatch, capsys):
    assert edge_says(monkeypatch, capsys, "agent", "--hub", "h") == (0, "loaded\nagent of h\n", "")
    code, out, _ = edge_says(monkeypatch, capsys, "agent", "--help")
    assert (code, "edge agent" in out, "Say which hub it is." in out) == (0, True, True)
    assert edge_says(monkeypatch, capsys, "agent", "--no-such")[0] == 2


def test_a_group_of_commands_can_be_added(installed, monkeypatch, capsys):
    code, out, _ = edge_says(monkeypatch, capsys, "fleet", "first")
    assert (code, out.endswith("first done\n")) == (0, True)
    assert "Do the second thing." in edge_says(monkeypatch, capsys, "fleet", "--help")[1]


@pytest.mark.parametrize(
    ("name", "why"), [("broken", "no_such_name"), ("lacking", "no_such_library")]
)
def test_what_is_not_installed_is_named_with_the_remedy(installed, monkeypatch, capsys, name, why):
    code, _, told = edge_says(monkeypatch, capsys, name)
    assert code == 2
    assert told.startswith("error: ")
    assert name in told
    assert why in told
    assert 'pip install "edge-runtime[sync]"' in told


def test_a_command_of_ours_looks_for_no_other(installed, monkeypatch, capsys):
    def refuse(_group):
        raise AssertionError("installed packages were looked through")

    monkeypatch.setattr(extensions, "names", refuse)
    assert edge_says(monkeypatch, capsys, "run", "--help")[0] == 0


def test_an_unknown_command_is_refused(monkeypatch, capsys):
    code, _, told = edge_says(monkeypatch, capsys, "no-such-command")
    assert (code, "no-such-command" in told) == (2, True)


def test_the_agent_starts_with_the_runtime_and_ends_with_it(installed, tmp_path):
    with edge.open(state=tmp_path / "s", offline=False, hub="https://hub.example") as runtime:
        agent = runtime.made_agent
        assert (runtime.made_url, agent.closed) == ("https://hub.example", 0)
    assert agent.closed == 1
    runtime.close()
    assert agent.closed == 1


def test_a_hub_without_an_agent_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "entry_points", lambda **_: ())
    with pytest.raises(ConfigError, match=r"edge-runtime\[sync\]"):
        edge.open(state=tmp_path / "s", offline=False, hub="https://hub.example")


def test_the_command_line_loads_no_metadata_of_packages():
    code = (
        "import sys; sys.argv = ['edge', '--version']\n"
        "from edge.cli.main import main\n"
        "from edge import extensions\n"
        "extensions.entry_points = None\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "edge")
