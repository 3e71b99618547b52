"""From the codecs of a configuration to those of a problem."""

from dataclasses import replace
from typing import Any

import pytest

from crosspipe_ray.config import Config
from crosspipe_ray.engine.codec_rates import CodecRates
from crosspipe_ray.engine.link_codecs import codecs_of, planned_codecs, with_codecs
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.engine.planning import problem_again, problem_of, profile_of
from crosspipe_ray.problem import Codec, Link
from tests.unit.test_config import config_data

COSTS = LayerCosts(1.0, 1.0, 1.0, 10, 0, 1024 * 1024, 0, 0)


def config(*, dtype: str = "float32", **link: Any) -> Config:
    data = config_data()
    data["cluster"]["links"][0] |= link
    data["training"]["dtype"] = dtype
    return Config.model_validate(data)


def profiles(*encode_rates: float) -> list[list[LayerCosts]]:
    """One rank per rate; decoding is twice as fast."""
    rates = [(CodecRates("int8", rate, 2 * rate),) for rate in encode_rates]
    return [[replace(COSTS, codecs=codecs)] * 3 for codecs in rates]


def test_a_link_has_its_codec_both_ways_or_one_way() -> None:
    both = {("us", "eu"): "int8", ("eu", "us"): "int8"}
    assert codecs_of(config(codec="int8")) == both
    assert codecs_of(config(codec="bf16", both_ways=False)) == {("us", "eu"): "bf16"}
    assert codecs_of(config()) == {}


@pytest.mark.parametrize(("dtype", "element_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_the_problem_has_the_codec_as_fast_as_the_median_rank(
    dtype: str, element_bytes: int
) -> None:
    run = config(dtype=dtype, codec="int8")
    problem = problem_of(run, profiles(1e9, 3e9, 2e9))
    expected = Codec.model_validate(
        {
            "kind": "int8",
            "element_bytes": element_bytes,
            "encode_bytes_per_s": 2e9,
            "decode_bytes_per_s": 4e9,
        }
    )
    assert [link.codec for link in problem.links] == [expected, expected]
    assert planned_codecs(problem) == codecs_of(run)


def test_nothing_measured_is_no_time() -> None:
    [there, _] = problem_of(config(codec="bf16"), [[COSTS] * 3] * 3).links
    assert there.codec == Codec(kind="bf16")


def test_measured_links_between_ranks_get_the_codec_of_their_regions() -> None:
    run = config(codec="int8")
    plain = problem_of(config(), profiles(1e9) * 3)
    problem = plain.with_links([Link(src=0, dst=1), Link(src=1, dst=2), Link(src=2, dst=0)])
    links = with_codecs(problem, run, [CodecRates("int8", 1e9, 2e9)]).links
    assert [link.codec and link.codec.kind for link in links] == [None, "int8", "int8"]


def test_a_run_that_starts_from_another_ones_profile_has_its_own_codecs_at_those_rates() -> None:
    earlier = profile_of(config(codec="int8"), profiles(1e9, 3e9, 2e9), None)
    again = problem_again(config(codec="int8"), earlier)
    assert again.links == earlier.problem.links
    assert again.links[0].codec == Codec(
        kind="int8", encode_bytes_per_s=2e9, decode_bytes_per_s=4e9
    )
    [other, _] = problem_again(config(codec="bf16"), earlier).links
    assert other.codec == Codec(kind="bf16")  # at a rate that nobody has measured
    assert planned_codecs(problem_again(config(), earlier)) == {}
