"""How long does a step take, without waiting for a long answer?

    locust -f scenarios/bursts.py --headless -u 8 -r 8 --host http://127.0.0.1:8000

All `-u` streams begin together, with a text of about `--contexts` tokens each and an output of `--burst-tokens`, forced.
Their pace at two or more contexts gives the seconds of a step as a line of the context. `mode = "decision"` in a study
composes times to the final answer from it; the figures of a level never count bursts.
"""

from loadtest.scenario import BurstUser, add_burst_options, with_options

with_options(add_burst_options)


class Bursts(BurstUser):
    """A warm-up, four lone prompts of the workload for the first token, then one burst per context."""
