"""The same fleet with the token-level simulator in every replica: what the fleet model is held against."""

from __future__ import annotations

import heapq
import math

import numpy as np

from loadtest.simulator.core.engine import Engine
from loadtest.simulator.core.sequence import Request, Sequence


class TokenLevelFleet:
    """Engines behind a router; every arrival sees the loads of its own instant."""

    def __init__(
        self,
        config,
        step_time_s,
        router,
        replicas,
        max_tokens=0,
    ):
        self.engines = [Engine(config, step_time_s) for _ in range(replicas)]
        self.router, self.max_tokens = router, max_tokens

    def run(self, traffic, until_s=math.inf):
        """`ttft_s` and `final_s` of every request, by id; nan where it was not reached by `until_s`."""
        requests = traffic.requests
        ttft, final = np.full(requests.count, math.nan), np.full(requests.count, math.nan)
        coming = [(float(at), int(i)) for at, i in zip(traffic.starts_s, traffic.opening, strict=True)]
        heapq.heapify(coming)
        live: dict[str, Sequence] = {}
        now_s = 0.0
        while (coming or live) and now_s < until_s:
            next_s = min([coming[0][0] if coming else math.inf, *filter(None, (e.next_time_s() for e in self.engines))])
            now_s = min(coming[0][0] if coming else math.inf, max(now_s, next_s) + min(traffic.floor_s, 1.0))
            for ended in self._advance(now_s, live):
                number = int(ended.request.id)
                assert ended.first_token_s is not None
                ttft[number] = ended.first_token_s - ended.arrival_s
                final[number] = ended.last_token_s - ended.arrival_s
                if number + 1 < requests.count and traffic.follows[number + 1]:
                    heapq.heappush(coming, (ended.last_token_s + float(traffic.think_s[number + 1]), number + 1))
            if coming and coming[0][0] <= now_s:
                self._send(traffic, *heapq.heappop(coming), live)
        return ttft, final

    def _send(self, traffic, at_s, number, live):
        load = np.array([len(engine.running) + len(engine.waiting) for engine in self.engines])
        engine = self.engines[int(self.router.choose(1, load)[0])]
        prompt = f"{number:04x}" + "word" * int(traffic.requests.prompt_tokens[number] - 1)  # shared with no other
        request = Request(
            id=str(number),
            prompt=prompt,
            output_tokens=int(traffic.requests.output_tokens[number]),
            max_tokens=self.max_tokens,
        )
        engine.submit(request, at_s)
        live[request.id] = engine.sequences[request.id]

    def _advance(self, until_s, live):
        """Every engine up to this time; the requests that ended."""
        ended = []
        for engine in self.engines:
            while (next_s := engine.next_time_s()) is not None and next_s < until_s:
                if engine.step_end_s is None and engine.leap(until_s) is not None:
                    continue
                events = engine.step() if engine.step_end_s is not None else engine.advance(next_s)
                ended += [live.pop(event.request_id) for event in events if event.kind == "finished"]
        return ended
