"""What a device and a hub say to each other: the messages, their limits, their names.

Plain values with bounds; unknown keys are passed over, so that an older side understands a newer
one. Holds no text of a task. Knows nothing of sockets, keys or tables.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ENROL_PATH, SYNC_PATH, POLICY_PATH = "/v1/enrol", "/v1/sync", "/v1/policy"
MODELS_PATH = "/v1/models"
DEVICE_HEADER, SIGNATURE_HEADER = "Edge-Device", "Edge-Signature"
KEY_HEADER, LEASE_HEADER, DEADLINE_HEADER = "Edge-Key", "Edge-Lease", "Edge-Deadline"
MAX_BODY_BYTES = 1_000_000
MAX_ROWS = 500
MAX_WANTS, MAX_LEASES = 20, 100
REPLY_HEADER = "Edge-Reply"
"""Header of a sync's answer: key id and hex signature with a colon between, over ``edge-reply-1``,
the request id and the sha256 of the body in hex, with line breaks between."""
CHUNK_BYTES = 1 << 20
"""A model's files are checked in pieces of this size."""
LATENCY_BUCKETS = 32
"""Bucket i counts latencies below 2 ** (i / 2) milliseconds and not below the one before; the last
one counts all others."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Money = Annotated[int, Field(ge=0, le=10**15)]
Version = Annotated[int, Field(ge=0, lt=2**53)]
Moment = Annotated[float, Field(ge=-1e11, le=1e11, allow_inf_nan=False)]
"""Seconds since the epoch, within 3,170 years of it."""
Label = Annotated[str, Field(max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Words for a person's screen: no control characters."""
Text = Annotated[str, Field(max_length=2_000)]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Failure(_Wire):
    """Why the hub refused a request: a stable code, and a sentence and a remedy for a person."""

    code: str
    message: str
    hint: str = ""


class EnrolRequest(_Wire):
    """A device asks to join.

    Attributes:
        code: one-time code from the admin.
        public_key: Ed25519, 64 hex digits; the device id is the first 32 of its sha256.
        name: what people call the device; its id where empty.
        signature: by that key over ``edge-enrol-1``, a line break and the code, in base64.

    """

    code: str = Field(max_length=200)
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = Field(default="", max_length=100)
    runtime: Label = Field(default="", max_length=40)
    signature: str = Field(max_length=200)


class EnrolReply(_Wire):
    """A device has joined.

    Attributes:
        root: the first root metadata; its digest must be the one that the code ends with.
        nonce: for the first sync.

    """

    device_id: Id
    group: Name
    incarnation: int
    nonce: str
    root: str


class Have(_Wire):
    """Which versions of signed metadata a device holds; 0 for none."""

    root: Version = 0
    timestamp: Version = 0
    serial: Version = 0
    revision: Version = 0

    @property
    def etag(self) -> str:
        """What stands in ``If-None-Match``."""
        return f'"{self.root}.{self.timestamp}.{self.serial}"'


class Health(_Wire):
    """What a device did under one policy in one hour; counts since the last acknowledged sync.

    Attributes:
        revision: of the policy in force; 0 for none.
        hour: whole hours since 1970-01-01 UTC.
        latency: counts by bucket, see ``LATENCY_BUCKETS``.

    """

    revision: Version
    hour: int = Field(ge=0, lt=10**8)
    tasks: Count = 0
    errors: Count = 0
    cached: Count = 0
    local: Count = 0
    cloud: Count = 0
    deferred: Count = 0
    abstained: Count = 0
    corrections: Count = 0
    cost_microusd: Money = 0
    latency: list[Count] = Field(default=[], max_length=LATENCY_BUCKETS)


class LedgerRow(_Wire):
    """One hold of the device's ledger; rows are told apart by their random id alone."""

    row_id: Id
    task: Name
    pool: Name
    state: Literal["reserved", "sent", "settled", "released", "unclear"]
    held_microusd: Money = 0
    cost_microusd: Money = 0
    at: Moment
    revision: Version = 0


class Want(_Wire):
    """What a device would like to be able to spend.

    Attributes:
        pool: where.
        task: on what; empty for any.
        demand_microusd: what it expects to need until the sync after next, all in all: what is
            left of its open leases is part of it.

    """

    pool: Name
    task: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.\-]{0,63})?$")] = ""
    demand_microusd: Money


class LeaseUse(_Wire):
    """How a lease stands in the device's own ledger.

    Attributes:
        used_microusd: settled and held; where no gateway counts, this is the count.
        done: the device will make no new hold on it; ``used_microusd`` is then at most what it
            comes to, and exact once ``open`` is 0.
        open: holds of it that are not settled or released.

    """

    lease_id: Id
    used_microusd: Money
    done: bool = False
    open: Count = 0


class Refusal(_Wire):
    """A policy that a device would not take, and why."""

    revision: Version
    reason: Text


class SyncRequest(_Wire):
    """All that a device has to say, in one request.

    Attributes:
        request_id: random; the same request sent again has the same one.
        nonce: from the last reply. Another than the hub expects means that there are two of this
            device, or that its disk was set back.
        at: the device's clock, seconds since the epoch.
        have: the metadata it holds; ``have.revision`` is the policy in force.
        refused: policies that it would not take since the last sync.
        waiting: tasks in the queue.
        models: digest of the manifest of each assigned model in use, by name.
        wants: what it would like to be able to spend.
        uses: how its leases stand.

    """

    device_id: Id
    incarnation: int = Field(ge=0)
    request_id: Id
    nonce: str = Field(max_length=64)
    at: Moment
    runtime: Label = Field(default="", max_length=40)
    pack: Label = ""
    have: Have = Have()
    refused: list[Refusal] = Field(default=[], max_length=20)
    health: list[Health] = Field(default=[], max_length=1_000)
    rows: list[LedgerRow] = Field(default=[], max_length=MAX_ROWS)
    waiting: int = Field(default=0, ge=0, lt=2**31)
    models: dict[Name, Label] = Field(default={}, max_length=100)
    wants: list[Want] = Field(default=[], max_length=MAX_WANTS)
    uses: list[LeaseUse] = Field(default=[], max_length=MAX_LEASES)


class Attested(_Wire):
    """The hub's time, signed for one request by the key of the timestamp role.

    The signature (hex) is over ``edge-time-1``, the request id and the time in milliseconds, with a
    line break between them.
    """

    request_id: str
    time_ms: int
    keyid: str
    signature: str


class ModelFile(_Wire):
    """One file of a model.

    Attributes:
        path: relative, with forward slashes.
        chunks: sha256 of each piece of ``CHUNK_BYTES``, the last one shorter, in lower-case hex.

    """

    path: str = Field(min_length=1, max_length=200)
    bytes: Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    chunks: list[str] = Field(max_length=100_000)


class ModelIndex(_Wire):
    """What ``models/<name>/<digest>.json`` says, the target that vouches for a model's files.

    Attributes:
        digest: sha256 of ``manifest.json``, which is one of the files.

    """

    name: Name
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    files: list[ModelFile] = Field(min_length=1, max_length=1_000)


class Bundle(_Wire):
    """Signed metadata and the policy it leads to; texts as they were signed.

    Attributes:
        roots: those after the one the device holds, in order.
        assignment: which policy is whose; see ``edge_sync.trust``.
        policy: the document, where the device does not hold it.

    """

    roots: list[str] = []
    timestamp: str
    snapshot: str
    targets: str
    assignment: str
    policy: str | None = None


class SyncReply(_Wire):
    """The answer to all of it.

    Attributes:
        nonce: for the next sync.
        token: for asking about the policy, ``Authorization: Bearer``.
        receipt: the number under which the hub took the rows and counts.
        watermark: receipts up to this one are in a completed backup; only these rows may be
            forgotten.
        bundle: where the device holds something older.
        epoch: rises with each time that the hub was set back to a backup; a device that sees it
            rise tells again all rows that it still has.
        quarantined: there were two of this device; it works on, but gets no leases.
        leases: all leases that this device may spend from now on, in the order to use them; one
            that is missing has been closed.
        next_sync_s: when to come back, before jitter.

    """

    nonce: str
    token: str
    receipt: int
    watermark: int
    time: Attested
    bundle: Bundle | None = None
    epoch: Version = 0
    quarantined: bool = False
    leases: list[dict[str, str | int]] = []
    next_sync_s: float = 300.0
