"""Checkpoints with their copies in a bucket."""

import torch

from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint


def keys(admin, bucket):
    return [each["Key"] for each in admin.list_objects_v2(Bucket=bucket).get("Contents", ())]


def checkpoint(step, **options):
    return Checkpoint(step, {"model": {"w": torch.full((9,), float(step))}}, {"step_note": step}, **options)


def saved(copies, *steps, milestones=()):
    for step in steps:
        save_checkpoint(copies.folder, checkpoint(step, is_milestone=step in milestones))
        copies.send()


def name(step):
    return f"step-{step:09d}"


def copied(admin, bucket):
    return {key.split("/")[2] for key in keys(admin, bucket)}


def flip_last(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
