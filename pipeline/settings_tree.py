"""Layers of settings over a tree of frozen pydantic models: names, origins, errors that help.

Pure: takes the model, a mapping per layer and the environment as arguments; reads nothing by itself.
`pipeline.settings` holds the concrete tree and the places the values come from.
"""

from __future__ import annotations

import difflib
import enum
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from pipeline.errors import SettingsError

PREFIX = "EXPLORER_"
NO_VARIABLES: Mapping[tuple[str, ...], str] = {}
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/@:\s]*):([^/@\s]+)@")
_MASK = "********"

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Leaf:
    """One value that can be set: where it stands in the tree and how it is named outside."""

    path: tuple[str, ...]
    annotation: Any
    description: str
    variable: str | None = None

    @property
    def environment(self) -> str:
        """The environment variable of this value: `EXPLORER_` and the path in capitals, unless it has a name of its own."""
        return self.variable or PREFIX + "_".join(self.path).upper()

    @property
    def dotted(self) -> str:
        """The name in a TOML file and in listings: `api.port`."""
        return ".".join(self.path)

    @property
    def secret(self) -> bool:
        """True when the value may never be printed."""
        return any(issubclass(kind, SecretStr | SecretBytes) for kind in _classes(self.annotation))


@dataclass(frozen=True)
class Value:
    """A leaf with the value it ended up with and the layer that gave it."""

    leaf: Leaf
    value: Any
    origin: str

    def shown(self) -> Any:
        """The value for people and JSON: secrets and passwords inside URLs masked, paths and enums as text."""
        if self.leaf.secret:
            return _MASK if self.value is not None else None
        return _plain(self.value)


@dataclass(frozen=True)
class Layer:
    """One source of values. `values` maps leaf paths to raw values; `origin` says where they are from."""

    origin: str
    values: Mapping[tuple[str, ...], Any]


def leaves(
    model: type[BaseModel], path: tuple[str, ...] = (), variables: Mapping[tuple[str, ...], str] = NO_VARIABLES
) -> Iterator[Leaf]:
    """Every settable value below `model`, in the order of declaration.

    `variables` names the environment variable of values whose name does not follow from their path.
    """
    for name, field in model.model_fields.items():
        here = (*path, name)
        nested = nested_model(field.annotation)
        if nested is not None:
            yield from leaves(nested, here, variables)
        else:
            yield Leaf(here, field.annotation, field.description or "", variables.get(here))


def environment_layer(known: Mapping[str, Leaf], environ: Mapping[str, str], ignore: frozenset[str]) -> Layer:
    """The values that the environment sets.

    `known` maps variable names to leaves, `ignore` lists `EXPLORER_` names with a meaning outside the tree.
    Raises SettingsError for an unknown `EXPLORER_` name, suggesting the nearest known one.
    """
    values: dict[tuple[str, ...], Any] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name in ignore:
            continue
        leaf = known.get(name)
        if leaf is None:
            raise SettingsError(
                f"{name} is not a setting" + _nearest(name, known), "unset it, or see `post-explorer settings`"
            )
        values[leaf.path] = _from_text(leaf, text, name)
    return Layer("environment", values)


def document_layer(model: type[BaseModel], document: Mapping[str, Any], origin: str) -> Layer:
    """The values that a parsed TOML document sets. Raises SettingsError for a name the tree does not have."""
    by_path = {leaf.path: leaf for leaf in leaves(model)}
    groups = {leaf.path[:depth] for leaf in by_path.values() for depth in range(1, len(leaf.path))}
    values: dict[tuple[str, ...], Any] = {}

    def walk(node: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for name, value in node.items():
            here = (*path, name)
            if here in by_path:
                values[here] = value
            elif here in groups and isinstance(value, Mapping):
                walk(value, here)
            else:
                dotted = ".".join(here)
                names = {".".join(known): None for known in (*by_path, *groups)}
                raise SettingsError(
                    f"{origin}: {dotted} is not a setting" + _nearest(dotted, names), "correct the file"
                )

    walk(document, ())
    return Layer(origin, values)


def resolve(model: type[M], layers: list[Layer], known_leaves: Iterable[Leaf] | None = None) -> tuple[M, list[Value]]:
    """Builds the tree from `layers`, later ones over earlier ones. A group that may be None is None when nothing sets it.

    Returns the validated model and every leaf with its origin. Raises SettingsError naming each wrong value, where
    it came from and what was expected.
    """
    merged: dict[tuple[str, ...], tuple[Any, str]] = {}
    for layer in layers:
        for path, value in layer.values.items():
            merged[path] = (value, layer.origin)
    tree: dict[str, Any] = {}
    for path, (value, _) in merged.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    known = {leaf.path: leaf for leaf in (leaves(model) if known_leaves is None else known_leaves)}
    try:
        settings = model.model_validate(_with_empty_groups(model, tree))
    except ValidationError as error:
        raise SettingsError(
            "; ".join(_explain(detail, known, merged) for detail in error.errors()),
            "correct the value where it is set; `post-explorer settings` lists names, meanings and origins",
        ) from None
    values = []
    for path, leaf in known.items():
        node_value: Any = settings
        for name in path:
            node_value = None if node_value is None else getattr(node_value, name)
        values.append(Value(leaf, node_value, merged[path][1] if path in merged else "default"))
    return settings, values


def _with_empty_groups(model: type[BaseModel], tree: dict[str, Any]) -> dict[str, Any]:
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        optional = type(None) in get_args(field.annotation)
        if nested is not None and (name in tree or not optional):
            tree[name] = _with_empty_groups(nested, tree.get(name, {}))
    return tree


def _explain(
    detail: Any, known: Mapping[tuple[str, ...], Leaf], merged: Mapping[tuple[str, ...], tuple[Any, str]]
) -> str:
    location = tuple(str(part) for part in detail["loc"])
    for depth in range(len(location), 0, -1):
        path = location[:depth]
        if path in known:
            leaf = known[path]
            value, origin = merged.get(path, (None, "default"))
            shown = _MASK if leaf.secret else repr(_plain(value))
            name = leaf.environment if origin == "environment" else leaf.dotted
            return f"{name}={shown} ({origin}): {detail['msg']}"
    return f"{'.'.join(location) or 'settings'}: {detail['msg']}"


def _from_text(leaf: Leaf, text: str, name: str) -> Any:
    if text == "" and type(None) in get_args(leaf.annotation):
        return None
    is_list = any(issubclass(kind, tuple | list | set | frozenset) for kind in _classes(leaf.annotation))
    if any(issubclass(kind, dict) for kind in _classes(leaf.annotation)) or (is_list and text[:1] == "["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise SettingsError(f"{name}={text!r} is not JSON: {error}", "write a JSON object or list") from None
    if is_list:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The settings model that a field holds (also when it may be None), or None for a plain value."""
    for kind in _classes(annotation):
        if issubclass(kind, BaseModel):
            return kind
    return None


def _classes(annotation: Any) -> list[type]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _classes(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _classes(part)]
    if origin is typing.Literal:
        return []
    if isinstance(origin, type):
        return [origin]
    return [annotation] if isinstance(annotation, type) else []


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _PASSWORD_IN_URL.sub(rf"\1:{_MASK}@", value)
    if isinstance(value, SecretStr | SecretBytes):
        return _MASK
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else str(value)
