"""A hub in memory behind httpx's mock transport, and devices whose clocks a test holds."""

import gzip
import hashlib
import itertools
import json
import random

import httpx
import pytest

from edge.errors import EdgeError
from edge.overlay import compile_policy, load_document, read_policy
from edge.store.policies import Policies
from edge_sync import keys
from edge_sync.agent.device import Senses
from edge_sync.agent.start import open_device
from edge_sync.trust.assignment import Stopped, model_path, policy_path
from edge_sync.trust.repository import Repository
from edge_sync.wire import CHUNK_BYTES, REPLY_HEADER, Bundle, EnrolRequest, SyncReply, SyncRequest

NOW = 1_780_000_000.0
URL = "https://hub.test"


class Time:
    """Clocks that move only when a test says so."""

    def __init__(self):
        self.hub_s, self.own_s, self.boot_s = NOW, NOW, 100.0

    def pass_(self, seconds):
        self.hub_s += seconds
        self.own_s += seconds
        self.boot_s += seconds


class Hub:
    """What a hub answers, from signed metadata to ranges of files; faults by name."""

    def __init__(self, folder, time):
        self.time = time
        self.repository = Repository.create(folder / "keys", now=NOW)
        self.roots = [self.repository.files["root"]]
        self.nonces = (f"nonce-{at}" for at in itertools.count())
        self.forked = set()
        self.devices, self.answers, self.seen, self.requests = {}, {}, [], []
        self.serial, self.revision, self.receipt, self.watermark = 0, 0, 0, 0
        self.documents, self.files, self.mirror = {}, {}, {}
        self.assigned, self.faults, self.group = None, {}, "lab"
        self.next_sync_s, self.signs = 300.0, True
        self.leases = []

    @property
    def code(self):
        return f"0123456789-{hashlib.sha256(self.roots[0]).hexdigest()[:32]}"

    def publish(self, text, *, stopped=(), assign=True, models=None):
        """Publish and assign a policy; return its revision."""
        self.revision += 1
        document = compile_policy(
            read_policy(text), revision=self.revision, created_at=self.time.hub_s
        )
        self.documents[self.revision] = document
        self.repository = self.repository.publish(
            {policy_path(self.revision): document}, now=self.time.hub_s
        )
        if assign:
            self.assign(stopped=stopped, models=models)
        return self.revision

    def assign(self, *, stopped=(), models=None, **whom):
        self.serial += 1
        self.assigned = self.repository.assign(
            serial=self.serial,
            now=self.time.hub_s,
            revision=self.revision,
            models=models or {},
            stopped=Stopped(**dict(stopped)),
            **(whom or {"group": self.group}),
        )

    def add_model(self, folder):
        """Publish a model's folder; return its name and digest."""
        manifest = json.loads((folder / "manifest.json").read_bytes())
        files = []
        for path in ["manifest.json", *(file["path"] for file in manifest["files"])]:
            data = (folder / path).read_bytes()
            pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
            files.append(
                {
                    "path": path,
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "chunks": [hashlib.sha256(piece).hexdigest() for piece in pieces],
                }
            )
        name, digest = manifest["name"], files[0]["sha256"]
        index = json.dumps({"name": name, "digest": digest, "files": files}).encode()
        self.repository = self.repository.publish(
            {model_path(name, digest): index}, now=self.time.hub_s
        )
        self.files[f"{name}/{digest}/index.json"] = index
        for file in files:
            self.files[f"{name}/{digest}/{file['path']}"] = (folder / file["path"]).read_bytes()
        return name, digest

    def rotate(self, role):
        self.repository = self.repository.rotate(role, now=self.time.hub_s)
        root = self.repository.files["root"]
        if root != self.roots[-1]:
            self.roots.append(root)

    @property
    def etag(self):
        return f'"{len(self.roots)}.{self.repository.timestamp.version}.{self.serial}"'

    def bundle(self, root, *, with_policy=True):
        files = {role: body.decode() for role, body in self.repository.files.items()}
        document = self.documents.get(self.revision)
        return Bundle(
            roots=[body.decode() for body in self.roots[root:]],
            timestamp=files["timestamp"],
            snapshot=files["snapshot"],
            targets=files["targets"],
            assignment=self.assigned.decode(),
            policy=document.decode() if document and with_policy else None,
        )

    def __call__(self, request):
        self.requests.append(request)
        path = request.url.path
        fault = self.faults.get(path) or self.faults.get("*")
        if fault is not None:
            answer = fault(request)
            if answer is not None:
                return answer
        if request.url.host == "mirror.test":
            return self._ranged(request, self.mirror.get(path.lstrip("/")))
        if path == "/v1/enrol":
            return self._enrol(EnrolRequest.model_validate_json(request.content))
        if path == "/v1/sync":
            return self._sync(request)
        if path == "/v1/policy":
            return self._policy(request)
        return self._ranged(request, self.files.get(path.removeprefix("/v1/models/")))

    def _enrol(self, asked):
        if asked.code != self.code:
            return refusal(403, "bad_code", "The code is not one of this hub.")
        device = keys.device_id(asked.public_key)
        keys.verify_enrolment(asked.public_key, asked.code, signature=asked.signature)
        self.devices[device] = [asked.public_key, next(self.nonces), asked.name]
        return httpx.Response(
            200,
            json={
                "device_id": device,
                "group": self.group,
                "incarnation": 1,
                "nonce": self.devices[device][1],
                "root": self.roots[0].decode(),
            },
        )

    def _sync(self, request):
        body = request.content
        device = request.headers["Edge-Device"]
        if device not in self.devices:
            return refusal(401, "unknown_device", "There is no such device.")
        key, nonce, _ = self.devices[device]
        keys.verify_sync(key, body, signature=request.headers["Edge-Signature"])
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        asked = SyncRequest.model_validate_json(body)
        known = self.answers.get(asked.request_id)
        if known is not None and known[1] != nonce:
            return refusal(409, "replayed", "That was answered before.")
        if known is None:
            if asked.nonce != nonce:
                self.forked.add(device)
            self.receipt += 1
            self.devices[device][1] = next(self.nonces)
            known = self.receipt, self.devices[device][1]
            self.answers[asked.request_id] = known
            self.seen.append(asked)
        reply = SyncReply(
            nonce=known[1],
            token="token",
            receipt=known[0],
            watermark=self.watermark,
            time=self.repository.sign_time(asked.request_id, now=self.time.hub_s),
            quarantined=device in self.forked,
            bundle=None
            if self.assigned is None or asked.have.etag == self.etag
            else self.bundle(asked.have.root, with_policy=asked.have.serial != self.serial),
            leases=[json.loads(lease.text()) for lease in self.leases],
            next_sync_s=self.next_sync_s,
        )
        content = reply.model_dump_json().encode()
        signed = self.repository.sign_reply(asked.request_id, content)
        headers = {REPLY_HEADER: signed} if self.signs else {}
        return httpx.Response(200, content=content, headers=headers)

    def _policy(self, request):
        if request.headers["Authorization"] != "Bearer token":
            return refusal(401, "expired_token", "The token is none.")
        held = request.headers.get("If-None-Match", '"0.0.0"')
        if self.assigned is None or held == self.etag:
            return httpx.Response(304, headers={"ETag": self.etag})
        serial = int(held.strip('"').split(".")[2])
        bundle = self.bundle(int(request.url.params["root"]), with_policy=serial != self.serial)
        return httpx.Response(200, content=bundle.model_dump_json(), headers={"ETag": self.etag})

    def _ranged(self, request, data):
        if data is None:
            return refusal(404, "bad_request", "There is no such file.")
        asked = request.headers.get("Range")
        if asked is None:
            return httpx.Response(200, content=data)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        return httpx.Response(206, content=data[start:])


def refusal(status, code, message, **headers):
    body = {"code": code, "message": message, "hint": ""}
    return httpx.Response(status, json=body, headers=headers)


class Runs:
    """Activates what loads and is not named as bad; stands for a runtime."""

    def __init__(self, policies):
        self.policies = policies
        self.bad = {}

    def activate(
        self, document, *, stopped=None, tightened=None, check=True, trust=None, etag=None
    ):
        loaded = load_document(document)
        if loaded.revision in self.bad:
            error: EdgeError = self.bad[loaded.revision]
            self.policies.refused(loaded.revision, str(error), 0.0)
            raise error
        self.policies.activate(
            revision=loaded.revision,
            document=document,
            stopped=stopped or {},
            at=0.0,
            tightened=bool(tightened),
            trust=trust,
            etag=etag,
        )


@pytest.fixture
def clocks():
    return Time()


@pytest.fixture
def hub(tmp_path, clocks):
    return Hub(tmp_path / "hub", clocks)


@pytest.fixture
def opened(tmp_path, hub, clocks):
    """Open devices over state folders; the same name is the same folder again."""
    open_ones = []
    draw = random.Random(5)  # noqa: S311

    def open_(state="state", *, urls=URL, env=None):
        folder = tmp_path / state
        policies = Policies.open(folder)
        runs = Runs(policies)
        device, exchange = open_device(
            runs,
            urls,
            state=folder,
            pack="kiosk",
            env=env or {},
            transport=httpx.MockTransport(hub),
            senses=Senses(
                own_s=lambda: clocks.own_s,
                boot_s=lambda: clocks.boot_s,
                draw=lambda: f"{draw.getrandbits(128):032x}",
            ),
        )
        device.runs, device.policies, device.exchange, device.state = (
            runs,
            policies,
            exchange,
            folder,
        )
        open_ones.append(device)
        return device

    yield open_
    for device in open_ones:
        device.close()
        device.policies.close()


@pytest.fixture
def device(opened, hub):
    """A device that has joined and synced once."""
    made = opened()
    made.enrol(hub.code)
    made.sync()
    return made
