"""What a refusal is about: the request and the model that it names."""

from typing import NamedTuple

from trivec_server.errors import InvalidTensor

_MAX_SHOWN_DIMENSIONS = 16


class Subject(NamedTuple):
    """A request to a model. `request_id` is the request's own, possibly empty."""

    model: str
    request_id: str

    def refuse(self, text: str) -> InvalidTensor:
        """An error of those that Triton's scheduler gives, with the request's id before it."""
        return InvalidTensor(self.prefixed(text))

    def prefixed(self, text: str) -> str:
        """A text with the request's id before it."""
        return f"[request id: {self.request_id or '<id_unknown>'}] {text}"


def shown_shape(shape: tuple[int, ...]) -> str:
    """A shape as Triton writes it."""
    shown = ",".join(map(str, shape[:_MAX_SHOWN_DIMENSIONS]))
    return f"[{shown},...]" if len(shape) > _MAX_SHOWN_DIMENSIONS else f"[{shown}]"
