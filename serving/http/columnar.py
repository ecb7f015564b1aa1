"""Parquet and Arrow as bodies and answers of requests for predictions and explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from tempfile import TemporaryFile

import msgspec
from starlette.datastructures import QueryParams
from starlette.types import Scope

from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.rows.features import Rows
from serving.errors import InvalidRequest, UnsupportedBody
from serving.http.body import HeaderMap, body_type, check_encoding, check_json
from serving.http.routes.jobs import query_of
from serving.jobs.chunks import Chunks
from serving.jobs.rows import describe_rows, unpack
from serving.jobs.tables import FORMATS, NOT_INSTALLED, Tables
from serving.predict.json_body import explain_misfit
from serving.predict.operation import Verb
from serving.predict.request_body import TOO_MANY, Parameters

NAMES = Parameters.__struct_fields__


class ColumnarBodies:
    """Reads and writes them, if the service can."""

    def __init__(self, tables: Tables | None, limits: Mapping[Verb, int]) -> None:
        """A request may have so many instances."""
        self._tables = tables
        self._limits = limits
        self.offers = () if tables is None else tuple(FORMATS)
        """The media types of answers."""

    def media_type(self, headers: HeaderMap) -> bytes | None:
        """The media type of a body that is columnar; None if it is JSON. Raises UnsupportedBody for any other."""
        kind = body_type(headers)
        if kind not in FORMATS:
            check_json(headers)
            return None
        check_encoding(headers)
        if self._tables is None:
            raise UnsupportedBody(NOT_INSTALLED)
        return kind

    async def read(
        self, model: LoadedModel, verb: Verb, media_type: bytes, body: bytes, scope: Scope
    ) -> tuple[Rows, Parameters]:
        """The rows of a body, and the parameters, which are in the query. Raises what `Tables.read` raises."""
        assert self._tables is not None
        try:
            parameters = msgspec.convert(query_of(QueryParams(scope["query_string"])), Parameters, strict=False)
        except msgspec.ValidationError as error:
            usage = f"with such a body, use no query but {', '.join(NAMES)}"
            raise InvalidRequest(explain_misfit(str(error), Parameters, usage)) from None
        most = self._limits[verb]
        with TemporaryFile() as file:
            file.write(body)
            file.flush()
            chunks = await self._tables.read(
                model, FORMATS[media_type], file, too_many=TOO_MANY.format(most), max_rows=most, chunk_rows=most
            )
        return unpack(chunks[0], model.schema).copy(), parameters

    async def write(
        self, model: LoadedModel, verb: Verb, media_type: bytes, selection: Selection, values: Sequence[bytes]
    ) -> bytes:
        """Answers, each as JSON, as one table. Raises what `Tables.write` raises."""
        assert self._tables is not None
        answers = Chunks()
        answers.append(b",".join(values))
        described = describe_rows(model, selection, len(values), len(values))
        with await self._tables.write(verb, described, FORMATS[media_type], answers) as file:
            return file.read()
