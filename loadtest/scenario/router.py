"""A router in front of two models: easy prompts go to a small one, the others to the reasoner."""

from __future__ import annotations

from typing import Any

from loadtest import credentials
from loadtest.client.exchange import Endpoint
from loadtest.client.level import Level
from loadtest.client.pass_options import PassOptions
from loadtest.client.thinking import prompt_opens
from loadtest.client.transport import SocketTransport
from loadtest.errors import UsageError
from loadtest.scenario.run_folder import base_url
from loadtest.scenario.user import ReasoningUser
from loadtest.servers import probe
from loadtest.workload.script import Item, Script
from loadtest.workload.workload import Workload

EASY = "easy"


class RouterUser(ReasoningUser):
    """A closed loop over both models. The `difficulty` of each prompt decides (workload `mixed`). This measures how a given
    mixture is served, not how well a router tells easy prompts from hard ones."""  # fmt: skip

    abstract = True

    @classmethod
    def second_endpoint(cls, options: Any, asked: PassOptions, workload: Workload) -> Endpoint | None:
        if not options.easy_host:
            raise UsageError("--easy-host: expected the URL of the small model's server, got none; add it")
        if not any(prompt.difficulty == EASY for prompt in workload.prompts):
            raise UsageError(
                f"--workload {workload.source}: expected prompts marked easy for --easy-host, got none; use mixed:easy=70"
            )
        url = base_url(options.easy_host)
        key = credentials.easy_api_key()
        model = options.easy_model or probe.probe(url, api_key=key or "").model
        if not model:
            raise UsageError(f"{url}/v1/models: the server names no model; add --easy-model")
        transport = SocketTransport(f"{url}/v1/chat/completions", api_key=key, speed=asked.clock_speed)
        script = Script(workload, asked.contract, model=model, engine=asked.engine, seed=asked.seed)
        return Endpoint(name=EASY, transport=transport, script=script, opened=prompt_opens(asked.contract, model))

    def carry_out(self, level: Level, item: Item) -> None:
        if level.second is None or item.prepared.prompt.difficulty != EASY:
            super().carry_out(level, item)
            return
        self.request(level, level.second.script.measured(item.index), level.clock.now_s(), level.second)


def add_router_options(parser: Any) -> None:
    group = parser.add_argument_group("router")
    group.add_argument("--easy-host", help="URL of the small model's server (its key: LOADTEST_EASY_API_KEY)")
    group.add_argument("--easy-model", help="what that server calls the model (default: ask it)")
