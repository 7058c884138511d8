import re

import pytest
from sqlalchemy import delete, insert, select, text, update

from edge.errors import InputError
from edge_sync.hub import audit
from edge_sync.hub.audit import Head
from edge_sync.store.schema import audit as log
from edge_sync.store.schema import facts


@pytest.fixture
def filled(hub):
    """Return a hub whose log has 10 entries."""
    for number in range(7):
        hub.change("ann", "test.change", about=f"thing {number}", detail={"n": number}, work=_none)
    return hub


def _none(_connection):
    return None


def head(hub):
    with hub.store.reading() as connection:
        return audit.head(connection)


def entry(connection, seq):
    return dict(connection.execute(select(log).where(log.c.seq == seq)).mappings().one())


def forge(connection, seq, **values):
    """Change an entry and make its own digest right."""
    row = {**entry(connection, seq), **values}
    row["digest"] = audit._digest(row["before"], row)
    connection.execute(update(log).where(log.c.seq == seq).values(**row))
    return row["digest"]


def edited(connection):
    connection.execute(update(log).where(log.c.seq == 5).values(who="eve"))


def edited_detail(connection):
    connection.execute(update(log).where(log.c.seq == 5).values(detail='{"n": 1}'))


def edited_well(connection):
    forge(connection, 5, who="eve")


def removed(connection):
    connection.execute(delete(log).where(log.c.seq == 5))


def put_in(connection):
    row = {**entry(connection, 1), "seq": 0}
    connection.execute(insert(log).values(**row))


def exchanged(connection):
    fifth, sixth = entry(connection, 5), entry(connection, 6)
    connection.execute(delete(log).where(log.c.seq.in_([5, 6])))
    connection.execute(insert(log).values(**{**fifth, "seq": 6}))
    connection.execute(insert(log).values(**{**sixth, "seq": 5}))


def cut(connection):
    connection.execute(delete(log).where(log.c.seq >= 9))


def added(connection):
    last = entry(connection, 10)
    row = {**last, "seq": 11, "before": last["digest"]}
    row["digest"] = audit._digest(row["before"], row)
    connection.execute(insert(log).values(**row))


def last_edited_well(connection):
    forge(connection, 10, about="nothing")


def without_head(connection):
    connection.execute(delete(facts).where(facts.c.name == audit.HEAD_FACT))


@pytest.mark.parametrize(
    ("tamper", "seq", "reason"),
    [
        (edited, 5, "was changed"),
        (edited_detail, 5, "was changed"),
        (edited_well, 6, "does not follow"),
        (removed, 5, "is missing"),
        (put_in, 0, "was put in"),
        (exchanged, 5, "was changed"),
        (cut, 9, "all up to 10"),
        (added, 11, "was put in"),
        (last_edited_well, 10, "not the last one"),
        (without_head, 10, "head"),
    ],
)
def test_the_first_broken_entry_is_found(filled, tamper, seq, reason):
    assert audit.verify(filled.store) is None
    filled.store.write(tamper)
    broken = audit.verify(filled.store)
    assert broken.seq == seq
    assert reason in broken.reason


def rewrite(connection):
    """Write the whole log anew from entry 5 on, with the head that fits."""
    digest = forge(connection, 5, who="eve")
    for seq in range(6, 11):
        digest = forge(connection, seq, before=digest)
    value = str(Head(10, digest))
    connection.execute(update(facts).where(facts.c.name == audit.HEAD_FACT).values(value=value))


def test_a_log_written_anew_is_found_by_a_head_noted_elsewhere(filled):
    noted = head(filled)
    filled.store.write(rewrite)
    assert audit.verify(filled.store) is None
    broken = audit.verify(filled.store, known=noted)
    assert (broken.seq, "written anew" in broken.reason) == (10, True)


def test_a_noted_head_holds_while_the_log_grows(filled):
    noted = head(filled)
    filled.change("ann", "test.change", about="more", detail={}, work=_none)
    assert audit.verify(filled.store, known=noted) is None
    ahead = Head(noted.seq + 5, noted.digest)
    assert audit.verify(filled.store, known=ahead).seq == noted.seq + 2


def test_a_cut_end_stays_to_be_seen_when_the_log_goes_on(filled):
    filled.store.write(cut)
    filled.change("ann", "test.change", about="later", detail={}, work=_none)
    assert audit.verify(filled.store).seq == 9


def test_a_long_log_is_read_page_by_page(filled, monkeypatch):
    monkeypatch.setattr(audit, "_PAGE", 3)
    assert audit.verify(filled.store) is None
    filled.store.write(lambda c: c.execute(update(log).where(log.c.seq == 7).values(at=1.5)))
    assert audit.verify(filled.store).seq == 7


def test_pages_are_filtered_newest_first(filled, clock):
    clock.at += 60
    filled.change("bob", "test_other", about="thing 3", detail={"a": [1]}, work=_none)
    every = audit.page(filled.store)
    assert [each.seq for each in every] == list(range(11, 0, -1))
    assert audit.page(filled.store, limit=2, before=5)[0].seq == 4
    assert [each.seq for each in audit.page(filled.store, who="bob")] == [11]
    # The mark that stands for any letter in SQL stands for itself.
    assert [each.seq for each in audit.page(filled.store, what="test_")] == [11]
    assert [each.who for each in audit.page(filled.store, about="thing 3")] == ["bob", "ann"]
    assert audit.page(filled.store, since=clock.at)[0].detail == {"a": [1]}


def test_long_and_strange_texts_fit(filled):
    strange = "x" * 200 + "\0"
    filled.change("ann\0", "test.change", about=strange, detail={"t": "\0\ud800"}, work=_none)
    last = audit.page(filled.store, limit=1)[0]
    assert (last.who, last.about) == ("ann", "x" * 99 + "…")
    assert audit.verify(filled.store) is None


def test_a_detail_somebody_broke_can_still_be_shown(filled):
    filled.store.write(lambda c: c.execute(text("UPDATE audit SET detail = 'no json' WHERE seq=2")))
    assert audit.page(filled.store, before=3, limit=1)[0].detail == {"text": "no json"}


@pytest.mark.parametrize("text", ["", "5", "5:abc", f"x:{'0' * 64}", f"5:{'A' * 64}"])
def test_what_is_no_head_is_refused(text):
    with pytest.raises(InputError, match=re.escape("number:digest")):
        Head.parse(text)
