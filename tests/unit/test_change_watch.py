"""When a model that has changed may be loaded."""

import itertools

from trivec_server.repository.watch import ChangeWatch


def test_a_model_is_at_rest_after_the_window_from_its_last_change() -> None:
    watch = ChangeWatch(2.0, 15.0)
    watch.see("a", 100.0)
    watch.see("a", 101.0)
    assert watch.at_rest_from == 102.0
    watch.see("b", 101.5)
    assert watch.at_rest_from == 103.5
    watch.see("a", 103.0)
    assert watch.at_rest_from == 105.0


def test_what_has_not_failed_may_be_tried_at_once() -> None:
    watch = ChangeWatch(2.0, 15.0)
    watch.see("a", 100.0)
    assert watch.next_try <= 100.0


def pauses(watch: ChangeWatch, count: int) -> list[float]:
    """Those after so many failures in a row, each as early as it may be."""
    instants = [watch.next_try]
    for _ in range(count):
        watch.failed(instants[-1])
        instants.append(watch.next_try)
    return [late - early for early, late in itertools.pairwise(instants)]


def test_pauses_double_up_to_ten_minutes() -> None:
    watch = ChangeWatch(2.0, 15.0)
    watch.see("a", 100.0)
    assert pauses(watch, 8) == [15, 30, 60, 120, 240, 480, 600, 600]


def test_pauses_are_never_shorter_than_the_period() -> None:
    watch = ChangeWatch(2.0, 3600.0)
    watch.see("a", 100.0)
    assert pauses(watch, 3) == [3600, 3600, 3600]


def test_another_content_and_a_success_forget_failures() -> None:
    watch = ChangeWatch(2.0, 15.0)
    watch.see("a", 100.0)
    pauses(watch, 5)
    watch.see("a", 200.0)
    assert watch.next_try > 200.0
    watch.see("b", 300.0)
    assert watch.next_try == 300.0
    assert pauses(watch, 2) == [15, 30]
    watch.succeeded()
    watch.failed(1000.0)
    assert watch.next_try == 1015.0
