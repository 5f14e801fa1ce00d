"""Processes of one stage that form no process group: they meet at the store of their launcher (core/per_device.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed import TCPStore

from handbook_ext.core.per_device import PROCESSES, RANK, STORE, end_with_launcher
from handbook_ext.policies.launch import PATIENCE, Launch


@dataclass(frozen=True)
class IndependentLaunch(Launch):
    """One of the processes."""

    store: Any = None
    meetings: list[int] = field(default_factory=lambda: [0])

    @classmethod
    def from_environment(cls) -> IndependentLaunch:
        """Returns this process, by what its launcher has left in the environment."""
        end_with_launcher()
        host, _, port = os.environ[STORE].rpartition(":")
        store = TCPStore(host, int(port), is_master=False, timeout=PATIENCE)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(int(os.environ[RANK]), int(os.environ[PROCESSES]), device, store)

    def told(self, value: Any) -> Any:
        """Returns the first process's value, which JSON can hold, in every process."""
        key = self._meeting()
        if self.main:
            self.store.set(key, json.dumps(value))
            return value
        return json.loads(self.store.get(key))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Has the others wait for the first one to leave the context; where it fails, the launcher ends them."""
        key = self._meeting()
        if not self.main:
            self.store.wait([key])
        yield
        if self.main:
            self.store.set(key, "passed")

    def wait(self) -> None:
        """Returns once every process has called this."""
        key = self._meeting()
        if self.store.add(f"{key} came", 1) == self.processes:
            self.store.set(key, "all")
        self.store.wait([key])

    def _meeting(self) -> str:
        """Returns the name of the next meeting, the same in every process."""
        self.meetings[0] += 1
        return f"meeting {self.meetings[0]}"
