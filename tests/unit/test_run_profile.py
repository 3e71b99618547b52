from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from crosspipe_ray.config import Config
from crosspipe_ray.engine.checks import check_profile_fits
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.engine.planning import plan_of, problem_again, profile_of
from crosspipe_ray.errors import InputError
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.plan import Plan
from crosspipe_ray.problem import Link
from crosspipe_ray.run_profile import (
    NEXT_PROFILE_NAME,
    Dispersion,
    RunProfile,
    next_profile,
    read_run_profile,
    write_run_profile,
)
from crosspipe_ray.timeline import Message, Span, Timeline
from tests.unit.test_config import config_data
from tests.unit.test_network_cli import both_ways


def costs(forward_us: float, *, overhead_us: float = 20.0) -> LayerCosts:
    return LayerCosts(
        forward_us=forward_us,
        backward_input_us=2 * forward_us,
        backward_weight_us=0.0,
        activation_bytes=10,
        freed_by_backward_input_bytes=0,
        output_bytes=1024 * 1024,
        weight_bytes=0,
        optimizer_bytes=0,
        dispersion=(0.01, 0.02, 0.03),
        op_overhead_us=overhead_us,
    )


def config(**training: Any) -> Config:
    data = config_data()
    data["training"] |= training
    data["planner"] = {"method": "greedy", "time_limit_s": 1}
    return Config.model_validate(data)


def profile(run: Config) -> RunProfile:
    embedding, head = costs(120.0), costs(320.0)
    slow = [embedding, costs(2020.0, overhead_us=60.0), head]
    num_ranks = len(run.cluster.rank_regions)
    return profile_of(run, [slow, *[[embedding, costs(1020.0), head]] * (num_ranks - 1)], None)


def slower(made: Plan, factor: int) -> Timeline:
    """Every op takes so many times its time, its fixed cost included; messages take none."""
    spans = [
        Span(span.op, *(factor * ns for ns in span[1:])) for span in chain(*made.timeline.ranks)
    ]
    rank_of, sends = made.problem.rank_of_stage, []
    for (stage, kind, m), _, end_ns in spans:
        to, send = (stage + 1, Kind.SEND_F) if kind is Kind.F else (stage - 1, Kind.SEND_B)
        if kind is not Kind.W and 0 <= to < len(rank_of):
            times_ns = end_ns, end_ns, end_ns
            sends.append(Message(Op(stage, send, m), rank_of[stage], rank_of[to], *times_ns))
    on_rank = [[span for span in spans if rank_of[span.op.stage] == rank] for rank in set(rank_of)]
    return Timeline(ranks=on_rank, sends=sends)


def test_the_fixed_cost_of_an_op_is_the_ranks_and_not_the_layers() -> None:
    problem = profile(config()).problem
    assert [rank.op_overhead_us for rank in problem.ranks] == [20.0] * len(problem.ranks)
    first, block, *_, head = problem.layers
    assert (first.forward_us, first.backward_input_us) == (100.0, 220.0)
    assert (block.forward_us, block.backward_weight_us) == (1000.0, 0.0)
    assert head.forward_us == 300.0


def test_a_profile_says_how_far_its_times_scatter() -> None:
    made = profile(config())
    expected = Dispersion(forward=0.01, backward_input=0.02, backward_weight=0.03)
    assert made.dispersions == (expected,) * len(made.problem.layers)
    assert made.source == "profile"


def test_it_is_read_from_its_file_and_from_its_run(tmp_path: Path) -> None:
    made = profile(config())
    write_run_profile(made, tmp_path / NEXT_PROFILE_NAME)
    assert read_run_profile(tmp_path) == read_run_profile(tmp_path / NEXT_PROFILE_NAME) == made


def test_a_run_that_took_twice_as_long_doubles_the_next_profile() -> None:
    run = config()
    before = profile(run)
    made = plan_of(run, before.problem)
    after = next_profile(before, made.problem, [slower(made, 2)], with_links=False)
    assert after.source == "run"
    assert after.measured_at > before.measured_at
    assert after.dispersions[0] == Dispersion(forward=0, backward_input=0, backward_weight=0)
    again = plan_of(run, problem_again(run, after))
    # but for the fixed cost of W's, where one of the plans runs B's
    expected_ns = [2 * ns for ns in made.timeline.busy_ns]
    assert again.timeline.busy_ns == pytest.approx(expected_ns, rel=0.002)


def test_the_new_run_has_its_own_limits_microbatches_and_newest_links() -> None:
    run = config()
    before = profile(run)
    seen = before.model_copy(
        update={
            "problem": before.problem.model_copy(
                update={"links": (Link(src="us", dst="eu", latency_us=7.0),)}
            )
        }
    )
    more = config(
        num_microbatches=2 * run.training.num_microbatches, batch_size=2 * run.training.batch_size
    )
    seen.check_fits(more)
    problem = problem_again(more, seen)
    assert problem.num_microbatches == 2 * before.problem.num_microbatches
    assert [link.latency_us for link in problem.links] == [7.0]
    measured = problem_again(more, seen, both_ways())
    assert [link.latency_us for link in measured.links] != [7.0]
    emulated = more.cluster.model_copy(update={"emulate_links": True})
    assert (
        problem_again(more.model_copy(update={"cluster": emulated}), seen).links
        == before.problem.links
    )


def test_the_profile_of_another_run_is_refused() -> None:
    run = config()
    seen = profile(run)
    seen.check_fits(run)
    with pytest.raises(InputError, match="another run: microbatch_size 2, this one's 4"):
        seen.check_fits(config(batch_size=2 * run.training.batch_size))
    with pytest.raises(InputError, match="another run: dtype float32, this one's bfloat16"):
        seen.check_fits(config(dtype="bfloat16"))
    deeper = run.model.model_copy(update={"num_layers": 9})
    with pytest.raises(InputError, match=r"another run: model\.num_layers 4, this one's 9$"):
        seen.check_fits(run.model_copy(update={"model": deeper}))


def test_a_profile_over_another_transport_is_refused() -> None:
    run = config()
    streams = run.cluster.model_copy(update={"transport": "streams"})
    expected = (
        r"^--profile: it was measured over collective from us to eu, the config asks for streams; "
        r"give --links of that transport, or leave out --profile$"
    )
    with pytest.raises(InputError, match=expected):
        check_profile_fits(run.model_copy(update={"cluster": streams}), profile(run))


def test_a_wrong_file_names_its_field(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    write_run_profile(profile(config()), file)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"source": "guess"}))
    with pytest.raises(InputError, match=r"profile\.json: source"):
        read_run_profile(file)
    file.write_text(json.dumps(content | {"dispersions": content["dispersions"][:2]}))
    with pytest.raises(InputError, match=r"json: .*dispersions: has 2 layers, the model 6"):
        read_run_profile(file)
    with pytest.raises(InputError, match=r"next_profile\.json: No such file"):
        read_run_profile(tmp_path)
