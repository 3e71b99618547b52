"""Actors: the only package that knows Ray."""

if __name__ != "crosspipe_ray.actors":
    # The top-level link `actors` exists for readers; through it, every module would load twice.
    raise ImportError("import crosspipe_ray.actors; the top-level folder actors is only a link")
