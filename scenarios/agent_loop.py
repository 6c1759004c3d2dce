"""How long does an agent take to finish a task, when every call waits for the one before it?

    locust -f scenarios/agent_loop.py --headless -u 4 -r 4 --requests 64 --max-tokens 8192 --host http://127.0.0.1:8000

Each task is four requests: plan, two steps, the result. A request is given the task and what those before it answered, so
that the time to the last answer is the sum of four reasonings: tokens cost time once for each request.

With `--workload tool_calls:calls=3` the steps are calls of tools: the model's own call, or the right one where it made no
valid one, goes into the history with the tool's result, and the last request asks for the answer.
"""

from loadtest.scenario import DialogueUser, Messages

HEADING = "\n\nNotes so far:"


class AgentLoop(DialogueUser):
    """Plan, work, work, conclude; notes are the answers so far, never the thinking."""

    turns = 4
    orders = (
        "Carry out the first step of the plan.",
        "Carry out what remains of the plan.",
        "Conclude: put the final answer within \\boxed{}.",
    )

    def following(self, messages: Messages, answer: str, turn: int) -> Messages:
        task, _, notes = messages[-1]["content"].partition(HEADING)
        notes = notes.rpartition("\n\n")[0] + f"\n{turn + 1}. {answer}"
        return [*messages[:-1], {"role": "user", "content": f"{task}{HEADING}{notes}\n\n{self.orders[turn]}"}]
