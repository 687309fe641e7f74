"""The check that every route makes first: no unknown query parameter, and none given twice that has one value."""

from __future__ import annotations

import typing
from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel

from api.errors import ApiError, FieldError, Problem, unknown_parameter

_cache: dict[int, dict[str, bool]] = {}


def _is_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (list, tuple, set, frozenset):
        return True
    return any(_is_list(argument) for argument in typing.get_args(annotation)) if origin is not None else False


def _names(dependant: Dependant) -> dict[str, bool]:
    """Query parameter → whether it may be repeated."""
    found: dict[str, bool] = {}
    for field in dependant.query_params:
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= {info.alias or name: _is_list(info.annotation) for name, info in annotation.model_fields.items()}
        else:
            found[field.alias] = _is_list(annotation)
    for inner in dependant.dependencies:
        found |= _names(inner)
    return found


async def known_parameters(request: Request) -> None:
    """Raise ApiError 400 for a query parameter that the route does not have, naming the nearest one."""
    route = request.scope["route"]
    allowed = _cache.get(id(route))
    if allowed is None:
        allowed = _cache[id(route)] = _names(route.dependant)
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in allowed:
            raise unknown_parameter(name, allowed)
        if name in seen and not allowed[name]:
            detail = f"{name} is given more than once: give it once"
            raise ApiError(Problem.INVALID_PARAMETER, detail, errors=[FieldError(name, detail)])
        seen.add(name)
