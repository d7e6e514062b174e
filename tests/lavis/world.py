#!/usr/bin/env python3
"""Records what LAVIS computes on several processes: cases of the kinds stage1_world and train_world for `qformer parity`.

    python world.py --world 2 --batch 2 --config tiny --out cases        (installed as record.py says)

Every process is LAVIS's model under gloo on the CPU, in float32, without dropout, with the same weights; it draws its own negatives from
the samples of all. Gradients are averaged over the processes as DistributedDataParallel does. Negatives are places in the order
rank 0's samples, rank 1's, ..
"""
import argparse
import copy
import json
import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import record
from lavis_model import build, randomize

LOSSES = ("loss", "loss_itc", "loss_itm", "loss_lm")
LOCAL = ("temp", "ln_vision.weight", "ln_vision.bias", "vision_proj.weight", "text_proj.weight", "query_tokens")


def prepared(rank, args, c):
    dist.init_process_group("gloo", init_method=f"file://{args.store}", rank=rank, world_size=args.world)
    model = build(c)
    randomize(model, torch.Generator().manual_seed(args.seed))
    own = copy.copy(args)
    own.seed = args.seed + 1000 * rank
    return record.Recorder(model, c, own)


def average(model, put):
    for name, p in model.named_parameters():
        if p.grad is not None:
            if name in LOCAL:
                put(name, p.grad.clone())
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


def stage1(rank, args, c, folder):
    r = prepared(rank, args, c)
    own = lambda what: f"{what}.rank{rank}."
    image, texts = r.images(args.batch), r.texts(args.batch, c["max_txt_len"])
    out, seen = record.forward(r, image, texts, None, r.args.seed)
    out.loss.backward()
    average(r.model, lambda name, g: r.put(own("grads_local") + name, g))
    tokens = r.model.tokenizer(texts, padding="max_length", max_length=c["max_txt_len"])
    for name, t in dict(image=image, **tokens, **{k: seen.pop(k) for k in ("neg_image_index", "neg_text_index")}).items():
        r.put(own("inputs") + name, t)
    for name, t in seen.items():
        if name.split(".")[0] not in ("vit", "lm_logits", "weights_t2i", "weights_i2t"):
            r.put(own("outputs") + name, t)
    for name in LOSSES:
        r.put(own("outputs") + name, out[name])
    if rank == 0:
        r.parameters("weights")
        for name, p in r.model.named_parameters():
            if p.grad is not None:
                r.put("grads." + name, p.grad)
    torch.save(r.tensors, os.path.join(folder, str(rank)))
    dist.barrier()


def train(rank, args, c, folder):
    r = prepared(rank, args, c)
    from lavis.common.optims import LinearWarmupCosineLRScheduler  # once `build` has put LAVIS's packages in place
    run = record.RUN
    if rank == 0:
        r.parameters("weights")
    batches = [(r.images(args.batch), r.texts(args.batch, c["max_txt_len"])) for _ in range(3)]
    trained = [(name, p) for name, p in r.model.named_parameters() if p.requires_grad]
    plain = lambda name, p: p.ndim < 2 or "bias" in name or "ln" in name or "bn" in name
    groups = [dict(params=[p for n, p in trained if not plain(n, p)], weight_decay=run["weight_decay"]), dict(params=[p for n, p in trained if plain(n, p)], weight_decay=0)]
    opt = torch.optim.AdamW(groups, lr=run["init_lr"], betas=tuple(run["betas"]), eps=run["eps"])
    schedule = LinearWarmupCosineLRScheduler(opt, max_epoch=run["max_epoch"], min_lr=run["min_lr"], init_lr=run["init_lr"],
                                             warmup_steps=run["warmup_steps"], warmup_start_lr=run["warmup_lr"])
    losses, lrs, images, texts = [], [], [], []
    for step in range(args.steps):
        schedule.step(cur_epoch=step // run["steps_per_epoch"], cur_step=step % run["steps_per_epoch"])
        out, seen = record.forward(r, *batches[step % 3], None, r.args.seed + step)
        out.loss.backward()
        average(r.model, lambda name, g: None)
        opt.step()
        opt.zero_grad()
        losses.append([float(out[k].detach()) for k in LOSSES])
        lrs.append(opt.param_groups[0]["lr"])
        images.append(seen["neg_image_index"])
        texts.append(seen["neg_text_index"])
    for k, (image, text) in enumerate(batches):
        tokens = r.model.tokenizer(text, padding="max_length", max_length=c["max_txt_len"])
        for name, t in dict(image=image, **tokens).items():
            r.put(f"inputs.rank{rank}.{k}.{name}", t)
    r.put(f"inputs.rank{rank}.neg_image_index", torch.stack(images))
    r.put(f"inputs.rank{rank}.neg_text_index", torch.stack(texts))
    r.put(f"outputs.rank{rank}.losses", torch.tensor(losses))
    if rank == 0:
        r.put("outputs.lr", torch.tensor(lrs, dtype=torch.float64))
        r.parameters("after", lambda n, p: p.requires_grad)
    torch.save(r.tensors, os.path.join(folder, str(rank)))
    dist.barrier()


def gathered(tensors, world):
    """What all processes hold together."""
    rank = lambda name: [tensors[f"outputs.rank{r}.{name}"] for r in range(world)]
    for name in ("image_feats", "text_feat"):
        tensors[f"outputs.world.{name}"] = torch.cat(rank(name))
    tensors["outputs.world.input_ids"] = torch.cat([tensors[f"inputs.rank{r}.input_ids"] for r in range(world)])
    for name in LOSSES:
        tensors[f"outputs.world.{name}"] = torch.stack(rank(name)).mean()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--world", type=int, default=2)
    ap.add_argument("--batch", type=int, default=2, help="samples of each process")
    ap.add_argument("--config", default="tiny")
    ap.add_argument("--set", nargs="*", default=[], metavar="KEY=NUMBER")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--steps", type=int, default=6, help="of train_world")
    ap.add_argument("--name", default="small")
    ap.add_argument("--out", default=".")
    args = ap.parse_args()
    args.checkpoint = args.vit = args.image = None
    args.run, args.dropout = "{}", 0.0
    _, c = record.configuration(args)
    from safetensors.torch import save_file
    for kind, run in (("stage1_world", stage1), ("train_world", train)):
        with tempfile.TemporaryDirectory() as folder:
            args.store = os.path.join(folder, "store")
            mp.spawn(run, (args, c, folder), args.world)
            tensors = {k: t for r in range(args.world) for k, t in torch.load(os.path.join(folder, str(r)), weights_only=True).items()}
        meta = dict(kind=kind, config=c, world=args.world, batch=args.batch, seed=args.seed)
        if kind == "stage1_world":
            gathered(tensors, args.world)
        else:
            tensors["outputs.losses"] = torch.stack([tensors[f"outputs.rank{r}.losses"] for r in range(args.world)]).mean(0)
            meta.update(run=record.RUN, loss_columns=LOSSES)
        path = os.path.join(args.out, f"{kind}-{args.name}.safetensors")
        save_file({k: t.contiguous() for k, t in tensors.items()}, path, {k: json.dumps(v) for k, v in meta.items()})
        print(f"{path}: {len(tensors)} tensors, {os.path.getsize(path) / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
