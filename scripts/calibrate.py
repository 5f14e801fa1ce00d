"""What this machine computes in a second -> runs/calibration.json, which plans read: `calibrate.py --out runs`."""

import argparse
import sys
from pathlib import Path

import handbook_ext.core.interrupt  # noqa: F401 - first, since torch takes seconds

import torch

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.errors import run_main
from handbook_ext.core.jsonl import write_json
from handbook_ext.core.provenance import hardware
from handbook_ext.planning.calibrating import measured_rates, record_of
from handbook_ext.planning.calibration import FORMAT, RECORD


def main(argv: list[str]) -> None:
    """Measures the GPU, where one is here, and the CPU with as many threads as torch has; keeps what other threads had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    out = parser.parse_args(argv).out
    torch.set_flush_denormal(True)  # As every stage does.
    threads, path = torch.get_num_threads(), out / RECORD
    before = json_object(path) or {}
    same = before.get("format") == FORMAT and before.get("hardware") == hardware()
    rates = dict(before["rates"]) if same else {}
    devices = {f"cpu, {threads} threads": "cpu"} | ({"gpu": "cuda"} if torch.cuda.is_available() else {})
    for name, device in devices.items():
        sys.stderr.write(f"calibrate: {name}\n")
        found = measured_rates(torch.device(device), threads, lambda line: sys.stderr.write(f"calibrate: {line}\n") and None)
        rates[name] = record_of(found)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, "hardware": hardware(), "rates": rates}, indent=1)
    sys.stderr.write(f"calibrate: {path} is done\n")


if __name__ == "__main__":
    run_main(main)
