"""The command edge-hub as people and programs use it."""

import datetime as dt
import ipaddress
import json
import re
import shlex
import signal
import sqlite3
import ssl
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

import edge
from edge.config import models_folder
from edge_sync.cli import common
from edge_sync.cli.main import main
from edge_sync.hub.home import Hub

SYNC = Path(__file__).resolve().parents[2] / "sync"
POLICY = """\
TASK_BUDGETS:
  max_model_calls: 3
ROUTING:
  keep_above: 0.8
"""


def edge_hub(*arguments, home, text=""):
    """Run the command as a process of its own."""
    code = "import sys; sys.argv[0] = 'edge-hub'; from edge_sync.cli.main import main; main()"
    env = {"EDGE_HUB_HOME": str(home), "PYTHONPATH": str(SYNC), "PATH": "", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**env, "HOME": str(home)},
    )


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Return a folder, and what each command of a first day printed, each a process."""
    folder = tmp_path_factory.mktemp("first-day")
    (folder / "policy.yaml").write_text(POLICY)
    lines = {
        "init": "init --json",
        "enroll": "enroll --uses 20 --expires 7d",
        "publish": f"policy publish {folder}/policy.yaml -m First --now --group default --yes",
        "show": "policy show 1 --json",
        "verify": "audit verify",
    }
    done = {name: edge_hub(*shlex.split(line), home=folder / "hub") for name, line in lines.items()}
    return folder, done


def test_a_first_day(processes):
    _, done = processes
    assert {name: each.returncode for name, each in done.items()} == dict.fromkeys(done, 0)
    assert {name: each.stderr for name, each in done.items()} == dict.fromkeys(done, "")
    assert json.loads(done["init"].stdout)["token"].startswith("edge-hub_")
    code = re.search(r"code +(\S+)", done["enroll"].stdout)[1]
    assert f"edge agent --hub http://127.0.0.1:8420 --code {code}\n" in done["enroll"].stdout
    assert "ends   in 7 d" in done["enroll"].stdout
    assert "routing.keep_above" in done["publish"].stdout
    assert "All devices of default get it now." in done["publish"].stdout
    told = json.loads(done["show"].stdout)
    assert (told["revision"], told["groups"], told["source"]) == (1, ["default"], POLICY)
    assert done["verify"].stdout.startswith("The log is whole: 5 entries.\nHead: 5:")


def test_keys_and_database_are_for_their_owner_alone(processes):
    folder, _ = processes
    hub = folder / "hub"
    files = [hub / "hub.yaml", hub / "hub.db", *(hub / "keys").iterdir()]
    assert len(files) == 9
    assert {
        path.name: path.stat().st_mode & 0o77 for path in files if path.stat().st_mode & 0o77
    } == {}
    assert (hub.stat().st_mode | (hub / "keys").stat().st_mode) & 0o77 == 0


def test_a_log_that_was_tampered_with_is_named_entry_by_entry(processes):
    folder, done = processes
    head = re.search(r"Head: (\S+)", done["verify"].stdout)[1]
    with closing(sqlite3.connect(folder / "hub/hub.db")) as database:
        database.execute("UPDATE audit SET who = 'nobody' WHERE seq = 3")
        database.commit()
    found = edge_hub("audit", "verify", home=folder / "hub")
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout == "Entry 3 is broken: it was changed after it was written.\n"
    as_json = edge_hub("audit", "verify", "--json", "--head", head, home=folder / "hub")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["broken"]["seq"] == 3


@contextmanager
def served(home, *arguments, told=signal.SIGTERM):
    """Serve as a process of its own; yield the port, and check that it ends well."""
    code = "from edge_sync.cli.main import main; main()"
    env = {"EDGE_HUB_HOME": str(home), "PYTHONPATH": str(SYNC), "PATH": ""}
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", *map(str, arguments)],
        stderr=subprocess.PIPE,
        env=env,
    ) as process:
        try:
            yield json.loads(process.stderr.readline())["port"]
        finally:
            process.send_signal(told)
            _, rest = process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in rest


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_until_it_is_told_to_end(processes, told):
    with served(processes[0] / "hub", told=told) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60).status_code == 200


@pytest.fixture
def certificate(tmp_path):
    """Return the files of a certificate for this machine and of its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub")])
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .sign(private, hashes.SHA256())
    )
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(made.public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return chain, key


def test_serve_speaks_tls(processes, certificate):
    chain, key = certificate
    with served(processes[0] / "hub", "--tls-cert", chain, "--tls-key", key) as port:
        trusted = ssl.create_default_context(cafile=chain)
        answer = httpx.get(f"https://127.0.0.1:{port}/healthz", verify=trusted, timeout=60)
    assert answer.status_code == 200


def test_a_reader_that_leaves_is_no_error(processes):
    folder, _ = processes
    code = "from edge_sync.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "audit", "list", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"EDGE_HUB_HOME": str(folder / "hub"), "PYTHONPATH": str(SYNC), "PATH": ""},
    ) as process:
        process.stdout.close()
        told = process.stderr.read()
        process.wait()
    assert (process.returncode, told) == (0, b"")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs ``edge-hub …`` in this process; it gives code and output."""
    monkeypatch.setenv(common.HOME_VARIABLE, str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(POLICY)

    def command(line, *, answer=None):
        monkeypatch.setattr(sys, "argv", ["edge-hub", *shlex.split(line)])
        monkeypatch.setattr("typer.confirm", lambda *_, **__: answer)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return command


@pytest.fixture
def hub(run):
    assert run("init")[0] == 0
    return run


# That a policy was refused is noted in the audit log, and nowhere else.
_NOTED = r"'policy\.refuse'|'audit_head'"


def dump(folder):
    with closing(sqlite3.connect(folder / "hub/hub.db")) as database:
        return [line for line in database.iterdump() if not re.search(_NOTED, line)]


def put(folder, line, row=()):
    with closing(sqlite3.connect(folder / "hub/hub.db")) as database:
        database.execute(line, row)
        database.commit()


def test_the_version(run):
    assert run("--version")[:2] == (0, f"edge-hub {edge.__version__}\n")


def test_it_asks_before_it_publishes(hub, tmp_path):
    before = dump(tmp_path)
    line = "policy publish policy.yaml -m First"
    code, out, err = hub(line)
    assert (code, "routing.keep_above" in out, "Pass --yes." in err) == (2, True, True)
    code, _, err = hub(line, answer=False)
    assert (code, err) == (1, "Nothing was changed.\n")
    assert dump(tmp_path) == before
    assert hub(line, answer=True)[0] == 0
    assert "No policies yet" not in hub("policy list")[1]


def test_a_policy_goes_out_in_waves_and_comes_back(hub):
    assert hub("policy publish policy.yaml -m First --waves 50,100 --yes")[0] == 0
    code, out, _ = hub("rollout status")
    assert code == 0
    assert re.search(r"policy +from the pack alone to revision 1\n", out)
    for line, state in (("pause 1 --reason lunch", "paused"), ("resume 1", "running")):
        code, out, _ = hub(f"rollout {line} --json")
        assert (code, json.loads(out)["state"]) == (0, state)
    code, out, _ = hub("rollout abort 1 --json")
    assert (code, json.loads(out)["state"]) == (0, "aborted")
    assert json.loads(hub("rollout list --json")[1])["id"] == 1
    assert hub("policy diff 0 1 --json")[1].count("\n") == 2


def test_lists_are_one_json_object_a_line(hub):
    assert hub("policy publish policy.yaml -m First --now --yes")[0] == 0
    assert hub(f"models add {models_folder() / 'sms-spam-head'}")[0] == 0
    for what in ("policy", "groups", "models", "token", "audit", "keys"):
        code, out, _ = hub(f"{what} list --json")
        assert code == 0
        assert all(isinstance(json.loads(line), dict) for line in out.splitlines()), what
        assert out, what
        assert hub(f"{what} list")[0] == 0


def test_devices_are_shown_moved_and_revoked(hub, tmp_path):
    assert hub("groups add lab")[0] == 0
    refused = '{"revision": 4, "reason": "no model"}'
    row = (
        "ab" * 16,
        "kiosk [7]",
        "default",
        "0" * 64,
        "active",
        0,
        0,
        400,
        1,
        "",
        "0.1.0",
        "kiosk",
    )
    row += (3, 0, 0, refused, "{}", 2, None)
    put(tmp_path, f"INSERT INTO devices VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
    code, out, _ = hub("devices show abab")
    assert code == 0
    for line in (
        "name     kiosk [7]",
        "state    offline",
        "clock    7 min ahead",
        "refused  revision 4: no model",
        "waiting  2 tasks",
    ):
        assert f"{line}\n" in out
    assert hub("devices move abab lab")[1] == "kiosk [7] is in lab now, and keeps what it has.\n"
    assert json.loads(hub("devices list --group lab --json")[1])["waiting"] == 2
    assert hub("devices revoke 'kiosk [7]' --yes")[1] == "kiosk [7] is revoked.\n"
    assert "1 revoked" in hub("status")[1]


def test_recorded_tasks_are_simulated_before_it_asks(hub, tmp_path):
    with edge.open("kiosk", state=tmp_path / "state", offline=True) as runtime:
        runtime.run("spam", "win a prize now")
        runtime.run("spam", "see you at noon")
    (tmp_path / "strict.yaml").write_text("ROUTING: {keep_above: 1.0}\n")
    code, out, _ = hub("policy publish strict.yaml -m Strict --traces state --yes")
    assert code == 0
    assert "Recorded tasks under this policy (2)" in out
    assert re.search(r"spam +2 .*→", out)
    code, _, err = hub("policy publish strict.yaml -m Strict --traces nowhere --yes")
    assert (code, "has no traces" in err) == (2, True)


def test_a_copied_backup_is_the_hub_as_it_was(hub, tmp_path):
    assert hub("policy publish policy.yaml -m First --now --yes")[0] == 0
    assert hub("backup kept.db")[0] == 0
    assert hub("stop task spam")[0] == 0
    (tmp_path / "kept.db").replace(tmp_path / "hub/hub.db")
    assert json.loads(hub("groups list --json")[1])["stopped"]["tasks"] == []
    assert hub("audit verify")[0] == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("init", "There is a hub in"),
        ("init --database mysql://x --home other", "neither SQLite nor PostgreSQL"),
        ("status --home nowhere", "There is no hub in"),
        ("policy publish missing.yaml -m x --yes", "missing.yaml cannot be used"),
        ("policy publish . -m x --yes", "cannot be used"),
        ("policy publish bad.yaml -m x --yes", "bad.yaml is wrong at routing.keep_abov"),
        ("policy publish cyclic.yaml -m x --yes", "cyclic.yaml"),
        ("policy publish large.yaml -m x --yes", "1000000 bytes"),
        ("policy publish policy.yaml -m '' --yes", "tells nobody why"),
        ("policy publish policy.yaml -m x --yes --now --waves 100", "exclude each other"),
        ("policy publish policy.yaml -m x --yes --group default", "nothing says how"),
        ("policy publish policy.yaml -m x --yes --now --group nope", "no group 'nope'"),
        ("policy publish policy.yaml -m x --yes --waves 50,20", "do not rise"),
        ("policy publish policy.yaml -m x --yes --pack nope", "no pack named 'nope'"),
        ("policy show", "There is not a policy yet"),
        ("policy restore 5 --yes", "policy revision 5"),
        ("rollout start 1", "policy revision 1"),
        ("rollout start 1 --term soak_s", "sets no number"),
        ("rollout status 3", "no rollout 3"),
        ("enroll --group nope", "no group 'nope'"),
        ("enroll --uses 0", "0 devices"),
        ("enroll --expires soon", "no duration"),
        ("enroll --expires 0h", "0 s"),
        ("devices show nope", "no device 'nope'"),
        ("devices move nope default", "no device 'nope'"),
        ("groups add default", "a group default already"),
        ("stop task ''", "cannot be the name"),
        ("unstop task spam", "is not stopped there"),
        ("models add .", "it has no manifest.json"),
        ("models rm nope", "no model nope"),
        ("models verify nope", "no model nope"),
        ("token add admin", "was a token 'admin'"),
        ("token revoke admin", "the last token of the role admin"),
        ("token revoke nope", "no token 'nope'"),
        ("audit verify --head 5", "no head of an audit log"),
        ("audit list --since soon", "no duration"),
        ("keys rotate nope --yes", "no role nope"),
        ("backup policy.yaml", "is there already"),
        ("backup no/where.db", "cannot be written"),
        ("serve --tls-cert cert.pem", "a certificate and its key"),
        ("serve --port 0 --tls-cert no.pem --tls-key no.pem", "no.pem cannot be used"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(hub, tmp_path, line, words):
    (tmp_path / "bad.yaml").write_text(POLICY.replace("keep_above", "keep_abov"))
    (tmp_path / "cyclic.yaml").write_text("routing: &a\n  pool: *a\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * 10_000_000)
    before = dump(tmp_path)
    code, _, err = hub(line)
    assert code == 2
    assert words in err.replace(",", "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert dump(tmp_path) == before


def test_a_refused_policy_is_in_the_audit_log(hub, tmp_path):
    (tmp_path / "bad.yaml").write_text(POLICY.replace("keep_above", "keep_abov"))
    assert hub("policy publish bad.yaml -m x --yes")[0] == 2
    entry = json.loads(hub("audit list --limit 1 --json")[1])
    assert (entry["what"], entry["about"]) == ("policy.refuse", "bad.yaml")
    assert "routing.keep_abov" in entry["detail"]["reason"]
    assert hub("audit verify")[0] == 0


def test_the_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv(common.HOME_VARIABLE, str(tmp_path / "a"))
    assert common.home_folder(None) == tmp_path / "a"
    assert common.home_folder(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv(common.HOME_VARIABLE)
    monkeypatch.setenv("EDGE_STATE", str(tmp_path / "device"))
    assert common.home_folder(None).name == "edge-hub"
    assert tmp_path not in common.home_folder(None).parents


@pytest.mark.parametrize(
    ("length_s", "words"),
    [
        (0.2, "0 s"),
        (1, "1 s"),
        (35, "35 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (60, "1 min"),
        (3_569, "59 min"),
        (3_599, "1 h"),
        (3_600, "1 h"),
        (86_399, "24 h"),
        (47 * 3_600, "47 h"),
        (48 * 3_600, "2 d"),
        (86_400 * 30, "30 d"),
    ],
)
def test_times_are_told_in_one_unit(length_s, words):
    assert common.span(length_s) == words
    assert common.ago(1_000_000 - length_s, 1_000_000) in {f"{words} ago", "now"}


def test_a_database_of_an_older_version_is_named_and_migrated(hub, tmp_path):
    assert hub("migrate")[1].startswith("The database is up to date")
    put(tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    code, _, err = hub("migrate")
    assert (code, "newer" in err) == (2, True)


def test_a_hub_that_is_served_meanwhile_sees_the_change(hub, tmp_path):
    with Hub.open(tmp_path / "hub") as served, served.store.reading() as connection:
        before = connection.exec_driver_sql("SELECT value FROM facts WHERE name = 'generation'")
        first = before.scalar()
    assert hub("stop task spam")[0] == 0
    with Hub.open(tmp_path / "hub") as served, served.store.reading() as connection:
        after = connection.exec_driver_sql("SELECT value FROM facts WHERE name = 'generation'")
        assert int(after.scalar()) == int(first) + 1


def test_a_hub_on_postgresql_and_its_backup_as_sqlite(run, postgres, tmp_path):
    assert run(f"init --database '{postgres()}'")[0] == 0
    assert run("policy publish policy.yaml -m First --now --yes")[0] == 0
    assert run("audit verify")[0] == 0
    listed = run("policy list --json")[1]
    assert run(f"backup {tmp_path / 'kept.db'}")[0] == 0
    settings = (tmp_path / "hub/hub.yaml").read_text()
    url = f"database: sqlite:///{tmp_path / 'kept.db'}"
    (tmp_path / "hub/hub.yaml").write_text(re.sub("(?m)^database: .*$", url, settings))
    assert run("policy list --json")[1] == listed
    assert run("policy publish policy.yaml -m Second --yes")[0] == 0
    assert run("audit verify")[0] == 0
