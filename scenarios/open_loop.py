"""What do users wait for when requests come by the clock, however slow the answers are?

    locust -f scenarios/open_loop.py --headless -u 64 -r 64 --rate 0.5 --arrivals poisson --run-time 10m --host URL

Arrivals are Poisson, constant, or (`--arrivals recorded`) those of a run that `loadtest workload from-run` has turned into
a workload. `-u` is the most that may run at once. What waits for a free user is late: `sent_s` minus `scheduled_s` in its
record.
"""

from loadtest.scenario import OpenLoopUser, add_open_loop_options, with_options

with_options(add_open_loop_options)


class OpenLoop(OpenLoopUser):
    """Prompts as in `long_reasoning`, sent by the clock."""
