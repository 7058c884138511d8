import stat

import pytest
from sqlalchemy import insert, select

from edge.errors import ConfigError, StoreError
from edge_sync.hub.home import Hub, raise_fact, read_fact
from edge_sync.store.schema import audit, facts

from .conftest import NOW, entries


def test_the_folder_is_private(hub):
    assert stat.S_IMODE(hub.home.stat().st_mode) == 0o700
    files = [path for path in hub.home.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"hub.yaml", "token.key"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def test_a_hub_opens_as_it_was_made(hub):
    with Hub.open(hub.home) as again:
        assert again.settings == hub.settings
        assert again.token_key == hub.token_key
        assert again.repository.fingerprint == hub.repository.fingerprint
        assert again.url == "http://127.0.0.1:8420"


def test_a_change_is_one_transaction(hub):
    def work(connection):
        connection.execute(insert(facts).values(name="x", value="1"))
        return 3

    result = hub.change(
        "ann", "x.set", about=lambda n: f"x{n}", detail=lambda n: {"n": n}, work=work
    )
    assert result == 3
    (entry,) = entries(hub, "x.set")
    assert (entry["who"], entry["about"], entry["at"]) == ("ann", "x3", NOW)


def test_a_failed_change_leaves_no_entry_and_no_generation(hub):
    def generation():
        with hub.store.reading() as connection:
            return read_fact(connection, "generation")

    before = generation()
    with pytest.raises(ZeroDivisionError):
        hub.change("ann", "x.set", about="x", detail={}, work=lambda _connection: 1 // 0)
    assert generation() == before
    assert entries(hub, "x.set") == []
    hub.change("ann", "x.set", about="x", detail={}, work=lambda _connection: None)
    assert generation() == before + 1


def test_numbers_rise(hub):
    assert hub.store.write(lambda c: [raise_fact(c, "new"), raise_fact(c, "new", by=5)]) == [1, 6]


def test_metadata_is_kept_in_the_change_that_signs_it(hub):
    def work(connection):
        before = hub.signing(connection)
        hub.keep(connection, before.refresh_timestamp(now=NOW), before=before)

    hub.change("hub", "refresh", about="", detail={}, work=work)
    assert hub.repository.timestamp.version == 2


def test_a_second_hub_is_refused(hub, database, tmp_path):
    with pytest.raises(ConfigError, match="already"):
        Hub.create(hub.home, database)
    with pytest.raises(ConfigError, match="already"):
        Hub.create(tmp_path / "other", database)


def test_what_is_no_hub_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no hub") as caught:
        Hub.open(tmp_path)
    assert "edge-hub init" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["- a", "a: [", "database: 1", "database: sqlite:////x\nlisten: here", "lists: 3"]
)
def test_wrong_settings_are_refused(tmp_path, text):
    (tmp_path / "hub.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Hub.open(tmp_path)
    assert "hub" in str(caught.value)


def test_lost_keys_are_told(hub):
    (hub.keys / "token.key").unlink()
    with pytest.raises(ConfigError, match=r"token\.key") as caught:
        Hub.open(hub.home)
    assert "keys folder" in caught.value.hint


def test_an_interrupted_start_can_be_repeated(tmp_path):
    """Nothing is left that keeps a second `init` from working once the reason is gone."""
    home = tmp_path / "hub"
    missing = f"sqlite:///{tmp_path / 'later' / 'hub.db'}"
    with pytest.raises(StoreError):
        Hub.create(home, missing)
    (tmp_path / "later").mkdir()
    with Hub.create(home, missing) as hub, hub.store.reading() as connection:
        assert connection.execute(select(audit.c.what)).scalars().all() == ["hub.init"]
