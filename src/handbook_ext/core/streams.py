"""The standard streams of a process whose caller has closed some: `make list >&-`, or a job that was started without any."""

from __future__ import annotations

import os
import select
import sys


def open_streams() -> None:
    """Opens the closed ones of stdin, stdout and stderr at the null device.

    Otherwise the next file that is opened, such as a lock or a socket, gets the number of a stream, and what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest number that is free, which is this one.
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def reader_is_gone() -> bool:
    """Returns whether whoever read what this process prints has ended, as `head` does; the rest then goes nowhere."""
    watch = select.poll()
    watch.register(1, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True
