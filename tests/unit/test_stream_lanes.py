"""The receiving end of a lane, when its sender leaves."""

import pytest
import torch

from crosspipe_ray.engine.transports.base import EventHandle, HandleBook
from crosspipe_ray.engine.transports.streams.lanes import ReceivingLane
from crosspipe_ray.engine.transports.streams.wire import Chunk
from crosspipe_ray.errors import RunError


def posted(lane: ReceivingLane, num_bytes: int) -> EventHandle:
    handle = HandleBook().open("receive", peer=0, tag=0)
    lane.post(handle, torch.zeros(num_bytes, dtype=torch.uint8).numpy().data, 0)
    return handle


@pytest.mark.parametrize("num_bytes", [0, 8])
def test_a_sender_that_leaves_after_its_last_chunk_takes_no_message_with_it(num_bytes: int) -> None:
    lane = ReceivingLane()
    whole, next_one = posted(lane, num_bytes), posted(lane, 1)
    chunk = Chunk(0, 0, 0, num_bytes, 0, num_bytes)
    lane.land(chunk)
    lane.fail("rank 0 is gone")  # another stream of the lane has noticed
    lane.confirm(chunk)
    whole.wait(timeout_s=0)
    with pytest.raises(RunError, match="rank 0 is gone"):
        next_one.wait(timeout_s=0)


def test_a_message_is_done_when_the_sender_knows_of_all_its_chunks() -> None:
    lane = ReceivingLane()
    handle = posted(lane, 8)
    first, second = Chunk(0, 0, 0, 8, 0, 4), Chunk(0, 0, 0, 8, 4, 4)
    lane.land(first)
    lane.land(second)
    lane.confirm(second)
    assert handle.done_ns is None
    lane.confirm(first)
    assert handle.done_ns is not None
