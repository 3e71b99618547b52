"""One model trained over GPUs in several regions, as if the slow links between them were not there.

Importing this package imports neither torch nor ray: the schedule language, the planners and the
reports are usable on any laptop.
"""

__version__ = "0.1.0"
