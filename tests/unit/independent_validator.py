"""What a plan file claims, checked from the description of the format alone.

Reads JSON and imports nothing of crosspipe_ray, so that an error in the clock or the planners
cannot hide behind itself. Times are integer nanoseconds.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

Json = dict[str, Any]
Key = tuple[int, str, int]  # stage, kind, microbatch
Share = tuple[int, ...]  # parts first to end - 1 of k
Part = tuple[int, int, int, int, int]  # start, end, and the three of Share
_OP = re.compile(r"(\d+)(SEND_F|SEND_B|UNSHARD|REDUCE_GRAD|F|I|W|B)(\d*)")


def violations(plan: Json) -> list[str]:
    """What is wrong with a plan; empty: it holds."""
    view = View(plan)
    # Times can only be looked up once everything is there.
    missing = [*_complete(view), *_all_messages(view)]
    return missing or [wrong for check in _TIME_CHECKS for wrong in check(view)]


class View:
    """A plan with its entries by op."""

    def __init__(self, plan: Json) -> None:
        self.plan = plan
        self.problem: Json = plan["problem"]
        self.stages: list[Json] = self.problem["stages"]
        self.microbatches = range(self.problem["num_microbatches"])
        # Of each op, its parts in order: (start, end, first, end, k); a whole op is one part of 1.
        self.parts: dict[Key, list[Part]] = defaultdict(list)
        for entry in (e for ops in plan["ranks"] for e in ops):
            self.parts[_key(entry["op"])].append((*_times(entry), *entry.get("part", (0, 1, 1))))
        self.compute = {key: (parts[0][0], parts[-1][1]) for key, parts in self.parts.items()}
        self.sends = {_key(e["op"]): e for e in plan["sends"]}
        self.collectives = {_key(e["op"])[:2]: _times(e) for e in plan["collectives"]}

    def is_fused(self, stage: int) -> bool:
        return bool(self.stages[stage].get("fused_backward", self.problem.get("fused_backward")))

    def rank(self, stage: int) -> int:
        return int(self.stages[stage]["rank"])

    def resident(self, rank: int) -> int:
        """Bytes that the stages of a rank take all the time."""
        return sum(
            int(stage.get("weight_bytes", 0) + stage.get("optimizer_bytes", 0))
            for stage in self.stages
            if stage["rank"] == rank
        )

    def backward(self, stage: int, microbatch: int) -> str:
        return "B" if (stage, "B", microbatch) in self.compute else "I"

    def duration(self, key: Key, share: Share) -> int:
        """A part's: its share of the op's time, and the overhead of the rank."""
        stage = self.stages[key[0]]
        parts = {
            "F": ["forward_us"],
            "I": ["backward_input_us"],
            "W": ["backward_weight_us"],
            "B": ["backward_input_us", "backward_weight_us"],
        }[key[1]]
        overhead = self.problem["ranks"][stage["rank"]].get("op_overhead_us", 0)
        whole = as_ns(sum(stage[part] for part in parts) + overhead) + self.codec_time(key)
        return as_ns(overhead) + _share(whole - as_ns(overhead), share)

    def codec_time(self, key: Key) -> int:
        """What an op spends on decoding its input and encoding its output."""
        stage, kind, _ = key
        if kind == "W":
            return 0
        step, send = (1, "SEND_F") if kind == "F" else (-1, "SEND_B")
        decoding = self._coding(stage - step, stage, send, "decode_bytes_per_s")
        return decoding + self._coding(stage, stage + step, send, "encode_bytes_per_s")

    def _coding(self, src: int, dst: int, send: str, rate: str) -> int:
        if min(src, dst) < 0 or max(src, dst) >= len(self.stages):
            return 0
        plain = self.plain_bytes(src, send)
        codec = (self.link(self.rank(src), self.rank(dst)) or {}).get("codec") or {}
        if self.message_bytes(src, send) == plain or not codec.get(rate):
            return 0
        return round(plain * 1e9 / float(codec[rate]))

    def plain_bytes(self, stage: int, kind: str) -> int:
        return (output_bytes if kind == "SEND_F" else input_gradient_bytes)(self.stages, stage)

    def message_bytes(self, stage: int, kind: str) -> int:
        """Codecs are for 1024 bytes and more: bf16 has 2 per value, int8 1 and 4 per 256."""
        plain = self.plain_bytes(stage, kind)
        receiver = self.rank(stage + (1 if kind == "SEND_F" else -1))
        codec = (self.link(self.rank(stage), receiver) or {}).get("codec")
        if not codec or plain < 1024:
            return plain
        num_values = -(-plain // int(codec.get("element_bytes", 4)))
        if codec["kind"] == "int8":
            return num_values + 4 * -(-num_values // 256)
        return min(plain, 2 * num_values)

    def link(self, src: int, dst: int) -> Json | None:
        """The link between two ranks, or else the one between their clusters."""
        ends: list[tuple[Any, Any]] = [(src, dst)]
        ranks = self.problem["ranks"]
        ends.append((ranks[src].get("cluster", "default"), ranks[dst].get("cluster", "default")))
        for wanted in ends if src != dst else []:
            for link in self.problem.get("links", []):
                if (link["src"], link["dst"]) == wanted:
                    return dict(link)
        return None

    def channel(self, src: int, dst: int) -> object:
        link = self.link(src, dst)
        assert link is not None
        name = link.get("channel")
        if name not in (None, "per_pair"):
            return name
        is_own = name == "per_pair" or isinstance(link["src"], int)
        return (src, dst) if is_own else (link["src"], link["dst"])

    def arrival(self, producer: Key, receiver: int) -> int:
        """When what an op makes is there, at the rank of the receiving stage."""
        stage, kind, microbatch = producer
        if self.link(self.rank(stage), self.rank(receiver)) is None:
            return self.compute[producer][1]
        send = self.sends[stage, "SEND_F" if kind == "F" else "SEND_B", microbatch]
        return as_ns(send["arrive_us"])


def _complete(view: View) -> Iterator[str]:
    """Each stage and microbatch has F and one form of backward, on its rank, and nothing more."""
    for key, parts in view.parts.items():
        num_parts = parts[0][4]
        cuts = [(0, 0), *(part[2:4] for part in parts), (num_parts, num_parts)]
        if any(before[1] != after[0] for before, after in pairwise(cuts)):
            yield f"{key}: an op stands twice, or a part is missing"
        if any(first >= end or k != num_parts for _, _, first, end, k in parts):
            yield f"{key}: parts of nothing, or of different cuts"
        if num_parts > view.problem.get("max_sub_blocks", 1):
            yield f"{key}: {num_parts} parts are too many"
    expected = set()
    for stage in range(len(view.stages)):
        for m in view.microbatches:
            is_whole = view.is_fused(stage) or (stage, "B", m) in view.compute
            expected |= {(stage, kind, m) for kind in (("F", "B") if is_whole else ("F", "I", "W"))}
    yield from (f"{key} is missing" for key in expected - set(view.compute))
    yield from (f"{key} should not be there" for key in set(view.compute) - expected)
    for rank, entries in enumerate(view.plan["ranks"]):
        for entry in entries:
            if view.rank(_key(entry["op"])[0]) != rank:
                yield f"{entry['op']} is on rank {rank}"


def _one_op_at_a_time(view: View) -> Iterator[str]:
    for rank, entries in enumerate(view.plan["ranks"]):
        times = [_times(entry) for entry in entries]
        if any(after[0] < before[1] for before, after in pairwise(times)):
            yield f"rank {rank}: ops overlap or are out of order"
    for key, parts in view.parts.items():
        for start, end, *share in parts:
            if end - start != view.duration(key, tuple(share)) or start < 0:
                yield f"{key} takes {end - start} ns"


def _microbatch_order(view: View) -> Iterator[str]:
    for entries in view.plan["ranks"]:
        last: dict[tuple[int, str], int] = {}
        for entry in entries:
            stage, kind, m = _key(entry["op"])
            group = stage, "I" if kind == "B" else kind
            goes_on = entry.get("part", [0])[0] > 0
            if last.get(group, -1) > m - (not goes_on):
                yield f"{stage}{kind}{m} is out of order"
            last[group] = m


def _dependencies(view: View) -> Iterator[str]:
    for (stage, kind, m), (start, _) in view.compute.items():
        needed = []
        if kind == "W":
            needed.append(view.compute[stage, "I", m][1])
        elif kind == "F":
            needed.append(view.collectives.get((stage, "UNSHARD"), (0, 0))[1])
            if stage:
                needed.append(view.arrival((stage - 1, "F", m), stage))
        else:
            needed.append(view.compute[stage, "F", m][1])
            if stage + 1 < len(view.stages):
                after = (stage + 1, view.backward(stage + 1, m), m)
                needed.append(view.arrival(after, stage))
        if start < max(needed):
            yield f"{stage}{kind}{m} starts before it can"


def _all_messages(view: View) -> Iterator[str]:
    """Every transfer over a link is there once, and no other."""
    expected = set()
    for stage, kind, m in view.compute:
        receiver = stage + 1 if kind == "F" else stage - 1
        if kind == "W" or not 0 <= receiver < len(view.stages):
            continue
        if view.link(view.rank(stage), view.rank(receiver)):
            expected.add((stage, "SEND_F" if kind == "F" else "SEND_B", m))
    yield from (f"{key} is missing" for key in expected - set(view.sends))
    if set(view.sends) - expected or len(view.plan["sends"]) != len(view.sends):
        yield "sends that nobody makes, or twice"


def _message_times(view: View) -> Iterator[str]:
    for key, entry in view.sends.items():
        stage, kind, m = key
        producer = stage, "F" if kind == "SEND_F" else view.backward(stage, m), m
        src, dst = view.rank(stage), view.rank(stage + (1 if kind == "SEND_F" else -1))
        start, end = _times(entry)
        link = view.link(src, dst) or {}
        if (entry["src"], entry["dst"]) != (src, dst):
            yield f"{key} goes the wrong way"
        if start < view.compute[producer][1]:
            yield f"{key} leaves before it is made"
        if end - start != occupancy_ns(link, view.message_bytes(stage, kind)):
            yield f"{key} occupies its channel for {end - start} ns"
        if as_ns(entry["arrive_us"]) != end + as_ns(link.get("latency_us", 0)):
            yield f"{key} does not arrive a latency after it left"


def output_bytes(parts: list[Json], number: int) -> int:
    """What one of several stages or layers sends to the next."""
    return int(parts[number].get("output_bytes", 0))


def input_gradient_bytes(parts: list[Json], number: int) -> int:
    """What it sends to the one before."""
    own = parts[number].get("input_gradient_bytes")
    return output_bytes(parts, number - 1) if own is None else int(own)


def occupancy_ns(link: Json, num_bytes: int) -> int:
    curve = link.get("bandwidth_curve")
    rate = _on_curve(curve, num_bytes) if curve else link.get("bandwidth_bytes_per_s")
    time_ns: float = link.get("message_overhead_us", 0) * 1000
    return round(time_ns + (num_bytes * 1e9 / rate if rate else 0))


def _on_curve(curve: list[list[float]], num_bytes: int) -> float:
    """The rate between the points around a size; beyond the ends, that of the end."""
    for (size, rate), (next_size, next_rate) in pairwise(curve):
        if size <= num_bytes <= next_size:
            return rate + (next_rate - rate) * (num_bytes - size) / (next_size - size)
    return curve[0][1] if num_bytes < curve[0][0] else curve[-1][1]


def _channels_one_at_a_time(view: View) -> Iterator[str]:
    used = defaultdict(list)
    for entry in view.plan["sends"]:
        used[view.channel(entry["src"], entry["dst"])].append(_times(entry))
    for channel, times in used.items():
        if _overlap(times):
            yield f"channel {channel}: messages overlap"


def _collectives(view: View) -> Iterator[str]:
    used = defaultdict(list)
    for stage, costs in enumerate(view.stages):
        for kind, field in (("UNSHARD", "gather_us"), ("REDUCE_GRAD", "reduce_us")):
            times = view.collectives.get((stage, kind))
            duration = as_ns(costs.get(field, 0))
            if (times is None) != (duration == 0):
                yield f"{stage}{kind} is missing or not needed"
            elif times is not None:
                used[view.rank(stage)].append(times)
                ready = max(end for key, (_, end) in view.compute.items() if key[0] == stage)
                if times[1] - times[0] != duration:
                    yield f"{stage}{kind} takes {times[1] - times[0]} ns"
                if kind == "REDUCE_GRAD" and times[0] < ready:
                    yield f"{stage}{kind} starts before the last W"
    for rank, spans in used.items():
        if _overlap(spans):
            yield f"rank {rank}: collectives overlap"


def _memory(view: View) -> Iterator[str]:
    changes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (stage, kind, _), parts in view.parts.items():
        costs, rank = view.stages[stage], view.rank(stage)
        whole = costs.get("activation_bytes", 0)
        by_input = costs.get("freed_by_backward_input_bytes", 0)
        taken = {"F": whole, "I": 0, "W": 0, "B": 0}[kind]
        freed = {"F": 0, "I": by_input, "W": whole - by_input, "B": whole}[kind]
        for start, end, *rest in parts:
            share = tuple(rest)
            changes[rank] += [(start, _share(taken, share)), (end, -_share(freed, share))]
    for rank, limits in enumerate(view.problem["ranks"]):
        limit, used = limits.get("memory_limit_bytes"), view.resident(rank) + _peak(changes[rank])
        if limit is not None and used > limit:
            yield f"rank {rank}: {used} bytes are more than {limit}"


def _message_memory(view: View) -> Iterator[str]:
    changes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (stage, kind, m), (start, _) in view.compute.items():
        source = stage - 1 if kind == "F" else stage + 1
        if kind == "W" or not 0 <= source < len(view.stages):
            continue
        if view.rank(source) == view.rank(stage):
            continue
        producer = (source, "F" if kind == "F" else view.backward(source, m), m)
        num_bytes = view.message_bytes(source, "SEND_F" if kind == "F" else "SEND_B")
        arrived = view.arrival(producer, stage)
        changes[view.rank(stage)] += [(arrived, num_bytes), (start, -num_bytes)]
    for rank, limits in enumerate(view.problem["ranks"]):
        peak, limit = _peak(changes[rank]), limits.get("message_memory_limit_bytes")
        if limit is not None and peak > limit:
            yield f"rank {rank}: {peak} bytes of messages wait"
        if view.plan["peak_message_bytes"][rank] != peak:
            yield f"rank {rank}: peak_message_bytes is not {peak}"


def _summary(view: View) -> Iterator[str]:
    plan, ranks = view.plan, len(view.problem["ranks"])
    ends = [end for _, end in [*view.compute.values(), *view.collectives.values()]]
    makespan = as_ns(plan["makespan_us"])
    if makespan != max(ends):
        yield f"makespan_us is not {max(ends) / 1000}"
    if as_ns(plan["lower_bound_us"]) > makespan:
        yield "the plan is shorter than its lower bound"
    if plan["status"] == "proven" and as_ns(plan["lower_bound_us"]) < makespan:
        yield "the plan is proven, but longer than its lower bound"
    work = sum(end - start for parts in view.parts.values() for start, end, *_ in parts)
    bubble = 1 - work / (ranks * makespan) if makespan else 0.0
    if abs(plan["bubble_ratio"] - bubble) > 1e-5:
        yield f"bubble_ratio is not {bubble}"


def _share(total: int, share: Share) -> int:
    """Of an op cut in k, what parts first to end - 1 have; all parts together have all."""
    first, end, k = share
    return total * end // k - total * first // k


def _peak(changes: Iterable[tuple[int, int]]) -> int:
    held = peak = 0
    for _, change in sorted(changes):  # at equal times releases come first
        held += change
        peak = max(peak, held)
    return peak


def _overlap(times: Iterable[tuple[int, int]]) -> bool:
    return any(after[0] < before[1] for before, after in pairwise(sorted(times)))


def _key(text: str) -> Key:
    match = _OP.fullmatch(text)
    assert match, text
    return int(match[1]), match[2], int(match[3] or 0)


def _times(entry: Json) -> tuple[int, int]:
    return as_ns(entry["start_us"]), as_ns(entry["end_us"])


def as_ns(microseconds: float) -> int:
    return round(microseconds * 1000)


_TIME_CHECKS: tuple[Callable[[View], Iterator[str]], ...] = (
    _one_op_at_a_time,
    _microbatch_order,
    _dependencies,
    _message_times,
    _channels_one_at_a_time,
    _collectives,
    _memory,
    _message_memory,
    _summary,
)
