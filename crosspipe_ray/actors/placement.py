"""Which node each rank runs on: a placement group with one labelled bundle per rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from crosspipe_ray.actors.cluster import alive_nodes
from crosspipe_ray.errors import ClusterError


def reserve(rank_regions: Sequence[str], *, label: str, timeout_s: float) -> PlacementGroup:
    """Reserves a CPU, and a GPU where the region has any, for every rank in its region.

    Raises:
        ClusterError: the resources are not free in time; says what was asked for.
    """
    with_gpu = _regions_with_gpus(label)
    bundles = [
        {"CPU": 1.0} | ({"GPU": 1.0} if region in with_gpu else {}) for region in rank_regions
    ]
    group: PlacementGroup = placement_group(
        bundles,
        strategy="PACK",
        bundle_label_selector=[{label: region} for region in rank_regions],
    )
    try:
        ray.get(group.ready(), timeout=timeout_s)
    except GetTimeoutError:
        remove_placement_group(group)
        wanted = "; ".join(
            f"rank {rank}: {region} {bundle}"
            for rank, (region, bundle) in enumerate(zip(rank_regions, bundles, strict=True))
        )
        raise ClusterError(
            f"cluster.regions: the cluster has no room for all ranks within {timeout_s:g} s; "
            f"wanted {wanted}"
        ) from None
    return group


def _regions_with_gpus(label: str) -> set[str]:
    """Regions whose nodes all have a GPU."""
    gpus: dict[str, list[float]] = defaultdict(list)
    for node in alive_nodes():
        if label in node["Labels"]:
            gpus[node["Labels"][label]].append(node["Resources"].get("GPU", 0.0))
    return {region for region, counts in gpus.items() if all(counts)}
