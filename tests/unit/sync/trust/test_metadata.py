import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata, MetaFile, Timestamp

from edge.errors import HubDistrusted, SignatureInvalid
from edge_sync.trust.metadata import MAX_DEPTH, check_file, dump, encode, read

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**53 - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def timestamp(extra: Any = None) -> dict[str, Any]:
    signed = Timestamp(version=3, expires=datetime(2030, 1, 1, tzinfo=UTC))
    tree: dict[str, Any] = json.loads(dump(Metadata(signed)))
    tree["signed"]["x"] = extra
    return tree


@given(extra=TREES, escaped=st.booleans())
@settings(deadline=None)
def test_what_is_signed_is_canonical_json(extra: Any, escaped: bool) -> None:
    tree = timestamp(extra)
    data = json.dumps(tree, ensure_ascii=escaped).encode()
    part = read(Timestamp, data, role="timestamp")
    assert part.payload == encode_canonical(tree["signed"]).encode()
    assert part.payload == part.metadata.signed_bytes
    assert part.version == 3


@pytest.mark.parametrize(("depth", "good"), [(MAX_DEPTH - 2, True), (MAX_DEPTH - 1, False)])
def test_depth_is_bounded(depth: int, good: bool) -> None:
    extra: Any = 1
    for _ in range(depth):
        extra = [extra]
    data = json.dumps(timestamp(extra)).encode()
    if good:
        assert read(Timestamp, data, role="timestamp").version == 3
    else:
        with pytest.raises(HubDistrusted, match="too deep"):
            read(Timestamp, data, role="timestamp")


@pytest.mark.parametrize("tree", ["[]", "1", '"x"', "null", "{}", '{"signed":1,"signatures":1}'])
def test_what_is_no_metadata_is_refused(tree: str) -> None:
    with pytest.raises(HubDistrusted, match="timestamp metadata is malformed"):
        read(Timestamp, tree.encode(), role="timestamp")


def test_a_caps_edge() -> None:
    assert encode("x" * 16_384, "timestamp") == b"x" * 16_384
    with pytest.raises(HubDistrusted, match="longer than 16,384 bytes"):
        encode("x" * 16_385, "timestamp")
    with pytest.raises(HubDistrusted, match="longer than"):
        read(Timestamp, "é".encode() * 8_193, role="timestamp")


@pytest.mark.parametrize(
    "meta",
    [MetaFile(1), MetaFile(1, length=4), MetaFile.from_data(1, b"data", ["sha512"])],
    ids=["nothing", "length alone", "another hash"],
)
def test_a_file_must_be_named_by_length_and_sha256(meta: MetaFile) -> None:
    with pytest.raises(SignatureInvalid, match="no length or sha256"):
        check_file(meta, b"data", what="policy 1")
