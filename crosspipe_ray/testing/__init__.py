"""For tests, our own and anybody's: an emulated WAN and the pytest plugin that hands it out.

Nothing here is imported by the rest of crosspipe_ray, apart from the ``crosspipe wan`` commands.
"""
