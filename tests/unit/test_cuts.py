import tracemalloc
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from crosspipe_ray.planners.cuts import balanced_cuts


@given(st.data())
def test_cuts_are_the_best_of_all(data: st.DataObject) -> None:
    work = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=7))
    num_parts = data.draw(st.integers(1, len(work)))

    def quality(cuts: list[int]) -> tuple[int, int]:
        parts = [sum(work[first:end]) for first, end in pairwise(cuts)]
        return max(parts), sum(part * part for part in parts)

    inner = combinations(range(1, len(work)), num_parts - 1)
    assert quality(balanced_cuts(work, num_parts)) == min(
        quality([0, *borders, len(work)]) for borders in inner
    )


def test_heavy_layer_does_not_leave_the_others_uneven() -> None:
    assert balanced_cuts([10, 1, 1, 1, 1, 1, 1], 3) == [0, 1, 4, 7]


def test_cuts_into_many_parts_hold_few_matrices() -> None:
    num_layers = 200
    tracemalloc.start()
    balanced_cuts([1] * num_layers, 100)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10 * 8 * num_layers**2
