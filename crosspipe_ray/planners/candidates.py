"""Placements worth trying for a problem with layers: patterns, visits, orders of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from crosspipe_ray.planners.placement import Pattern, place, region_sizes
from crosspipe_ray.planners.rank_order import best_order, has_room, roomiest_order
from crosspipe_ray.problem import Problem

_VISITS = (2, 3, 4)
_SLANTS = (0.1, 0.17, 0.25, 0.34)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement to try.

    Attributes:
        name: for a person: the pattern, the visits where they are more than two.
        pattern: None for stages that the problem gives.
        order: ranks as the pipeline goes through them.
        slant: as in `place`; 0: stages of equal work.
    """

    name: str
    pattern: Pattern | None = None
    num_stages_per_rank: int = 1
    order: tuple[int, ...] = ()
    slant: float = 0.0

    def placed(self, problem: Problem) -> Problem:
        """The problem with stages.

        Raises:
            ProblemError: more stages than layers.
        """
        if self.pattern is None:
            return problem
        return place(
            problem,
            self.pattern,
            num_stages_per_rank=self.num_stages_per_rank,
            order=self.order,
            slant=self.slant,
        )

    def slanted(self) -> list[Candidate]:
        """The same with less and less work on the first ranks."""
        if self.pattern is None or len(self.order) < 2:
            return []
        return [replace(self, name=f"{self.name}, slant {slant}", slant=slant) for slant in _SLANTS]


def candidates(problem: Problem, patterns: Sequence[Pattern]) -> list[Candidate]:
    """Placements of a problem by these patterns; equal ones once."""
    if problem.stages:
        return [Candidate("as given")]
    made: dict[tuple[int, ...], Candidate] = {}
    for suffix, order in _orders(problem):
        for pattern, visits in _shapes(problem, patterns):
            name = pattern.value + (f" x{visits}" if visits > 2 else "") + suffix
            candidate = Candidate(name, pattern, visits, order)
            made.setdefault(_ranks_of_stages(problem, candidate), candidate)
    return list(made.values())


def _orders(problem: Problem) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Orders of ranks, with what is added to a name; with unequal memory, both ways count."""
    order = best_order(problem)
    yield "", order
    if len({rank.memory_limit_bytes for rank in problem.ranks}) > 1:
        yield " reversed", order[::-1]
        if not has_room(problem, order) and not has_room(problem, order[::-1]):
            yield " by memory", roomiest_order(problem)


def _shapes(problem: Problem, patterns: Sequence[Pattern]) -> Iterator[tuple[Pattern, int]]:
    """Patterns with the visits that they and the layers allow."""
    given = problem.num_stages_per_rank
    for pattern in patterns:
        wanted = (1,) if pattern is Pattern.ONE_PER_RANK else _VISITS
        for visits in (given,) if given else wanted:
            enough = visits * len(problem.ranks) <= len(problem.layers)
            if pattern.allows(visits) and (enough or visits <= 2 or given):
                yield pattern, visits


def _ranks_of_stages(problem: Problem, candidate: Candidate) -> tuple[int, ...]:
    assert candidate.pattern is not None, "made of a pattern"
    positions = candidate.pattern.positions(
        len(candidate.order),
        candidate.num_stages_per_rank,
        region_sizes=region_sizes(problem, candidate.order),
    )
    return tuple(candidate.order[position] for position in positions)
