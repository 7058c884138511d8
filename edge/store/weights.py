"""The model store: manifests, and the files they name, checked before anything loads them.

A model is a folder with a ``manifest.json`` that names each file with its size and sha256. A path
leaves this module only after the file on disk has that size and digest. A digest is computed once
per file version (path, size, modification time, inode) and process. Reads only; knows nothing of
engines, and cannot notice a file that is exchanged between the check and the load.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from edge.errors import ConfigError, EdgeError, IntegrityError, LoadError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$"
_SHA256 = r"^[0-9a-f]{64}$"
_NOT_IN_A_PATH = ("\\", ":", "\0")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ManifestFile(_Part):
    """One file of a model.

    Attributes:
        path: relative to the manifest's folder, with forward slashes, never leaving the folder.
        role: what it is for: ``weights``, ``tokenizer``, ``schema``, ``config`` and so on.
        sha256: lower-case hex.
        bytes: exact size.

    """

    path: str = Field(min_length=1)
    role: str = Field(pattern=r"^[a-z][a-z0-9_\-]*$")
    sha256: str = Field(pattern=_SHA256)
    bytes: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or any(mark in path for mark in _NOT_IN_A_PATH):
            raise ValueError(f"{path!r} must be relative and stay inside the model's folder")
        return path


class Source(_Part):
    """Something the model was made from: a data set, or other weights."""

    name: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    origin: str = ""


class EncoderReference(_Part):
    """The encoder whose vectors a head was trained on."""

    name: str = Field(pattern=_NAME)
    sha256: str = Field(pattern=_SHA256)


class Manifest(_Part):
    """What is known of one model; the text of ``manifest.json``.

    Facts beyond the named fields go under ``facts``; unknown keys are refused.

    Attributes:
        files: at least one with the role ``weights``.
        recipe: where the steps that built the model are described.
        parameters: number of weights.
        quality: figures as measured, with the data they were measured on.
        versions: versions of the tools that built it.
        encoder: for heads only.
        dimensions: width of an embedding.
        max_tokens: an encoder reads no more of a text than this.
        context: tokens a decoder was trained for.

    """

    name: str = Field(pattern=_NAME)
    kind: Literal["encoder", "decoder", "head", "tensor"]
    engine: Literal["onnx", "llamacpp", "head"]
    files: tuple[ManifestFile, ...] = Field(min_length=1)
    licence: str = Field(min_length=1)
    description: str = ""
    quantization: str | None = None
    sources: tuple[Source, ...] = ()
    recipe: str = ""
    parameters: int | None = Field(default=None, ge=0)
    quality: dict[str, Any] = {}
    versions: dict[str, str] = {}
    encoder: EncoderReference | None = None
    dimensions: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=1)
    vocab_size: int | None = Field(default=None, ge=1)
    architecture: str | dict[str, Any] | None = None
    prompts: dict[str, Any] = {}
    special_tokens: dict[str, Any] | tuple[str, ...] = {}
    labels: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    training: dict[str, Any] = {}
    limits: str | tuple[str, ...] = ()
    notes: str | tuple[str, ...] = ()
    facts: dict[str, Any] = {}
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        if not any(file.role == "weights" for file in self.files):
            raise ValueError("no file has the role 'weights'")
        if (self.kind == "head") != (self.encoder is not None):
            raise ValueError("a head, and only a head, names its encoder")
        return self

    @property
    def digest(self) -> str:
        """sha256 of the (first) weights file: the model's identity."""
        return self.of_role("weights")[0].sha256

    @property
    def folder(self) -> Path:
        """Where the manifest lies."""
        return self._folder

    def of_role(self, role: str) -> tuple[ManifestFile, ...]:
        """Return the files with a role, in the manifest's order.

        Raises:
            LoadError: there is none.

        """
        found = tuple(file for file in self.files if file.role == role)
        if not found:
            raise LoadError(f"Model {self.name} has no file with the role {role!r}.")
        return found

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            LoadError: it is missing, not JSON, or breaks the schema.

        """
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise LoadError(f"The manifest {path} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            raise LoadError(
                f"The manifest {path} is not valid: {_first_problem(error)}."
            ) from error
        manifest._folder = path.parent  # noqa: SLF001  # set once, by the only reader
        return manifest


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one file of a model cannot be used."""

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class ModelStore:
    """Models by name. Safe to call from several threads.

    Args:
        folder: holds one folder per model, named as the model.
        extra: further such folders, or single models' own folders. Where a name occurs twice the
            earlier folder wins, so nothing replaces a shipped model.

    """

    def __init__(self, folder: Path, extra: Sequence[Path] = ()) -> None:
        self._folders = (folder, *extra)
        self._lock = threading.Lock()
        self._found: dict[str, Path] = {}
        self._manifests: dict[tuple[str, int, int, int], Manifest] = {}
        self._digests: dict[tuple[str, int, int, int], str] = {}
        self._versions: dict[str, tuple[str, ...]] = {}

    def names(self) -> list[str]:
        """Return the names of all models, sorted."""
        found: dict[str, Path] = {}
        for name, path in self._scan():
            found.setdefault(name, path)
        with self._lock:
            self._found = found
        return sorted(found)

    def manifest(self, name: str) -> Manifest:
        """Return a model's manifest.

        Raises:
            ConfigError: no model has this name.
            LoadError: the manifest cannot be read or is not valid.

        """
        path = self._found.get(name)
        if path is None or not path.is_file():
            known = self.names()
            path = self._found.get(name)
            if path is None:
                listed = ", ".join(known) or "none"
                raise ConfigError(f"There is no model {name!r}; known models: {listed}.")
        return self._read(name, path)

    def version(self, name: str) -> tuple[str, ...]:
        """Return what tells this version of a model from others; cheap from the second time on.

        The digests of its files, as its manifest was when first asked, and that of the manifest,
        which says how they are loaded.

        Raises:
            ConfigError: no model has this name.
            LoadError: the manifest cannot be read or is not valid.

        """
        found = self._versions.get(name)
        if found is None:
            manifest = self.manifest(name)
            files = (f"{file.role} {file.sha256}" for file in manifest.files)
            whole = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
            found = self._versions[name] = (f"manifest {whole}", *files)
        return found

    def path(self, name: str, role: str = "weights") -> Path:
        """Return the first file with a role after all files of that role have been checked.

        Raises:
            ConfigError: no model has this name.
            LoadError: a file is missing or has another size.
            IntegrityError: a file has another digest.

        """
        manifest = self.manifest(name)
        checked = [self._checked(manifest, file) for file in manifest.of_role(role)]
        return checked[0]

    def verify(self, name: str) -> list[Problem]:
        """Check every file of a model anew and return what is wrong; empty when all is well.

        Raises:
            ConfigError: no model has this name.
            LoadError: the manifest cannot be read or is not valid.

        """
        manifest = self.manifest(name)
        problems = []
        for file in manifest.files:
            try:
                self._checked(manifest, file, fresh=True)
            except EdgeError as error:
                problems.append(Problem(file.path, error.message))
        return problems

    def _scan(self) -> Iterator[tuple[str, Path]]:
        for folder in self._folders:
            own = folder / MANIFEST
            if own.is_file():
                yield _name_in(own), own
            elif folder.is_dir():
                for child in sorted(folder.iterdir()):
                    # ``name@digest`` is used only where a policy assigns that very digest.
                    if "@" not in child.name and (child / MANIFEST).is_file():
                        yield child.name, child / MANIFEST

    def _read(self, name: str, path: Path) -> Manifest:
        key = _version_of(path)
        cached = self._manifests.get(key)
        if cached is None:
            cached = Manifest.load(path)
            if cached.name != name:
                raise LoadError(f"The manifest {path} is of {cached.name!r}, not of {name!r}.")
            self._manifests[key] = cached
        return cached

    def _checked(self, manifest: Manifest, file: ManifestFile, *, fresh: bool = False) -> Path:
        path = manifest.folder / file.path
        inside = manifest.folder.resolve()
        if not path.resolve().is_relative_to(inside):
            raise LoadError(f"{path} of model {manifest.name} is a link out of {inside}.")
        key = _version_of(path)
        size = key[1]
        if size != file.bytes:
            raise LoadError(
                f"{path} of model {manifest.name} has {size} bytes, not {file.bytes}: "
                f"it is {'truncated' if size < file.bytes else 'not the file that was listed'}."
            )
        digest = None if fresh else self._digests.get(key)
        if digest is None:
            digest = self._digests[key] = _sha256(path)
        if digest != file.sha256:
            raise IntegrityError(
                f"{path} of model {manifest.name} has the sha256 {digest}, not {file.sha256}."
            )
        return path


def _version_of(path: Path) -> tuple[str, int, int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
    return (os.fspath(path), facts.st_size, facts.st_mtime_ns, facts.st_ino)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _name_in(path: Path) -> str:
    """Return the name in a manifest; the folder's where it is broken, so that using it tells."""
    try:
        return Manifest.load(path).name
    except LoadError:
        return path.parent.name


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
