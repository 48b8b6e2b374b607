"""``contrastive-ops report``: the page of a run, written anew."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = """\
Writes report.html, a page that needs no network, and its pictures (plots/*.png) into the folder of
a run of `contrastive-ops train`; of a run that still goes on, too. With several seeds it shows
means and spreads.

    contrastive-ops report runs/static
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="what --output was")


def run(args: argparse.Namespace) -> int:
    """Writes the report. Returns the exit code."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from .page import write_report

    print(write_report(args.folder))
    return 0
