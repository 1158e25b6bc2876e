"""When a model that has changed may be loaded: once it is at rest, and after a failure later and later."""

_MAX_BACKOFF_S = 600.0


class ChangeWatch:
    """What successive looks at one model have shown. Instants are of one monotonic clock, in seconds."""

    def __init__(self, stability_s: float, retry_s: float) -> None:
        """
        Args:
            stability_s: How long a model has to look the same before it is taken for whole.
            retry_s: The pause after a first failure; doubled by each further one, up to ten minutes.
        """
        self._stability_s = stability_s
        self._retry_s = retry_s
        self._signature: object = None
        self._since = 0.0
        self._pause_s = retry_s
        self._next_try = 0.0

    def see(self, signature: object, now: float) -> None:
        """A look has shown this. If it is something else than before, earlier failures say nothing of it."""
        if signature != self._signature:
            self._signature = signature
            self._since = self._next_try = now
            self._pause_s = self._retry_s

    def failed(self, now: float) -> None:
        """What was seen last could not be loaded."""
        self._next_try = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, max(_MAX_BACKOFF_S, self._retry_s))

    def succeeded(self) -> None:
        """What was seen last serves."""
        self._pause_s = self._retry_s

    @property
    def at_rest_from(self) -> float:
        """The instant from which on what was seen last counts as whole, if nothing changes until then."""
        return self._since + self._stability_s

    @property
    def next_try(self) -> float:
        """The instant from which on it may be loaded, as far as failures are concerned."""
        return self._next_try
