"""The bytes of an answer that calls a tool; shapes as seen from vLLM 0.32.0 and SGLang 0.5.23."""

from __future__ import annotations

from loadtest.simulator.core.behaviour import Behaviour
from loadtest.simulator.core.chat import Chat
from loadtest.simulator.http.frames import Framer, dumps


class CallFramer(Framer):
    """Thinking as text, then one call: its name with the first piece of its arguments."""

    __slots__ = ("_begun",)

    def __init__(self, chat: Chat, behaviour: Behaviour, request_id: str, created: int, *, interval: int = 1) -> None:
        super().__init__(chat, behaviour, request_id, created, interval=interval)
        self._begun = False

    def _chunk(self, n: int, thinks: bool, text: bytes) -> bytes:
        if thinks:
            return super()._chunk(n, thinks, text)
        opening = b'"tool_calls":[{' + (self._later() if self._begun else self._first())
        self._begun = True
        return self._event(n, opening + text + b'"}}]', b"null")

    def _first(self) -> bytes:
        formed = self.chat.formed
        name = dumps(formed.tool if formed else "")
        return b'"id":"call-%b","index":0,"type":"function","function":{"name":%b,"arguments":"' % (
            self.request_id.encode(),
            name,
        )

    def _later(self) -> bytes:
        """SGLang says which fields are missing, vLLM leaves them out."""
        if self.behaviour.knows_its_models:
            return b'"index":0,"function":{"arguments":"'
        return b'"id":null,"index":0,"type":"function","function":{"name":null,"arguments":"'

    def _finish(self, n: int, thinks: bool) -> bytes:
        text, self._buffer = self._buffer, b""
        out = self._chunk(n, thinks, text) if text else b""
        return out + self._event(n, b"", b'"%b"' % self.chat.finish_reason(self.behaviour).encode())

    def _event(self, n: int, delta: bytes, reason: bytes) -> bytes:
        usage = self.usage(n) if self.chat.continuous_usage else b""
        return b'%b{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b}]%b}\n\n' % (self._head, delta, reason, usage)
