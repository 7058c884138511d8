import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import ConfigError, SignatureInvalid
from edge_sync.trust.assignment import Stopped, model_path, policy_path
from edge_sync.trust.metadata import Targets, read
from edge_sync.trust.repository import ROLES, TOP_ROLES, Repository
from edge_sync.trust.signing import Terms
from edge_sync.trust.trusted import Trusted
from edge_sync.wire import Bundle

NOW, DAY = 1_800_000_000.0, 86_400.0
DEVICE, GROUP = "d" * 32, "kiosks"
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def repository(keys: Path) -> Repository:
    return Repository.create(keys, now=NOW).publish({policy_path(1): b"one"}, now=NOW)


def bundle(repository: Repository, assignment: bytes, *roots: bytes, policy: str = "one") -> Bundle:
    files = {role: repository.files[role].decode() for role in TOP_ROLES[1:]}
    return Bundle(
        roots=[root.decode() for root in roots],
        assignment=assignment.decode(),
        policy=policy,
        **files,
    )


def take(trusted: Trusted, found: Bundle, *, now: float = NOW) -> Trusted:
    return trusted.accept(found, device_id=DEVICE, group=GROUP, now=now).trusted


def first(repository: Repository) -> Trusted:
    return Trusted.start(repository.root.data, fingerprint=repository.fingerprint)


def test_what_is_published_and_assigned_is_taken(repository: Repository) -> None:
    body = repository.assign(serial=1, now=NOW, group=GROUP, revision=1)
    accepted = first(repository).accept(
        bundle(repository, body), device_id=DEVICE, group=GROUP, now=NOW
    )
    assert accepted.document_bytes == b"one"
    assert accepted.assignment.policy_length == 3
    assert accepted.trusted.have.serial == 1
    assert accepted.trusted.expires_s == NOW + 30 * DAY


def test_models_and_stops_are_told(repository: Repository) -> None:
    path = model_path("magika", DIGEST)
    published = repository.publish({path: b"index"}, now=NOW)
    stopped = Stopped(models=("b", "a"), tools=("refund",), tasks=())
    body = published.assign(
        serial=1, now=NOW, device=DEVICE, revision=1, models={"magika": DIGEST}, stopped=stopped
    )
    accepted = first(repository).accept(
        bundle(published, body), device_id=DEVICE, group="other", now=NOW
    )
    assert accepted.assignment.stopped.as_dict() == {
        "models": ["a", "b"],
        "tools": ["refund"],
        "tasks": [],
    }
    model = accepted.models["magika"]
    assert (model.digest, model.path, model.length) == (DIGEST, path, 5)
    model.check(b"index")
    with pytest.raises(SignatureInvalid, match="magika"):
        model.check(b"indeX")


def test_changes_are_the_newer_files(repository: Repository) -> None:
    later = repository.publish({policy_path(2): b"two"}, now=NOW)
    told = [(file.role, file.version) for file in later.changes(repository)]
    assert told == [("targets", 3), ("snapshot", 3), ("timestamp", 3)]
    assert [file.role for file in later.changes(None)] == list(TOP_ROLES)
    assert later.changes(later) == ()
    assert [file.role for file in later.refresh_timestamp(now=NOW).changes(later)] == ["timestamp"]


def test_a_repository_is_opened_from_what_was_kept(repository: Repository, keys: Path) -> None:
    opened = Repository.open(keys, repository.files)
    assert opened.files == repository.files
    assert opened.fingerprint == repository.fingerprint
    body = opened.publish({policy_path(2): b"two"}, now=NOW).files["targets"]
    assert read(Targets, body, role="targets").version == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda files: files.pop("snapshot"),
        lambda files: files.update(snapshot=b"{}"),
        lambda files: files.update(
            targets=files["targets"].replace(b'"version":2', b'"version":3')
        ),
    ],
    ids=["missing", "malformed", "changed"],
)
def test_changed_files_are_refused(
    repository: Repository, keys: Path, spoil: Callable[[dict[str, bytes]], object]
) -> None:
    files = repository.files
    spoil(files)
    with pytest.raises(ConfigError, match="own metadata"):
        Repository.open(keys, files)


def test_keys_are_made_once(repository: Repository, keys: Path) -> None:
    names = sorted(path.name for path in keys.iterdir())
    assert [name.rsplit("-")[0] for name in names] == sorted(ROLES)
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
    with pytest.raises(ConfigError, match="holds keys already"):
        Repository.create(keys, now=NOW)


@pytest.mark.parametrize("role", ROLES)
def test_a_rotated_key_is_followed(repository: Repository, role: str) -> None:
    old_body = repository.assign(serial=1, now=NOW, group=GROUP, revision=1)
    trusted = take(first(repository), bundle(repository, old_body))
    rotated = repository.rotate(role, now=NOW)
    roots = [file.body for file in rotated.changes(repository) if file.role == "root"]
    body = rotated.assign(serial=2, now=NOW, group=GROUP, revision=1)
    after = take(trusted, bundle(rotated, body, *roots))
    assert after.have.serial == 2
    assert set(repository.keys(role)[0]).isdisjoint(rotated.keys(role)[0])
    assert rotated.assignment_is_due(old_body, now=NOW) is (role == "assignment")


def test_devices_follow_a_hub_that_was_restored(repository: Repository) -> None:
    later = repository.publish({policy_path(2): b"two"}, now=NOW).refresh_timestamp(now=NOW)
    ahead = later.assign(serial=9, now=NOW, group=GROUP, revision=1)
    trusted = take(first(repository), bundle(later, ahead))
    restored = repository.rotate("timestamp", now=NOW).rotate("assignment", now=NOW)
    body = restored.assign(serial=2, now=NOW, group=GROUP, revision=1)
    assert take(trusted, bundle(restored, body, restored.root.data)).have.serial == 2


def test_a_rotation_that_cannot_be_signed_makes_no_key(repository: Repository, keys: Path) -> None:
    for path in keys.glob("root-*.pem"):
        path.unlink()
    opened, before = Repository.open(keys, repository.files), sorted(keys.iterdir())
    with pytest.raises(ConfigError, match="0 of the 1 keys that root needs"):
        opened.rotate("timestamp", now=NOW)
    assert sorted(keys.iterdir()) == before


def test_a_rotation_and_a_rotation_again(repository: Repository) -> None:
    trusted, roots = first(repository), []
    for role in ("root", "timestamp", "root"):
        repository = repository.rotate(role, now=NOW)
        roots.append(repository.root.data)
    body = repository.assign(serial=1, now=NOW, group=GROUP, revision=1)
    assert take(trusted, bundle(repository, body, *roots)).have.root == 4


def test_thresholds(keys: Path) -> None:
    terms = Terms(root_keys=3, root_threshold=2, targets_keys=2, targets_threshold=2)
    repository = Repository.create(keys, now=NOW, terms=terms)
    assert repository.keys("root")[1] == 2
    assert len(repository.keys("root")[0]) == 3
    trusted = first(repository)
    away = sorted(keys.glob("root-*.pem"))
    away[0].rename(keys / "elsewhere")
    opened = Repository.open(keys, repository.files, terms=terms)
    rotated = opened.rotate("targets", now=NOW)
    assert len(rotated.keys("targets")[0]) == 2
    body = rotated.publish({policy_path(1): b"one"}, now=NOW)
    assigned = body.assign(serial=1, now=NOW, group=GROUP, revision=1)
    assert take(trusted, bundle(body, assigned, rotated.root.data)).have.root == 2
    away[1].rename(keys / "elsewhere too")
    with pytest.raises(ConfigError, match="holds 1 of the 2 keys that root needs") as refused:
        Repository.open(keys, rotated.files, terms=terms).rotate("snapshot", now=NOW)
    assert "Put the key files back" in refused.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"root_threshold": 2},
        {"root_threshold": 0},
        {"targets_keys": 17},
        {"timestamp_days": 0.0},
        {"timestamp_days": float("nan")},
        {"root_days": 1e9},
    ],
)
def test_terms_that_cannot_be_met_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Terms(**wrong)  # type: ignore[arg-type]


def test_refresh_signs_what_is_due_and_no_more(repository: Repository) -> None:
    assert repository.refresh(now=NOW) is repository
    day = NOW + 1.1 * DAY
    assert repository.due(now=day) == ("timestamp",)
    daily = repository.refresh(now=day)
    assert [file.role for file in daily.changes(repository)] == ["timestamp"]
    month = daily.refresh(now=NOW + 16 * DAY)
    assert [file.role for file in month.changes(daily)] == ["snapshot", "timestamp"]
    year = month.refresh(now=NOW + 200 * DAY)
    assert [file.role for file in year.changes(month)] == list(TOP_ROLES)
    assert year.due(now=NOW + 200 * DAY) == ()
    body = year.assign(serial=1, now=NOW + 200 * DAY, group=GROUP, revision=1)
    later = bundle(year, body, year.root.data)
    assert take(first(repository), later, now=NOW + 201 * DAY).have.root == 2


def test_refresh_leaves_what_lies_in_a_safe(repository: Repository, keys: Path) -> None:
    for path in (*keys.glob("root-*.pem"), *keys.glob("targets-*.pem")):
        path.unlink()
    opened = Repository.open(keys, repository.files)
    late = NOW + 200 * DAY
    refreshed = opened.refresh(now=late)
    assert [file.role for file in refreshed.changes(opened)] == ["snapshot", "timestamp"]
    assert refreshed.due(now=late) == ("root", "targets")
    assert refreshed.assign(serial=1, now=late, group=GROUP, revision=1)


def test_an_assignment_is_due_before_it_expires(repository: Repository) -> None:
    body = repository.assign(serial=1, now=NOW, group=GROUP, revision=1)
    assert not repository.assignment_is_due(body, now=NOW + 14 * DAY)
    assert repository.assignment_is_due(body, now=NOW + 16 * DAY)


def test_the_hub_s_time_is_verified(repository: Repository) -> None:
    trusted = first(repository)
    attested = repository.sign_time("a" * 32, now=NOW + 0.25)
    assert trusted.time(attested, request_id="a" * 32) == NOW + 0.25
    rotated = repository.rotate("timestamp", now=NOW)
    newer = rotated.sign_time("b" * 32, now=NOW)
    with pytest.raises(SignatureInvalid):
        trusted.time(newer, request_id="b" * 32)
    roots = [rotated.root.data.decode()]
    assert trusted.time(newer, request_id="b" * 32, roots=roots) == NOW


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda r: r.assign(serial=1, now=NOW, group=GROUP, revision=7), "not published"),
        (lambda r: r.assign(serial=1, now=NOW), "a group or a device"),
        (lambda r: r.assign(serial=0, now=NOW, group="g"), "serial above 0"),
        (lambda r: r.assign(serial=1, now=NOW, group=""), "No device would take this"),
        (
            lambda r: r.assign(serial=1, now=NOW, group="g", stopped=Stopped(tools=("",))),
            "No device would take this",
        ),
        (lambda r: r.publish({policy_path(1): b"other"}, now=NOW), "other content"),
        (lambda r: r.publish({"../x": b""}, now=NOW), "neither policies"),
        (lambda r: r.publish({policy_path(0): b""}, now=NOW), "neither policies"),
        (lambda r: r.publish({policy_path(2): b"x" * 1_000_001}, now=NOW), "longer than"),
        (lambda r: r.rotate("mirrors", now=NOW), "no role mirrors"),
        (
            lambda r: r.publish({policy_path(n): b"" for n in range(2, 9_000)}, now=NOW),
            "No device would take this",
        ),
    ],
)
def test_what_no_device_would_take_is_refused(
    repository: Repository, call: Callable[[Repository], object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        call(repository)


def test_publishing_the_same_again_and_withdrawing(repository: Repository) -> None:
    again = repository.publish({policy_path(1): b"one"}, now=NOW)
    assert again.targets.signed.targets == repository.targets.signed.targets
    without = again.publish({policy_path(2): b"two"}, now=NOW, withdraw=[policy_path(1)])
    assert list(without.targets.signed.targets) == [policy_path(2)]


@pytest.mark.parametrize(
    ("fingerprint", "good"),
    [(64, True), (32, True), (31, False), (0, False)],
)
def test_the_first_root_is_the_one_that_the_code_names(
    repository: Repository, fingerprint: int, good: bool
) -> None:
    given = repository.fingerprint[:fingerprint]
    if good:
        assert Trusted.start(repository.root.data, fingerprint=given).have.root == 1
        given = given[:-1] + ("0" if given[-1] != "0" else "1")
    with pytest.raises(Exception, match="not the one that the enrolment code names"):
        Trusted.start(repository.root.data, fingerprint=given)
