"""What is prefix caching worth when all users share one long system prompt?

    locust -f scenarios/shared_prompt.py --headless -u 8 -r 8 --requests 64 --host http://127.0.0.1:8000
    locust -f scenarios/shared_prompt.py --headless -u 8 -r 8 --requests 64 --workload shared:tokens=2000,n=64 --host URL

Compare time to first token with `prefix_caching` on and off in the study's contract; `cached_tokens` of each record says how
much of its prompt came from the cache.
"""

from loadtest.scenario import ReasoningUser, default_workload

default_workload("shared:tokens=4000")


class SharedPrompt(ReasoningUser):
    """A closed loop whose prompts begin alike; the warm-up fills the cache."""
