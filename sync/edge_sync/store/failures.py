"""The drivers' errors as ``StoreError``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from edge.errors import StoreError


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn errors of the drivers about the database ``name`` into ``StoreError``."""
    try:
        yield
    except SQLAlchemyError as error:
        raise store_error(name, error) from error


def store_error(name: str, error: SQLAlchemyError) -> StoreError:
    """Return what to raise for an error of a driver."""
    cause = getattr(error, "orig", None) or error
    reason = " ".join(str(cause).split()).rstrip(".")
    return StoreError(
        f"The hub's database {name} cannot be used: {reason}.",
        hint="See that it is running, reachable and has room, then try again.",
    )
