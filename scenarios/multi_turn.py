"""What does a user wait for in a conversation, turn after turn? History holds answers only, never the thinking.

    locust -f scenarios/multi_turn.py --headless -u 4 -r 4 --requests 60 --max-tokens 8192 --host http://127.0.0.1:8000

Each task is three requests: the prompt, then two questions about the answer. The prompt grows, and with prefix caching only
what is new is read. `--requests` counts all of them. Add think time with Locust's `wait_time = between(5, 20)`.
"""

from loadtest.scenario import DialogueUser, Messages, answered


class MultiTurn(DialogueUser):
    """The workload's prompt, a check of the answer, and the answer once more."""

    turns = 3
    questions = (
        "Please check your answer by another method, and put the final answer within \\boxed{}.",
        "Give the final answer once more within \\boxed{}, with the key step in one sentence.",
    )

    def following(self, messages: Messages, answer: str, turn: int) -> Messages:
        return answered(messages, answer, self.questions[turn])
