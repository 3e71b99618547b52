import threading

from crosspipe_ray.engine import clock

MS = 1_000_000


def test_now_never_runs_backwards_and_is_wall_time() -> None:
    readings = [clock.now_ns() for _ in range(1000)]
    assert readings == sorted(readings)
    assert readings[0] > 1_700_000_000 * 1000 * MS


def test_sleep_never_ends_early() -> None:
    for interrupt in (None, threading.Event()):
        deadline_ns = clock.now_ns() + 2 * MS
        assert clock.sleep_until(deadline_ns, interrupt=interrupt)
        assert clock.now_ns() >= deadline_ns


def test_a_deadline_in_the_past_returns_at_once() -> None:
    assert clock.sleep_until(0)


def test_an_interrupt_ends_the_sleep() -> None:
    interrupt = threading.Event()
    interrupt.set()
    assert not clock.sleep_until(clock.now_ns() + 3600 * 1000 * MS, interrupt=interrupt)
