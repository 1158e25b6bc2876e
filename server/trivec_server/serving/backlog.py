"""
How long a request would have to wait: the work that is ahead of it in the queue, and how fast the engines have lately
done such work.

Only batches tell of slowness that had more work behind them, or ran for long: a small batch on a fast engine takes as
long as one with ten times its tokens, and would have a queue look ten times as slow as it is. Until one has run,
nothing is known and nothing is said. Any batch tells of speed: what was done faster than expected can be done so. One
batch that stood still, with the machine or while the engine compiled, counts no more than one that was slow.
"""

from collections.abc import Iterable

from trivec_server.serving.ticket import Pending, TicketT

_TELLING_S = 0.25
"""A batch of so long a time is no matter of fixed costs."""
_MEMORY = 0.9
_MOST_SLOWER = 4.0
"""A batch counts as at most so many times slower than expected, and the estimate is at most so many times its."""


class Backlog:
    """
    The tokens in one queue, by priority level and size of slice. What changes it is called under the batcher's lock;
    reading is for any thread.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._tokens: dict[tuple[int, int], int] = {}
        self._measured_s = 0.0
        self._measured_s2 = 0.0
        self._measured_tokens = 0.0

    def add(self, slices: Iterable[Pending[TicketT]]) -> None:
        """Counts slices that join the queue."""
        for pending in slices:
            key = pending.ticket.level, pending.tokens.bit_length()
            self._tokens[key] = self._tokens.get(key, 0) + pending.tokens
            self.tokens += pending.tokens

    def recount(self, queue: Iterable[Pending[TicketT]]) -> None:
        """The queue is another one now."""
        tokens: dict[tuple[int, int], int] = {}
        total = 0
        for pending in queue:
            key = pending.ticket.level, pending.tokens.bit_length()
            tokens[key] = tokens.get(key, 0) + pending.tokens
            total += pending.tokens
        self._tokens, self.tokens = tokens, total

    def learn(self, tokens: int, compute_s: float, *, left_work: bool) -> None:
        """Takes in how long a batch ran. `left_work`: there was more to do than went into it."""
        if tokens <= 0:
            return
        expected_s = (self.seconds_per_token or 0.0) * tokens
        if not (left_work or compute_s >= _TELLING_S or compute_s < expected_s):
            return
        if expected_s:
            compute_s = min(compute_s, expected_s * _MOST_SLOWER)
            if compute_s:
                self._forget_slowness(expected_s / compute_s / _MOST_SLOWER)
        self._measured_s = self._measured_s * _MEMORY + compute_s
        self._measured_tokens = self._measured_tokens * _MEMORY + tokens
        self._measured_s2 = self._measured_s2 * _MEMORY + compute_s * compute_s

    def _forget_slowness(self, factor: float) -> None:
        """What is known was so many times too slow; of a factor below 1 nothing follows."""
        if factor > 1:
            self._measured_s /= factor
            self._measured_s2 /= factor * factor

    @property
    def seconds_per_token(self) -> float | None:
        """Of one engine; None: nothing is known."""
        return self._measured_s / self._measured_tokens if self._measured_tokens else None

    @property
    def batch_s(self) -> float:
        """
        How long the batch runs that a request meets, while there is more to do: longer ones are met more often. 0:
        nothing is known.
        """
        return self._measured_s2 / self._measured_s if self._measured_s else 0.0

    def wait_s(self, level: int, tokens: int, engines: int) -> float:
        """
        The wait of a new request with so many tokens until its batch starts, without the rest of the batches that run
        now; 0 while nothing is known. Work of its own level in slices of at least twice its size will let it pass.
        """
        speed = self.seconds_per_token
        if speed is None or not self.tokens:
            return 0.0
        size = tokens.bit_length() + 1
        counted = list(self._tokens.items())
        ahead = sum(count for key, count in counted if key[0] < level or (key[0] == level and key[1] <= size))
        return ahead * speed / max(1, engines)
