"""A proxy that slows an engine by a known share: each byte of an answer is passed on later by a share of its time since the
answer's first token. `stretch` 1.1: seconds per token 10 % longer; the wait for the first token is the engine's own.
"""

import asyncio
import contextlib
import threading
from concurrent.futures import Future

_FIRST_TOKEN = b"data: "  # of a stream of server-sent events; what has none is passed on at once


class _Connection:
    """One connection of a client and its own to the server; requests follow each other on it."""

    def __init__(self, stretch):
        self._stretch = stretch
        self._loop = asyncio.get_running_loop()
        self._first_s = None  # when the answer that is under way had its first token

    async def ask(self, client, server):
        while asked := await client.read(65536):
            self._first_s = None
            server.write(asked)
        server.close()

    async def answer(self, server, client):
        while told := await server.read(65536):
            now_s = self._loop.time()
            if self._first_s is None and _FIRST_TOKEN in told:
                self._first_s = now_s
            self._loop.call_at(self._due_s(now_s), client.write, told)
        now_s = self._loop.time()
        await asyncio.sleep(self._due_s(now_s) - now_s)

    def _due_s(self, now_s):
        return now_s if self._first_s is None else self._first_s + (now_s - self._first_s) * self._stretch


@contextlib.contextmanager
def stretching_proxy(port, stretch):
    """Gives the URL of a proxy, in a thread of its own, before the server at this port of this machine."""

    async def connect(client, answers):
        writers = [answers]
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            server, requests = await asyncio.open_connection("127.0.0.1", port)
            writers.append(requests)
            one = _Connection(stretch)
            await asyncio.gather(one.ask(client, requests), one.answer(server, answers))
        for writer in writers:
            writer.close()

    async def serve():
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        async with await asyncio.start_server(connect, "127.0.0.1", 0) as listener:
            opened.set_result((listener.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    opened = Future()
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    at, stop = opened.result()
    yield f"http://127.0.0.1:{at}"
    stop()
    thread.join()
