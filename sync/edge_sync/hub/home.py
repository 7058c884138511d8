"""The hub's folder, and the hub: database, signing keys and clock in one value.

The folder (mode 0700) holds ``hub.yaml``, the keys, models, and the database where it is SQLite.
Guarantees: every change is one transaction with its entry in the audit log and the rise of
``generation`` that tells other processes. Knows nothing of HTTP.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, func, insert, select, update

from edge.errors import ConfigError, StoreError
from edge_sync.hub import audit
from edge_sync.hub.budget import leasekey
from edge_sync.hub.budget.terms import MoneyTerms
from edge_sync.keys import write_private
from edge_sync.store.database import Store
from edge_sync.store.migration import migrate, require_current
from edge_sync.store.schema import facts, metadata_files
from edge_sync.trust.repository import Repository

T = TypeVar("T")
Clock = Callable[[], float]

CONFIG = "hub.yaml"
TOKEN_KEY = "token.key"  # noqa: S105 - the name of a file
_SECRET_BYTES = 32
_FIRST = {"generation": 1, "receipt": 0, "watermark": 0, "serial": 0, "revision": 0, "epoch": 1,
          "granted": 0}  # fmt: skip


class AlertSettings(BaseModel):
    """Where alerts of budgets are sent: an address that takes JSON by POST; empty for none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    webhook: str = Field(default="", pattern=r"^(https?://\S+)?$", max_length=2_000)


class Settings(BaseModel):
    """What stands in ``hub.yaml``.

    Attributes:
        database: URL, see ``edge_sync.store.database``.
        listen: address and port of the server.
        public_url: how devices reach the hub; empty where it is the address it listens on.
        keys: folder of the signing keys; relative to the hub's folder where it is not absolute.
        models: folder of the model files, likewise.
        sync_every_s: how often devices sync where nothing happens, 1 to 86400.
        alerts: where alerts of budgets go.
        money: how careful the hub is with it.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str
    listen: str = Field(default="127.0.0.1:8420", pattern=r"^.+:\d{1,5}$")
    public_url: str = ""
    keys: str = "keys"
    models: str = "models"
    sync_every_s: float = Field(default=300.0, ge=1, le=86_400)
    money: MoneyTerms = MoneyTerms()
    alerts: AlertSettings = AlertSettings()


@dataclass(frozen=True)
class Hub:
    """The hub, open.

    Attributes:
        home: its folder.
        settings: of ``hub.yaml``.
        store: its database.
        keys: folder of the signing keys.
        clock: seconds since the epoch.
        token_key: the secret of the devices' tokens.

    """

    home: Path
    settings: Settings
    store: Store
    keys: Path
    clock: Clock
    token_key: bytes

    @classmethod
    def create(
        cls,
        home: Path,
        database: str | None = None,
        *,
        listen: str | None = None,
        public_url: str = "",
        clock: Clock = time.time,
    ) -> Self:
        """Make the folder, the keys, the database and the first signed metadata.

        Args:
            home: the folder; it must not hold a hub yet.
            database: URL; a file of SQLite inside the folder where none is given.
            listen: address and port.
            public_url: how devices reach the hub.
            clock: seconds since the epoch.

        Raises:
            ConfigError: there is a hub in the folder or in the database, or a setting is wrong.
            StoreError: the folder or the database cannot be written.

        """
        home = home.absolute()
        given = {"listen": listen} if listen is not None else {}
        settings = _checked(
            {
                "database": database or f"sqlite:///{home / 'hub.db'}",
                "public_url": public_url,
                **given,
            },
            home,
        )
        if (home / CONFIG).exists():
            raise ConfigError(
                f"There is a hub in {home} already.", hint="Open it, or name another folder."
            )
        _make_folders(home, settings)
        store = Store.open(settings.database)
        try:
            migrate(store)
            return cls._fill(home, settings, store, clock)
        except BaseException:
            store.close()
            raise

    @classmethod
    def _fill(cls, home: Path, settings: Settings, store: Store, clock: Clock) -> Self:
        keys = home / settings.keys
        with store.reading() as connection:
            if connection.execute(select(facts.c.name).limit(1)).first() is not None:
                raise ConfigError(
                    f"There is a hub in the database {store.url} already.",
                    hint="Copy its hub.yaml and keys into the folder of a second replica.",
                )
        repository = Repository.create(keys, now=clock())
        secret = secrets.token_bytes(_SECRET_BYTES)
        write_private(keys / TOKEN_KEY, secret)
        started = _FIRST | {leasekey.FACT: leasekey.make(keys).key_id}

        def work(connection: Connection) -> None:
            connection.execute(
                insert(facts), [{"name": name, "value": str(at)} for name, at in started.items()]
            )
            keep_metadata(connection, repository, None, now=clock())
            audit.append(
                connection, at=clock(), who="hub", what="hub.init", about=str(home.name), detail={}
            )

        store.write(work)
        text = yaml.safe_dump(settings.model_dump(), sort_keys=False)
        write_private(home / CONFIG, text.encode())
        return cls(home, settings, store, keys, clock, secret)

    @classmethod
    def open(cls, home: Path, *, migrating: bool = False, clock: Clock = time.time) -> Self:
        """Open the hub of a folder.

        Args:
            home: the folder.
            migrating: bring a database of an older version up to date, instead of refusing it.
            clock: seconds since the epoch.

        Raises:
            ConfigError: there is no hub, or its settings or keys are wrong.
            StoreError: the database cannot be reached, or is of another version.

        """
        home = home.absolute()
        settings = _read(home)
        keys = home / settings.keys
        store = Store.open(settings.database)
        try:
            if migrating:
                migrate(store)
            require_current(store)
            secret = _read_secret(keys / TOKEN_KEY)
            return cls(home, settings, store, keys, clock, secret)
        except BaseException:
            store.close()
            raise

    @property
    def repository(self) -> Repository:
        """What signs, over the metadata in force now; to look at or to sign a time.

        Raises:
            ConfigError: the keys cannot be read, or the metadata was changed.
            StoreError: the database cannot be read.

        """
        with self.store.reading() as connection:
            return self.signing(connection)

    def signing(self, connection: Connection) -> Repository:
        """Return what signs, as this transaction sees it; keep what follows by ``keep``.

        Raises:
            ConfigError: the keys cannot be read, or the metadata was changed.

        """
        return Repository.open(self.keys, newest_metadata(connection))

    def keep(self, connection: Connection, after: Repository, *, before: Repository) -> None:
        """Put in force what was signed since ``before``, inside the transaction of a change."""
        keep_metadata(connection, after, before, now=self.clock())

    @property
    def url(self) -> str:
        """How devices reach the hub."""
        return self.settings.public_url or f"http://{self.settings.listen}"

    @property
    def models_folder(self) -> Path:
        """Where model files are, as ``name/digest/file``."""
        return self.home / self.settings.models

    def change(
        self,
        who: str,
        what: str,
        *,
        about: str | Callable[[T], str],
        detail: Mapping[str, Any] | Callable[[T], Mapping[str, Any]],
        work: Callable[[Connection], T],
    ) -> T:
        """Run a change in one transaction with its audit entry, and tell all processes.

        Args:
            who: name of the token, the device or the part of the hub.
            what: such as ``policy.publish``.
            about: what was changed; or a function of the result.
            detail: for the audit log, plain JSON without secrets; or a function of the result.
            work: the change itself; may be run twice, see ``Store.write``.

        Raises:
            Exception: what ``work`` raised; nothing was changed.
            StoreError: the database failed; nothing was changed.

        """

        def step(connection: Connection) -> T:
            result = work(connection)
            audit.append(
                connection,
                at=self.clock(),
                who=who,
                what=what,
                about=about(result) if callable(about) else about,
                detail=detail(result) if callable(detail) else detail,
            )
            raise_fact(connection, "generation")
            return result

        return self.store.write(step)

    def with_clock(self, clock: Clock) -> Self:
        """Return the same hub under another clock."""
        return replace(self, clock=clock)

    def close(self) -> None:
        """Finish queued writes and close the database."""
        self.store.close()

    def __enter__(self) -> Self:
        """Return the hub; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def raise_fact(connection: Connection, name: str, *, by: int = 1) -> int:
    """Raise a number of the table ``facts`` and return it; from 0 where it is missing."""
    at = read_fact(connection, name)
    value = str((at or 0) + by)
    if at is None:
        connection.execute(insert(facts).values(name=name, value=value))
    else:
        connection.execute(update(facts).where(facts.c.name == name).values(value=value))
    return int(value)


def read_fact(connection: Connection, name: str) -> int | None:
    """Return a number of the table ``facts``; ``None`` where it is missing."""
    found = connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar()
    return None if found is None else int(found)


def newest_metadata(connection: Connection) -> dict[str, bytes]:
    """Return the signed metadata in force, by role."""
    newest = (
        select(metadata_files.c.role, func.max(metadata_files.c.version).label("version"))
        .group_by(metadata_files.c.role)
        .subquery()
    )
    rows = connection.execute(
        select(metadata_files.c.role, metadata_files.c.body).join(
            newest,
            (metadata_files.c.role == newest.c.role)
            & (metadata_files.c.version == newest.c.version),
        )
    )
    return {str(role): bytes(body) for role, body in rows}


def keep_metadata(
    connection: Connection, after: Repository, before: Repository | None, *, now: float
) -> None:
    """Put signed metadata in force: what is newer than that of ``before``, all for ``None``.

    Raises:
        StoreError: a version is there already; it is never replaced.

    """
    for file in after.changes(before):
        connection.execute(
            insert(metadata_files).values(
                role=file.role, version=file.version, body=file.body, created_at=now
            )
        )


def _checked(values: Mapping[str, Any], home: Path) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or CONFIG
        raise ConfigError(
            f"Setting {place} of the hub in {home} is wrong: {first['msg']}.",
            hint=f"Correct it in {home / CONFIG}.",
        ) from error


def _read(home: Path) -> Settings:
    path = home / CONFIG
    try:
        values = yaml.safe_load(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no hub in {home}.", hint="Run `edge-hub init` first, or name its folder."
        ) from error
    except OSError as error:
        raise ConfigError(f"File {path} cannot be read: {error.strerror or error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"File {path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"File {path} holds no settings.", hint="See docs/hub.md for its keys.")
    return _checked(values, home)


def _make_folders(home: Path, settings: Settings) -> None:
    try:
        for folder in (home, home / settings.keys, home / settings.models):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
    except OSError as error:
        raise StoreError(
            f"The hub's folder {home} cannot be made: {error.strerror or error}.",
            hint="Name a folder that can be written.",
        ) from error


def _read_secret(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The hub's key {path} cannot be read: {error.strerror or error}.",
            hint="Copy the whole keys folder from the first replica, or restore it.",
        ) from error
