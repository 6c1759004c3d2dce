"""The probe for the thinking prelude, against servers that count in their own ways."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtest.servers import chat_template


@pytest.fixture
def server():
    """Counts a token a character of what its template makes of a prompt; `made` may be set to another template."""

    class Handler(BaseHTTPRequestHandler):
        made = staticmethod(lambda chat: chat)
        status = 200

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert asked["max_tokens"] == 1
            text = asked["prompt"] if "prompt" in asked else Handler.made(chatml(asked["messages"]))
            body = json.dumps({"usage": {"prompt_tokens": len(text)}}).encode() if Handler.status == 200 else b"{}"
            self.send_response(Handler.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", Handler
        serving.shutdown()


def chatml(messages):
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"{turns}<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (lambda chat: f"{chat}<think>\n", "template"),
        (lambda chat: chat, "none"),
        (lambda chat: f"[INST] {chat}", None),
    ],
)
def test_the_template_shows_in_what_the_server_counts(server, made, found):
    url, handler = server
    handler.made = staticmethod(made)
    assert chat_template.thinking_prelude(url, "m") == found


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_refuses_tells_nothing(server, status):
    url, handler = server
    handler.status = status
    assert chat_template.thinking_prelude(url, "m") is None


def test_nobody_there_tells_nothing():
    assert chat_template.thinking_prelude("http://127.0.0.1:9", "m") is None
