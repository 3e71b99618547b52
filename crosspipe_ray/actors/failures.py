"""Which of many errors is the cause: one rank fails, and all that wait for it fail too."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray.exceptions import RayActorError, RayTaskError

from crosspipe_ray.errors import AbortedError, CrosspipeError, RunError


def explain(errors: Mapping[str, Exception]) -> CrosspipeError:
    """The error to show for a failed run.

    Args:
        errors: by the name of the rank.

    Returns:
        An error of ours as the rank raised it, or a RunError that names the rank: with the
        traceback of what its code raised, or the news that its process died. Losing a peer or
        being stopped is a consequence, and only shown where there is nothing else.
    """
    name, error = min(errors.items(), key=lambda item: _depth(item[1]))
    if isinstance(error, RayActorError):
        return RunError(f"{name}: its process died")
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, CrosspipeError):
            return type(cause)(f"{name}: {cause}") if isinstance(cause, RunError) else cause
        return RunError(f"{name} failed:\n{_traceback(error)}")
    return RunError(f"{name}: {error}")


def _depth(error: Exception) -> int:
    """Distance from the cause: process died, code raised, peer lost, told to stop."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(error, RayActorError):
        return 0
    if not isinstance(cause, RunError):
        return 1
    return 3 if isinstance(cause, AbortedError) else 2


def _traceback(error: RayTaskError) -> str:
    """The traceback in the actor, without Ray's colours, first line and marks under code."""
    lines = re.sub(r"\x1b\[\d+m", "", str(error)).strip().split("\n")
    kept = [line for line in lines[1:] if line.strip(" ^~")]
    return "\n".join(["Traceback (most recent call last):", *kept])
