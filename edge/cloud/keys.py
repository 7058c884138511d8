"""The keys of pools: looked up when asked, never kept, never in a message."""

from __future__ import annotations

from collections.abc import Mapping

from edge.errors import ConfigError


def pool_key(pool: str, variable: str | None, env: Mapping[str, str]) -> str | None:
    """Return a pool's key; ``None`` where it needs none.

    Args:
        pool: the pool's name.
        variable: the name of the environment variable that holds the key.
        env: the environment.

    Raises:
        ConfigError: the variable is not set, or holds what cannot be a key.

    """
    if variable is None:
        return None
    key = env.get(variable, "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    wrong = "holds characters no key has" if key else "is not set"
    raise ConfigError(
        f"Pool {pool} takes its key from {variable}, which {wrong}.",
        hint=f"Set the environment variable {variable} to the pool's key.",
    )
