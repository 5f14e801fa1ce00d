"""A judge behind a real HTTP server on loopback: points and verdicts by the length of answers; it can be made to fail.

It is no judge of quality: it shows evaluation at work where no model can be asked. `python -m tests.judging.rule_judge --port
8123` serves until it is stopped; recipes name it as {model: longer-wins, base_url: "http://127.0.0.1:8123/v1"}.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


class GradingServer(ThreadingHTTPServer):
    """Replies to `single` questions with 1 to 10 points, to pairwise ones with the longer answer; keeps what it was asked."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.asked: list[str] = []
        self.dies_after: int | None = None
        self.silent = False  # Answers with an empty page, as what is no judge does.
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: GradingServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        if self.server.silent:
            self._send(200, {})
            return
        with self.server.lock:
            if self.server.dies_after is not None and len(self.server.asked) >= self.server.dies_after:
                self._send(401, {"error": {"message": "the key has run out"}})
                return
            self.server.asked.append(question)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        # AlpacaEval alone asks for log-probabilities, and its questions are of another form.
        choice |= _chances(question) if body.get("logprobs") else {"message": {"role": "assistant", "content": reply(question)}}
        usage = {"prompt_tokens": len(question), "completion_tokens": 1, "total_tokens": len(question) + 1}
        self._send(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def reply(question: str) -> str:
    """Returns the reply to a question: the points of an answer, or which of two is longer; unreadable where it is empty."""
    parts = {tag: text.strip() for tag, text in re.findall(r"<(answer[-ab]*)>\n(.*?)\n</answer", question, re.DOTALL)}
    if "answer" in parts:
        text = parts["answer"]
        return f"Because of its length. [[{1 + len(text) % 10}]]" if text else "I cannot say."
    a, b = len(parts["answer-a"]), len(parts["answer-b"])
    return f"So it is [[{'C' if a == b else 'A' if a > b else 'B'}]]"


def _chances(question: str) -> dict[str, Any]:
    """Returns a choice whose first token is m or M, AlpacaEval's names of two outputs, the more likely the longer one's is."""
    first, second = (len(text) for text in re.findall(r'"output": """(.*?)"""', question, re.DOTALL)[-2:])
    chance = 1 / (1 + math.exp(max(-20.0, min(20.0, (second - first) / 100))))
    top = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in (("m", chance), ("M", 1 - chance))]
    top.sort(key=lambda each: -float(each["logprob"]))
    content = [{**top[0], "top_logprobs": top}]
    return {"message": {"role": "assistant", "content": top[0]["token"]}, "logprobs": {"content": content}}


@contextmanager
def grading_server() -> Iterator[GradingServer]:
    """Yields a server that runs in a thread."""
    server = GradingServer()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8123)
    GradingServer(parser.parse_args().port).serve_forever()
