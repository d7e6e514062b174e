#!/usr/bin/env python3
"""Records how far LAVIS under torch.autocast is from itself in float32, for `qformer parity --dtype f16` and bf16 to be held against.

    python autocast.py [--draws N] cases/*.safetensors

(Packages: as record.py says.) For CASE.safetensors of kind vit, stage1, stage1_ids, train or features, as record.py wrote it, runs LAVIS
again on the case's weights, inputs and negatives: in float32, which must give what is recorded, and in both 16-bit types. Writes
CASE.autocast.json: {"f16": {"outputs.x": relative L2 error, "grads.y": ...}, "bf16": {...}}. Left out: rows of padding and gradients whose
true value is 0 (of key biases, or where all captions are equal). With --draws N each error is the root mean square over N runs, of which all but the first have every
weight off by about a hundredth, in both precisions: what roundings come to by chance, in a loss above all, then counts for less.

As on a GPU: gradients are scaled by 1024 (less where that overflows) and unscaled, as GradScaler does; the image encoder is in f16 in both;
and what torch.autocast keeps in float32 on GPUs, but not on CPUs (softmax, losses, norms), is so here. Every operation that autocast
does in 16 bits, convolution too, the CPU has in both types; products of matrices are summed in float32 and rounded once, as on a GPU.
"""
import argparse
import contextlib
import json
import math
import os
import sys
import types

import torch
from lavis_model import build
from record import RECORD, Recorder

KINDS = ["vit", "stage1", "stage1_ids", "train", "features"]
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
SCALE = 1024.0
TEXT_ROWS = ["outputs.text_hidden", "outputs.lm_hidden", "outputs.lm_logits"]


@contextlib.contextmanager
def as_on_a_gpu():
    """Of the functions that torch.autocast("cuda") computes in float32 those that LAVIS calls; torch.autocast("cpu") leaves them alone."""
    F = torch.nn.functional
    names = ["softmax", "log_softmax", "layer_norm", "normalize", "cross_entropy", "cosine_similarity"]
    kept = [(at, n, getattr(at, n)) for at, n in [(F, n) for n in names] + [(torch.Tensor, "softmax")]]

    def in_f32(function):
        return lambda x, *a, **k: function(x.float(), *a, **k)
    try:
        for at, name, function in kept:
            setattr(at, name, in_f32(function))
        yield
    finally:
        for at, name, function in kept:
            setattr(at, name, function)


@contextlib.contextmanager
def choosing(best):
    """The query that answers a caption best is given, as negatives are: in 16 bits a near tie would send the gradient elsewhere."""
    plain, both = torch.Tensor.max, [best.transpose(0, 1), best]

    def chosen(x, *a, **k):
        if x.ndim != 3 or a != (-1,) or not both:
            return plain(x, *a, **k)
        index = both.pop()
        return x.gather(-1, index.unsqueeze(-1)).squeeze(-1), index
    try:
        torch.Tensor.max = chosen
        yield
    finally:
        torch.Tensor.max = plain


class Replay(Recorder):
    """Records a case again with its own weights, inputs and negatives."""

    def __init__(self, case, meta, dtype=None, draw=0, best=None):
        self.case, self.dtype, self.draw = case, dtype, draw
        self.chosen = None
        self.best = None if best is None else iter(best.unsqueeze(0) if best.ndim == 2 else best)
        model = build(meta["config"])
        _, unknown = model.load_state_dict({n.removeprefix("weights."): t for n, t in case.items() if n.startswith("weights.")}, strict=False)
        if unknown:
            raise ValueError(f"the case has weights that LAVIS has not, {unknown[0]} first")
        if draw > 0:
            g = torch.Generator().manual_seed(draw)
            with torch.no_grad():
                for p in model.parameters():
                    p *= 1 + 0.01 * torch.randn(p.shape, generator=g)
        self.pictures = [case[n] for n in sorted(case) if n.startswith("inputs.") and n.endswith("image")]
        steps = len(case["outputs.losses"]) if "outputs.losses" in case else 0
        super().__init__(model, meta["config"], types.SimpleNamespace(batch=len(self.pictures[0]), steps=steps, seed=0, run="{}", dropout=0.0))
        self.run = meta.get("run")
        self.dropout = meta.get("dropout")
        self.captions = [self.ids(n) for n in sorted(case, key=lambda n: (len(n), n)) if n.startswith("inputs.") and "input_ids" in n]
        if "inputs.neg_image_index" in case:  # of a step first the images, then the texts
            pair = torch.stack([case["inputs.neg_image_index"], case["inputs.neg_text_index"]], -2)
            self.given = iter(pair.flatten().tolist())
        if dtype == torch.bfloat16:
            encode = model.visual_encoder.forward
            model.visual_encoder.forward = lambda image: torch.autocast("cpu", torch.float16)(encode)(image)

    def ids(self, name):
        """The texts behind a tensor of ids: rows of a padded batch, or one text."""
        ids = self.case[name]
        if ids.ndim == 1:
            return [ids.tolist()]
        return [row[mask > 0].tolist() for row, mask in zip(ids, self.case[name.replace("input_ids", "attention_mask")])]

    def images(self, n):
        return self.pictures.pop(0)

    def texts(self, n, longest):
        texts = []
        while len(texts) < n:
            texts += self.captions.pop(0)
        return texts

    def gradient(self, like):
        return self.case["inputs.grad_image_embeds"]

    @contextlib.contextmanager
    def precision(self):
        if self.dtype is None:
            yield
            return
        if self.best is not None and (self.plan is None or self.chosen is None):
            self.chosen = next(self.best)
        best = self.chosen
        with torch.autocast("cpu", self.dtype), as_on_a_gpu(), contextlib.nullcontext() if best is None else choosing(best):
            yield

    def backward(self, y, grad=None):
        if self.dtype is None:
            return super().backward(y, grad)
        grad, scale = torch.ones_like(y) if grad is None else grad, SCALE
        while True:
            y.backward(scale * grad.to(y.dtype), retain_graph=True)
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            if all(g.isfinite().all() for g in grads):
                break
            self.model.zero_grad()
            scale /= 2
            if scale < 1:
                raise ValueError("gradients overflow without any scale")
        for g in grads:
            g /= scale

    def results(self, kind):
        # features has no backward: all of it is within
        with self.precision() if kind == "features" else contextlib.nullcontext():
            self.args.dropout, self.args.seed = (self.dropout["p"], self.dropout["seed"]) if self.dropout else (0.0, 0)
            RECORD[kind](self)
        for name, given in self.case.items():
            if name == "inputs.best_query":
                continue  # it follows from the precision
            if name.startswith(("inputs.",) if self.draw else ("inputs.", "weights.")) and not torch.equal(self.tensors[name], given):
                raise ValueError(f"{name} was not replayed")
        return {n: t.double() for n, t in self.tensors.items() if n.startswith(("outputs.", "grads.", "after."))}


def rows(name, x, case):
    """Without rows of padding."""
    mask = case.get("inputs.attention_mask")
    if name == "outputs.itm_hidden":  # [text, text, negative text], each behind the queries
        texts = torch.cat([mask, mask, mask[case["inputs.neg_text_index"]]])
        return x[torch.cat([torch.ones(len(x), x.shape[1] - mask.shape[1], dtype=mask.dtype), texts], 1) > 0]
    return x[mask > 0] if name in TEXT_ROWS else x


def nothing(theirs):
    """Gradients whose true value is 0, by the rule of `qformer parity`: none of their numbers exceeds 1e-6 of the size of the gradients."""
    largest = {n: float(t.abs().max()) for n, t in theirs.items() if n.startswith("grads.")}
    ordered = sorted(largest.values())
    return {n for n, x in largest.items() if x <= 1e-6 * ordered[len(ordered) * 9 // 10]}


def errors(ours, theirs, case):
    if ours.keys() != theirs.keys():
        raise ValueError(f"recorded and computed differ in {sorted(ours.keys() ^ theirs.keys())}")
    found, zero = {}, nothing(theirs)
    for name in theirs:
        if name.endswith("attention.self.key.bias") or name in zero:
            continue
        a, b = rows(name, ours[name], case), rows(name, theirs[name], case)
        found[name] = float((a - b).norm() / b.norm())
        if name == "outputs.losses":
            found[name + ", worst of a step (relative)"] = float(((a - b) / b).abs().max())
    return found


def autocast(path, draws):
    from safetensors import safe_open
    with safe_open(path, "pt") as f:
        case, meta = {n: f.get_tensor(n) for n in f.keys()}, {k: json.loads(v) for k, v in f.metadata().items()}
    kind = meta["kind"]
    if kind not in KINDS:
        return print(f"{path}: skipped, kind {kind} has nothing to compare in 16 bits")
    recorded = {n: t.double() for n, t in case.items() if n.startswith(("outputs.", "grads.", "after."))}
    squares = {d: {} for d in DTYPES}
    for draw in range(draws):
        exact = Replay(case, meta, draw=draw)
        f32, best = exact.results(kind), exact.tensors.get("inputs.best_query")
        if draw == 0:
            again = max(errors(f32, recorded, case).values())
        if not again < 1e-5:
            sys.exit(f"autocast.py: {path}: expected LAVIS in float32 to give what is recorded, got a relative error of {again:.1e}")
        for dtype, torch_dtype in DTYPES.items():
            for name, e in errors(Replay(case, meta, torch_dtype, draw, best).results(kind), f32, case).items():
                squares[dtype].setdefault(name, []).append(e * e)
                if not math.isfinite(e):
                    sys.exit(f"autocast.py: {path}: expected finite numbers in {dtype}, got others in {name}")
    found = {d: {n: float(f"{math.sqrt(sum(s) / len(s)):.2e}") for n, s in of.items()} for d, of in squares.items()}
    out = os.path.splitext(path)[0] + ".autocast.json"
    with open(out, "w") as f:
        f.write(json.dumps(found, indent=1) + "\n")
    worst = ", ".join(f"{d} {max(e.values()):.1e}" for d, e in found.items())
    print(f"{out}: {len(recorded)} tensors; in float32 within {again:.0e} of the recorded; largest error {worst}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("cases", nargs="+", metavar="CASE", help="files of record.py")
    ap.add_argument("--draws", type=int, default=1, metavar="N", help="runs to average over (default: 1)")
    args = ap.parse_args()
    if args.draws < 1:
        ap.error(f"--draws: expected at least 1, got {args.draws}")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # LAVIS asks for its rank
    for path in args.cases:
        autocast(path, args.draws)


if __name__ == "__main__":
    main()
