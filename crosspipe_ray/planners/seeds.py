"""What a search may be seeded with."""

MAX_SEED = (1 << 31) - 1  # OR-Tools takes no more, and numpy nothing below 0
