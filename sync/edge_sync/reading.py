"""Settings of a service from a file of YAML: read with a bound, checked, and errors that say where.

Knows no service and no setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edge.errors import ConfigError

_MAX_BYTES = 1_000_000
M = TypeVar("M", bound=BaseModel)


def read_yaml(path: Path, kind: type[M], *, whose: str) -> M:
    """Read a file.

    Args:
        path: of the file.
        kind: of the settings.
        whose: they are, such as "pool", for errors.

    Raises:
        ConfigError: it cannot be read, or a setting is wrong; the setting is named.

    """
    try:
        with path.open("rb") as file:
            return kind.model_validate(yaml.safe_load(file.read(_MAX_BYTES)))
    except OSError as error:
        raise ConfigError(
            f"The {whose}'s settings {path} cannot be read: {error.strerror}.",
            hint="Name the file with --config.",
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"The {whose}'s settings {path} are no YAML.") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"]) or "the file"
        raise ConfigError(
            f"The {whose}'s settings {path} are wrong at {place}: {first['msg'][:200]}."
        ) from error
