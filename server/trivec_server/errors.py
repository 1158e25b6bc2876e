"""
The errors of the domain. They know no gRPC: `transport/status.py` maps each to a status code, once.

Every message is one line for a user: what was wrong, where, the limit, and how to mend it. Nothing internal.
"""

from dataclasses import dataclass


class TrivecError(Exception):
    """The root of all errors that Trivec raises on purpose. `str(error)` may be shown to a user."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One faulty field of a request: its path with index, such as `texts[3]`, and what is wrong with it."""

    field: str
    description: str


class InvalidRequest(TrivecError):
    """The request itself is wrong; sending it again unchanged fails again."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.violations = (FieldViolation(field, description),)


class InvalidTensor(TrivecError):
    """A KServe request is wrong. The message begins as Triton's does, since its clients and users look for that."""


class Unsupported(TrivecError):
    """The call, or what it asks for, does not exist here."""


class NotFound(TrivecError):
    """The request names a model or version that the server does not know."""


class Unavailable(TrivecError):
    """The model is known but not ready, or the server is shutting down."""


class ShuttingDown(Unavailable):
    """The server takes no more requests; another one may."""


class Overloaded(TrivecError):
    """A limit on queued work is reached. The request was not started; it may be sent again."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LimitOfIdentity(Overloaded):
    """A limit of the caller's own is reached, whatever the server's load."""


class Unauthenticated(TrivecError):
    """The call shows no credentials, or such as nobody has. The message holds nothing of them."""


class PermissionDenied(TrivecError):
    """The caller may not do this."""


class DeadlineExceeded(TrivecError):
    """The request's deadline, or the queue's timeout, passed before the request was computed."""


class QueueTimeout(DeadlineExceeded):
    """The queue's own timeout passed, not the caller's deadline."""


class ResponseTooLarge(TrivecError):
    """The answer would be larger than a response message may be."""


class ComputeError(TrivecError):
    """The engine failed on this request, or gave numbers that are not finite."""


class LoadError(TrivecError):
    """A model version cannot be served. The message is the reason shown in GetModel and the log."""


class ControlDisabled(Unavailable):
    """Models are not loaded and unloaded by calls: the server was started in another model control mode."""


class ModelNotInRepository(TrivecError):
    """A load names a model that no repository holds."""


class LoadFailed(TrivecError):
    """A load that a call asked for failed; what served before goes on serving."""


class SharedMemoryExists(TrivecError):
    """A region of that name is registered already."""


class SharedMemoryUnusable(TrivecError):
    """A region of shared memory cannot be opened, or is too small."""


class ConfigError(LoadError):
    """A `config.pbtxt` is wrong. The message names the file, the line where known, and the field."""


class CommandError(TrivecError):
    """A command of the command line cannot go on: a fault of its user or surroundings. Shown as one line."""


class SecurityFileError(CommandError):
    """A certificate, a private key or the access file cannot be used. The message names the file."""
