"""An engine in a process of its own gives what it gives in this one, and its end is told, whatever brings it about."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from trivec_server.backends.interface import (
    EngineFactory,
    EngineLost,
    EngineOutput,
    EngineRequest,
    OverlappingEngine,
    TokenBatch,
)
from trivec_server.backends.worker.engine import WorkerEngine, start_worker
from trivec_server.errors import ComputeError, LoadError
from trivec_server.types import Mode

from tests.worker_engines import (
    EXIT_CODE,
    Command,
    ObedientEngine,
    batch_of,
    dying,
    endless,
    faulty,
    make_directory,
    obedient,
    overlapping,
    refusing,
)

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60

TEXTS = st.lists(st.integers(10, 899), max_size=40).map(tuple)
MODES = st.sampled_from([Mode.DENSE, Mode.SPARSE, Mode.MULTI_VECTOR, Mode.DENSE | Mode.SPARSE, Mode.HYBRID])


@pytest.fixture
def request_(tmp_path: Path) -> EngineRequest:
    return make_directory(tmp_path / "small" / "1")


@pytest.fixture
def engine(request_: EngineRequest) -> Iterator[WorkerEngine]:
    engine = start_worker(obedient, request_)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=[obedient, overlapping], ids=["plain", "overlapping"])
def shared_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerEngine]:
    engine = start_worker(request.param, make_directory(tmp_path_factory.mktemp("engine") / "small" / "1"))
    yield engine
    engine.close()


def arrays_of(output: EngineOutput) -> list[NDArray[np.generic]]:
    """All arrays, with an empty one for each part that is not there."""
    lexical = output.lexical
    rows: list[NDArray[np.generic]] = [] if lexical is None else [lexical.ids, lexical.weights, lexical.bounds]
    parts = (output.dense, output.token_weights, output.non_finite_rows)
    return [np.empty(0) if part is None else part for part in parts] + rows + list(output.multi_vector or ())


def assert_same(got: EngineOutput, expected: EngineOutput) -> None:
    assert got.recomputed_rows == expected.recomputed_rows
    pairs = list(zip(arrays_of(got), arrays_of(expected), strict=True))
    assert all(one.dtype == other.dtype and np.array_equal(one, other) for one, other in pairs)


def expected(batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
    """What the engine gives in this process."""
    return ObedientEngine(Path()).run(batch, modes, half=half)


def test_it_works_in_a_process_of_its_own_and_overlaps(engine: WorkerEngine) -> None:
    assert isinstance(engine, OverlappingEngine)
    assert engine.info.engine == "scripted"
    assert engine.info.notes == (f"process {engine.process_id}",)
    assert engine.process_id != os.getpid()


@given(texts=st.lists(TEXTS, min_size=1, max_size=20), modes=MODES, half=st.booleans())
def test_every_part_of_a_result_arrives_as_the_engine_made_it(
    shared_engine: WorkerEngine, texts: list[tuple[int, ...]], modes: Mode, half: bool
) -> None:
    batch = batch_of(*texts)
    assert_same(shared_engine.run(batch, modes, half=half), expected(batch, modes, half=half))


@given(sizes=st.lists(st.integers(1, 3000), min_size=3, max_size=8), half=st.booleans())
def test_results_of_any_sizes_are_the_callers_own(shared_engine: WorkerEngine, sizes: list[int], half: bool) -> None:
    batches = [batch_of(*[(10 + size % 800,) * 5] * (1 + size // 50)) for size in sizes]
    under_way = [shared_engine.submit(batches[0], Mode.HYBRID, half=half)]
    outputs = []
    for batch in batches[1:]:
        under_way.append(shared_engine.submit(batch, Mode.HYBRID, half=half))
        outputs.append(under_way.pop(0).result())
    outputs.append(under_way.pop().result())
    for batch, output in zip(batches, outputs, strict=True):
        assert_same(output, expected(batch, Mode.HYBRID, half=half))
    assert outputs[0].multi_vector is not None
    assert all(rows.base is None for rows in outputs[0].multi_vector)


def test_a_batch_can_be_submitted_while_one_is_computed(engine: WorkerEngine, request_: EngineRequest) -> None:
    first = engine.submit(batch_of((Command.WAIT,)), Mode.DENSE)
    (request_.version_dir / "entered").read_bytes()
    second = engine.submit(batch_of((10,)), Mode.DENSE)
    (request_.version_dir / "gate").write_bytes(b"")
    assert first.result().dense is not None
    assert_same(second.result(), expected(batch_of((10,)), Mode.DENSE))


def test_an_overlapping_engine_has_the_next_batch_before_the_first_is_done(request_: EngineRequest) -> None:
    engine = start_worker(overlapping, request_)
    engine.submit(batch_of((Command.WAIT,)), Mode.DENSE)
    second = engine.submit(batch_of((10,)), Mode.DENSE)
    (request_.version_dir / "entered").read_bytes()
    events = request_.version_dir / "events"
    assert events.read_text().split() == ["submitted", "submitted"]
    (request_.version_dir / "gate").write_bytes(b"")
    second.result()
    assert events.read_text().split() == ["submitted", "submitted", "collected", "collected"]
    engine.close()


def test_with_two_under_way_submit_waits_for_the_first(request_: EngineRequest) -> None:
    engine = start_worker(overlapping, request_)
    running = [engine.submit(batch_of((number,)), Mode.DENSE) for number in range(10, 15)]
    for number, each in enumerate(running, 10):
        assert_same(each.result(), expected(batch_of((number,)), Mode.DENSE))
    engine.close()


def test_a_reason_not_to_load_arrives_as_it_is(request_: EngineRequest) -> None:
    with pytest.raises(LoadError, match=r"^no engine in 1$"):
        start_worker(refusing, request_)


def test_an_error_nobody_foresaw_is_logged_and_not_shown(request_: EngineRequest) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(LoadError) as caught:
        start_worker(faulty, request_)
    assert str(caught.value) == "an unexpected error; the server's log has it"
    error = next(log["exc_info"] for log in logs if log["log_level"] == "error")
    assert "a fault of the engine's program" in str(error)
    assert "worker_engines.py" in str(error.__cause__)


def test_a_process_that_dies_as_it_loads_is_a_reason_not_to_load(request_: EngineRequest) -> None:
    with pytest.raises(LoadError, match=r"was killed by signal 9 \(SIGKILL\) while it loaded the model"):
        start_worker(dying, request_)


@pytest.mark.parametrize(
    ("command", "kind", "message"),
    [
        (Command.RAISE_MEMORY_ERROR, MemoryError, "^too much$"),
        (Command.RAISE_COMPUTE_ERROR, ComputeError, r"^texts\[0\]: no$"),
        (Command.RAISE_VALUE_ERROR, RuntimeError, "^ValueError: 1 texts$"),
    ],
)
def test_an_error_concerns_one_batch_and_keeps_its_kind(
    shared_engine: WorkerEngine, command: Command, kind: type[Exception], message: str
) -> None:
    failing = shared_engine.submit(batch_of((command,)), Mode.DENSE)
    good = shared_engine.submit(batch_of((10,)), Mode.DENSE)
    with pytest.raises(kind, match=message):
        failing.result()
    assert_same(good.result(), expected(batch_of((10,)), Mode.DENSE))


def test_a_result_for_which_its_process_has_no_memory_fails_its_batch_alone(shared_engine: WorkerEngine) -> None:
    failing = shared_engine.submit(batch_of((Command.GIVE_TOO_MUCH,)), Mode.DENSE)
    good = shared_engine.submit(batch_of((10,)), Mode.DENSE)
    with pytest.raises(MemoryError, match="shared memory"):
        failing.result()
    assert_same(good.result(), expected(batch_of((10,)), Mode.DENSE))


@contextmanager
def no_more_memory() -> Iterator[None]:
    """This process has 16 MB at most that it did not have before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 16_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("factory", [obedient, overlapping])
def test_a_result_for_which_this_process_has_no_memory_fails_its_batch_alone(
    factory: EngineFactory, request_: EngineRequest
) -> None:
    engine = start_worker(factory, request_)
    large = engine.submit(batch_of((10,) * 1_000_000), Mode.MULTI_VECTOR)
    small = engine.submit(batch_of((11,)), Mode.DENSE)
    with no_more_memory(), pytest.raises(MemoryError):
        large.result()
    assert_same(small.result(), expected(batch_of((11,)), Mode.DENSE))
    assert_same(engine.run(batch_of((12,)), Mode.DENSE), expected(batch_of((12,)), Mode.DENSE))
    engine.close()


def test_a_batch_for_which_there_is_no_memory_is_not_submitted(engine: WorkerEngine) -> None:
    large, good = batch_of((10,) * 4_000_000), batch_of((10,))
    with no_more_memory(), pytest.raises(MemoryError):
        engine.submit(large, Mode.DENSE)
    assert_same(engine.run(good, Mode.DENSE), expected(good, Mode.DENSE))


def test_an_unforeseen_errors_cause_has_the_traceback(engine: WorkerEngine) -> None:
    with pytest.raises(RuntimeError) as caught:
        engine.run(batch_of((Command.RAISE_VALUE_ERROR,)), Mode.DENSE)
    assert "worker_engines.py" in str(caught.value.__cause__)


@pytest.mark.parametrize("factory", [obedient, overlapping])
@pytest.mark.parametrize(
    ("command", "how"),
    [
        (Command.BE_KILLED, r"was killed by signal 9 \(SIGKILL\)"),
        (Command.CRASH, r"was killed by signal 11 \(SIGSEGV\)"),
        (Command.EXIT, f"ended with exit code {EXIT_CODE}"),
        (Command.LOSE_DEVICE, "the device fell off the bus"),
    ],
)
def test_the_end_of_an_engine_is_told_to_all_its_batches(
    factory: EngineFactory, request_: EngineRequest, command: Command, how: str
) -> None:
    engine = start_worker(factory, request_)
    good = engine.submit(batch_of((10,)), Mode.DENSE)
    good.result()
    deadly = engine.submit(batch_of((command,)), Mode.DENSE)
    with pytest.raises(EngineLost, match=how):
        deadly.result()
    with pytest.raises(EngineLost):
        engine.submit(batch_of((10,)), Mode.DENSE)
    assert not psutil.pid_exists(engine.process_id)
    engine.close()


def test_both_batches_under_way_are_lost_with_the_process(engine: WorkerEngine, request_: EngineRequest) -> None:
    both = [engine.submit(batch_of((Command.WAIT,)), Mode.DENSE), engine.submit(batch_of((10,)), Mode.DENSE)]
    (request_.version_dir / "entered").read_bytes()
    os.kill(engine.process_id, signal.SIGKILL)
    for running in both:
        with pytest.raises(EngineLost, match="killed by signal 9"):
            running.result()


def test_the_death_of_an_idle_process_is_told_by_the_next_batch(engine: WorkerEngine) -> None:
    os.kill(engine.process_id, signal.SIGKILL)
    with pytest.raises(EngineLost, match="killed by signal 9"):
        engine.run(batch_of((10,)), Mode.DENSE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_stop_the_server_leave_its_engines_at_work(engine: WorkerEngine, number: signal.Signals) -> None:
    os.kill(engine.process_id, number)
    assert engine.run(batch_of((10,)), Mode.DENSE).dense is not None


def shared_areas() -> int:
    """The shared memory that this process holds."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(1 for link in links if str(link.readlink()).startswith("/memfd:trivec"))


def test_closing_closes_the_engine_and_ends_its_process(request_: EngineRequest) -> None:
    areas = shared_areas()
    engine = start_worker(obedient, request_)
    engine.run(batch_of((10,)), Mode.HYBRID)
    engine.submit(batch_of((10,)), Mode.HYBRID)
    engine.close()
    assert (request_.version_dir / "events").read_text().split() == ["closed"]
    assert not psutil.pid_exists(engine.process_id)
    assert shared_areas() == areas
    engine.close()


def test_an_engine_that_does_not_close_is_killed_and_the_log_says_so(request_: EngineRequest) -> None:
    engine = start_worker(endless, request_, close_timeout_s=0.1)
    with structlog.testing.capture_logs() as logs:
        engine.close()
    assert [log["event"] for log in logs] == ["engine process killed: it did not end by itself"]
    assert not psutil.pid_exists(engine.process_id)


def test_a_process_that_gives_no_answer_is_killed_and_its_batches_are_lost(request_: EngineRequest) -> None:
    engine = start_worker(obedient, request_, hung_s=0.1)
    both = [engine.submit(batch_of((Command.WAIT,)), Mode.DENSE), engine.submit(batch_of((10,)), Mode.DENSE)]
    for running in both:
        with pytest.raises(EngineLost, match=r"^the engine's process gave no answer for 0\.1 s and was killed"):
            running.result()
    assert not psutil.pid_exists(engine.process_id)
    with pytest.raises(EngineLost, match="gave no answer"):
        engine.submit(batch_of((10,)), Mode.DENSE)
    engine.close()


def test_closing_does_not_wait_for_a_batch_that_hangs(request_: EngineRequest) -> None:
    engine = start_worker(obedient, request_, close_timeout_s=0.1)
    running = engine.submit(batch_of((Command.WAIT,)), Mode.DENSE)
    engine.close()
    assert not psutil.pid_exists(engine.process_id)
    with pytest.raises(EngineLost):
        running.result()


def test_what_is_shared_has_no_name_in_any_file_system(engine: WorkerEngine) -> None:
    engine.run(batch_of(*[(10,) * 50] * 100), Mode.HYBRID)
    maps = Path(f"/proc/{engine.process_id}/maps").read_text()
    assert "/memfd:trivec-result" in maps
    assert "/dev/shm" not in maps  # noqa: S108 - where named shared memory would be


def test_processes_can_be_told_apart(engine: WorkerEngine) -> None:
    process = psutil.Process(engine.process_id)
    assert process.name() == "trivec-engine"
    assert process.cmdline()[-1] == "obedient small/1"


def start_owner(call: str) -> "subprocess.Popen[str]":
    """A process that has an engine's process, which shares its standard error."""
    code = f"from tests.worker_engines import *; {call}"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_killed_server_leaves_no_engine_behind_even_a_busy_one(request_: EngineRequest) -> None:
    with start_owner(f"hold({str(request_.version_dir)!r})") as owner:
        (request_.version_dir / "entered").read_bytes()
        owner.kill()
        # Standard error ends once both have ended.
        owner.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_its_logs_have_the_servers_level_and_format(request_: EngineRequest, log_format: str) -> None:
    with start_owner(f"log({str(request_.version_dir)!r}, 'warning', {log_format!r})") as owner:
        log = owner.communicate(timeout=PATIENCE_S)[1]
    assert len(log.splitlines()) == 1
    assert "urgent" in log
    if log_format == "json":
        assert json.loads(log)["number"] == 1
