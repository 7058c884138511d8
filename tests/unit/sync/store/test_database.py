import threading

import pytest
from sqlalchemy import insert, select

from edge.errors import ConfigError, StoreError
from edge_sync.store.database import Store
from edge_sync.store.migration import migrate
from edge_sync.store.schema import facts


@pytest.fixture
def store(database):
    store = Store.open(database)
    migrate(store)
    yield store
    store.close()


def put(name, value="1"):
    return lambda connection: connection.execute(insert(facts).values(name=name, value=value))


def names(store):
    with store.reading() as connection:
        return sorted(connection.execute(select(facts.c.name)).scalars())


def held_back(store):
    """Hold the writer inside a write; return what lets it go on."""
    entered, go = threading.Event(), threading.Event()

    def work(_connection):
        entered.set()
        go.wait(10)

    thread = threading.Thread(target=store.write, args=(work,))
    thread.start()
    entered.wait(10)

    def release():
        go.set()
        thread.join()

    return release


def gathered(store, items, handler):
    """Run writes that wait at the same time; return result and error of each."""
    release = held_back(store)
    over = threading.Event()
    outcomes = {}

    def settle_of(item):
        def settle(result, error):
            outcomes[item] = (result, error)
            if len(outcomes) == len(items):
                over.set()

        return settle

    for item in items:
        store.submit(handler, item, settle_of(item))
    release()
    assert over.wait(10)
    return outcomes


def test_a_write_is_seen_after_it_returns(store):
    store.write(put("a"))
    assert names(store) == ["a"]


def test_a_failed_write_leaves_nothing(store):
    def work(connection):
        put("a")(connection)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.write(work)
    assert names(store) == []


def test_errors_of_the_driver_are_ours(store):
    store.write(put("a"))
    with pytest.raises(StoreError, match=r"cannot be used: .*(UNIQUE|unique)"):
        store.write(put("a"))


def test_reading_cannot_write(store):
    with pytest.raises(StoreError, match="read"), store.reading() as connection:
        put("a")(connection)
    store.write(put("b"))
    assert names(store) == ["b"]


def test_a_reader_sees_one_moment(postgres):
    """On PostgreSQL; a reader of SQLite's rollback journal holds the writer off instead."""
    store = Store.open(postgres())
    migrate(store)
    store.write(put("a"))
    with store.reading() as connection:
        assert connection.execute(select(facts.c.name)).scalars().all() == ["a"]
        store.write(put("b"))
        assert connection.execute(select(facts.c.name)).scalars().all() == ["a"]
    store.close()


def test_writes_that_wait_share_a_transaction(store):
    sizes = []

    def handler(connection, items):
        sizes.append(len(items))
        for item in items:
            put(item)(connection)
        return [item.upper() for item in items]

    outcomes = gathered(store, list("abcde"), handler)
    assert sizes == [5]
    assert outcomes == {name: (name.upper(), None) for name in "abcde"}
    assert names(store) == list("abcde")


def test_a_bad_write_fails_alone(store):
    def handler(connection, items):
        for item in items:
            put(item)(connection)
            if item == "c":
                raise ValueError(item)
        return [None] * len(items)

    outcomes = gathered(store, list("abcde"), handler)
    assert [str(outcomes[name][1]) for name in "abcde"] == ["None", "None", "c", "None", "None"]
    assert names(store) == ["a", "b", "d", "e"]


def test_a_bad_statement_fails_alone(store):
    """On PostgreSQL a failed statement ends the transaction unless there is a savepoint."""
    store.write(put("c"))

    def handler(connection, items):
        for item in items:
            put(item)(connection)
        return [None] * len(items)

    outcomes = gathered(store, list("abcde"), handler)
    assert isinstance(outcomes["c"][1], StoreError)
    assert all(outcomes[name][1] is None for name in "abde")
    assert names(store) == list("abcde")


def test_a_returned_error_keeps_the_others(store):
    def handler(connection, items):
        for item in items:
            put(item)(connection)
        return [ValueError(item) if item == "b" else item for item in items]

    outcomes = gathered(store, list("abc"), handler)
    assert str(outcomes["b"][1]) == "b"
    assert outcomes["c"] == ("c", None)


def test_a_write_inside_a_write_is_refused(store):
    with pytest.raises(RuntimeError, match="inside another"):
        store.write(lambda _connection: store.write(put("a")))


def test_two_processes_worth_of_stores_take_turns(store, database):
    """Increments of one number are not lost between two writers."""
    store.write(put("n", "0"))
    other = Store.open(database)

    def increment(connection):
        at = int(connection.execute(select(facts.c.value)).scalar_one())
        connection.execute(facts.update().values(value=str(at + 1)))

    def many(one):
        for _ in range(15):
            one.write(increment)

    threads = [threading.Thread(target=many, args=(one,)) for one in (store, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    with store.reading() as connection:
        assert connection.execute(select(facts.c.value)).scalar_one() == "30"


def test_closing_finishes_what_was_queued(store, database):
    release = held_back(store)
    done = []
    store.submit(lambda c, items: [put(i)(c) for i in items], "a", lambda *got: done.append(got))
    closing = threading.Thread(target=store.close)
    closing.start()
    release()
    closing.join()
    assert done[0][1] is None
    with pytest.raises(StoreError, match="closed"):
        store.write(put("b"))
    again = Store.open(database)
    assert names(again) == ["a"]
    again.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_other_urls_are_refused(url):
    with pytest.raises(ConfigError) as caught:
        Store.open(url)
    assert "sqlite:////" in caught.value.hint


def test_an_unreachable_database_is_told(tmp_path):
    with pytest.raises(StoreError, match="cannot be used"):
        Store.open(f"postgresql://postgres@/none?host={tmp_path}")
    with pytest.raises(StoreError, match="unable to open"):
        Store.open(f"sqlite:///{tmp_path / 'missing' / 'hub.db'}")


def test_a_password_is_never_shown(tmp_path):
    with pytest.raises(StoreError) as caught:
        Store.open(f"postgresql://me:secret@/none?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_the_file_is_durable_and_private(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'hub.db'}")
    with store.reading() as connection:
        journal = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        synchronous = connection.exec_driver_sql("PRAGMA synchronous").scalar()
    store.close()
    assert (journal, synchronous) in {("delete", 3), ("wal", 2)}
    assert (tmp_path / "hub.db").stat().st_mode & 0o777 == 0o600
