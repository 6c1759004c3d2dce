"""How long does a user wait for a hard answer, and how fast does it come?

locust -f scenarios/long_reasoning.py --headless -u 8 -r 8 --run-time 5m --host http://127.0.0.1:8000
locust -f scenarios/long_reasoning.py --headless -u 8 -r 8 --requests 64 --workload aime24.jsonl --host URL --out runs/mine

A closed loop of exactly `-u` streams: each user asks its next problem as soon as the last is answered. `--workload code` and
`--workload choice` ask for short programs and for a letter in JSON instead of mathematics.
"""

from loadtest.scenario import ReasoningUser


class LongReasoning(ReasoningUser):
    """Change what is sent with `--workload`; add think time with Locust's `wait_time = between(5, 20)`."""
