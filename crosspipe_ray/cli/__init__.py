"""The ``crosspipe`` command; each of its commands imports what it needs only when it runs."""

from crosspipe_ray.cli.app import main

__all__ = ["main"]
