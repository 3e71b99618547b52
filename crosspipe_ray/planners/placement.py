"""Which stage goes on which rank: the known patterns, and stages made of layers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import groupby, pairwise

from crosspipe_ray.costs import missing_bytes
from crosspipe_ray.errors import ProblemError
from crosspipe_ray.planners.cuts import balanced_cuts
from crosspipe_ray.problem import Layer, Problem, Stage


class Pattern(Enum):
    """A rule from stages to positions in the pipeline's order of ranks.

    The regional patterns make all visits to the ranks of a region before they go on to the next: as
    fine-grained as a wave or loop over all ranks, but a microbatch crosses each border between
    regions only twice.
    """

    ONE_PER_RANK = "one_per_rank"
    WAVE = "wave"
    LOOP = "loop"
    REGION_WAVE = "region_wave"
    REGION_LOOP = "region_loop"

    @property
    def meaning(self) -> str:
        """One line for a person."""
        return _MEANINGS[self]

    @property
    def is_regional(self) -> bool:
        """Whether visits are repeated within each region."""
        return self in (Pattern.REGION_WAVE, Pattern.REGION_LOOP)

    def positions(
        self, num_ranks: int, num_stages_per_rank: int, *, region_sizes: Sequence[int] = ()
    ) -> list[int]:
        """Position of each stage.

        Args:
            num_ranks: positions.
            num_stages_per_rank: visits to each.
            region_sizes: numbers of ranks in the pipeline's order, for the regional patterns;
                default: one region.

        >>> Pattern.WAVE.positions(3, 2), Pattern.LOOP.positions(3, 2)
        ([0, 1, 2, 2, 1, 0], [0, 1, 2, 0, 1, 2])
        >>> Pattern.REGION_WAVE.positions(4, 2, region_sizes=(2, 2))
        [0, 1, 1, 0, 2, 3, 3, 2]
        """
        turns = self in (Pattern.WAVE, Pattern.REGION_WAVE)
        sizes = region_sizes if self.is_regional and region_sizes else (num_ranks,)
        positions: list[int] = []
        for size in sizes:
            first = len(positions) // num_stages_per_rank
            down = list(range(first, first + size))
            for visit in range(num_stages_per_rank):
                positions += down[::-1] if turns and visit % 2 else down
        return positions

    def allows(self, num_stages_per_rank: int) -> bool:
        """Whether ranks may hold this many stages each."""
        if self is Pattern.ONE_PER_RANK:
            return num_stages_per_rank == 1
        return num_stages_per_rank == 2 or (self is not Pattern.WAVE and num_stages_per_rank > 2)


_MEANINGS = {
    Pattern.ONE_PER_RANK: "one stage on every rank, in any order of ranks",
    Pattern.WAVE: "two stages per rank in a V: down the ranks and back up",
    Pattern.LOOP: "two or more stages per rank: down the ranks, and down again",
    Pattern.REGION_WAVE: "two or more stages per rank: down and back up within each region",
    Pattern.REGION_LOOP: "two or more stages per rank: down and down again within each region",
}


def follows(problem: Problem, pattern: Pattern) -> bool:
    """Whether a problem's stages follow a pattern, in the order in which they visit the ranks."""
    ranks = problem.rank_of_stage
    order = list(dict.fromkeys(ranks))
    regions = region_sizes(problem, order)
    num_visits, left_over = divmod(len(ranks), len(order))
    if left_over or not pattern.allows(num_visits):
        return False
    if pattern.is_regional and len(regions) == 1:
        return False  # it is a wave or loop
    positions = pattern.positions(len(order), num_visits, region_sizes=regions)
    return [order[position] for position in positions] == list(ranks)


def place(
    problem: Problem,
    pattern: Pattern,
    *,
    num_stages_per_rank: int,
    order: Sequence[int] | None = None,
    slant: float = 0.0,
) -> Problem:
    """Makes stages of a problem's layers: contiguous, of about equal work, placed by the pattern.

    The first ranks hold a microbatch the longest, and with delays their memory limits the step. A
    slant gives them less work, so that they have room for more microbatches.

    Where one microbatch alone does not fit so, layers are cut by memory first: no stage holds more
    than an equal part of its rank's limit, by the least excess where that cannot be. Not searched:
    unequal parts of a limit, and cuts with room for more than one microbatch.

    Args:
        problem: with layers.
        pattern: of the placement.
        num_stages_per_rank: visits to each rank.
        order: ranks as the pipeline goes through them; default: by index.
        slant: share of an equal part of the work that the last rank gets more, the first less.

    Returns:
        The problem with ``stages`` in place of ``layers``.

    Raises:
        ProblemError: more stages than layers.
    """
    order = range(len(problem.ranks)) if order is None else order
    positions = pattern.positions(
        len(order), num_stages_per_rank, region_sizes=region_sizes(problem, order)
    )
    if len(positions) > len(problem.layers):
        raise ProblemError(
            f"{len(positions)} stages ({num_stages_per_rank} on each of {len(problem.ranks)} "
            f"ranks) are more than the {len(problem.layers)} layers; "
            "take fewer ranks or more layers"
        )
    middle = max(1, len(order) - 1) / 2
    shares = [1 + slant * (position / middle - 1) for position in positions]
    work = [
        layer.forward_us + layer.backward_input_us + layer.backward_weight_us
        for layer in problem.layers
    ]
    ranks = [order[position] for position in positions]
    made = _with_stages(problem, ranks, balanced_cuts(work, len(ranks), shares=shares))
    if not any(missing_bytes(made)):
        return made
    held = [layer.least_bytes for layer in problem.layers]
    limits = [_bytes_of_stage(problem, rank, num_stages_per_rank, sum(held)) for rank in ranks]
    cuts = balanced_cuts(work, len(ranks), shares=shares, held_bytes=held, limits_bytes=limits)
    return min(made, _with_stages(problem, ranks, cuts), key=lambda each: max(missing_bytes(each)))


def _bytes_of_stage(problem: Problem, rank: int, num_stages: int, most: int) -> int:
    """An equal part of a rank's limit; the most that there is where it has none."""
    limit = problem.ranks[rank].memory_limit_bytes
    return most if limit is None else limit // num_stages


def _with_stages(problem: Problem, ranks: Sequence[int], cuts: Sequence[int]) -> Problem:
    stages = [
        _stage(problem.layers[first:end], first, rank)
        for rank, (first, end) in zip(ranks, pairwise(cuts), strict=True)
    ]
    return Problem.model_validate(
        problem.model_copy(
            update={"layers": (), "num_stages_per_rank": None, "stages": tuple(stages)}
        ).model_dump()
    )


def region_sizes(problem: Problem, order: Sequence[int]) -> list[int]:
    """Lengths of the runs of ranks of one cluster, in the pipeline's order."""
    clusters = [problem.ranks[rank].cluster for rank in order]
    return [len(list(run)) for _, run in groupby(clusters)]


def _stage(layers: Sequence[Layer], first: int, rank: int) -> Stage:
    """A stage made of consecutive layers: sums, but for what crosses its borders."""
    summed = (
        "forward_us", "backward_input_us", "backward_weight_us", "activation_bytes",
        "freed_by_backward_input_bytes", "weight_bytes", "optimizer_bytes",
    )  # fmt: skip
    return Stage(
        **{name: sum(getattr(layer, name) for layer in layers) for name in summed},
        rank=rank,
        output_bytes=layers[-1].output_bytes,
        input_gradient_bytes=layers[0].input_gradient_bytes,
        layers=(first, first + len(layers)),
    )
