"""The documentation does what it says: snippets run, links resolve, lists are whole."""

import dataclasses
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import edge
from edge.cli.main import app, main
from edge.overlay import json_schema, read_policy
from edge.pack import load_pack

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
]
FENCE = re.compile(r"^```(\w+)(?: ([\w.-]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")
# Ids differ from run to run, and … stands for what a page leaves out.
PASSING = re.compile(r"\b[0-9a-f]{12,}\b|\S*…\S*")
# Words and whole numbers; measured figures have a point and are left alone.
WORD = re.compile(r"[A-Za-z_]{3,}|(?<![.\w])\d{3,}(?![.\w])")
# How a command's arguments are drawn depends on the version of typer, its name on how it is run.
DRAWN = re.compile(r"^Usage: .*$|<[^>]*>|\[[^]]*\]|\{[^}]*\}|\b[A-Z]{2,}\b", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its page, its number there, what follows the fence, and its text."""

    page: Path
    number: int
    language: str
    name: str
    body: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}-{self.number}"


def read(path):
    return path.read_text("utf-8")


def blocks(language, pages=PAGES):
    return [
        Block(page, number, found[1], found[2] or "", found[3])
        for page in pages
        for number, found in enumerate(FENCE.finditer(read(page)), 1)
        if found[1] == language
    ]


def words(text):
    return set(WORD.findall(PASSING.sub(" ", text)))


def rows(page):
    """Return the rows of a page's tables by what their first cell names."""
    found = re.findall(r"^\| `(\w[\w.-]*)` \|(.*)\|$", read(DOCS / page), re.MULTILINE)
    return [(name, [cell.strip() for cell in rest.split("|")]) for name, rest in found]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Return a function that writes a page's files and makes their folder the current one."""
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("EDGE_OFFLINE", "1")
    monkeypatch.setenv("EDGE_THREADS", "1")

    def lay_out(page):
        (tmp_path / "desk").mkdir()
        for block in (*blocks("yaml", [page]), *blocks("jsonl", [page])):
            (tmp_path / "desk" / block.name).write_text(block.body, "utf-8")
        monkeypatch.chdir(tmp_path / "desk")

    return lay_out


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block, desk):
    desk(block.page)
    done = subprocess.run(
        [sys.executable, "-c", block.body], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    behind = re.findall(r"print\(.*\)  # ([^,\n]*)", block.body)
    below = re.findall(r"^# (.*)", block.body, re.MULTILINE)
    assert words(" ".join(behind + below)) <= words(done.stdout), done.stdout


@pytest.mark.parametrize(
    "page", sorted({block.page for block in blocks("console")}), ids=lambda page: page.stem
)
def test_commands_answer_as_shown(page, desk, monkeypatch, capsys):
    desk(page)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for block in blocks("console", [page]):
        for line, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.body, re.MULTILINE):
            code, told = run(line, monkeypatch, capsys)
            wanted = re.search(r"# exit (\d)$", line)
            assert code == (int(wanted[1]) if wanted else 0), f"{line}\n{told}"
            if "--help" in line:
                assert words(DRAWN.sub(" ", shown)) == words(DRAWN.sub(" ", told)), line
            else:
                assert words(shown) <= words(told), f"{line}\n{told}"
                # Processors round differently, so a confidence may differ a little.
                assert sure(shown) == pytest.approx(sure(told), abs=0.05) or not sure(shown), line


def sure(text):
    return [float(number) for number in re.findall(r"confidence\W+(\d\.\d\d)", text)]


def run(line, monkeypatch, capsys):
    """Run ``edge …`` or ``echo TEXT | edge …`` in this process; return exit code and output."""
    parts = shlex.split(line, comments=True)
    text = ""
    if "|" in parts:
        assert parts[0] == "echo"
        text, parts = parts[1], parts[parts.index("|") + 1 :]
    assert parts[0] == "edge", line
    monkeypatch.setattr(sys, "argv", parts)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out + told.err


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_pack_is_whole(block, tmp_path):
    if "policy" in block.name:
        assert read_policy(block.body).sections
        return
    (tmp_path / block.name).write_text(block.body, "utf-8")
    assert load_pack(tmp_path / block.name).tasks


def test_the_schema_of_policies_is_the_one_published():
    """Written by ``json.dumps(json_schema(), indent=2) + "\\n"``."""
    assert read(DOCS / "policy.schema.json") == json.dumps(json_schema(), indent=2) + "\n"


def test_scripts_and_targets_that_are_not_run_exist():
    text = "".join(block.body for block in blocks("sh"))
    scripts = re.findall(r"python (\S+\.py)", text)
    targets = re.findall(r"^make ([\w-]+)", text, re.MULTILINE)
    assert scripts
    assert not [name for name in scripts if not (ROOT / name).is_file()]
    known = re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE)
    assert set(targets) <= set(known)


def test_every_fence_is_one_that_is_checked():
    known = {"python", "console", "yaml", "jsonl", "sh", "text"}
    for page in PAGES:
        assert {found[1] for found in FENCE.finditer(read(page))} <= known, page
        assert len(re.findall(r"^```", read(page), re.MULTILINE)) % 2 == 0, page


def anchors(page):
    titles = re.findall(r"^#+ (.*)", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    for target, anchor in LINK.findall(FENCE.sub("", read(page))):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_index_names_every_page():
    linked = {(DOCS / target).resolve() for target, _ in LINK.findall(read(DOCS / "README.md"))}
    assert linked == {page for page in DOCS.rglob("*.md") if page != DOCS / "README.md"}


def commands(command, path=("edge",)):
    yield " ".join(path)
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_every_command_is_shown():
    shown = read(DOCS / "cli.md")
    assert not [
        name for name in commands(typer.main.get_command(app)) if f"$ {name} --help\n" not in shown
    ]


def test_every_error_is_explained():
    found = dict(rows("errors.md"))
    classes = inspect.getmembers(edge.errors, inspect.isclass)
    assert set(found) == {name for name, kind in classes if issubclass(kind, edge.EdgeError)}
    for name, cells in found.items():
        kind = getattr(edge.errors, name)
        assert cells[-1] == vars(kind).get("default_hint", ""), name
        if len(cells) == 3:
            assert cells[1] == ("yes" if kind.retryable else "no"), name


def test_every_field_route_and_reason_is_explained():
    text = read(DOCS / "results.md")
    names = [field.name for field in dataclasses.fields(edge.Result)]
    assert not [name for name in (*names, *edge.Route, *edge.Reason) if f"`{name}`" not in text]


def test_every_kind_bench_and_variable_is_named():
    assert {name for name, _ in rows("tasks.md")} >= set(edge.Kind)
    benches = {path.name for path in (ROOT / "bench").glob("[a-z]*.py")}
    assert {name for name, _ in rows("benches.md")} == benches
    sources = "".join(read(path) for path in (ROOT / "edge").rglob("*.py"))
    used = set(re.findall(r"EDGE_[A-Z]+", sources))
    assert {name for name, _ in rows("offline.md") if name.startswith("EDGE_")} == used


def manifests():
    paths = sorted((ROOT / "models").glob("*/manifest.json"))
    return {path.parent.name: json.loads(read(path)) for path in paths}


def test_models_md_says_what_the_manifests_say():
    """After a model is rebuilt, docs/models.md has to be corrected."""
    text, found = read(DOCS / "models.md"), rows("models.md")
    for name, manifest in manifests().items():
        first, *rest = [cells for key, cells in found if key == name]
        size = sum(file["bytes"] for file in manifest["files"]) / 1e6
        sources = ", ".join(f"{s['name']} ({s['licence']})" for s in manifest["sources"])
        assert (first[1], *first[3:]) == (f"{size:.1f}", sources, manifest["licence"]), name
        quality = manifest["quality"]
        if manifest["kind"] == "head":
            keys = ("n", "accuracy", "error_auroc", "ece")
            assert rest == [[str(quality[key]) for key in keys]], name
    for name, cells in found:
        measured = manifests()["actions-q8_0"]["quality"].get(name)
        if measured:
            assert cells == [str(measured[key]) for key in ("n", "intent", "exact_match")], name
    encoder = manifests()["minilm-l6-int8"]["quality"]
    assert f"cosine of {encoder['cosine_to_fp32_mean']}" in text
    assert f"least is {encoder['cosine_to_fp32_min']}" in text
    assert f"AUROC of {manifests()['clinc150-head']['quality']['out_of_scope_auroc']}" in text
    fitted = json.loads(read(ROOT / "models" / "actions-q8_0" / "calibration-action.json"))
    assert f"error of {fitted['ece']:.3f} over {fitted['n']} answers" in text


def test_the_changelog_names_the_version():
    assert f"## [{edge.__version__}]" in read(ROOT / "CHANGELOG.md")
