#!/usr/bin/env python3
"""The rival on the CPU: LAVIS's arithmetic in PyTorch (`torch_stage1.py`), timed as `qformer bench` times itself.

    python benches/peer_cpu.py PEERS step    --config base --batch 8 [--threads 2] [--steps 5] [--text 16] [--cached]
    python benches/peer_cpu.py PEERS caption --config base --batch 1 [--beams 3]

PEERS is the folder that holds torch_stage1.py. `step` is its training step in mode `lavis` (f32, dropout 0.1, AdamW, padded text, keys and
values projected for every pass), with --cached from image tokens that are given; `caption` is its uncached beam search, as LAVIS decodes. One JSON line: seconds (median), processor
seconds (mean), samples per second, peak memory of the process.
"""
import argparse
import json
import os
import resource
import statistics
import sys
import time


def measure(run, steps):
    run()
    seconds, before = [], time.process_time()
    for _ in range(steps):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), (time.process_time() - before) / steps


def training_step(peer, c, a):
    m = peer.Stage1(c).train()
    m.vit.eval()
    for p in m.vit.parameters():
        p.requires_grad = False
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.05)
    g = torch.Generator().manual_seed(1)
    n = c["max_txt_len"]
    ids = torch.zeros(a.batch, n, dtype=torch.long)
    for i in range(a.batch):
        k = int(torch.randint(max(3, a.text - 6), min(n, a.text + 6) + 1, (1,), generator=g))
        ids[i, :k] = torch.randint(5, c["vocab"] - 1, (k,), generator=g)
        ids[i, 0], ids[i, k - 1] = 2, 3
    mask, image = (ids != 0).long(), torch.randn(a.batch, 3, c["image_size"], c["image_size"])
    cached = torch.randn(a.batch, (c["image_size"] // c["patch_size"]) ** 2 + 1, c["vit_width"]) if a.cached else None

    def draw(t2i, i2t):  # a negative at a time, as LAVIS draws them
        weights = [(x.softmax(1) + 1e-4).fill_diagonal_(0) for x in (t2i, i2t)]
        return [torch.tensor([torch.multinomial(row, 1).item() for row in w]) for w in weights]

    def run():
        m(image, ids, mask, c["vocab"] - 1, draw, cached)[0].backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
    return run


def captioning(peer, c, a):
    m = peer.Stage1(c).eval()
    image = torch.randn(a.batch, 3, c["image_size"], c["image_size"])
    rows, nq = a.batch * a.beams, c["num_query"]

    @torch.no_grad()
    def run():
        tokens = m.tokens(image).repeat_interleave(a.beams, 0)
        ids = torch.full((rows, 1), c["vocab"] - 1)
        for _ in range(a.text):
            n = ids.shape[1]
            mask = torch.zeros(1, 1, nq + n, nq + n)
            mask[..., nq:, nq:] = torch.full((n, n), -10000.0).triu(1)
            mask[..., :nq, nq:] = -10000.0
            h, _ = m.bert(ids, m.query_tokens.expand(rows, -1, -1), mask, tokens)
            scores = torch.log_softmax(m.lm_logits(h[:, -1]), -1)
            ids = torch.cat([ids, scores.topk(2 * a.beams).indices[:, :1]], 1)
    return run


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("peers", help="folder with torch_stage1.py")
    ap.add_argument("what", choices=["step", "caption"])
    ap.add_argument("--config", choices=["heads", "base", "full"], default="base")
    for name, value in (("batch", 8), ("text", 16), ("beams", 3), ("threads", os.cpu_count()), ("steps", 5)):
        ap.add_argument(f"--{name}", type=int, default=value)
    ap.add_argument("--cached", action="store_true")
    a = ap.parse_args()
    sys.path.insert(0, a.peers)
    global torch
    import torch
    import torch_stage1 as peer
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    c = getattr(peer, a.config.upper())
    run = (training_step if a.what == "step" else captioning)(peer, c, a)
    seconds, processor = measure(run, a.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(what=a.what, cached=a.cached, config=a.config, batch=a.batch, text=a.text, threads=a.threads, steps=a.steps, seconds=seconds,
                          processor_seconds=processor, samples_per_s=a.batch / seconds, peak_bytes=peak, torch=torch.__version__)))


if __name__ == "__main__":
    main()
