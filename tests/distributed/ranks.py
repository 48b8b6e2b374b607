"""Processes of one group that run checks together, started once."""

import datetime
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Imported once, by the server that the ranks are forked from.
PRELOADED = ["torch.distributed", "torch.nn.parallel", "contrastive_ops.distributed", "pytest"]


def run(checks, world, folder):
    """What each check raised on each rank, by its name: ``{name: [traceback or None, ...]}``.

    A rank stops at its first failure: it may have left the others waiting.
    """
    mp.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(_rank, (checks, world, str(folder)), world, start_method="forkserver")
    found = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
    return {name: [each[name] for each in found] for name in found[0]}


def _rank(rank, checks, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    found = dict.fromkeys(checks, "not run, as another check failed")
    for name, (check, arguments) in checks.items():
        try:
            check(*arguments)
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
            break
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
