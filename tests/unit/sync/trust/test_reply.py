"""The signature of a whole answer."""

import pytest

from edge.errors import SignatureInvalid
from edge_sync.trust.repository import Repository
from edge_sync.trust.trusted import Trusted

NOW = 1_795_000_000.0
ID, BODY = "a" * 32, b'{"nonce":"1"}'


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return Repository.create(tmp_path_factory.mktemp("keys"), now=NOW)


@pytest.fixture
def trusted(repository):
    return Trusted.start(repository.root.data, fingerprint=None)


def test_an_answer_of_the_hub_holds(repository, trusted):
    trusted.verify_reply(repository.sign_reply(ID, BODY), request_id=ID, body=BODY)


@pytest.mark.parametrize(("request_id", "body"), [("b" * 32, BODY), (ID, BODY + b" "), (ID, b"")])
def test_another_answer_does_not(repository, trusted, request_id, body):
    with pytest.raises(SignatureInvalid, match="answer is wrong"):
        trusted.verify_reply(repository.sign_reply(ID, BODY), request_id=request_id, body=body)


@pytest.mark.parametrize("signature", ["", "00", "é", "g" * 128, "0" * 128])
def test_what_is_no_signature_does_not(repository, trusted, signature):
    keyid = repository.sign_reply(ID, BODY).partition(":")[0]
    with pytest.raises(SignatureInvalid, match="answer is wrong"):
        trusted.verify_reply(f"{keyid}:{signature}", request_id=ID, body=BODY)


def test_the_key_of_another_role_does_not_sign_answers(repository, trusted):
    (signer,) = repository.signers("snapshot")
    signed = signer.sign(b"anything")
    for header in ("", ":", "x", f"{signed.keyid}:{signed.signature}"):
        with pytest.raises(SignatureInvalid, match="not signed by a timestamp key"):
            trusted.verify_reply(header, request_id=ID, body=BODY)


def test_the_signature_of_a_time_is_none_of_an_answer(repository, trusted):
    time = repository.sign_time(ID, now=NOW)
    with pytest.raises(SignatureInvalid, match="answer is wrong"):
        trusted.verify_reply(f"{time.keyid}:{time.signature}", request_id=ID, body=BODY)


def test_a_new_key_counts_with_the_root_that_names_it(repository, trusted):
    newer = repository.rotate("timestamp", now=NOW)
    header = newer.sign_reply(ID, BODY)
    with pytest.raises(SignatureInvalid):
        trusted.verify_reply(header, request_id=ID, body=BODY)
    roots = [newer.root.data.decode()]
    trusted.verify_reply(header, request_id=ID, body=BODY, roots=roots)
