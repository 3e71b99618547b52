import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crosspipe_ray.planners.bounds.makespan import jackson_bound
from crosspipe_ray.planners.bounds.sweeps import Jobs, Work, forget_periods, join

ROWS = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8), min_size=1, max_size=3)


def empty_work() -> Work:
    begins, ends, after, within = np.zeros((4, 40), dtype=np.int64).tolist()
    return Work([], [], [], begins, ends, after, within, num_periods=[0], latest=[0] * 3)


@given(ROWS, st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_busy_periods_end_with_the_latest_head_and_the_work_from_there(
    rows: list[list[int]], durations: list[int]
) -> None:
    work, jobs = empty_work(), list[tuple[int, int]]()
    forget_periods(work, len(rows))
    for m in range(8):  # one op of each row per microbatch, as sweeps do
        for index, row in enumerate(rows):
            if m < len(row):
                head, duration = sorted(row)[m], durations[index]
                work.latest[index] = join(work, work.latest[index], head, duration)
                jobs.append((head, duration))
    last = max(work.ends[: work.num_periods[0]])
    assert last == max(h + sum(d for head, d in jobs if head >= h) for h, _ in jobs)


@given(ROWS, st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(0, 40))
def test_one_machine_is_bound_by_any_head_and_tail(
    rows: list[list[int]], durations: list[int], longest: int
) -> None:
    heads = [head for row in rows for head in sorted(row)]
    tails = [longest + 30 - head for head in heads]  # falls as the head goes up
    first = [0, *np.cumsum([len(row) for row in rows]).tolist()]
    work = [durations[index] for index, row in enumerate(rows) for _ in row]
    jobs = list(zip(heads, work, tails, strict=True))
    assert jackson_bound(Jobs(first, durations[: len(rows)], heads, tails)) == max(
        h + sum(duration for _, duration, _ in between) + q
        for h in heads
        for q in tails
        if (between := [job for job in jobs if job[0] >= h and job[2] >= q])
    )
