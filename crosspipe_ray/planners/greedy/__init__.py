"""List scheduling that knows links and memory: a `search` over `passes` of one `kernel`."""
