#!/usr/bin/env python3
"""Records what PyTorch makes of its own test samples, for tests/cases/samples.rs to compare with: samples.safetensors.

    pip install torch expecttest safetensors numpy transformers==4.30.2
    python tests/samples/record.py

Of every operation that the model has, the inputs that PyTorch's OpInfo database tests it with (those with an option that we lack are left
out and counted), layers of transformers' BLIP-2 with the sizes of its own tests, and in float64 what comes out and the gradients for a random dy. Of AdamW: its OptimizerInfo settings, and settings
drawn at random, five steps each. Metadata `samples`: a JSON list of {op, options, tensors of ours by their number}.
"""
import json
import os

import torch
from safetensors.torch import save_file
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_optimizers import optim_db

F = torch.nn.functional
HERE = os.path.dirname(os.path.abspath(__file__))
SETTINGS = 200


class Samples:
    def __init__(self):
        self.list, self.tensors, self.left_out = [], {}, {}
        self.g = torch.Generator().manual_seed(1)

    def put(self, op, inputs, f, **options):
        """inputs: leaves that get gradients; f: the function of them."""
        leaves = [t.detach().double().clone().requires_grad_() for t in inputs]
        y = f(*leaves)
        dy = torch.randn(y.shape, generator=self.g, dtype=torch.float64)
        grads = torch.autograd.grad(y, leaves, dy, allow_unused=True)
        k = len(self.list)
        named = {f"{k}.x{i}": t for i, t in enumerate(leaves)} | {f"{k}.y": y, f"{k}.dy": dy}
        named |= {f"{k}.dx{i}": g for i, g in enumerate(grads) if g is not None}
        self.tensors |= {n: t.detach().contiguous() for n, t in named.items()}
        self.list.append(dict(op=op, inputs=len(leaves), **options))

    def skip(self, op, why):
        self.left_out[f"{op}: {why}"] = self.left_out.get(f"{op}: {why}", 0) + 1


def linear(s, x, w, b=None):
    if x.ndim < 1 or w.ndim != 2:
        return s.skip("linear", "a vector of weights")
    x = x.reshape(-1, x.shape[-1])
    s.put("linear", [x, w] + ([b] if b is not None else []), lambda x, w, b=None: F.linear(x, w, b))


def layer_norm(s, x, shape, weight=None, bias=None, eps=1e-5):
    c = int(torch.tensor(shape).prod())
    if eps < 0:
        return s.skip("layer_norm", "a negative eps")
    if x.numel() == 0:
        return s.skip("layer_norm", "no rows")
    x = x.reshape(-1, c)
    w = torch.ones(c) if weight is None else weight.reshape(c)
    b = torch.zeros(c) if bias is None else bias.reshape(c)
    s.put("layer_norm", [x, w, b], lambda x, w, b: F.layer_norm(x, (c,), w, b, eps), eps=eps)


def gelu(s, x, approximate="none"):
    if approximate != "none":
        return s.skip("gelu", "the tanh form")
    s.put("gelu", [x.reshape(-1)], F.gelu)


def attention(s, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if attn_mask is not None or dropout_p or enable_gqa or v.shape[-1] != q.shape[-1] or k.shape[:-2] != q.shape[:-2] or v.shape[:-1] != k.shape[:-1]:
        return s.skip("attention", "a mask of numbers, dropout, shared heads or batches, other widths")
    q, k, v = (t.reshape(1, *t.shape) if t.ndim == 3 else t for t in (q, k, v))
    (b, h, n, d), m = q.shape, k.shape[2]
    if is_causal and m < n:
        return s.skip("attention", "causal with fewer keys than rows")
    packed = lambda t: t.permute(0, 2, 1, 3).reshape(-1, h * d)
    apart = lambda t, rows: t.reshape(b, rows, h, d).permute(0, 2, 1, 3)
    f = lambda q, k, v: packed(F.scaled_dot_product_attention(apart(q, n), apart(k, m), apart(v, m), is_causal=is_causal, scale=scale))
    s.put("attention", [packed(t) for t in (q, k, v)], f, batch=b, heads=h, rows=n, keys=m, causal=is_causal, scale=scale or d**-0.5)


def cross_entropy(s, x, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, **_):
    if weight is not None or reduction != "mean":
        return s.skip("cross_entropy", "class weights or another reduction")
    rows = x.reshape(*x.shape[:2], -1) if x.ndim > 1 else x.reshape(1, -1, 1)
    places = rows.shape[2]
    rows = rows.permute(0, 2, 1).reshape(-1, rows.shape[1])
    if target.is_floating_point():
        if places > 1 or label_smoothing:
            return s.skip("cross_entropy", "soft targets of pictures, or smoothed")
        soft = target.reshape(rows.shape).double()
        s.put("cross_entropy", [rows], lambda x: F.cross_entropy(x, soft), soft=soft.flatten().tolist())
    else:
        t = target.reshape(-1)
        counted = t[t != ignore_index]
        if len(counted) == 0 or (counted < 0).any() or (counted >= rows.shape[1]).any():
            return s.skip("cross_entropy", "no class at all")
        f = lambda x: F.cross_entropy(x, t, ignore_index=ignore_index, label_smoothing=label_smoothing)
        s.put("cross_entropy", [rows], f, classes=[None if c == ignore_index else c for c in t.tolist()], smoothing=label_smoothing)


def embedding(s, ids, table, padding_idx=None, **options):
    if any(options.get(k) for k in ("max_norm", "scale_grad_by_freq", "sparse")):
        return s.skip("embedding", "max_norm, gradients by frequency, sparse")
    ids, padding = ids.reshape(-1), None if padding_idx is None else padding_idx % len(table)
    s.put("embedding", [table], lambda t: F.embedding(ids, t, padding), ids=ids.tolist(), padding=padding)


OPS = {"linear": linear, "layer_norm": layer_norm, "gelu": gelu, "scaled_dot_product_attention": attention, "cross_entropy": cross_entropy, "embedding": embedding}


def adamw(s, shape, lr, betas, eps, weight_decay):
    p = torch.nn.Parameter(torch.randn(shape, generator=s.g, dtype=torch.float64))
    opt, k, grads = torch.optim.AdamW([p], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), len(s.list), []
    s.tensors[f"{k}.x0"] = p.detach().clone()
    for _ in range(5):
        p.grad = torch.randn(shape, generator=s.g, dtype=torch.float64) * 10 ** float(torch.randint(-6, 2, (1,), generator=s.g))
        grads.append(p.grad.clone())
        opt.step()
    s.tensors |= {f"{k}.dy": torch.stack(grads), f"{k}.y": p.detach().clone()}
    s.list.append(dict(op="adamw", inputs=1, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))


PARTS = [f"{a}.{p}" for a in ("attention", "crossattention") for p in ("attention.query", "attention.key", "attention.value", "output.dense", "output.LayerNorm")]


def qformer_layer(s, rows=7, image_rows=17, batch=3):
    """A layer of transformers' Blip2QFormerModel with the sizes of its tests (Blip2QFormerModelTester): hidden 32, 4 heads, 37, 7 rows."""
    from transformers import Blip2QFormerConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerLayer
    config = Blip2QFormerConfig(hidden_size=32, num_attention_heads=4, intermediate_size=37, encoder_hidden_size=32, cross_attention_frequency=1)
    layer = Blip2QFormerLayer(config, 0).double().eval()
    names = [f"{p}.{x}" for p in PARTS + ["intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"] for x in ("weight", "bias")]
    shapes = {n: p.shape for n, p in layer.named_parameters()}
    weights = [torch.randn(shapes[n], generator=s.g) * (0.1 if n.endswith("bias") else 0.3) + ("LayerNorm.weight" in n) for n in names]

    def f(x, image, *w):
        x, image = x.reshape(batch, rows, 32), image.reshape(batch, image_rows, 32)
        mask = torch.zeros(batch, 1, 1, rows), torch.zeros(batch, 1, 1, image_rows)
        given = dict(attention_mask=mask[0], encoder_hidden_states=image, encoder_attention_mask=mask[1], query_length=rows)
        return torch.func.functional_call(layer, dict(zip(names, w)), (x,), given)[0].reshape(-1, 32)
    put = torch.randn(batch * rows, 32, generator=s.g), torch.randn(batch * image_rows, 32, generator=s.g)
    s.put("qformer_layer", [*put, *weights], f, batch=batch, heads=4, rows=rows, keys=image_rows, eps=config.layer_norm_eps)


def encoder_layer(s, batch=2):
    """A layer of its image encoder with the sizes of its tests (Blip2VisionModelTester): hidden 32, 4 heads, 37; pictures of 10 for 30."""
    from transformers import Blip2VisionConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2EncoderLayer
    config = Blip2VisionConfig(hidden_size=32, num_attention_heads=4, intermediate_size=37, image_size=10, patch_size=2)
    layer, rows = Blip2EncoderLayer(config).double().eval(), (config.image_size // config.patch_size) ** 2 + 1
    parts = ["layer_norm1", "self_attn.qkv", "self_attn.projection", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    names = [f"{p}.{x}" for p in parts for x in ("weight", "bias")]
    shapes = {n: p.shape for n, p in layer.named_parameters()} | {"self_attn.qkv.bias": (96,)}
    weights = [torch.randn(shapes[n], generator=s.g) * (0.1 if n.endswith("bias") else 0.3) + ("norm" in n and n.endswith("weight")) for n in names]
    f = lambda x, *w: torch.func.functional_call(layer, dict(zip(names, w)), (x.reshape(batch, rows, 32), None))[0].reshape(-1, 32)
    s.put("encoder_layer", [torch.randn(batch * rows, 32, generator=s.g), *weights], f, batch=batch, heads=4, rows=rows, keys=rows, eps=layer.layer_norm1.eps)


def main():
    s = Samples()
    torch.manual_seed(0)
    for op in op_db:
        name = op.name.removeprefix("nn.functional.")
        if op.name.startswith("nn.functional.") and name in OPS and op.variant_test_name == "":
            for x in op.sample_inputs("cpu", torch.float32, requires_grad=True):
                if name == "embedding":
                    OPS[name](s, x.args[0], x.input, *x.args[1:], **x.kwargs)
                else:
                    OPS[name](s, x.input, *x.args, **x.kwargs)
    for info in optim_db:
        for setting in info.optim_inputs_func(device="cpu") if info.optim_cls is torch.optim.AdamW else []:
            options = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2) | setting.kwargs
            if set(options) > {"lr", "betas", "eps", "weight_decay"} or torch.is_tensor(options["lr"]):
                s.skip("adamw", "maximize, amsgrad, tensors as settings")
            else:
                adamw(s, (2, 3), **options)
    draw = lambda low, high: float(torch.rand(1, generator=s.g)) * (high - low) + low
    for _ in range(SETTINGS):
        adamw(s, (3, 2), lr=10 ** draw(-5, -1), betas=(draw(0, 0.99), draw(0.5, 0.9999)), eps=10 ** draw(-10, -1), weight_decay=draw(0, 0.9))
    for _ in range(3):
        qformer_layer(s)
        encoder_layer(s)
    path = os.path.join(HERE, "samples.safetensors")
    save_file(s.tensors, path, {"samples": json.dumps(s.list), "torch": torch.__version__})
    counts = {op: sum(x["op"] == op for x in s.list) for op in {x["op"] for x in s.list}}
    print(f"{path}: {counts}, {os.path.getsize(path) / 1e6:.2f} MB; left out: {s.left_out}")


if __name__ == "__main__":
    main()
