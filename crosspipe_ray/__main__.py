"""``python -m crosspipe_ray`` is the ``crosspipe`` command."""

from crosspipe_ray.cli import main

if __name__ == "__main__":
    main()
