"""The pages about the hub do what they say: every command is shown, and answers as shown."""

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from edge_sync.cli.main import app, main

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (edge-hub.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
# Ids differ from run to run, and … stands for what a page leaves out.
PASSING = re.compile(r"\b[0-9a-f]{12,}\b|\S*…\S*")
WORD = re.compile(r"[A-Za-z_]{2,}|(?<![.\w])\d+(?![.\w])")
# How a command's arguments are drawn depends on the version of typer.
DRAWN = re.compile(r"^Usage: .*$|<[^>]*>|\[[^]]*\]|\{[^}]*\}|\b[A-Z]{2,}\b", re.MULTILINE)
POLICY = "ROUTING:\n  keep_above: 0.8\nTASK_BUDGETS:\n  max_model_calls: 3\n"


def shown(page):
    text = (DOCS / page).read_text("utf-8")
    return [found for block in BLOCK.findall(text) for found in COMMAND.findall(block)]


def words(text):
    return set(WORD.findall(PASSING.sub(" ", text)))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs ``edge-hub …`` in this process; it gives code and output."""
    for name, value in (("EDGE_HUB_HOME", tmp_path / "hub"), ("TERM", "dumb"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "wrong.yaml").write_text(POLICY.replace("keep_above", "keep_abov"))

    def command(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out + told.err

    return command


@pytest.mark.parametrize("page", ["hub.md", "budgets.md"])
def test_the_hub_answers_as_shown(run, page):
    for line, told in shown(page):
        code, answer = run(line)
        wanted = re.search(r"# exit (\d)$", line)
        assert code == (int(wanted[1]) if wanted else 0), f"{line}\n{answer}"
        assert words(told) <= words(answer), f"{line}\n{answer}"


def test_every_help_text_is_as_shown(run):
    for line, told in shown("edge-hub.md"):
        code, answer = run(line)
        assert code == 0, line
        assert words(DRAWN.sub(" ", told)) == words(DRAWN.sub(" ", answer)), line


def commands(command, path=("edge-hub",)):
    yield " ".join(path)
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_every_command_is_shown():
    lines = [line for line, _ in shown("edge-hub.md")]
    assert set(lines) == {f"{name} --help" for name in commands(typer.main.get_command(app))}
