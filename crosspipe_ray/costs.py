"""The problem in integer nanoseconds and bytes, as the clock and the planners' loops read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from crosspipe_ray.errors import InfeasibleError
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.problem import Codec, Problem
from crosspipe_ray.topology import Route, topology_of


@dataclass(frozen=True, slots=True)
class Transfer:
    """The message that follows an op.

    Attributes:
        kind: SEND_F or SEND_B.
        src, dst: ranks.
        plain_bytes: size before the link's codec.
        num_bytes: size on the link.
        route: None where it takes no time.
        occupancy_ns: time on the route's channel.
    """

    kind: Kind
    src: int
    dst: int
    plain_bytes: int
    num_bytes: int
    route: Route | None
    occupancy_ns: int

    @property
    def delay_ns(self) -> int:
        """Time from ready to arrived on a free channel."""
        return self.occupancy_ns + self.route.latency_ns if self.route else 0

    @property
    def codec(self) -> Codec | None:
        """The link's; None also for a message that it leaves as it is."""
        return self.route.link.codec if self.route and self.num_bytes != self.plain_bytes else None

    @property
    def encode_ns(self) -> int:
        """Added to the op that makes the message."""
        return self._codec_ns(self.codec.encode_bytes_per_s if self.codec else None)

    @property
    def decode_ns(self) -> int:
        """Added to the op that takes the message."""
        return self._codec_ns(self.codec.decode_bytes_per_s if self.codec else None)

    def _codec_ns(self, bytes_per_s: float | None) -> int:
        return round(self.plain_bytes * 1e9 / bytes_per_s) if bytes_per_s else 0


@dataclass(frozen=True, slots=True)
class StageCosts:
    """One stage, per microbatch.

    Attributes:
        duration_ns: indexed by Kind F, I, W, B; the rank's op overhead and the time of codecs are
            included.
        overhead_ns: of each op, or of each part of one.
        activation_bytes: held from the start of F.
        freed_by_input_bytes: given back when I ends.
        output: what F sends to the next stage; None for the last stage.
        gradient: what I or B sends to the previous stage; None for the first.
        gather_ns, reduce_ns: data-parallel communication.
    """

    rank: int
    duration_ns: tuple[int, int, int, int]
    overhead_ns: int
    activation_bytes: int
    freed_by_input_bytes: int
    output: Transfer | None
    gradient: Transfer | None
    gather_ns: int
    reduce_ns: int

    def released_bytes(self, kind: Kind) -> int:
        """Bytes given back when an op of this kind ends."""
        if kind is Kind.I:
            return self.freed_by_input_bytes
        if kind is Kind.W:
            return self.activation_bytes - self.freed_by_input_bytes
        return self.activation_bytes if kind is Kind.B else 0

    def transfer(self, kind: Kind) -> Transfer | None:
        """The message that follows an op of this kind, or that is this SEND."""
        if kind in (Kind.F, Kind.SEND_F):
            return self.output
        return None if kind is Kind.W else self.gradient

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """All that it sends."""
        return tuple(transfer for transfer in (self.output, self.gradient) if transfer)


def stage_costs(problem: Problem) -> tuple[StageCosts, ...]:
    """Costs of every stage of a problem."""
    ranks = problem.rank_of_stage
    neighbours = {*pairwise(ranks), *pairwise(ranks[::-1])}
    routes = topology_of(problem, sorted(neighbours)).routes
    outputs = [_transfer(problem, routes, Kind.SEND_F, s, s + 1) for s in range(len(ranks))]
    gradients = [_transfer(problem, routes, Kind.SEND_B, s, s - 1) for s in range(len(ranks))]
    arriving_outputs, arriving_gradients = [None, *outputs], [*gradients[1:], None]
    return tuple(
        StageCosts(
            rank=stage.rank,
            duration_ns=_durations(
                problem,
                index,
                forward_codec_ns=_codecs_ns(arriving_outputs[index], outputs[index]),
                backward_codec_ns=_codecs_ns(arriving_gradients[index], gradients[index]),
            ),
            overhead_ns=_ns(problem.ranks[stage.rank].op_overhead_us),
            activation_bytes=stage.activation_bytes,
            freed_by_input_bytes=stage.freed_by_backward_input_bytes,
            output=outputs[index],
            gradient=gradients[index],
            gather_ns=_ns(stage.gather_us),
            reduce_ns=_ns(stage.reduce_us),
        )
        for index, stage in enumerate(problem.stages)
    )


def resident_bytes(problem: Problem, rank: int) -> int:
    """Weights and optimizer state on a rank, where its stages state them."""
    held = (problem.stages[stage] for stage in problem.stages_of_rank[rank])
    return sum(stage.weight_bytes + stage.optimizer_bytes for stage in held)


def activation_limit_bytes(problem: Problem, rank: int) -> int | None:
    """Bytes that a rank has for activations; None: no limit."""
    limit = problem.ranks[rank].memory_limit_bytes
    return None if limit is None else limit - resident_bytes(problem, rank)


def missing_bytes(problem: Problem) -> list[int]:
    """What each rank lacks for one microbatch alone; 0 where it fits.

    One microbatch visits all stages of a rank before the first of them is given back, and
    microbatches one after the other need no more; so that sum is exactly the least memory.
    """
    return _lacking(problem, _least_bytes(problem))


def check_memory_suffices(problem: Problem) -> None:
    """Refuses a problem that no schedule fits.

    Raises:
        InfeasibleError: names the rank that lacks the most, and the bytes.
    """
    reason = memory_shortage(problem, _least_bytes(problem), "one microbatch alone")
    if reason:
        raise InfeasibleError(reason, missing_bytes=max(missing_bytes(problem)))


def memory_shortage(problem: Problem, needed: Sequence[int], what: str) -> str | None:
    """Names the rank that lacks the most, and the bytes; None where all have enough.

    Args:
        problem: with the limits.
        needed: bytes by rank, those that stay included.
        what: needs them.
    """
    missing = _lacking(problem, needed)
    most = max(missing)
    if not most:
        return None
    rank, others = missing.index(most), sum(map(bool, missing)) - 1
    return (
        f"rank {rank} ({problem.ranks[rank].cluster}): memory_limit_bytes "
        f"{problem.ranks[rank].memory_limit_bytes} is {most} bytes too few; {what} needs "
        f"{needed[rank]}{'; others lack as much or less' if others else ''}"
    )


def check_inputs_fit(problem: Problem) -> None:
    """Refuses a problem whose messages no schedule fits.

    With microbatches one after the other only one message waits at a time, so the largest one is
    exactly the least memory.

    Raises:
        InfeasibleError: names the rank and the bytes that it lacks.
    """
    needed = [0] * len(problem.ranks)
    for transfer in (each for cost in stage_costs(problem) for each in cost.transfers):
        if transfer.src != transfer.dst:
            needed[transfer.dst] = max(needed[transfer.dst], transfer.num_bytes)
    for rank, (each, num_bytes) in enumerate(zip(problem.ranks, needed, strict=True)):
        limit = each.message_memory_limit_bytes
        if limit is not None and limit < num_bytes:
            raise InfeasibleError(
                f"rank {rank} ({each.cluster}): message_memory_limit_bytes {limit} is "
                f"{num_bytes - limit} bytes too few; its largest input alone needs {num_bytes}",
                missing_bytes=num_bytes - limit,
            )


def _least_bytes(problem: Problem) -> list[int]:
    """What each rank needs for one microbatch."""
    return [
        resident_bytes(problem, rank) + sum(problem.stages[each].activation_bytes for each in held)
        for rank, held in enumerate(problem.stages_of_rank)
    ]


def _lacking(problem: Problem, needed: Sequence[int]) -> list[int]:
    limits = (rank.memory_limit_bytes for rank in problem.ranks)
    return [
        max(0, num_bytes - limit) if limit is not None else 0
        for num_bytes, limit in zip(needed, limits, strict=True)
    ]


def send_op(op: Op, transfer: Transfer) -> Op:
    """The SEND op of the message that follows ``op``."""
    return Op(op.stage, transfer.kind, op.microbatch)


def _durations(
    problem: Problem, index: int, *, forward_codec_ns: int, backward_codec_ns: int
) -> tuple[int, int, int, int]:
    stage = problem.stages[index]
    overhead = problem.ranks[stage.rank].op_overhead_us
    both = stage.backward_input_us + stage.backward_weight_us
    forward, backward_input, backward_weight, fused = (
        _ns(time + overhead)
        for time in (stage.forward_us, stage.backward_input_us, stage.backward_weight_us, both)
    )
    return (
        forward + forward_codec_ns,
        backward_input + backward_codec_ns,
        backward_weight,
        fused + backward_codec_ns,
    )


def _codecs_ns(taken: Transfer | None, made: Transfer | None) -> int:
    """What an op spends on decoding the message that it takes, and encoding the one it makes."""
    return (taken.decode_ns if taken else 0) + (made.encode_ns if made else 0)


def _transfer(
    problem: Problem, routes: dict[tuple[int, int], Route], kind: Kind, src: int, dst: int
) -> Transfer | None:
    if not 0 <= dst < len(problem.stages):
        return None
    plain_bytes = (
        problem.stages[src].output_bytes if kind is Kind.SEND_F else _gradient_bytes(problem, src)
    )
    ranks = problem.stages[src].rank, problem.stages[dst].rank
    route = routes.get(ranks) if ranks[0] != ranks[1] else None
    if route is None:
        return Transfer(kind, *ranks, plain_bytes, plain_bytes, None, 0)
    num_bytes = route.carried_bytes(plain_bytes)
    return Transfer(kind, *ranks, plain_bytes, num_bytes, route, route.occupancy_ns(num_bytes))


def _gradient_bytes(problem: Problem, stage: int) -> int:
    """Bytes of the gradient of a stage's input; by default as many as the input itself."""
    own = problem.stages[stage].input_gradient_bytes
    return problem.stages[stage - 1].output_bytes if own is None else own


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)
