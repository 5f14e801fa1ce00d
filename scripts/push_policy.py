"""A policy with its card to the hub, and what made it beside: `push_policy.py runs/<run>/iter<N> --repo owner/name [--dry]`."""

import argparse
import re
import sys
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.reports.hub import check_repo, upload
from handbook_ext.reports.shipment import CARD, Shipment, data_shipment, laid_out, policy_shipment


def main(argv: list[str]) -> None:
    """Sends both repositories, or prints what would go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path, help="an iteration's folder, such as runs/tiny-selm/iter3")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="the model's repository; that of the data ends with -data")
    parser.add_argument("--dry", action="store_true", help="print files, bytes and card; send nothing, reach no network")
    parser.add_argument("--no-data", action="store_true", help="send the policy alone")
    openness = parser.add_mutually_exclusive_group()
    openness.add_argument(
        "--private", dest="private", action="store_true", default=True, help="for its owner alone (the default)"
    )
    openness.add_argument("--public", dest="private", action="store_false", help="for everybody")
    arguments = parser.parse_args(argv)
    folder = arguments.policy
    if not re.fullmatch(r"iter\d+|sft", folder.name) or not folder.is_dir():
        raise UserError(f"{folder}: is no trained policy of a run; give its folder, such as runs/tiny-selm/iter3")
    if arguments.repo is None:
        raise UserError(f"no repository is named for {folder}; give REPO=owner/name (--repo)")
    check_repo(arguments.repo)
    shipments = [policy_shipment(folder, arguments.repo)]
    if not arguments.no_data:
        check_repo(f"{arguments.repo}-data")
        shipments.append(data_shipment(folder, f"{arguments.repo}-data"))
    # All of them before the first is sent: a secret in the data stops the weights as well.
    for shipment in shipments:
        with laid_out(shipment):
            pass
    for shipment in shipments:
        sys.stdout.write(contents(shipment, private=arguments.private))
        if arguments.dry:
            sys.stdout.write(f"\n----- {CARD}\n{shipment.card}-----\n\n")
            continue
        with laid_out(shipment) as laid:
            message = f"{folder.resolve().parent.name} {folder.name}"
            print(f"sent: {upload(laid, shipment.repo, shipment.kind, private=arguments.private, message=message)}", flush=True)
    if arguments.dry:
        print("nothing was sent: without DRY=1 this would go")


def contents(shipment: Shipment, *, private: bool) -> str:
    """Returns the lines of a shipment: its repository, each file with its bytes, and what stays here."""
    sizes = shipment.sizes()
    who = "private" if private else "public"
    lines = [f"{shipment.repo} ({shipment.kind}, {who}): {len(sizes)} files, {sum(sizes.values()):,} bytes"]
    lines += [f"{size:>16,}  {name}" for name, size in sizes.items()]
    lines += [f"{'stays here':>16}  {name}: {why}" for name, why in shipment.left_out.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
