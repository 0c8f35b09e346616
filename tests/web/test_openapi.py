"""The OpenAPI document: valid, complete, and true of what is answered."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from signalbus.web import openapi
from signalbus.web.app import OPERATIONS
from signalbus.web.operations import PREFIX
from tests.web.ask import get, post
from tests.web.fakes import FakeLetters, letter
from tests.web.test_traces import publish, shown
from tests.web.world import BEARER, GUARDED, world

#: What is served below `PREFIX`, and is no operation: the document itself, and a stream that has no end.
BESIDE = {f"{PREFIX}/openapi.json", f"{PREFIX}/events"}
Schema = dict[str, Any]

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,missing_required_header,ignored_auth"
)
FUZZING = ["--checks", CHECKS, "--max-examples", "20", "--max-time", "60", "--no-color"]


@pytest.fixture(scope="module")
def document() -> Schema:
    return openapi.document(OPERATIONS)


def test_the_document_is_valid(document: Schema) -> None:
    OpenAPIV31SpecValidator(document).validate()


async def test_the_document_names_every_route_and_no_other(tmp_path: Path, document: Schema) -> None:
    async with world(tmp_path) as here:
        routes = [route for route in here.server.app.routes if isinstance(route, Route)]
        served = {route.path for route in routes if route.path.startswith(PREFIX)}
        assert served - BESIDE == set(document["paths"])
        answer = await get(here.port, f"{PREFIX}/openapi.json")
        assert answer.json == document


async def test_answers_are_as_the_document_says(tmp_path: Path, document: Schema) -> None:
    letters = FakeLetters(letter(number) for number in range(3))
    async with world(tmp_path, letters=letters) as here:
        [signal] = await publish(here.bus)
        await shown(here, signal)
        replay = (await post(here.port, f"{PREFIX}/dead-letters/replay", {"query": {"ids": ["letter-000002"]}})).json
        queries = {
            "/traces/find": f"?prefix={signal}",
            "/dead-letters/find": "?prefix=letter",
            "/explain": "?type=order.placed",
            "/traces": "?facts=true",
        }
        ids = {"/traces/{id}": signal, "/traces/{id}/facts": signal, "/dead-letters/{id}": "letter-000001"}
        checked = 0
        for operation in OPERATIONS:
            if operation.method == "GET":
                path = operation.path.replace("{id}", ids.get(operation.path, str(replay["id"])))
                answer = await get(here.port, PREFIX + path + queries.get(operation.path, ""))
            else:
                path = operation.path.replace("{id}", str(replay["id"]))
                states = {"states": ["discarded"]} if "restore" in path else {}
                order = {} if path.endswith("cancel") else {"query": states}
                answer = await post(here.port, PREFIX + path, order)
            described = document["paths"][PREFIX + operation.path][operation.method.lower()]["responses"]
            schema = described[str(answer.status)]["content"]["application/json"]["schema"]
            assert answer.status in operation.results, (operation.path, answer)
            _validator(schema, document).validate(_parsed(answer.body))
            checked += 1
        refused = await get(here.port, f"{PREFIX}/traces?limit=x")
        _validator({"$ref": "#/components/schemas/Problem"}, document).validate(refused.json)
    assert checked == len(OPERATIONS)


def _validator(schema: Schema, document: Schema) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def _parsed(body: bytes) -> Schema:
    return cast(Schema, json.loads(body))


async def test_a_list_is_as_the_document_says(tmp_path: Path, document: Schema) -> None:
    async with world(tmp_path) as here:
        [signal] = await publish(here.bus)
        await shown(here, signal)
        answer = await get(here.port, f"{PREFIX}/traces")
    schema = document["paths"][f"{PREFIX}/traces"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    _validator(schema, document).validate(answer.json)


@pytest.mark.slow
async def test_made_up_requests_are_answered_as_the_document_says(tmp_path: Path) -> None:
    program = _schemathesis()
    if program is None:
        pytest.skip("schemathesis is not there: pip install --group fuzz")
    letters = FakeLetters(letter(number) for number in range(5))
    async with world(tmp_path, letters=letters, access=GUARDED) as here:
        document = f"{here.server.url}{PREFIX}/openapi.json"
        arguments = ["run", document, "--header", f"Authorization: {BEARER['authorization']}", *FUZZING]
        running = await asyncio.create_subprocess_exec(
            program, *arguments, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await running.communicate()
        assert running.returncode == 0, said.decode()


def _schemathesis() -> str | None:
    # In an environment of its own, as its plugin would load in every run of pytest.
    beside = Path(sys.executable).with_name("schemathesis")
    return str(beside) if beside.exists() else shutil.which("schemathesis")
