import pytest

from edge.errors import ConfigError, InputError
from edge_sync.hub import tokens
from edge_sync.hub.tokens import Admin, Role


@pytest.fixture
def root(hub):
    return tokens.add(hub, "root", role=Role.ADMIN, who="test")


def test_a_token_lets_its_admin_in_and_is_not_stored(hub, root, dump):
    assert tokens.check(hub, root) == Admin("root", Role.ADMIN)
    assert tokens.check(hub, f" {root}\n") == Admin("root", Role.ADMIN)
    assert root not in str(dump())
    assert root.removeprefix(tokens.PREFIX) not in str(dump())


@pytest.mark.parametrize("token", ["", "edge-hub_", "nonsense", "\ud800", "x" * 100_000])
def test_another_text_lets_nobody_in(hub, root, token):
    assert tokens.check(hub, token) is None
    assert tokens.check(hub, root + token) is None or not token


def test_a_revoked_token_is_over_at_once(hub, root):
    other = tokens.add(hub, "eve", role=Role.OPERATOR, who="root")
    tokens.revoke(hub, "eve", who="root")
    assert tokens.check(hub, other) is None
    assert [(each.name, each.state(hub.clock())) for each in tokens.list_tokens(hub)] == [
        ("eve", "revoked"),
        ("root", "valid"),
    ]


def test_a_token_expires(hub, root, clock):
    other = tokens.add(hub, "guest", role=Role.VIEWER, who="root", expires_s=60)
    clock.at += 59
    assert tokens.check(hub, other) is not None
    clock.at += 1
    assert tokens.check(hub, other) is None
    assert tokens.list_tokens(hub)[0].state(clock.at) == "expired"


def test_use_is_noted_once_a_minute(hub, root, clock, dump):
    tokens.check(hub, root)
    first = tokens.list_tokens(hub)[0].last_used_at
    before = dump()
    clock.at += 59
    tokens.check(hub, root)
    assert dump() == before
    clock.at += 1
    tokens.check(hub, root)
    assert tokens.list_tokens(hub)[0].last_used_at == first + 60


def test_the_last_admin_stays(hub, root, clock, dump):
    tokens.add(hub, "short", role=Role.ADMIN, who="root", expires_s=60)
    tokens.add(hub, "eve", role=Role.OPERATOR, who="root")
    clock.at += 60
    before = dump()
    with pytest.raises(ConfigError, match="last token of the role admin"):
        tokens.revoke(hub, "root", who="eve")
    assert dump() == before
    tokens.revoke(hub, "eve", who="root")
    tokens.revoke(hub, "short", who="root")
    tokens.add(hub, "second", role=Role.ADMIN, who="root")
    tokens.revoke(hub, "root", who="second")
    assert tokens.check(hub, root) is None


@pytest.mark.parametrize(
    ("name", "expires_s", "words"),
    [
        ("", None, "cannot be a token's name"),
        ("a b", None, "cannot be a token's name"),
        ("x" * 65, None, "cannot be a token's name"),
        ("new", 0, "cannot hold for"),
        ("new", float("nan"), "cannot hold for"),
        ("root", None, "was a token"),
    ],
)
def test_what_cannot_be_added(hub, root, dump, name, expires_s, words):
    before = dump()
    with pytest.raises(InputError, match=words):
        tokens.add(hub, name, role=Role.VIEWER, who="root", expires_s=expires_s)
    assert dump() == before


def test_a_token_that_is_not_there_cannot_be_revoked(hub, root):
    with pytest.raises(ConfigError, match="Tokens: root"):
        tokens.revoke(hub, "nobody", who="root")


def test_roles_include_the_ones_below():
    order = [Role.VIEWER, Role.OPERATOR, Role.ADMIN]
    for at, role in enumerate(order):
        assert [role.may(needed) for needed in order] == [n <= at for n in range(3)]
