"""The OpenAPI 3.1 document, made from the table of operations: it cannot tell anything else than what is served."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from .operations import PREFIX, Input, Operation

Schema = dict[str, Any]
_REF = "#/components/schemas/{model}"
_PROBLEM: Schema = {
    "type": "object",
    "properties": {
        "error": {"type": "string", "description": "What failed, and why."},
        "advice": {"type": "string", "description": "What to do next."},
        "type": {"type": "string"},
        "details": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["error", "advice"],
}
#: What any operation may answer, beside what is its own.
_REFUSALS = {
    "400": "This is not HTTP as it should be.",
    "401": "The token is missing, or not the right one.",
    "403": "Sent by the page of another origin.",
    "404": "There is no such thing.",
    "405": "This address is not asked like that.",
    "408": "The request did not come in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "421": "This is not the host that was asked for.",
    "422": "The request cannot be read, or asks what cannot be: `details` says where.",
    "500": "A bug of ours, or a damaged store.",
    "503": "The broker, or the store, has trouble; try again.",
    "504": "No answer in time.",
}


def document(operations: Sequence[Operation]) -> Schema:
    """Return the document."""
    inputs, results, definitions = _schemas(operations)
    paths: dict[str, Schema] = {}
    for operation in operations:
        described = _operation(operation, inputs[operation.name], results[operation.name])
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "signalbus",
            "version": importlib.metadata.version("signalbus-router"),
            "summary": "What there is to look at in a bus, and to decide about dead letters.",
        },
        "paths": paths,
        "components": {
            "schemas": {**definitions, "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _schemas(operations: Sequence[Operation]) -> tuple[dict[str, Schema], dict[str, dict[int, Schema]], Schema]:
    """Return the schemas of inputs and of results by operation, and what they refer to."""
    wanted: list[tuple[tuple[str, int], JsonSchemaMode, TypeAdapter[Any]]] = []
    for operation in operations:
        wanted.append(((operation.name, 0), "validation", TypeAdapter[Input](operation.input)))
        for status, shape in operation.results.items():
            wanted.append(((operation.name, status), "serialization", shape.adapter))
    found, rest = TypeAdapter.json_schemas(wanted, ref_template=_REF)
    definitions = cast("Schema", rest.get("$defs", {}))
    _allow_repetition([definitions, *found.values()])
    inputs: dict[str, Schema] = {}
    results: dict[str, dict[int, Schema]] = {operation.name: {} for operation in operations}
    for ((name, status), _), schema in found.items():
        if status == 0:
            inputs[name] = _resolved(schema, definitions)
        else:
            results[name][status] = schema["prefixItems"][0]
    return inputs, results, definitions


def _allow_repetition(part: object) -> None:
    """Take the demand away that a set is named without repetition: it does no harm, and is not refused."""
    if isinstance(part, dict):
        members = cast("Schema", part)
        members.pop("uniqueItems", None)
        _allow_repetition(list(members.values()))
    elif isinstance(part, list):
        for item in cast("list[object]", part):
            _allow_repetition(item)


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    reference = cast("str | None", schema.get("$ref"))
    return definitions[reference.rpartition("/")[2]] if reference else schema


def _operation(operation: Operation, given: Schema, results: dict[int, Schema]) -> Schema:
    members = cast("dict[str, Schema]", given.get("properties", {}))
    required = cast("list[str]", given.get("required", []))
    in_path = [_parameter(name, members[name], "path", required=True) for name in operation.in_path]
    others = {name: schema for name, schema in members.items() if name not in operation.in_path}
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": in_path,
        "responses": {
            **{str(status): _answer(operation.summary, schema) for status, schema in results.items()},
            **{status: _refusal(text) for status, text in _REFUSALS.items()},
        },
    }
    if operation.method == "GET":
        described["parameters"] += [
            _parameter(name, schema, "query", required=name in required) for name, schema in others.items()
        ]
    else:
        body: Schema = {"type": "object", "properties": others, "additionalProperties": False}
        if needed := [name for name in required if name in others]:
            body["required"] = needed
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return described


def _parameter(name: str, schema: Schema, place: str, *, required: bool) -> Schema:
    described: Schema = {"name": name, "in": place, "required": required, "schema": _without_null(schema)}
    if "description" in schema:
        described["description"] = schema["description"]
    return described


def _without_null(schema: Schema) -> Schema:
    """Return the schema of a parameter: one that is absent is left out, as a query string knows no null."""
    kept = {name: value for name, value in schema.items() if name != "default" or value is not None}
    choices = cast("list[Schema] | None", schema.get("anyOf"))
    if choices is None:
        return kept
    present = [choice for choice in choices if choice.get("type") != "null"]
    if len(present) == len(choices):
        return kept
    del kept["anyOf"]
    return {**kept, **(present[0] if len(present) == 1 else {"anyOf": present})}


def _answer(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _refusal(text: str) -> Schema:
    return {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def text_of(operations: Sequence[Operation]) -> bytes:
    """Return the document as it is served."""
    return json.dumps(document(operations)).encode()
