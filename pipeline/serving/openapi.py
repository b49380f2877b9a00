"""The OpenAPI 3.1 document of the API, and a plain page that shows it, both made from the table of endpoints.

Reads and writes nothing.
"""

from __future__ import annotations

import dataclasses
import html
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pipeline.serving.api import Endpoint

Schema: TypeAlias = dict[str, object]


def document(endpoints: Sequence[Endpoint], version: str) -> Schema:
    """The document. Types come from the dataclasses that requests are read into and answers are made of."""
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
                "Needs `--allow-generate`, and the header X-Rdmpipe-Session with what GET /api/session gives."
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
    """The API on one plain page, which needs no script."""
    made = document(endpoints, version)
    parts = []
    for endpoint in endpoints:
        rows = "".join(
            f"<tr><td><code>{html.escape(one.name)}</code></td><td>{one.kind}</td><td>{html.escape(one.what)}</td></tr>"
            for one in endpoint.query
        )
        body = "" if endpoint.body is None else _named(endpoint.body)
        answer = _named(endpoint.answer)
        parts.append(
            f"<section><h2><code>{endpoint.method} {html.escape(endpoint.path)}</code></h2>"
            f"<p>{html.escape(endpoint.summary)}</p>"
            + (f"<p>Takes {_linked(body)}.</p>" if body else "")
            + f"<p>Answers {_linked(answer)}.</p>"
            + (f"<table>{rows}</table>" if rows else "")
            + "</section>"
        )
    components = typing.cast("dict[str, dict[str, Schema]]", made["components"])["schemas"]
    for name, schema in sorted(components.items()):
        fields = typing.cast("dict[str, Schema]", schema.get("properties", {}))
        rows = "".join(
            f"<tr><td><code>{html.escape(field)}</code></td><td>{_linked(_words(kind))}</td></tr>"
            for field, kind in fields.items()
        )
        parts.append(
            f'<section id="{name}"><h2>{name}</h2><p>{html.escape(str(schema.get("description", "")))}</p>'
            f"<table>{rows}</table></section>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<title>rdmpipe API</title><link rel="stylesheet" href="/static/design.css">'
        '<link rel="stylesheet" href="/static/browse.css"></head><body><header class="top"><h1>The API</h1>'
        '<p class="about">Everything that the page does, for programs. Requests and answers are JSON. '
        '<a href="/api/openapi.json">openapi.json</a> · <a href="/">the page</a></p></header>'
        f'<main class="api">{"".join(parts)}</main></body></html>'
    )


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


def _linked(text: str) -> str:
    """Names of types as links to their sections."""
    words = [f'<a href="#{word}">{word}</a>' if word[:1].isupper() else html.escape(word) for word in text.split(" ")]
    return " ".join(words)
