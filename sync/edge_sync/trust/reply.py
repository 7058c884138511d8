"""The hub's signature of a whole answer to one sync, in a header beside it.

It covers what no other signature does: nonce, receipt, watermark and leases. An answer can thus be
neither forged nor changed on its way, nor kept for another request.
"""

from __future__ import annotations

import hashlib

from edge_sync.trust import clock
from edge_sync.trust.metadata import Root

_CONTEXT = "edge-reply-1"


def reply_payload(request_id: str, body: bytes) -> bytes:
    """Return the bytes that the hub signs.

    Args:
        request_id: of the request that is answered.
        body: of the answer, as it is sent.

    """
    return f"{_CONTEXT}\n{request_id}\n{hashlib.sha256(body).hexdigest()}".encode()


def verify_reply(root: Root, header: str, *, request_id: str, body: bytes) -> None:
    """Check an answer.

    Args:
        root: trusted; its timestamp keys may sign answers.
        header: see ``wire.REPLY_HEADER``; empty where there was none.
        request_id: of the request that was sent.
        body: as it came.

    Raises:
        SignatureInvalid: no timestamp key signed it, or it answers another request.

    """
    keyid, _, signature = header.partition(":")
    payload = reply_payload(request_id, body)
    clock.verify_now(root, payload, keyid=keyid, signature=signature, what="answer")
