"""
How busy this server is, for balancers: an ORCA load report in the trailing metadata of every answer.

`xds.data.orca.v3.OrcaLoadReport` is written by hand, field by field; `docs/decisions/0014-load-report.md` says why. It
is made anew at most ten times a second, and every answer until then takes it along.
"""

import os
import struct
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from trivec_server.metrics.memory import read_memory
from trivec_server.serving.spine import Load

LOAD_REPORT_KEY = "endpoint-load-metrics-bin"
"""Where gRPC's `weighted_round_robin` and Envoy look for it."""

_RENDER_EVERY_S = 0.1
_WINDOW_S = 1.0
_LEAST_WINDOW_S = 0.15
_STALE_S = 2.0
_LEAST_UTILIZATION = 0.001
"""gRPC takes 0 for a server that does not say."""
_MOST_UTILIZATION = 100.0
_FAILURES = frozenset({"RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED"})
"""What another server might have answered better."""

# Field numbers and types of orca_load_report.proto: a tag is (number << 3) | 1 for a double.
_DOUBLE = struct.Struct("<Bd")
_CPU, _MEMORY, _RATE, _ERROR_RATE, _APPLICATION = (number << 3 | 1 for number in (1, 2, 6, 7, 9))
_NAMED_METRIC = 8 << 3 | 2
_MAP_KEY, _MAP_VALUE = 1 << 3 | 2, 2 << 3 | 1

Loads = Callable[[], Mapping[Hashable, Load]]
Trailing = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilization:
    """
    What is reported. Shares are of what there is: 1 is all; `application` is above 1 where work waits.

    `served` and `failed` are calls a second.
    """

    application: float
    cpu: float
    memory: float
    served: float
    failed: float
    queued_tokens: int
    queue_s: float


@dataclass(frozen=True, slots=True)
class _Sample:
    """What had added up at an instant."""

    at: float
    served: int
    failed: int
    process_s: float
    loop_s: float
    idle_s: Mapping[Hashable, float] = field(default_factory=dict)


class LoadReport:
    """For the event loop's thread."""

    def __init__(self, loads: Loads, clock: Callable[[], float] = time.monotonic) -> None:
        """`loads`: of each version that holds engines; equal keys stand for the same engines."""
        self._loads = loads
        self._clock = clock
        self._cpus = len(os.sched_getaffinity(0))
        self._served = 0
        self._failed = 0
        self._samples = deque([self._sample(clock(), {})])
        self._render_at = 0.0
        self._trailing: Trailing = ()

    def count(self, model: str, code: str) -> None:
        """A call, or a message of a stream, has ended with this status code; those for no model are no load."""
        if code in _FAILURES:
            self._failed += 1
        elif model and code != "CANCELLED":
            self._served += 1

    def trailing(self) -> Trailing:
        """The metadata to send with an answer."""
        now = self._clock()
        if now >= self._render_at:
            self._render_at = now + _RENDER_EVERY_S
            self._trailing = ((LOAD_REPORT_KEY, encode(self.measure())),)
        return self._trailing

    def measure(self) -> Utilization:
        """How busy the server has been in the last second or, where calls are rare, since the last look before it."""
        now = self._clock()
        loads = self._loads()
        sample = self._sample(now, loads)
        samples = self._samples
        # After a pause the look before it says nothing of the burst that has begun since.
        while len(samples) > 1 and now - samples[1].at >= (
            _WINDOW_S if now - samples[0].at < _STALE_S else _LEAST_WINDOW_S
        ):
            samples.popleft()
        before = samples[0]
        samples.append(sample)
        elapsed_s = max(now - before.at, 1e-3)
        # One thread does all but computing and tokenizing: it may be what a server has least of.
        busy = (sample.loop_s - before.loop_s) / elapsed_s
        for key, load in loads.items():
            if key in before.idle_s:
                idle = (load.idle_s - before.idle_s[key]) / (load.engines * elapsed_s)
                busy = max(busy, 1 - idle + load.queue_s / _WINDOW_S)
        return Utilization(
            application=min(max(busy, _LEAST_UTILIZATION), _MOST_UTILIZATION),
            cpu=min((sample.process_s - before.process_s) / (elapsed_s * self._cpus), 1.0),
            memory=read_memory().share,
            served=(sample.served - before.served) / elapsed_s,
            failed=(sample.failed - before.failed) / elapsed_s,
            queued_tokens=sum(load.queued_tokens for load in loads.values()),
            queue_s=max((load.queue_s for load in loads.values()), default=0.0),
        )

    def _sample(self, now: float, loads: Mapping[Hashable, Load]) -> _Sample:
        idle_s = {key: load.idle_s for key, load in loads.items()}
        return _Sample(now, self._served, self._failed, time.process_time(), time.thread_time(), idle_s)


def encode(utilization: Utilization) -> bytes:
    """The serialized OrcaLoadReport."""
    fields = (
        (_CPU, utilization.cpu),
        (_MEMORY, utilization.memory),
        (_RATE, utilization.served),
        (_ERROR_RATE, utilization.failed),
        (_APPLICATION, utilization.application),
    )
    named = (("queued_tokens", float(utilization.queued_tokens)), ("queue_s", utilization.queue_s))
    return b"".join([_DOUBLE.pack(*each) for each in fields] + [_named_metric(*each) for each in named])


def _named_metric(name: str, value: float) -> bytes:
    """One entry of the map `named_metrics`. Names are short: each length is one byte."""
    entry = bytes((_MAP_KEY, len(name))) + name.encode() + _DOUBLE.pack(_MAP_VALUE, value)
    return bytes((_NAMED_METRIC, len(entry))) + entry
