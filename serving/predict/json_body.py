"""Decodes the JSON bodies of requests, and says in plain words what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from registry.rows.schema import MAX_LEVELS, depth
from serving.errors import InvalidRequest, NotJSON, TooManyInstances
from serving.predict.pieces import PIECE_BYTES, ElementTooLarge, Turns, finite_number, split

T = TypeVar("T")
Struct = TypeVar("Struct", bound=msgspec.Struct)

BOM = b"\xef\xbb\xbf"

MAX_NAME_CHARACTERS = 64
MAX_REASON_CHARACTERS = 1000

MAX_ELEMENT_BYTES = 256 * 1024
"""Bytes of one element of a list: a record of 64 KB, of which every character is escaped."""

MAX_EXPLAINED_BYTES = 64 * 1024
"""Bytes of a body, or of one instance, whose faults are looked for: some milliseconds of work."""

AT = r"(?: - at `(?P<path>[^`]*)`)?"
WRONG_KIND = re.compile(r"Expected `(?P<kinds>[^`]*)`, got `\w+`" + AT)
WRONG_VALUE = re.compile(r"Invalid enum value .*?" + AT, re.DOTALL)
MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`" + AT)
UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`" + AT, re.DOTALL)
MALFORMED = re.compile(r"JSON is malformed: (?P<reason>.*) \(byte (?P<byte>[0-9]+)\)")

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}

NO_NUMBERS = (b"NaN", b"nan", b"Infinity", b"inf", b"-Infinity", b"-inf")
PYTHON = (b"None", b"True", b"False", b"'")


_any: msgspec.json.Decoder[Any] = msgspec.json.Decoder(float_hook=finite_number)
_outline: msgspec.json.Decoder[Any] = msgspec.json.Decoder(msgspec.Raw)


def decode(decoder: msgspec.json.Decoder[T], body: bytes, usage: str) -> T:
    """Decode a body; `usage` says what to send instead of one of another shape. Raises NotJSON, InvalidRequest."""
    body = body.removeprefix(BOM)
    try:
        return decoder.decode(body)
    except RecursionError:
        raise NotJSON("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise NotJSON("the body is not UTF-8") from None
    except msgspec.ValidationError as error:
        raise _misfit(body, error, decoder.type, usage) from None
    except msgspec.DecodeError as error:
        raise NotJSON(f"the body is not JSON: {_malformed(body, str(error))}") from None


class LargeBodyDecoder(Generic[Struct]):
    """Decodes bodies of any size to a struct, whose lists are decoded some elements at a time."""

    def __init__(self, kind: type[Struct], usage: str, too_many: str) -> None:
        """`usage` says what to send; `too_many` is the message for lists of more than so many elements."""
        self._decoder = msgspec.json.Decoder(kind, float_hook=finite_number)
        members = [
            (field.encode_name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET)
            for field in msgspec.structs.fields(kind)
        ]
        self._outline = msgspec.json.Decoder(msgspec.defstruct("Outline", members, forbid_unknown_fields=True))
        self._usage = usage
        self._too_many = too_many

    async def decode(self, body: bytes, most: int, turns: Turns) -> Struct:
        """Lists have at most `most` elements. Raises NotJSON, InvalidRequest, TooManyInstances, what `turns` raise."""
        if len(body) <= PIECE_BYTES:
            return decode(self._decoder, body, self._usage)
        parts = {name: bytes(raw) for name, raw in msgspec.structs.asdict(self._decode_outline(body)).items() if raw}
        lists = {name: part for name, part in parts.items() if part.startswith(b"[") and len(part) > PIECE_BYTES}
        others = parts | dict.fromkeys(lists, b"[]")
        if sum(map(len, others.values())) > MAX_ELEMENT_BYTES:
            raise InvalidRequest(self._usage)
        whole = self._decode_members(others)
        for name, array in lists.items():
            elements = getattr(whole, name)
            try:
                for piece in split(array, MAX_ELEMENT_BYTES):
                    elements += getattr(self._decode_members(others | {name: piece.content}), name)
                    if len(elements) > most:
                        raise TooManyInstances(self._too_many.format(most))
                    await turns.pause()
            except ElementTooLarge as error:
                raise InvalidRequest(f"{name}[{error.index}] {error}") from None
        return whole

    def _decode_outline(self, body: bytes) -> Any:
        return decode(self._outline, body, self._usage)

    def _decode_members(self, parts: Mapping[str, bytes]) -> Struct:
        members = b",".join([b'"%b":%b' % (name.encode(), part) for name, part in parts.items()])
        return decode(self._decoder, b"{%b}" % members, self._usage)


def _malformed(body: bytes, reason: str) -> str:
    """The reason why a body is not JSON, which is often that it was written by something else than a JSON library."""
    if not body.strip():
        return "it is empty"
    found = MALFORMED.fullmatch(reason)
    if found is None:
        return "it ends too early" if "truncated" in reason else reason[:200]
    place = int(found["byte"])
    # of what begins as `null` does, msgspec names the end
    if body.startswith(NO_NUMBERS, place) or body.startswith(b"nan", place - 4):
        return f"it has no NaN and no Infinity; send null for a missing value (byte {place})"
    if body.startswith(PYTHON, place):
        return f"this is how Python writes it; use json.dumps (byte {place})"
    return f"{found['reason']} (byte {place})"


def _misfit(body: bytes, error: msgspec.ValidationError, kind: Any, usage: str) -> NotJSON | InvalidRequest:
    """The error for JSON of another shape; a number that fits no machine type counts as invalid JSON."""
    if "out of range" in str(error):
        return NotJSON(f"a number is too large: {str(error).partition('at ')[2] or usage}")
    refusal = refuse_shape(body, usage)
    if isinstance(refusal, NotJSON) or len(str(error)) > MAX_REASON_CHARACTERS:  # then it quotes what was sent
        return refusal
    return InvalidRequest(explain_misfit(str(error), kind, usage))


def refuse_shape(body: bytes, usage: str) -> NotJSON | InvalidRequest:
    """The error for a body of another shape than `usage` says, which is no JSON if it is no object or nests too deep.

    Only the beginning of a large one is looked at: to decode it all would take half a second.
    """
    is_small = len(body) <= MAX_EXPLAINED_BYTES
    try:
        value = (_any if is_small else _outline).decode(body)
    except (RecursionError, ValueError):
        return NotJSON(usage)
    is_object = isinstance(value, dict) if is_small else bytes(value).startswith(b"{")
    if is_small and depth(value) > MAX_LEVELS:
        is_object = False
    return InvalidRequest(usage) if is_object else NotJSON(usage)


def explain_misfit(reason: str, kind: Any, usage: str) -> str:
    """An error of msgspec about a value that should be a `kind`, in plain words.

    They show no text of the client's but a short unknown name.
    """
    if found := WRONG_KIND.fullmatch(reason):
        return f"{_place(found)} must be {_kinds(found['kinds'])}" if found["path"] else usage
    if found := WRONG_VALUE.fullmatch(reason):
        values = getattr(_node(kind, found["path"] or ""), "values", ())
        return f"{_place(found)} must be one of {', '.join(map(str, values))}"
    if found := MISSING.fullmatch(reason):
        return f"{_place(found)} lacks {found['name']}" if found["path"] else f"{found['name']} is missing; {usage}"
    if found := UNKNOWN.fullmatch(reason):
        name = found["name"]
        shown = f"`{name}`" if len(name) <= MAX_NAME_CHARACTERS and name.isprintable() else "with that name"
        if not found["path"]:
            return f"there is no member {shown}; {usage}"
        fields = getattr(_node(kind, found["path"]), "fields", ())
        return f"{_place(found)} has no member {shown}; it may have {', '.join(one.encode_name for one in fields)}"
    return usage


def _place(found: re.Match[str]) -> str:
    return (found["path"] or "").removeprefix("$").removeprefix(".")


def _kinds(text: str) -> str:
    kinds = text.split(" | ")
    if "float" in kinds and "int" in kinds:
        kinds.remove("int")
    *first, last = [WORDS.get(kind, kind) for kind in kinds]
    return f"{', '.join(first)} or {last}" if first else last


def _node(kind: Any, path: str) -> inspect.Type:
    """The description of the type at a path of msgspec's, such as `$.records[...]`."""
    node = _described(kind)
    for step in re.findall(r"\w+|\[", path.removeprefix("$")):
        if isinstance(node, inspect.StructType):
            node = next((field.type for field in node.fields if field.encode_name == step), node)
        elif step == "[":
            node = getattr(node, "item_type", node)
        node = _bare(node)
    return node


@lru_cache
def _described(kind: Any) -> inspect.Type:
    return _bare(inspect.type_info(kind))


def _bare(node: inspect.Type) -> inspect.Type:
    """A type without its metadata and without null."""
    while isinstance(node, inspect.Metadata | inspect.UnionType):
        if isinstance(node, inspect.Metadata):
            node = node.type
        else:
            node = next(one for one in node.types if not isinstance(one, inspect.NoneType))
    return node
