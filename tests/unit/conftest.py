from hypothesis import settings

# The same examples in every run: a failure in CI is a failure on the desk.
settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.load_profile("deterministic")
