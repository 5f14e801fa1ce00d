"""A server on loopback that speaks OpenAI's chat protocol, and misbehaves by a script: the real client is tested against it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler, str], None]


@dataclass
class Log:
    """What the server saw: questions in the order of their arrival, when they came, and how many it served at once."""

    questions: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most: int = 0
    now: int = 0

    def count(self) -> Counter[str]:
        """Returns how often each question was asked."""
        return Counter(self.questions)


def send(handler: BaseHTTPRequestHandler, status: int, body: str, **headers: str) -> None:
    """Sends a body with its length."""
    data = body.encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def promise(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Sends what stands before a good body: its type and whole length."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()


def completion(text: str | None, finish: str = "stop") -> str:
    """The body of a reply of 10 tokens to a question of 100."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage})


def status(code: int, **headers: str) -> Behaviour:
    """Answers with a status, and repeats the key as some servers do."""

    def answer(handler: BaseHTTPRequestHandler, reply: str) -> None:
        message = f"key {handler.headers.get('Authorization')} over the limit"
        send(handler, code, json.dumps({"error": {"message": message}}), **headers)

    return answer


def body_of(code: int, text: str) -> Behaviour:
    """Answers with a status and a body."""
    return lambda handler, reply: send(handler, code, text)


def refuses(message: str, code: int = 400) -> Behaviour:
    """Answers with a status and a reason."""
    return lambda handler, reply: send(handler, code, json.dumps({"error": {"message": message}}))


def says(text: str | None, finish: str = "stop") -> Behaviour:
    """Answers with a text of its own."""
    return lambda handler, reply: send(handler, 200, completion(text, finish))


def drips(handler: BaseHTTPRequestHandler, reply: str) -> None:
    """Sends a good reply, a piece of it every few hundredths of a second."""
    body = completion(reply).encode()
    promise(handler, body)
    with contextlib.suppress(OSError):  # Who has waited long enough hangs up.
        for start in range(0, len(body), 4):
            handler.wfile.write(body[start : start + 4])
            time.sleep(0.05)


def raw(body: str) -> Behaviour:
    """Answers with a body of its own."""
    return lambda handler, reply: send(handler, 200, body)


def waits(seconds: float) -> Behaviour:
    """Answers late."""

    def answer(handler: BaseHTTPRequestHandler, reply: str) -> None:
        time.sleep(seconds)
        send(handler, 200, completion(reply))

    return answer


def hangs_up(handler: BaseHTTPRequestHandler, reply: str) -> None:
    """Promises a body, sends half of it and closes the connection."""
    body = completion(reply).encode()
    promise(handler, body)
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


class MisbehavingServer:
    """Serves on a free port; `misbehave` decides by question and number of its attempt, None behaves well.

    `reply` makes the text of a good reply from a question.
    """

    def __init__(
        self, reply: Callable[[str], str], misbehave: Callable[[str, int], Behaviour | None] = lambda q, n: None
    ) -> None:
        """Starts the server."""
        self.log, lock = Log(), threading.Lock()
        log = self.log

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body: Any = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][-1]["content"]
                with lock:
                    attempt = log.questions.count(question)
                    log.questions.append(question)
                    log.bodies.append(body)
                    log.times.append(time.monotonic())
                    log.keys.add(str(self.headers.get("Authorization")))
                    log.now += 1
                    log.most = max(log.most, log.now)
                try:
                    (misbehave(question, attempt) or says(reply(question)))(self, reply(question))
                finally:
                    with lock:
                        log.now -= 1

            def log_message(self, *arguments: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The address for the client."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
