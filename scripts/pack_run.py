"""A finished run without its weights, for others to check: `pack_run.py runs/<run> [--out FILE]` writes <run>.ledger.zip."""

import argparse
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.reports.ledger import SUMMARY, content_groups, refuse_faults
from handbook_ext.reports.ledger_archive import SUFFIX, archive_bytes, write_ledger
from handbook_ext.reports.ledger_pack import REPORT, packed


def main(argv: list[str]) -> None:
    """Packs the run, checks what it packed as a stranger would, and writes the file only where all holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, such as runs/tiny-selm")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"by default <run>{SUFFIX} in the run's folder")
    arguments = parser.parse_args(argv)
    ledger = packed(arguments.run)
    out = arguments.out or arguments.run / f"{ledger.run}{SUFFIX}"
    if not out.name.endswith(SUFFIX):
        raise UserError(f"--out {out}: the name of a ledger ends with {SUFFIX}")
    groups = content_groups(ledger)
    if {group.name for group in groups if group.faults} == {SUMMARY}:
        # A stage that was made again, to the same bytes, took other seconds than the report says; nothing is stale for that.
        raise UserError(
            f"{arguments.run / REPORT}: is older than what it reports ({next(g.faults[0] for g in groups if g.faults)}); delete "
            "that folder, and repeat the command, which makes it again"
        )
    refuse_faults(out, groups)
    content = archive_bytes(ledger)
    write_ledger(out, content)
    for group in groups:
        print(f"{group.name:12} {group.words}")
    print(f"packed: {out} ({len(ledger.files)} files, {len(content) / 1e6:.1f} MB); check it with make ledger-verify F={out}")


if __name__ == "__main__":
    run_main(main)
