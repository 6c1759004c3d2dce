"""Where does a server bend? Stairs of concurrency in one run: `--steps 1,2,4,8`, each for `--step-time` seconds.

    locust -f scenarios/concurrency_ramp.py --headless --steps 1,2,4,8,16 --step-time 120 --host URL

The records lie under the highest step. For figures to compare, run levels one by one with `long_reasoning` instead.
"""

from loadtest.scenario import ReasoningUser, Stairs, add_stairs_options, with_options

with_options(add_stairs_options)


class Ramp(Stairs):
    """Reads the steps from the command line."""


class RampUser(ReasoningUser):
    """A closed loop in each user; the shape says how many there are."""
