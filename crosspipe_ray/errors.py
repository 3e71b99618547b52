"""Every error that crosspipe_ray raises on purpose.

    CrosspipeError             exit code 1: the run failed
    |-- RunError               a rank failed, hung or was lost while running
    |   |-- AbortedError       a wait ended because the run was told to stop
    |   `-- TransportTimeout   a message did not come in time (engine.transports)
    |-- InputError             exit code 2: a file, field, flag or link is wrong
    |   |-- ConfigError        the YAML configuration of a run
    |   |-- ProblemError       a problem file
    |   |-- PlanError          a plan file
    |   |-- ScheduleError      an order of ops that breaks a rule (names rank, op and rule)
    |   `-- ClusterError       no Ray cluster there, or no node with the label that is asked for
    `-- InfeasibleError        exit code 3: no schedule fits (names the rank and the missing bytes)

The message of an InputError is one line for the user: what is wrong, where, and what would be
right.
"""

from __future__ import annotations


class CrosspipeError(Exception):
    """The run failed."""

    exit_code = 1


class RunError(CrosspipeError):
    """A rank failed, hung or was lost while the run was going."""


class AbortedError(RunError):
    """A wait ended early because the run was told to stop."""


class InputError(CrosspipeError):
    """Something the user wrote is wrong; the message names it and says what would be right."""

    exit_code = 2


class ConfigError(InputError):
    """A field of the YAML configuration is wrong."""


class ProblemError(InputError):
    """A field of a problem file is wrong."""


class PlanError(InputError):
    """A plan file is wrong, or belongs to another problem."""


class ScheduleError(InputError):
    """An order of ops breaks a rule of the schedule language.

    Args:
        message: the rule that is broken, with rank and op.
        grid: the schedule around the place, drawn for a person; shown under the message.
    """

    def __init__(self, message: str, grid: str = "") -> None:
        super().__init__(message)
        self.grid = grid


class ClusterError(InputError):
    """No Ray cluster answers, or it has no node for a rank."""


class InfeasibleError(CrosspipeError):
    """No schedule fits; the message names the rank and how many bytes it lacks.

    Args:
        message: the rank and the bytes.
        missing_bytes: what it lacks for one microbatch alone; 0 where that would fit.
    """

    exit_code = 3

    def __init__(self, message: str, *, missing_bytes: int = 0) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes
