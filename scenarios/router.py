"""What does it buy to send easy prompts to a small instruct model, and only the hard ones to the reasoner?

    locust -f scenarios/router.py --headless -u 8 -r 8 --requests 64 --host URL --easy-host http://127.0.0.1:8001

Compare with the same workload on the reasoner alone (`long_reasoning.py --workload mixed:easy=70`). The share of easy
prompts is the workload's: `--workload mixed:easy=50`. Records name the endpoint that was asked.
"""

from loadtest.scenario import RouterUser, add_router_options, default_workload, with_options

with_options(add_router_options)
default_workload("mixed:easy=70")


class Router(RouterUser):
    """A closed loop over both models."""
