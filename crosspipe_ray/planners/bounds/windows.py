"""How much work a rank can do within a time from one end of the step.

Nothing is given back before the first I of a rank, so before the head of that I the rank can run
only as many F's as its memory holds, and it is idle once it is full. More generally, before the
k-th smallest head h of its I's, at most k - 1 of them have started: the F's started by then hold at
most the limit and what k - 1 microbatches gave back, and all other work comes after h. As F of a
stage comes after F of the earlier ones, a rank cannot fill its memory with its longest F's alone;
and ops that cannot start before some time have no more than the rest until h, be there memory or
not.

The mirror image holds for the end of the step: time runs backwards, W opens a microbatch and F
closes it. Here an end is either of the two, and time runs away from it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.relaxation import Times

Reals = NDArray[np.float64]

_NUM_ROWS = 8  # of ops, for which a rank may wait at an end
_SHARES = (*(1 - 0.5**power for power in range(1, 6)), 1.0)  # the best is seldom far below 1


class Windows(NamedTuple):
    """Times from one end of the step, and the most work that a rank can do within each."""

    lengths: Times
    most: Times

    def most_idle(self, number: int) -> Windows:
        """The windows in which the rank is idle the longest."""
        chosen = np.argsort(self.most - self.lengths, kind="stable")[:number]
        return Windows(self.lengths[chosen], self.most[chosen])


class Opened(NamedTuple):
    """What may be open of a microbatch: arrays with an entry for each way, the last one all of it.

    Attributes:
        num_bytes: that it holds.
        work: time of the ops that opened it.
        late: shape (stages, ways); as work, of those ops only that have to wait.
        since: shape (stages,); how long they wait.
    """

    num_bytes: Times
    work: Times | Reals
    late: Times
    since: Times

    def most_work(self, capacity: Times, num_microbatches: int) -> Reals:
        """The most that fits each capacity.

        Every microbatch is open in one of the ways, or not at all; their mean is at most on the
        upper convex hull.
        """
        hull = [(0, 0.0)]
        for point in sorted(zip(self.num_bytes.tolist(), self.work.tolist(), strict=True)):
            while len(hull) > 1 and _is_below(hull[-1], hull[-2], point):
                hull.pop()
            if point[0] > hull[-1][0]:
                hull.append(point)
            elif point[1] > hull[-1][1]:
                hull[-1] = point
        held, work = num_microbatches * np.array(hull).T
        most: Reals = np.interp(capacity, held, np.maximum.accumulate(work))
        return most

    def without_whole(self) -> Opened:
        """The ways in which something of the microbatch is still to be opened."""
        return Opened(self.num_bytes[:-1], self.work[:-1], self.late[:, :-1], self.since)


class End(NamedTuple):
    """An end of the step, as a rank sees it.

    Attributes:
        heads: shape (stages, 3, microbatches), least time from the end to each op.
        work: shape (stages, 3), of the ops.
        opened: what may be open of a microbatch.
        closes: the kind of op that closes a microbatch.
        closing: shape (stages,), work of closing it.
        released: shape (stages,), bytes that this gives back.
        limit: bytes that may be held.
        pause: least time from when a microbatch is wholly open until it closes.
    """

    heads: Times
    work: Times
    opened: Opened
    closes: Kind
    closing: Times
    released: Times
    limit: int
    pause: int

    def windows(self) -> Windows:
        """Of all kinds."""
        kinds = zip(self._full(), self._full_again(), self._waiting(), strict=True)
        return Windows(*(np.concatenate(columns) for columns in kinds))

    @property
    def _num_microbatches(self) -> int:
        _, _, number = self.heads.shape
        return int(number)

    def _full(self) -> Windows:
        """Windows until something closes, in which memory is full.

        Of the work of ops that wait, some share is bounded by the rest of the window, what is left
        of it by memory. All shares are true (prices in the dual of a linear program); the least
        counts. What closes a microbatch waits at least as long.
        """
        lengths = np.sort(self.heads[:, self.closes].ravel())
        closed = np.arange(len(lengths), dtype=np.int64)
        capacity = self.limit + closed * int(self.released.max())
        closing = closed * int(self.closing.max())
        most = self.opened.most_work(capacity, self._num_microbatches) + closing
        for late, since in zip(self.opened.late, self.opened.since, strict=True):
            rest = np.maximum(0, lengths - since)
            for share in _SHARES:
                others = self.opened._replace(work=self.opened.work - share * late)
                by_memory = others.most_work(capacity, self._num_microbatches)
                most = np.minimum(most, share * rest + by_memory + (1 - share) * closing)
        return Windows(lengths, np.ceil(most).astype(np.int64))

    def _full_again(self) -> Windows:
        """The window until something closes that was not wholly open when the first thing closed.

        A microbatch closes a pause after it is wholly open. If n are so by the first closing head,
        no more than these close within the window; they have taken memory from what would have
        filled the time until then.
        """
        num_bytes, work = int(self.opened.num_bytes[-1]), int(self.opened.work[-1])
        most_open = self._num_microbatches
        if num_bytes:
            most_open = min(most_open, self.limit // num_bytes)
        number = np.arange(most_open + 1, dtype=np.int64)
        capacity = self.limit - number * num_bytes
        others = self.opened.without_whole().most_work(capacity, self._num_microbatches)
        capacity = self.limit + number * int(self.released.sum())
        opened = self.opened.most_work(capacity, self._num_microbatches)
        in_all = number * int(self.closing.sum()) + opened
        most = np.minimum(in_all, number * work + others + self.pause).max()
        length = int(self.heads[:, self.closes].min()) + self.pause
        return Windows(np.array([length]), np.array([np.ceil(most)], dtype=np.int64))

    def _waiting(self) -> Windows:
        """Windows until a row of ops may start; no op is done whose head is not within it."""
        lengths = np.unique(np.append(0, self.heads.min(axis=2)))[:_NUM_ROWS]
        work = np.broadcast_to(self.work[:, :, None], self.heads.shape)
        most = [int(work[self.heads < length].sum()) for length in lengths]
        return Windows(lengths, np.array(most, dtype=np.int64))


def _is_below(
    point: tuple[int, float], before: tuple[int, float], after: tuple[int, float]
) -> bool:
    """Whether a point lies on or under the line between two others."""
    run, rise = after[0] - before[0], after[1] - before[1]
    return (point[1] - before[1]) * run <= (point[0] - before[0]) * rise
