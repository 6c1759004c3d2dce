"""What do prompts over 8,192 tokens cost? They need YaRN on either engine, and most of the wait is prefill.

    locust -f scenarios/long_context.py --headless -u 2 -r 2 --requests 16 --max-tokens 8192 --host http://127.0.0.1:8000

Start the server with YaRN for it (`yarn = true` in a study's contract, for both engines), and not for short prompts,
which a static YaRN can slow or degrade. The answer is a sum of entries found in a long register: wrong reading shows.
"""

from loadtest.scenario import ReasoningUser, default_workload

default_workload("retrieval:tokens=10000,n=16")


class LongContext(ReasoningUser):
    """A closed loop over long registers; no two prompts begin alike, so that no cache helps."""
