#!/usr/bin/env python3
"""Records what an installed LAVIS computes, for `qformer parity` to compare with.

    pip install torch torchvision
    pip install --no-deps salesforce-lavis==1.0.2 transformers==4.30.2 tokenizers==0.13.3 'huggingface-hub<0.20' timm==0.4.12 \\
        fairscale omegaconf antlr4-python3-runtime==4.9.3 iopath portalocker
    pip install safetensors numpy pandas pyyaml regex requests packaging tqdm filelock

Random weights of any size:
    python record.py stage1 generate --config tiny --set num_query=11 cross_freq=3 --batch 3 --seed 7 --out cases
Your own checkpoint (sizes are read from it; give the head counts if they are not the usual ones):
    python record.py stage1 features --checkpoint checkpoint_9.pth --vit eva_vit_g.pth --batch 4 --out cases
Then:
    qformer parity cases/*.safetensors

All in float32 on the CPU, without dropout unless --dropout gives masks. Beside each case that has something to compare in 16 bits lies
KIND-NAME.autocast.json: how far LAVIS is off under torch.autocast (autocast.py), which `qformer parity --dtype bf16` holds itself to. Each KIND-NAME.safetensors holds `weights.*`, `inputs.*`, `outputs.*` and, where the kind
has them, `grads.*` or `after.*` (parameters after the last optimizer step) under LAVIS's parameter names, and as JSON
metadata `kind`, `config` and what the kind needs. The model is LAVIS's own code (blip2_qformer.py, Qformer.py, eva_vit.py):
lavis_model.py only builds it in other sizes; this file feeds it and listens.
"""
import argparse
import contextlib
import functools
import inspect
import json
import os
import sys
import types

try:
    import torch
    import dropout
    from lavis_model import CLS, PAD, SEP, build, fill, load_state, randomize, sizes_of
except ModuleNotFoundError:
    torch = None  # --help, which says how to install it, works without

TINY = dict(image_size=28, patch_size=7, vit_width=48, vit_depth=3, vit_heads=4, vit_mlp=209, hidden=64, layers=4, heads=4, ffn=128,
            num_query=8, cross_freq=2, vocab=120, max_txt_len=12, embed_dim=24, max_pos=64)
HEADS = dict(image_size=56, patch_size=14, vit_width=176, vit_depth=1, vit_heads=2, vit_mlp=392, hidden=128, layers=2, heads=2, ffn=256,
             num_query=32, cross_freq=2, vocab=203, max_txt_len=32, embed_dim=64, max_pos=64)
RUNS = [dict(num_beams=1, max_length=12, min_length=1), dict(num_beams=3, max_length=16, min_length=6),
        dict(num_beams=5, max_length=18, min_length=8), dict(num_beams=3, max_length=16, min_length=4, repetition_penalty=1.5),
        dict(num_beams=4, max_length=14, min_length=2, length_penalty=2.0), dict(num_beams=4, max_length=14, min_length=2, length_penalty=-1.0),
        dict(num_beams=4, max_length=14, min_length=2, num_return_sequences=3)]
RUN = dict(init_lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, warmup_steps=8, weight_decay=0.05, max_epoch=4, steps_per_epoch=5,
           betas=[0.9, 0.999], eps=1e-8)


class Recorder:
    def __init__(self, model, c, args):
        self.model, self.c, self.args = model, c, args
        self.g = torch.Generator().manual_seed(args.seed + 1)
        self.tensors, self.meta, self.run = {}, {}, dict(RUN, **json.loads(args.run))
        self.plan = None  # of a dropout
        self.given = None  # an iterator over negatives to use instead of LAVIS's draws

    def put(self, name, value):
        self.tensors[name] = value.detach().clone().contiguous()

    def parameters(self, prefix, only=lambda n, p: True):
        for name, p in self.model.named_parameters():
            if only(name, p):
                self.put(f"{prefix}.{name}", p)

    def precision(self):
        """Within it everything is computed that has a gradient."""
        return contextlib.nullcontext()

    def backward(self, y, grad=None):
        y.backward(grad)

    def gradient(self, like):
        return torch.randn(like.shape, generator=self.g)

    def images(self, n):
        if self.args.image:
            return torch.stack([evaluation_picture(self.args.image[i % len(self.args.image)], self.c["image_size"]) for i in range(n)])
        images = torch.randn(n, 3, self.c["image_size"], self.c["image_size"], generator=self.g)
        return images[:1].repeat(n, 1, 1, 1) if "pictures" in self.args.equal else images

    def texts(self, n, longest):
        """n lists of ids; the first is as long as can be, the second as short."""
        def one(i):
            length = longest if i == 0 else 3 if i == 1 else int(torch.randint(3, longest + 1, (1,), generator=self.g))
            return [CLS] + torch.randint(5, self.c["vocab"] - 1, (length - 2,), generator=self.g).tolist() + [SEP]
        return [one(0)] * n if "captions" in self.args.equal else [one(i) for i in range(n)]

    def save(self, kind, path):
        from safetensors.torch import save_file
        meta = dict(self.meta, kind=kind, config=self.c)
        save_file(self.tensors, path, {k: json.dumps(v) for k, v in meta.items()})
        print(f"{path}: {len(self.tensors)} tensors, {os.path.getsize(path) / 1e6:.2f} MB")


def evaluation_picture(path, size):
    """LAVIS's blip_image_eval: bicubic to size x size, then its mean and standard deviation."""
    from PIL import Image
    import numpy
    x = numpy.asarray(Image.open(path).convert("RGB").resize((size, size), Image.BICUBIC), dtype=numpy.float32) / 255
    mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    return ((torch.from_numpy(x) - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1).contiguous()


def best_queries(seen):
    """Of every image and text, the query that answers best: the gradient of the contrastive loss goes through it."""
    return torch.einsum("iqe,je->ijq", seen["image_feats"].detach().double(), seen["text_feat"].detach().double()).argmax(-1)


def forward(r, image, texts, image_id=None, seed=0, negatives_of_texts=None):
    """The stage-1 forward with everything LAVIS computes on the way: {name: tensor}, and the outputs."""
    if r.plan and negatives_of_texts is None:
        # The masks of a pair are those of its texts: what is drawn must be known first. It does not depend on the masks of the pairs.
        _, drawn = forward(r, image, texts, image_id, seed, [0] * len(texts))
        r.given = iter(torch.cat([drawn["neg_image_index"], drawn["neg_text_index"]]).tolist())
        return forward(r, image, texts, image_id, seed, drawn["neg_text_index"].tolist())
    m, seen, negatives = r.model, {}, []
    torch.manual_seed(seed)
    bert = []
    hooks = [b.register_forward_hook(lambda _m, _i, o, k=k: seen.__setitem__(f"vit.block.{k}", o)) for k, b in enumerate(m.visual_encoder.blocks)]
    hooks += [m.ln_vision.register_forward_hook(lambda _m, _i, o: seen.setdefault("image_embeds", o)),
              m.Qformer.bert.register_forward_hook(lambda _m, _i, o: bert.append(o.last_hidden_state)),
              m.Qformer.cls.register_forward_hook(lambda _m, _i, o: seen.__setitem__("lm_logits", o))]
    with r.precision(), dropout.given(m, r.plan, [len(t) for t in texts], negatives_of_texts), listening(seen, negatives, image_id, inspect.getsource(type(m).forward), r.given):
        samples = {"image": image, "text_input": texts}
        out = m(samples if image_id is None else dict(samples, image_id=image_id))
    for h in hooks:
        h.remove()
    seen.update(zip(("query_hidden", "text_hidden", "itm_hidden", "lm_hidden"), bert))
    n = len(texts)
    seen.update(neg_image_index=torch.tensor(negatives[:n]), neg_text_index=torch.tensor(negatives[n:]))
    return out, seen


@contextlib.contextmanager
def listening(seen, negatives, image_id, source, given):
    """Notes features, similarities, logits and drawn negatives as forward computes them; given negatives replace the drawn.
    LAVIS 1.0.2 has no branch for image ids (later ones have): there it is put in where forward calls cross_entropy (soft
    targets) and softmax (same ids masked)."""
    F = torch.nn.functional
    plain = dict(normalize=F.normalize, cross_entropy=F.cross_entropy, softmax=F.softmax, multinomial=torch.multinomial)
    names = dict(normalize=["image_feats", "text_feat"], cross_entropy=["sim_i2t", "sim_t2i", "itm_logits"], softmax=["weights_t2i", "weights_i2t"])
    own_branch = image_id is None or "image_id" in source
    same = None if image_id is None else image_id.view(-1, 1) == image_id.view(1, -1)
    note = lambda what, x: seen.__setitem__(names[what].pop(0), x) if names[what] else None

    def normalize(x, *a, **k):
        y = plain["normalize"](x, *a, **k)
        note("normalize", y)
        return y

    def cross_entropy(x, target, *a, **k):
        first = len(names["cross_entropy"]) > 1
        note("cross_entropy", x)
        if own_branch or not first:
            return plain["cross_entropy"](x, target, *a, **k)
        soft = 0.9 * same / same.sum(1, keepdim=True) + 0.1 / len(same)
        return -(F.log_softmax(x, dim=1) * soft).sum(1).mean()

    def softmax(x, *a, **k):
        if x.ndim != 2 or x.requires_grad and torch.is_grad_enabled():
            return plain["softmax"](x, *a, **k)  # attention
        w = plain["softmax"](x if own_branch else x.masked_fill(same, -10000), *a, **k)
        note("softmax", w)
        return w.clone()

    def multinomial(w, k):
        if not own_branch:  # forward has added its floor of 1e-4, which the branch for ids does not have
            row = len(negatives)
            w = seen["weights_t2i" if row < len(same) else "weights_i2t"][row % len(same)]
        drawn = plain["multinomial"](w, k) if given is None else torch.tensor([next(given)])
        negatives.append(int(drawn))
        return drawn
    try:
        F.normalize, F.cross_entropy, F.softmax, torch.multinomial = normalize, cross_entropy, softmax, multinomial
        yield
    finally:
        F.normalize, F.cross_entropy, F.softmax, torch.multinomial = plain.values()


def record_vit(r):
    r.parameters("weights", lambda n, p: n.startswith(("visual_encoder.", "ln_vision.")))
    for p in r.model.visual_encoder.parameters():
        p.requires_grad = True
    image = r.images(r.args.batch)
    with r.precision():
        y = r.model.ln_vision(r.model.visual_encoder(image))
    grad = r.gradient(y)
    r.backward(y, grad)
    for name, p in r.model.named_parameters():
        if p.grad is not None:
            r.put(f"grads.{name}", p.grad)
    for name, t in (("inputs.image", image), ("inputs.grad_image_embeds", grad), ("outputs.image_embeds", y)):
        r.put(name, t)


def record_stage1(r, ids=False):
    r.parameters("weights")
    n = at_least(r, 2, "LAVIS draws each negative from the rest of the batch")
    image, texts = r.images(n), r.texts(n, r.c["max_txt_len"])
    image_id = torch.tensor([7 if i in (0, 2) and n > 2 else i for i in range(n)]) if ids else None
    if r.args.dropout:
        r.plan = dict(p=r.args.dropout, seed=r.args.seed, step=3)
        r.meta = dict(dropout=r.plan)
    out, seen = forward(r, image, texts, image_id, r.args.seed)
    r.backward(out.loss)
    tokens = r.model.tokenizer(texts, padding="max_length", max_length=r.c["max_txt_len"])
    inputs = dict(image=image, **tokens, best_query=best_queries(seen), **{k: seen.pop(k) for k in ("neg_image_index", "neg_text_index")}, **({"image_id": image_id} if ids else {}))
    weights = {k: seen.pop(k) for k in ("weights_t2i", "weights_i2t")}
    for name, t in inputs.items():
        r.put("inputs." + name, t)
    for name, t in (weights if ids else seen).items():
        r.put("outputs." + name, t)
    for name in ("loss", "loss_itc", "loss_itm", "loss_lm"):
        r.put("outputs." + name, out[name])
    for name, p in r.model.named_parameters():
        if p.grad is not None:
            r.put("grads." + name, p.grad)


def record_train(r):
    """LAVIS's runner: its parameter groups (runner_base.py), its schedule, no dropout."""
    from lavis.common.optims import LinearWarmupCosineLRScheduler
    run = r.run
    r.parameters("weights")
    n = at_least(r, 2, "LAVIS draws each negative from the rest of the batch")
    batches = [(r.images(n), r.texts(n, r.c["max_txt_len"])) for _ in range(3)]
    trained = [(name, p) for name, p in r.model.named_parameters() if p.requires_grad]
    plain = lambda name, p: p.ndim < 2 or "bias" in name or "ln" in name or "bn" in name
    groups = [dict(params=[p for n, p in trained if not plain(n, p)], weight_decay=run["weight_decay"]), dict(params=[p for n, p in trained if plain(n, p)], weight_decay=0)]
    opt = torch.optim.AdamW(groups, lr=run["init_lr"], weight_decay=run["weight_decay"], betas=tuple(run["betas"]), eps=run["eps"])
    schedule = LinearWarmupCosineLRScheduler(opt, max_epoch=run["max_epoch"], min_lr=run["min_lr"], init_lr=run["init_lr"],
                                             warmup_steps=run["warmup_steps"], warmup_start_lr=run["warmup_lr"])
    losses, lrs, images, texts, queries = [], [], [], [], []
    for step in range(r.args.steps):
        schedule.step(cur_epoch=step // run["steps_per_epoch"], cur_step=step % run["steps_per_epoch"])
        out, seen = forward(r, *batches[step % 3], None, r.args.seed + step)
        r.backward(out.loss)
        opt.step()
        opt.zero_grad()
        losses.append([float(out[k].detach()) for k in ("loss", "loss_itc", "loss_itm", "loss_lm")])
        lrs.append(opt.param_groups[0]["lr"])
        images.append(seen["neg_image_index"])
        texts.append(seen["neg_text_index"])
        queries.append(best_queries(seen))
    for k, (image, text) in enumerate(batches):
        tokens = r.model.tokenizer(text, padding="max_length", max_length=r.c["max_txt_len"])
        for name, t in dict(image=image, **tokens).items():
            r.put(f"inputs.{k}.{name}", t)
    r.put("inputs.neg_image_index", torch.stack(images))
    r.put("inputs.neg_text_index", torch.stack(texts))
    r.put("inputs.best_query", torch.stack(queries))
    r.put("outputs.losses", torch.tensor(losses))
    r.put("outputs.lr", torch.tensor(lrs, dtype=torch.float64))
    r.parameters("after", lambda n, p: p.requires_grad)
    r.meta = dict(run=run, loss_columns=["loss", "loss_itc", "loss_itm", "loss_lm"])


def record_generate(r):
    """The call of Blip2Qformer.generate, with every argument of transformers' own; that function fixes most of them."""
    m = r.model
    r.parameters("weights")
    image = r.images(r.args.batch)
    runs = json.loads(r.args.runs) if r.args.runs else RUNS
    with torch.no_grad():
        embeds = m.ln_vision(m.visual_encoder(image))
        given = dict(query_embeds=m.query_tokens.expand(len(image), -1, -1), encoder_hidden_states=embeds,
                     encoder_attention_mask=torch.ones(embeds.shape[:-1], dtype=torch.long))
        start = torch.full((len(image), 1), m.tokenizer.bos_token_id)
        for k, run in enumerate(runs):
            ids = m.Qformer.generate(input_ids=start, do_sample=False, eos_token_id=SEP, pad_token_id=PAD, **run, **given)
            r.put(f"outputs.ids.{k}", ids)
        ids = r.tensors["outputs.ids.0"]
        if len(ids) == len(image):
            mask = torch.ones(len(image), r.c["num_query"] + ids.shape[1], dtype=torch.long)
            r.put("outputs.teacher_forced_logits", m.Qformer(ids, attention_mask=mask, return_dict=True, is_decoder=True, **given).logits)
    r.put("inputs.image", image)
    r.put("outputs.image_embeds", embeds)
    r.meta = dict(runs=runs, bos=m.tokenizer.bos_token_id, eos=SEP, pad=PAD)


def record_features(r):
    m, n = r.model, r.args.batch
    r.parameters("weights")
    image, texts = r.images(n), r.texts(n + 1, min(r.c["max_pos"], r.c["max_txt_len"] + 3))
    r.put("inputs.image", image)
    pictures = m.extract_features({"image": image}, "image")
    r.put("outputs.image_embeds", pictures.image_embeds)
    r.put("outputs.image_embeds_proj", pictures.image_embeds_proj)
    _, tokens = m.forward_image(image)
    cosine, logit = torch.zeros(n, n + 1), torch.zeros(n, n + 1)
    for j, text in enumerate(texts):
        r.put(f"inputs.input_ids.{j}", torch.tensor(text))
        f = m.extract_features({"text_input": [text]}, "text")
        r.put(f"outputs.text_embeds.{j}", f.text_embeds)
        r.put(f"outputs.text_embeds_proj.{j}", f.text_embeds_proj)
        for i in range(n):
            both = m.extract_features({"image": image[i:i + 1], "text_input": [text]}, "multimodal").multimodal_embeds
            if i == 0:
                r.put(f"outputs.multimodal_embeds.0.{j}", both)
            # BLIP2-Japanese's score
            cosine[i, j] = ((torch.nn.functional.cosine_similarity(pictures.image_embeds[i], both[0], dim=-1) + 1) / 2).mean()
            with torch.no_grad():
                logit[i, j] = m.compute_itm(tokens[i:i + 1], torch.tensor([text]), torch.ones(1, len(text), dtype=torch.long))
    r.put("outputs.mean_cosine", cosine)
    r.put("outputs.itm_logit", logit)


def record_retrieval(r):
    n = at_least(r, 2, "there must be something to rank")
    k_test = min(r.args.k_test, n)
    image, texts = r.images(n), r.texts(2 * n, min(35, r.c["max_pos"]))

    class Loader(list):
        dataset = types.SimpleNamespace(text=texts, image=list(range(n)))
    r.parameters("weights")
    # LAVIS pads texts to 35; its model may have fewer positions than that here
    call = r.model.tokenizer.__call__
    r.model.tokenizer = lambda *a, **k: call(*a, **dict(k, max_length=min(35, r.c["max_pos"])))
    with torch.no_grad():
        i2t, t2i = r.model.compute_sim_matrix(Loader({"image": image[i:i + 2]} for i in range(0, n, 2)), types.SimpleNamespace(k_test=k_test))
        tokens = r.model.tokenizer(texts, padding="max_length")
    for name, t in (("inputs.image", image), ("inputs.input_ids", tokens.input_ids), ("inputs.attention_mask", tokens.attention_mask),
                    ("outputs.score_i2t", torch.from_numpy(i2t)), ("outputs.score_t2i", torch.from_numpy(t2i))):
        r.put(name, t)
    r.meta = dict(k_test=k_test)


def record_explain(r):
    """Attention of the queries to the image and the gradient of a number with respect to it, by LAVIS's own hooks
    (Qformer.py: save_attention, get_attention_map, get_attn_gradients): of every image with the text of its place the matching
    logit and the similarity, of the first the log-probability of each token of its caption."""
    m, n, F = r.model, r.args.batch, torch.nn.functional
    r.parameters("weights")
    image, texts = r.images(n), r.texts(n, r.c["max_txt_len"])
    with torch.no_grad():
        embeds = m.ln_vision(m.visual_encoder(image))
    cross = {k: layer.crossattention.self for k, layer in enumerate(m.Qformer.bert.encoder.layer) if layer.has_cross_attention}
    for attention in cross.values():
        attention.save_attention = True

    def note(name, value):
        m.zero_grad()
        for attention in cross.values():  # what does not reach the number has no gradient: LAVIS would keep the last one's
            attention.save_attn_gradients(torch.zeros_like(attention.get_attention_map()))
        value.backward()
        r.put(f"outputs.{name}.value", value.reshape(1))
        for k, attention in cross.items():
            r.put(f"outputs.{name}.attention.{k}", attention.get_attention_map()[0])
            r.put(f"outputs.{name}.gradient.{k}", attention.get_attn_gradients()[0])

    for i, text in enumerate(texts):
        ids = torch.tensor([text])
        given = dict(encoder_hidden_states=embeds[i:i + 1], encoder_attention_mask=torch.ones(1, embeds.shape[1], dtype=torch.long), return_dict=True)
        queries = m.query_tokens
        mask = torch.ones(1, queries.shape[1] + len(text), dtype=torch.long)
        both = m.Qformer.bert(ids, query_embeds=queries, attention_mask=mask, **given).last_hidden_state[:, :queries.shape[1]]
        note(f"{i}.match", m.itm_head(both).mean(1)[0, 1])
        with torch.no_grad():
            own = F.normalize(m.text_proj(m.Qformer.bert(ids, attention_mask=torch.ones_like(ids), return_dict=True).last_hidden_state[:, 0]), dim=-1)
        seen = m.Qformer.bert(query_embeds=queries, **given).last_hidden_state
        note(f"{i}.similarity", (F.normalize(m.vision_proj(seen), dim=-1)[0] @ own[0]).max())
        for t in range(1, len(text)) if i == 0 else ():
            past = m.Qformer.bert(query_embeds=queries, use_cache=True, **given).past_key_values
            read = torch.tensor([[m.tokenizer.bos_token_id] + text[1:]])
            logits = m.Qformer(read, attention_mask=mask, past_key_values=past, return_dict=True, is_decoder=True).logits
            note(f"{i}.token.{t}", F.log_softmax(logits[0, t - 1], dim=-1)[text[t]])
    tokens = m.tokenizer(texts, padding="max_length", max_length=r.c["max_txt_len"])
    for name, t in dict(image=image, **tokens).items():
        r.put("inputs." + name, t)


RECORD = {"vit": record_vit, "stage1": record_stage1, "stage1_ids": functools.partial(record_stage1, ids=True), "train": record_train,
          "generate": record_generate, "features": record_features, "retrieval": record_retrieval,
          "explain": record_explain}


def at_least(r, least, why):
    if r.args.batch < least:
        sys.exit(f"record.py: --batch: expected at least {least} for this kind ({why}), got {r.args.batch}")
    return r.args.batch


def configuration(args):
    named = dict(tiny=TINY, heads=HEADS)
    if args.checkpoint:
        state = load_state(args.checkpoint, args.vit)
        c = sizes_of(state)
    else:
        state, c = None, dict(named[args.config]) if args.config in named else json.load(open(args.config))
    for item in args.set:
        key, _, value = item.partition("=")
        if key not in TINY or not value.isdigit():
            sys.exit(f"record.py: --set {item}: expected KEY=NUMBER with one of {', '.join(TINY)}")
        c[key] = int(value)
    return state, c


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("kinds", nargs="+", choices=[*RECORD, "all"], metavar="KIND", help=f"{', '.join(RECORD)}, or all")
    ap.add_argument("--config", default="tiny", help="sizes for random weights: tiny, heads, or a JSON file with the keys of --set (default: tiny)")
    ap.add_argument("--set", nargs="*", default=[], metavar="KEY=NUMBER", help=f"change single sizes: {', '.join(TINY)}")
    ap.add_argument("--checkpoint", help="a LAVIS checkpoint (.pth) instead of random weights; its sizes are read from it")
    ap.add_argument("--vit", help="the image encoder's file, if the checkpoint is without it (eva_vit_g.pth)")
    ap.add_argument("--batch", type=int, default=3, help="images in a case (default: 3)")
    ap.add_argument("--seed", type=int, default=0, help="of weights, inputs and drawn negatives (default: 0)")
    ap.add_argument("--image", nargs="*", help="picture files to use as input instead of noise")
    ap.add_argument("--steps", type=int, default=20, help="optimizer steps of `train` (default: 20)")
    ap.add_argument("--run", default="{}", help="`train`: a JSON object of what is other than usual: init_lr, weight_decay, betas, eps, ...")
    ap.add_argument("--dropout", type=float, default=0.0, metavar="P", help="`stage1`: LAVIS is given the masks that qformer draws at this probability")
    ap.add_argument("--small", action="store_true", help="random weights that make activations small, so that every eps shows")
    ap.add_argument("--equal", nargs="*", default=[], choices=["captions", "pictures"], help="all of them equal the first: true gradients of 0")
    ap.add_argument("--zero-queries", action="store_true", help="random weights with query tokens of 0")
    ap.add_argument("--draws", type=int, default=4, metavar="N", help="runs under autocast to average over (default: 4; 0: none)")
    ap.add_argument("--runs", help="`generate`: a JSON list of arguments of transformers' generate instead of the built-in ones")
    ap.add_argument("--k-test", type=int, default=4, help="`retrieval`: candidates to re-rank (default: 4)")
    ap.add_argument("--name", help="the file is KIND-NAME.safetensors (default: the configuration's name, or `checkpoint`)")
    ap.add_argument("--out", default=".", help="folder for the files (default: here)")
    args = ap.parse_args()
    if torch is None:
        sys.exit("record.py: PyTorch is not installed: run the pip commands that `record.py --help` begins with")
    state, c = configuration(args)
    name = args.name or ("checkpoint" if args.checkpoint else os.path.splitext(os.path.basename(args.config))[0])
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # LAVIS asks for its rank
    os.makedirs(args.out, exist_ok=True)
    for kind in RECORD if "all" in args.kinds else args.kinds:
        model = build(c)
        randomize(model, torch.Generator().manual_seed(args.seed), args.small) if state is None else fill(model, state)
        if args.zero_queries:
            torch.nn.init.zeros_(model.query_tokens)
        recorder = Recorder(model, c, args)
        RECORD[kind](recorder)
        path = os.path.join(args.out, f"{kind}-{name}.safetensors")
        recorder.save(kind, path)
        import autocast  # which needs this file
        if args.draws > 0 and kind in autocast.KINDS:
            autocast.autocast(path, args.draws)


if __name__ == "__main__":
    main()
