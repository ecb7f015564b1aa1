"""Other people's protocols over the path of `:predict`: each is a reader of bodies and a writer of answers.

A protocol is a subclass of `Protocol` (`route.py`) with two methods. `read` turns a body into a `Question`: rows, and
what is wanted of them. `write` turns the answered question into a content type and a body. Everything else is done by
`ProtocolRoute`, the ASGI app around it, as `InferenceRoute` does it for `:predict`: OPTIONS and methods, the model that
is meant and whether the key may use it, the limits of bodies, rows and answers, X-Request-Timeout, cache, single
flight, batches, deadlines, refusals, counters of the model, headers, and the lines of the log.

To add one:

1. A file here with its `Protocol`, and an instance in `make_protocols` (`serving/app.py`). `path` matches its paths;
   the groups `model` and `version` name the model. A protocol whose paths name none overrides `find`.
2. Its paths in `PATHS` of `serving/http/keys.py`, in `tests/attacks/test_keys.py` and in `ROUTES` of
   `serving/http/openapi.py`.
3. If its clients read another form of errors: a `Form` and its paths in `FORMS` of `serving/http/problems.py`. Refusals
   of the edge (401, 404, 429 and so on) and of FastAPI take that form, too.
4. Routes that only describe (metadata, health) are ordinary routes of FastAPI, in a router of the same package.
"""
