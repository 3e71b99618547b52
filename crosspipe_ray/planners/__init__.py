"""Planners: from a problem to an order of every op and message. Pure Python, no torch, no ray."""

if __name__ != "crosspipe_ray.planners":
    # The top-level link `planners` exists for readers; through it, every module would load twice.
    raise ImportError("import crosspipe_ray.planners; the top-level folder planners is only a link")
