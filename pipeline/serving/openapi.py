"""The OpenAPI 3.1 document of the API and a plain page that shows it, both made from the table of endpoints.

Reads and writes nothing.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from pipeline.pages import render

if TYPE_CHECKING:
    from pipeline.serving.api import Endpoint

Schema: TypeAlias = dict[str, object]


def document(endpoints: Sequence[Endpoint], version: str) -> Schema:
    """The document. Types come from the dataclasses of requests and answers."""
    schemas: dict[str, Schema] = {}
    paths: dict[str, dict[str, Schema]] = {}
    for endpoint in endpoints:
        operation: Schema = {
            "summary": endpoint.summary,
            "operationId": endpoint.run.__name__,
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in endpoint.path_names()
            ]
            + [
                {
                    "name": one.name,
                    "in": "query",
                    "required": False,
                    "description": one.what,
                    "schema": {"type": one.kind},
                }
                for one in endpoint.query
            ],
            "responses": {
                "200": {"description": "what was asked for", "content": _content(endpoint.answer, schemas)},
                "default": {"description": "an error", "content": _content("Problem", schemas)},
            },
        }
        if endpoint.body is not None:
            operation["requestBody"] = {"required": True, "content": _content(endpoint.body, schemas)}
        if endpoint.changes:
            operation["description"] = (
                "Needs `--allow-generate`, and the header X-Rdmpipe-Session with the value from GET /api/session."
            )
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rdmpipe",
            "version": version,
            "description": "Search retrieval databases, look at them, and draw pictures from them.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _content(kind: object, schemas: dict[str, Schema]) -> Schema:
    from pipeline.serving import questions

    if kind == "Problem":
        kind = questions.Problem
    if isinstance(kind, str):
        return {kind: {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": schema_of(kind, schemas)}}


def schema_of(hint: object, schemas: dict[str, Schema]) -> Schema:
    """The JSON schema of an annotation. Dataclasses are added to `schemas` and referred to."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (str, int, float, bool):
        return {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[typing.cast("type", hint)]}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [{"type": "null"} if one is type(None) else schema_of(one, schemas) for one in args]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in (tuple, list):
        return {"type": "array", "items": schema_of(args[0], schemas)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(args[1], schemas)}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in schemas:
            schemas[hint.__name__] = {}  # before its fields, which may refer to it
            hints = typing.get_type_hints(hint)
            fields = dataclasses.fields(hint)
            schemas[hint.__name__] = {
                "type": "object",
                "description": " ".join((hint.__doc__ or "").split()),
                "properties": {field.name: schema_of(hints[field.name], schemas) for field in fields},
                "required": [
                    field.name
                    for field in fields
                    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
                ],
            }
        return {"$ref": f"#/components/schemas/{hint.__name__}"}
    return {}


def page(endpoints: Sequence[Endpoint], version: str) -> str:
    """The API on one plain page, which needs no script (assets/templates/api.html)."""
    components = typing.cast("dict[str, dict[str, Schema]]", document(endpoints, version)["components"])["schemas"]
    listed = [
        {
            "method": one.method,
            "path": one.path,
            "summary": one.summary,
            "body": "" if one.body is None else _named(one.body),
            "answer": _named(one.answer),
            "query": one.query,
        }
        for one in endpoints
    ]
    schemas = [
        {
            "name": name,
            "description": schema.get("description", ""),
            "fields": {
                field: _words(kind)
                for field, kind in typing.cast("dict[str, Schema]", schema.get("properties", {})).items()
            },
        }
        for name, schema in sorted(components.items())
    ]
    return render("api.html", endpoints=listed, schemas=schemas)


def _named(kind: object) -> str:
    """A type, or a media type, in a few words."""
    return kind if isinstance(kind, str) else _words(schema_of(kind, {}))


def _words(schema: Schema) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_words(one) for one in typing.cast("list[Schema]", schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(map(str, typing.cast("list[object]", schema["enum"])))
    if schema.get("type") == "array":
        return f"list of {_words(typing.cast('Schema', schema['items']))}"
    return str(schema.get("type", "any value"))
