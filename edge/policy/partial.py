"""Models of changes: the same fields as a whole model, none of them needed.

What is given must fit the type of its field. Mappings may be given in part, at any depth; lists and
models of which half makes no sense (``needs one of …``) only whole. Rules over several fields are
left to the check of the result.
"""

from __future__ import annotations

import types
from copy import copy
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from edge.policy.sections import Model


@cache
def partial(model: type[BaseModel], *whole: type[BaseModel]) -> type[BaseModel]:
    """Return the model of a change of ``model``.

    Args:
        model: of what is changed.
        whole: models that can only be given whole.

    """
    fields: dict[str, Any] = {
        name: (_partial(field.annotation, whole), _optional(field))
        for name, field in model.model_fields.items()
    }
    made = create_model(f"{model.__name__}Change", __base__=Model, **fields)
    made.__doc__ = (model.__doc__ or "").partition("\n")[0]
    return made


def _optional(field: FieldInfo) -> FieldInfo:
    free = copy(field)
    free.default, free.default_factory = None, None
    return free


def _partial(annotation: Any, whole: tuple[type[BaseModel], ...]) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if annotation in whole else partial(annotation, *whole)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return dict[inner[0], _partial(inner[1], whole)]  # type: ignore[misc,valid-type]
    if origin in {Union, types.UnionType}:
        return Union[tuple(_partial(each, whole) for each in inner)]
    return annotation
