#!/usr/bin/env python3
"""Records how far LAVIS under torch.autocast is from itself in float32, for `qformer parity --dtype f16` and bf16 to be held against.

    python autocast.py [--draws N] cases/*.safetensors

(Packages: as record.py says.) For CASE.safetensors of kind vit, stage1, stage1_ids, train or features, as record.py wrote it, or of kind stage2,
stage2_train, stage2_generate or stage2_explain, as stage2.py wrote it, runs LAVIS again on the case's weights, inputs and negatives: in float32,
which must give what is recorded, and in both 16-bit types. Writes CASE.autocast.json: {"f16": {"outputs.x": relative L2 error, "grads.y": ...},
"bf16": {...}}. Of texts (`outputs.ids.K`) it is the error of the logits along the recorded ones. Left out: rows of padding and gradients whose true
value is 0 (of key biases, or where all captions are equal). With --draws N each error is the root mean square over N runs, of which all but the first have every
weight off by about a hundredth, in both precisions: what roundings come to by chance, in a loss above all, then counts for less.

As on a GPU: gradients are scaled by 1024 (less where that overflows) and unscaled, as GradScaler does; the image encoder is in f16 in both; a language
model's weights are in the 16-bit type themselves, as LAVIS loads them;
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
from stage2 import Second

KINDS = ["vit", "stage1", "stage1_ids", "train", "features"]
SECOND = ["stage2", "stage2_train", "stage2_generate", "stage2_explain"]
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
SCALE = 1024.0
TEXT_ROWS = ["outputs.text_hidden", "outputs.lm_hidden", "outputs.lm_logits"]


@contextlib.contextmanager
def as_on_a_gpu():
    """Of the functions that torch.autocast("cuda") computes in float32 those that LAVIS calls; torch.autocast("cpu") leaves them alone."""
    F = torch.nn.functional
    names = ["softmax", "log_softmax", "layer_norm", "normalize", "cross_entropy", "cosine_similarity"]
    more = [(torch.Tensor, "softmax"), (torch, "pow"), (torch, "log_softmax")]
    kept = [(at, n, getattr(at, n)) for at, n in [(F, n) for n in names] + more]

    def in_f32(function):
        wide = lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        return lambda *a, **k: function(*map(wide, a), **{n: wide(x) for n, x in k.items()})
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


def load(module, case, prefix, missing=()):
    """The case's weights under a prefix."""
    state = {n.removeprefix(f"weights.{prefix}"): t for n, t in case.items() if n.startswith(f"weights.{prefix}")}
    lacking, unknown = module.load_state_dict(state, strict=False)
    lacking = [n for n in lacking if n in dict(module.named_parameters()) and n not in missing]
    if unknown or lacking:
        raise ValueError(f"the weights of the case are others than LAVIS has, {(unknown + lacking)[0]} first")


def move(parameters, draw):
    """Every weight off by about a hundredth."""
    if draw > 0:
        g = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            for p in parameters:
                p *= 1 + 0.01 * torch.randn(p.shape, generator=g)


def encode_in_f16(model):
    encode = model.visual_encoder.forward
    model.visual_encoder.forward = lambda image: torch.autocast("cpu", torch.float16)(encode)(image)


def scaled_backward(y, grad, parameters):
    """As GradScaler: gradients of parameters as they are without a scale; returns the scale, which all others still have."""
    parameters = list(parameters)
    scale = SCALE
    while True:
        y.backward(scale * grad.to(y.dtype), retain_graph=True)
        grads = [p.grad for p in parameters if p.grad is not None]
        if all(g.isfinite().all() for g in grads):
            break
        for p in parameters:
            p.grad = None
        scale /= 2
        if scale < 1:
            raise ValueError("gradients overflow without any scale")
    for g in grads:
        g /= scale
    return scale


def recorded_results(tensors):
    return {n: t.double() for n, t in tensors.items() if n.startswith(("outputs.", "grads.", "after."))}


class ReplaySecond(Second):
    """Records a case of the second stage again with its own weights and inputs."""

    def __init__(self, case, meta, dtype=None, draw=0, best=None):
        special = meta.get("special") or {n: meta[n] for n in ("bos", "pad", "eos")}
        super().__init__(meta["config"], meta["llm"], {n: special[n] for n in ("bos", "pad", "eos")})
        self.case, self.meta, self.dtype = case, meta, dtype
        outside = (f"weights.{self.prefix}.", f"weights.{self.proj_name}.")
        load(self.model, {n: t for n, t in case.items() if not n.startswith(outside)}, "")
        load(self.proj, case, f"{self.proj_name}.")
        load(self.llm, case, f"{self.prefix}.")
        move([p for part in (self.model, self.proj, self.llm) for p in part.parameters()], draw)
        if dtype is not None:
            for p in self.llm.parameters():
                p.data = p.data.to(dtype)
        if dtype == torch.bfloat16:
            encode_in_f16(self.model)

    @contextlib.contextmanager
    def precision(self):
        if self.dtype is None:
            yield
            return
        with torch.autocast("cpu", self.dtype), as_on_a_gpu():
            yield

    def backward(self, y):
        if self.dtype is None:
            return super().backward(y)
        return scaled_backward(y, torch.ones_like(y), [p for _, p in self.trained()])

    def batch_of(self, prefix):
        return {n: self.case[f"inputs.{prefix}{n}"] for n in ("image", "input_ids", "attention_mask")}

    def results(self, kind):
        meta, case = self.meta, self.case
        if kind == "stage2":
            self.step(meta["prompt_length"], self.batch_of(""))
        elif kind == "stage2_explain":
            self.explain(**self.batch_of(""))
        elif kind == "stage2_train":
            batches = [self.batch_of(f"{k}.") for k in range(sum(n.startswith("inputs.") and n.endswith(".image") for n in case))]
            self.train(meta["prompt_length"], batches, meta["run"], len(case["outputs.losses"]))
        else:
            for name in sorted(n for n in case if n.startswith("outputs.ids.")):
                self.put(name, torch.cat([x.flatten() for x in self.along(name)]))
        return recorded_results(self.tensors)

    def along(self, name):
        """Logits along recorded texts, each of which begins with a bos that the model never reads and ends with its end, or where the row does."""
        eos = self.special["eos"]
        texts = [row[1:].tolist() for row in self.case[name]]
        texts = [t[:t.index(eos) + 1] if eos in t else t for t in texts]
        found = self.logits_along(*(self.case[f"inputs.{n}"] for n in ("image", "prompt_ids", "prompt_mask")), texts)
        run = self.meta["runs"][int(name.rsplit(".", 1)[1])]
        if self.dtype is None and run == dict(num_beams=1, max_length=run["max_length"], min_length=1):
            self.greedy = all(x.argmax(-1).tolist() == t for x, t in zip(found, texts))
        return found


class Replay(Recorder):
    """Records a case again with its own weights, inputs and negatives."""

    def __init__(self, case, meta, dtype=None, draw=0, best=None):
        self.case, self.dtype, self.draw = case, dtype, draw
        self.chosen = None
        self.best = None if best is None else iter(best.unsqueeze(0) if best.ndim == 2 else best)
        model = build(meta["config"])
        load(model, case, "", missing=dict(model.named_parameters()))
        move(model.parameters(), draw)
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
            encode_in_f16(model)

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
        scaled_backward(y, torch.ones_like(y) if grad is None else grad, self.model.parameters())

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
        return recorded_results(self.tensors)


def rows(name, x, case):
    """Without rows of padding."""
    mask = case.get("inputs.attention_mask")
    if name == "outputs.itm_hidden":  # [text, text, negative text], each behind the queries
        texts = torch.cat([mask, mask, mask[case["inputs.neg_text_index"]]])
        return x[torch.cat([torch.ones(len(x), x.shape[1] - mask.shape[1], dtype=mask.dtype), texts], 1) > 0]
    if name == "outputs.logits" or name.startswith("outputs.llm.layer."):  # of [queries, text]
        return x[torch.cat([torch.ones(len(x), x.shape[1] - mask.shape[1], dtype=mask.dtype), mask], 1) > 0]
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
    if kind not in KINDS + SECOND:
        return print(f"{path}: skipped, kind {kind} has nothing to compare in 16 bits")
    replay = ReplaySecond if kind in SECOND else Replay
    recorded = recorded_results(case)
    squares = {d: {} for d in DTYPES}
    for draw in range(draws):
        exact = replay(case, meta, draw=draw)
        f32, best = exact.results(kind), exact.tensors.get("inputs.best_query")
        if draw == 0 and kind == "stage2_generate":  # logits are compared, ids are recorded
            again = 0.0 if exact.greedy else math.inf
        elif draw == 0:
            again = max(errors(f32, recorded, case).values())
        if not again < 1e-5:
            sys.exit(f"autocast.py: {path}: expected LAVIS in float32 to give what is recorded, got a relative error of {again:.1e}")
        for dtype, torch_dtype in DTYPES.items():
            for name, e in errors(replay(case, meta, torch_dtype, draw, best).results(kind), f32, case).items():
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
    ap.add_argument("cases", nargs="+", metavar="CASE", help="files of record.py and stage2.py")
    ap.add_argument("--draws", type=int, default=1, metavar="N", help="runs to average over (default: 1)")
    args = ap.parse_args()
    if args.draws < 1:
        ap.error(f"--draws: expected at least 1, got {args.draws}")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # LAVIS asks for its rank
    for path in args.cases:
        autocast(path, args.draws)


if __name__ == "__main__":
    main()
