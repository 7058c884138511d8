"""Models that the hub hands out: copied, checked, and vouched for by signed metadata.

A model is known by the sha256 of its ``manifest.json``. Guarantees: only files whose size and
digest are those of the manifest are taken; a folder ``models/name/digest`` is whole or not there;
a model that a listed policy names stays. Knows nothing of what models do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select

from edge.errors import ConfigError, EdgeError, IntegrityError, LoadError, StoreError
from edge.store.weights import MANIFEST, Manifest, ModelStore
from edge_sync.hub.assigning import named_models
from edge_sync.hub.home import Hub
from edge_sync.store.schema import models, policies
from edge_sync.trust.assignment import model_path
from edge_sync.wire import CHUNK_BYTES, ModelFile, ModelIndex

_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the hub.

    Attributes:
        digest: sha256 of its manifest.
        bytes: of all its files.
        revisions: of the policies that name it.

    """

    name: str
    digest: str
    bytes: int
    files: int
    added_at: float
    added_by: str
    revisions: tuple[int, ...]


def add(hub: Hub, folder: Path, *, who: str) -> Model:
    """Take a model's folder: check it, copy it, and publish the index of its files.

    Raises:
        ConfigError: there is no manifest, or the hub has this model already.
        LoadError: the manifest is not valid, or a file is missing or has another size.
        IntegrityError: a file has another digest.
        StoreError: it cannot be copied.

    """
    manifest = _whole(folder)
    index = index_of(folder, manifest)
    with hub.store.reading() as connection:
        if connection.execute(select(models).where(models.c.digest == index.digest)).first():
            raise ConfigError(
                f"The hub has the model {index.name} {index.digest[:12]}… already.",
                hint="Nothing had to be added.",
            )
    _copy(folder, index, place(hub, index.name, index.digest))
    body = index.model_dump_json()
    size = sum(file.bytes for file in index.files)

    def work(connection: Connection) -> Model:
        now = hub.clock()
        connection.execute(
            insert(models).values(
                digest=index.digest,
                name=index.name,
                files=body,
                bytes=size,
                added_at=now,
                added_by=who[:64],
            )
        )
        before = hub.signing(connection)
        path = model_path(index.name, index.digest)
        after = before.publish({path: body.encode("utf-8")}, now=now)
        hub.keep(connection, after, before=before)
        return Model(index.name, index.digest, size, len(index.files), now, who, ())

    detail = {"digest": index.digest, "bytes": size}
    return hub.change(who, "model.add", about=index.name, detail=detail, work=work)


def list_models(hub: Hub) -> list[Model]:
    """Return all models by name, the newest of a name first."""
    query = select(models).order_by(models.c.name, models.c.added_at.desc())
    with hub.store.reading() as connection:
        used = _used(connection)
        return [
            Model(
                name=row["name"],
                digest=row["digest"],
                bytes=int(row["bytes"]),
                files=len(json.loads(row["files"])["files"]),
                added_at=float(row["added_at"]),
                added_by=row["added_by"],
                revisions=used.get(row["digest"], ()),
            )
            for row in connection.execute(query).mappings()
        ]


def find(hub: Hub, name: str, digest: str | None = None) -> Model:
    """Return a model by name, and by how its digest begins where there are several.

    Raises:
        ConfigError: there is none, or more than one.

    """
    named = [model for model in list_models(hub) if model.name == name]
    found = [model for model in named if model.digest.startswith(digest or "")]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(model.digest[:12] for model in named) or "none"
    what = "no" if not found else "more than one"
    raise ConfigError(
        f"There is {what} model {name}{f' {digest}' if digest else ''} on the hub.",
        hint=f"Digests of {name}: {listed}.",
    )


def verify(hub: Hub, model: Model) -> list[str]:
    """Check a model's files anew; return what is wrong, empty where it is whole."""
    with hub.store.reading() as connection:
        query = select(models.c.files).where(models.c.digest == model.digest)
        index = ModelIndex.model_validate_json(connection.execute(query).scalar_one())
    folder = place(hub, model.name, model.digest)
    return [problem for file in index.files if (problem := _problem(folder, file))]


def remove(hub: Hub, model: Model, *, who: str) -> None:
    """Take a model out of signed metadata, then remove its files.

    Raises:
        ConfigError: a policy names it.

    """

    def work(connection: Connection) -> None:
        revisions = _used(connection).get(model.digest, ())
        if revisions:
            named = ", ".join(map(str, revisions[:5]))
            raise ConfigError(
                f"The model {model.name} {model.digest[:12]}… is named by policy {named}.",
                hint="It stays, so that these can be restored.",
            )
        connection.execute(delete(models).where(models.c.digest == model.digest))
        before = hub.signing(connection)
        after = before.publish({}, now=hub.clock(), withdraw=[model_path(model.name, model.digest)])
        hub.keep(connection, after, before=before)

    detail = {"digest": model.digest}
    hub.change(who, "model.remove", about=model.name, detail=detail, work=work)
    _remove_folder(place(hub, model.name, model.digest))


def place(hub: Hub, name: str, digest: str) -> Path:
    """Return the folder of a model's files."""
    return hub.models_folder / name / digest


def index_of(folder: Path, manifest: Manifest) -> ModelIndex:
    """Return the index of a model's files, the manifest among them.

    Raises:
        LoadError: a file cannot be read.

    """
    paths = [MANIFEST, *(file.path for file in manifest.files)]
    files = [_indexed(folder, path) for path in paths]
    return ModelIndex(name=manifest.name, digest=files[0].sha256, files=files)


def _whole(folder: Path) -> Manifest:
    if not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{folder} is no model: it has no {MANIFEST}.", hint="Name a model's own folder."
        )
    manifest = Manifest.load(folder / MANIFEST)
    store = ModelStore(folder)
    for role in sorted({file.role for file in manifest.files}):
        store.path(manifest.name, role)
    return manifest


def _indexed(folder: Path, path: str) -> ModelFile:
    whole, chunks, size = hashlib.sha256(), [], 0
    for piece in _pieces(folder / path):
        whole.update(piece)
        chunks.append(hashlib.sha256(piece).hexdigest())
        size += len(piece)
    return ModelFile(path=path, bytes=size, sha256=whole.hexdigest(), chunks=chunks)


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}.") from error


def _problem(folder: Path, file: ModelFile) -> str | None:
    try:
        found = _indexed(folder, file.path)
    except EdgeError as error:
        return error.message
    if found != file:
        return f"{file.path} has {found.bytes} bytes and the sha256 {found.sha256[:12]}…."
    return None


def _copy(folder: Path, index: ModelIndex, target: Path) -> None:
    """Copy the files beside their place, then move them there as one."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".adding-", dir=target.parent))
        try:
            for file in index.files:
                _copy_file(folder / file.path, fresh / file.path, file)
            # What lies there belongs to no model: an earlier attempt was cut off before its commit.
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    except OSError as error:
        raise StoreError(
            f"The model cannot be copied to {target}: {error.strerror or error}.",
            hint="Free some space, and make the hub's folder writable.",
        ) from error


def _copy_file(source: Path, target: Path, file: ModelFile) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("xb") as out:
        for piece in _pieces(source):
            digest.update(piece)
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    target.chmod(_MODE)
    if digest.hexdigest() != file.sha256:
        raise IntegrityError(
            f"{source} was changed while it was copied.", hint="Add it again when it is at rest."
        )


def _sync(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other models of this name are there
        folder.parent.rmdir()


def _used(connection: Connection) -> dict[str, tuple[int, ...]]:
    """Return the revisions that name a model, by its digest, the newest first."""
    query = select(policies.c.revision, policies.c.document).order_by(policies.c.revision.desc())
    found: dict[str, list[int]] = {}
    for revision, document in connection.execute(query):
        for digest in named_models(json.loads(document)["sections"]).values():
            found.setdefault(digest, []).append(int(revision))
    return {digest: tuple(numbers) for digest, numbers in found.items()}
