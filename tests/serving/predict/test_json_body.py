"""JSON bodies: what is wrong with one is said in words that a client of any language understands."""

from __future__ import annotations

import re

import msgspec
import pytest

from serving.entities.outcomes import OutcomesBody
from serving.errors import InvalidRequest, NotJSON
from serving.http.routes.entities import RecordsBody
from serving.jobs.requests import JobBody
from serving.predict.json_body import decode
from serving.predict.request_body import USAGE, Body

SHAPES = [
    (Body, b'{"instances":1}', "instances must be an array"),
    (Body, b'{"instances":null}', "instances must be an array"),
    (Body, b"{}", f"instances is missing; {USAGE}"),
    (Body, b'{"inputs":[1]}', f"there is no member `inputs`; {USAGE}"),
    (Body, b'{"data":[1],"instances":[]}', f"there is no member `data`; {USAGE}"),
    (Body, b'{"%s":[1]}' % (b"a" * 65), f"there is no member with that name; {USAGE}"),
    (Body, b'{"\\u001b":[1]}', f"there is no member with that name; {USAGE}"),
    (Body, b'{"instances":[],"parameters":3}', "parameters must be an object or null"),
    (Body, b'{"instances":[],"parameters":{"top":"a"}}', "parameters.top must be a number or null"),
    (Body, b'{"instances":[],"parameters":{"coverage":[]}}', "parameters.coverage must be a number or null"),
    (Body, b'{"instances":[],"parameters":{"classes":1}}', "parameters.classes must be a string or an array"),
    (
        Body,
        b'{"instances":[],"parameters":{"classes":[{}]}}',
        "parameters.classes[0] must be true or false, a number or a string",
    ),
    (
        Body,
        b'{"instances":[],"parameters":{"space":"mine"}}',
        "parameters.space must be one of margin, probability, value",
    ),
    (
        Body,
        b'{"instances":[],"parameters":{"tops":1}}',
        "parameters has no member `tops`; it may have classes, top, space, coverage, interactions",
    ),
    (
        JobBody,
        b'{"operation":"guess","model":"m","instances":[]}',
        "operation must be one of explain, importance, predict",
    ),
    (RecordsBody, b'{"values":{},"id":3}', "id must be a string or null"),
    (RecordsBody, b'{"records":[{"values":1}]}', "records[0].values must be an object"),
    (RecordsBody, b'{"records":[{"x":1}]}', "records[0] has no member `x`; it may have values, time, id"),
    (RecordsBody, b'{"records":[{}]}', "records[0] lacks values"),
    (OutcomesBody, b'{"instances":[],"outcomes":3}', "outcomes must be an array"),
]


@pytest.mark.parametrize(("kind", "body", "message"), SHAPES)
def test_another_shape_is_named_without_words_of_python(kind: type[msgspec.Struct], body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}$"):
        decode(msgspec.json.Decoder(kind), body, USAGE)


MALFORMED = [
    (b'{"instances":[NaN]}', "it has no NaN and no Infinity; send null for a missing value (byte 14)"),
    (b'{"instances":[{"a": Infinity}]}', "it has no NaN and no Infinity; send null for a missing value (byte 20)"),
    (b'{"instances":[-Infinity]}', "it has no NaN and no Infinity; send null for a missing value (byte 15)"),
    (b'{"instances":[nan]}', "it has no NaN and no Infinity; send null for a missing value (byte 18)"),
    (b'{"instances":[None]}', "this is how Python writes it; use json.dumps (byte 14)"),
    (b'{"instances":[True]}', "this is how Python writes it; use json.dumps (byte 14)"),
    (b"{'instances':[1]}", "this is how Python writes it; use json.dumps (byte 1)"),
    (b"", "it is empty"),
    (b" \n", "it is empty"),
    (b'{"instances":[1', "it ends too early"),
    (b'{"instances":[1}', "expected ',' or ']' (byte 15)"),
]


@pytest.mark.parametrize(("body", "message"), MALFORMED)
def test_what_is_not_json_is_said_in_the_senders_terms(body: bytes, message: str) -> None:
    with pytest.raises(NotJSON, match=f"^the body is not JSON: {re.escape(message)}$"):
        decode(msgspec.json.Decoder(Body), body, USAGE)


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1"])
def test_json_that_is_no_object_is_told_what_to_send(body: bytes) -> None:
    with pytest.raises(NotJSON, match=re.escape(USAGE)):
        decode(msgspec.json.Decoder(Body), body, USAGE)


def test_a_byte_order_mark_is_skipped() -> None:
    decoded = decode(msgspec.json.Decoder(Body), b'\xef\xbb\xbf{"instances":[1],"parameters":null}', USAGE)
    assert (decoded.instances, decoded.parameters) == ([1], None)
