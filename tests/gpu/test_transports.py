from collections.abc import Iterator

import pytest

from tests.contract import transport_contract as contract
from tests.contract.rank_processes import Kind, RankProcesses

pytestmark = pytest.mark.gpu

# What needs two ranks; NCCL notices a peer that is gone only by a timeout.
CHECKS = (
    contract.check_receives_may_be_posted_before_the_sends,
    contract.check_every_dtype_and_size_arrives_unchanged,
    contract.check_a_stalled_lane_blocks_no_other,
    contract.check_a_handle_knows_when_it_was_done,
    contract.check_close_leaves_no_thread_behind,
    contract.check_bad_messages_are_refused,
)


@pytest.fixture(scope="module")
def rank_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    processes = RankProcesses(2, tmp_path_factory.mktemp("ranks"), device="cuda:0")
    yield processes
    processes.stop()


@pytest.mark.parametrize("kind", ["plain", "shaped", "streams", "mixed"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_two_ranks_on_one_gpu_keep_the_contract(
    rank_processes: RankProcesses, check: contract.Check, kind: Kind
) -> None:
    check(lambda num_ranks, body: rank_processes.run(kind, num_ranks, body))
