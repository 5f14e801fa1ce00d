"""Where a judge is asked: its address, its key, its limits and prices."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from handbook_ext.core.errors import UserError

NO_KEY = "none"  # What a local server is given, which asks for no key.


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask: seconds, requests, tokens, and USD per million tokens. The key is read from the environment alone.

    `setting` is what the recipe calls it, for messages.
    """

    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    max_new_tokens: int = 512
    limit_name: str = "max_tokens"
    concurrency: int = 8
    requests_per_minute: int | None = None
    timeout: float = 60.0
    max_retries: int = 6
    input_price: float | None = None
    output_price: float | None = None
    setting: str = "rank.judge"

    @property
    def model_setting(self) -> str:
        """Returns the setting that names the model."""
        return "rank.model" if self.setting == "rank.judge" else f"{self.setting}.model"

    @property
    def url(self) -> str:
        """Returns the address that is asked; raises UserError for one that is none."""
        found = (self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").strip()
        try:
            parts = urlsplit(found)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            good = good and found.isprintable() and " " not in found
        except ValueError:
            good = False
        if not good:
            # What it holds is not repeated: it may have a password.
            raise UserError(
                f"{self.setting}: the address of the judge is no http(s) URL, such as http://127.0.0.1:8000/v1; "
                f"correct {self.setting}.base_url, or OPENAI_BASE_URL in the environment"
            )
        return found

    @property
    def name(self) -> str:
        """Returns the address without what a URL may hold of names and passwords."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"

    def key(self) -> str:
        """Returns the key; raises UserError for one that cannot be sent, and where OpenAI's own endpoint wants one."""
        found = os.environ.get(self.key_variable, "").strip()
        if not (found.isascii() and found.isprintable()):
            raise UserError(
                f"{self.setting}: {self.key_variable} holds characters that no key has; set it to the key alone, in ASCII"
            )
        if not found and urlsplit(self.url).hostname == "api.openai.com":
            raise UserError(f"{self.setting}: {self.name} wants a key; set the environment variable {self.key_variable}")
        return found or NO_KEY

    def secrets(self) -> list[str]:
        """Returns what no text may show: the key, and a password in the address as it is written, meant and sent."""
        parts = urlsplit(self.url)
        name, password = unquote(parts.username or ""), unquote(parts.password or "")
        sent = base64.b64encode(f"{name}:{password}".encode()).decode() if name or password else ""
        return [each for each in (os.environ.get(self.key_variable, "").strip(), sent, parts.password, password) if each]

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Returns USD for so many tokens, None where a price is not given."""
        if self.input_price is None or self.output_price is None:
            return None
        return (self.input_price * prompt_tokens + self.output_price * completion_tokens) / 1e6
