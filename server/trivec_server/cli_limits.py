"""`trivec serve`: an option for every limit of `settings.Limits`, with its name and default."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from trivec_server.cli_options import MAX_SECONDS, Seconds, option
from trivec_server.settings import Limits

_MAX_LIMIT = 2**31 - 1
"""gRPC's own limit of a message's size, and enough for any other number of a limit."""
_TEXTS = {
    "max_texts_per_request": "Texts in one request.",
    "max_request_bytes": (
        "Bytes of one request: its message, with the files of a load, and its tensors in shared memory."
    ),
    "max_response_bytes": "Bytes of one response message.",
    "max_chunk_bytes": "Bytes of multi-vector data in one message of EmbedStream.",
    "max_queued_texts": "Texts, or rows of tensors, under way, per model version.",
    "max_queued_bytes": "Bytes of requests under way, per model version.",
    "max_queued_tokens": "Tokens waiting for a batch, per model version.",
    "max_queue_time_s": (
        "Seconds that a request may have to wait, by the work ahead of it and the engine's measured speed; per model "
        "version. One whose deadline would pass before is refused too."
    ),
    "max_held_bytes": "Bytes of results in memory, per model version.",
    "max_text_bytes": "Bytes of one text.",
    "max_stream_requests": "Requests under way on one stream: EmbedStream or ModelStreamInfer.",
    "max_stream_result_bytes": "Bytes of results held for one stream: EmbedStream or ModelStreamInfer.",
    "max_connections": "Connections to the gRPC port; more are closed at once.",
    "max_concurrent_streams": "Calls under way on one connection; well-behaved clients wait, others are refused.",
    "max_concurrent_calls": "Calls under way on all connections.",
    "max_unread_bytes": "Bytes of large answers that a connection may leave unread before its calls are refused.",
    "max_metadata_bytes": "Bytes of a call's metadata: names, values and 32 for each pair.",
    "request_timeout_s": "Seconds in which the request of a call must arrive as a whole; not of a stream.",
    "handshake_timeout_s": "Seconds for a new connection to become a TLS and HTTP/2 one and to agree to the limits.",
    "min_ping_interval_s": "Seconds between a client's keepalive pings, at least; a connection with more is closed.",
}


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, in the order of the fields."""
    defaults = Limits()
    for field in reversed(fields(Limits)):
        flag = "--" + field.name.replace("_", "-")
        default = getattr(defaults, field.name)
        kind = Seconds(0.001, MAX_SECONDS) if isinstance(default, float) else click.IntRange(1, _MAX_LIMIT)
        command = option(flag, _TEXTS[field.name], type=kind, default=default)(command)
    return command


def limits_given(given: dict[str, Any]) -> Limits:
    """The limits that the options say, which it takes out of `given`."""
    return Limits(**{field.name: given.pop(field.name) for field in fields(Limits)})
