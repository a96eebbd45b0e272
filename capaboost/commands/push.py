"""Put a trained run's adapter on the Hugging Face hub, with its model card.

Examples:
  capaboost push RUN user/name
  capaboost predict hf-hub:user/name new/     # from then on, anywhere
"""

from __future__ import annotations

import argparse

from capaboost.command_line import exit_code, given, given_path, make_parser


def push_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog=prog)
    add = parser.add_argument
    add("run", type=given_path, metavar="RUN", help="a run's folder, or the adapter folder in it")
    add("repo", type=given, metavar="USER/NAME", help="the repository; it is made if there is none")
    add("--private", action="store_true", help="make it private")
    add("--endpoint", type=given, metavar="URL", help="another server with the hub's interface")
    return parser


def push(options: argparse.Namespace) -> None:
    """Upload, and say where it is."""
    from capaboost.hub import HUB, push_to_hub

    print(push_to_hub(options.run, options.repo, options.private, endpoint=options.endpoint))
    print(f"capaboost predict {HUB}{options.repo} INPUT... uses it")


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    options = push_parser(prog).parse_args(arguments)
    return exit_code(lambda: push(options), "run the same command again")
