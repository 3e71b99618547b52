"""Codecs in a problem: sizes, times, and what a plan says of them."""

from pathlib import Path

import pytest

from crosspipe_ray.cli.app import main
from crosspipe_ray.costs import stage_costs
from crosspipe_ray.errors import ProblemError
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.ops import Kind
from crosspipe_ray.plan import write_plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.problem import Problem, read_problem
from crosspipe_ray.report.codec_savings import codec_savings, codecs_line
from tests.unit.builders import link, make_problem, spans_us

MESSAGE = {"output_bytes": 4096, "input_gradient_bytes": 512}


def coded(**codec: object) -> Problem:
    """Two stages; activations of 4096 bytes go through the codec, 512 bytes come back as they are.

    4096 bytes occupy the link for 4.096 us.
    """
    links = [{**link(src, 1 - src, 0, 1), "codec": codec or None} for src in (0, 1)]
    return make_problem((0, 1), 2, stage=MESSAGE, links=links)


@pytest.mark.parametrize(
    ("codec", "num_bytes"),
    [
        ({}, 4096),
        ({"kind": "bf16"}, 2048),
        ({"kind": "int8"}, 1024 + 4 * 4),
        ({"kind": "int8", "element_bytes": 2}, 2048 + 4 * 8),
        ({"kind": "bf16", "element_bytes": 2}, 4096),
    ],
)
def test_a_codec_decides_what_a_message_weighs(codec: dict[str, object], num_bytes: int) -> None:
    first, second = stage_costs(coded(**codec))
    assert first.output is not None
    assert second.gradient is not None
    assert (first.output.plain_bytes, first.output.num_bytes) == (4096, num_bytes)
    assert first.output.occupancy_ns == num_bytes
    assert (second.gradient.plain_bytes, second.gradient.num_bytes) == (512, 512)


def test_encoding_and_decoding_belong_to_the_ops() -> None:
    rates = {"encode_bytes_per_s": 4.096e9, "decode_bytes_per_s": 8.192e9}
    first, second = stage_costs(coded(kind="int8", **rates))
    assert first.duration_ns == (2000, 1000, 1000, 2000)
    assert second.duration_ns == (1500, 1000, 1000, 2000)  # its gradient is too short to encode


def test_both_ends_of_a_gradient_pay_in_i_and_b() -> None:
    rates = {"encode_bytes_per_s": 4.096e9, "decode_bytes_per_s": 8.192e9}
    links = [{**link(1, 0, 0, 1), "codec": {"kind": "bf16", **rates}}]
    problem = make_problem((0, 1), 1, stage={"output_bytes": 4096}, links=links)
    first, second = stage_costs(problem)
    assert second.duration_ns[Kind.I] == 2000
    assert second.duration_ns[Kind.B] == 3000
    assert first.duration_ns[Kind.I] == 1500
    assert first.duration_ns[Kind.B] == 2500
    assert {costs.duration_ns[Kind.F] for costs in (first, second)} == {1000}
    assert {costs.duration_ns[Kind.W] for costs in (first, second)} == {1000}


def test_stages_of_one_rank_have_no_link_and_no_codec() -> None:
    codec = {"kind": "int8", "encode_bytes_per_s": 1.0}
    links = [{"src": "default", "dst": "default", "codec": codec}]
    problem = make_problem((0, 0), 1, stage={"output_bytes": 4096}, links=links)
    assert [costs.duration_ns[Kind.F] for costs in stage_costs(problem)] == [1000, 1000]


def test_savings_are_those_of_the_same_order() -> None:
    problem = coded(kind="int8", encode_bytes_per_s=4.096e10)
    chosen = plan(problem, method="1f1b")
    savings = codec_savings(chosen)
    assert savings is not None
    assert (savings.kinds, savings.num_bytes, savings.plain_bytes) == (("int8",), 2080, 8192)
    assert savings.makespan_ns == chosen.timeline.makespan_ns
    assert savings.plain_makespan_ns == plan(coded(), method="1f1b").timeline.makespan_ns
    assert 0 < savings.saved_ratio < 1
    assert spans_us(chosen.timeline)["0F0"] == (0, 1.1)


def test_a_codec_that_costs_more_than_it_saves_says_so() -> None:
    slow = plan(coded(kind="int8", encode_bytes_per_s=4.096e8), method="1f1b")
    savings = codec_savings(slow)
    assert savings is not None
    assert savings.saved_ratio < 0


def test_where_nothing_takes_time_nothing_is_saved() -> None:
    times = {"forward_us": 0, "backward_input_us": 0, "backward_weight_us": 0}
    links = [{**link(0, 1, 0, 0), "codec": {"kind": "bf16"}}]
    problem = make_problem((0, 1), 1, stage={**MESSAGE, **times}, links=links)
    assert "2.0 kB per step" in codecs_line(plan(problem, method="1f1b"))


def test_a_plan_without_codecs_says_nothing() -> None:
    assert codecs_line(plan(coded(), method="1f1b")) == ""


def test_a_problem_made_from_a_few_numbers_may_have_a_codec() -> None:
    recipe = Recipe(num_ranks=2, num_microbatches=1, bandwidth_ratio=2, codec="int8")
    [forward, _] = stage_costs(generate(recipe))
    assert forward.output is not None
    # 1,000,000 bytes would take 2 us x 1000.
    assert forward.output.num_bytes == 250_000 + 4 * 977
    assert forward.output.occupancy_ns == 2 * forward.output.num_bytes


def test_plan_and_show_say_that_numerics_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    write_plan(plan(coded(kind="bf16"), method="1f1b"), file)
    monkeypatch.setattr("sys.argv", ["crosspipe", "show", str(file)])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "codecs: bf16: numerics change; 4.1 kB per step in place of 8.2 kB; makespan" in shown


def test_a_codec_that_does_not_exist_is_named(tmp_path: Path) -> None:
    text = coded(kind="bf16").model_dump_json(exclude_defaults=True).replace("bf16", "fp4")
    (tmp_path / "problem.json").write_text(text)
    with pytest.raises(ProblemError, match=r"links\.0\.codec\.kind.*'bf16' or 'int8'"):
        read_problem(tmp_path / "problem.json")
