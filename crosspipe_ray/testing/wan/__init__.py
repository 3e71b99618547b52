"""A WAN on one machine: regions as network namespaces, joined by an emulator in user space.

    with emulated_wan(mesh("us", "eu", latency_ms=50, bandwidth_mbit_s=1000)) as wan:
        wan.run("us", ["ping", "-c1", wan.address("eu")], timeout_s=5)

It needs root and /dev/net/tun; ``missing`` says what is not there. See docs/wan.md.
"""

from crosspipe_ray.testing.wan.network import LinkReport, Wan, attach, emulated_wan
from crosspipe_ray.testing.wan.requirements import missing
from crosspipe_ray.testing.wan.spec import (
    Host,
    Link,
    LinkSettings,
    Region,
    WanSpec,
    load_spec,
    mesh,
)

__all__ = [
    "Host",
    "Link",
    "LinkReport",
    "LinkSettings",
    "Region",
    "Wan",
    "WanSpec",
    "attach",
    "emulated_wan",
    "load_spec",
    "mesh",
    "missing",
]
