#!/usr/bin/env python3
"""Records stage 2: LAVIS's image encoder and Q-Former, a language model of transformers, wired as LAVIS's Blip2OPT.forward wires them.

    python stage2.py --out .            (what `record.py --help` begins with must be installed)
    qformer parity stage2-opt-small.safetensors ...

Small random models in float32, without dropout. Every KIND-FAMILY-small.safetensors holds `weights.*`, `inputs.*`, `outputs.*`, for the kind
`stage2` `grads.*` and for `stage2_train` `after.*` of every trained tensor; as JSON metadata `config`, `llm` (the keys of config.json), `prompt_length`,
`special`. autocast.py runs the same in 16 bits.
"""
import argparse
import contextlib
import json
import os

import torch

from lavis_model import build, randomize

SIZES = dict(image_size=14, patch_size=7, vit_width=16, vit_depth=1, vit_heads=2, vit_mlp=24, hidden=24, layers=2, heads=2, ffn=32, num_query=5,
             cross_freq=2, vocab=40, max_txt_len=10, embed_dim=8, max_pos=16)
FAMILIES = {
    "opt": dict(model_type="opt", hidden_size=24, num_hidden_layers=2, num_attention_heads=3, ffn_dim=40, vocab_size=61, max_position_embeddings=32,
                activation_function="relu", do_layer_norm_before=True, word_embed_proj_dim=24),
    "opt_post": dict(model_type="opt", hidden_size=24, num_hidden_layers=2, num_attention_heads=3, ffn_dim=40, vocab_size=61,
                     max_position_embeddings=32, activation_function="relu", do_layer_norm_before=False, word_embed_proj_dim=16),
    "gpt_neox": dict(model_type="gpt_neox", hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, vocab_size=61,
                     max_position_embeddings=32, hidden_act="gelu_new", rotary_pct=0.5, rotary_emb_base=10000, layer_norm_eps=0.01,
                     use_parallel_residual=True, tie_word_embeddings=False),
    "llama": dict(model_type="llama", hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=61,
                  max_position_embeddings=32, hidden_act="silu", rms_norm_eps=0.02, tie_word_embeddings=False),
}
RUN = dict(init_lr=1e-3, min_lr=1e-5, warmup_lr=1e-5, warmup_steps=4, weight_decay=0.5, max_epoch=3, steps_per_epoch=4, betas=[0.9, 0.999], eps=1e-8)
STEPS = 10
SPECIAL = {"opt": dict(bos=2, pad=1, eos=7), "opt_post": dict(bos=2, pad=1, eos=7)}
RUNS = [dict(num_beams=1, max_length=9, min_length=1), dict(num_beams=3, max_length=10, min_length=4),
        dict(num_beams=4, max_length=9, min_length=1, length_penalty=-1.0, num_return_sequences=2),
        dict(num_beams=2, max_length=9, min_length=1, repetition_penalty=1.6)]


def language_model(keys, special):
    import transformers
    keys = dict(keys)
    kind = {"opt": "OPT", "gpt_neox": "GPTNeoX", "llama": "Llama"}[keys.pop("model_type")]
    ids = {f"{name}_token_id": id for name, id in special.items()}
    more = dict(dropout=0.0, attention_dropout=0.0) if kind == "OPT" else {}
    model = getattr(transformers, kind + "ForCausalLM")(getattr(transformers, kind + "Config")(**keys, **ids, **more)).eval()
    for p in model.parameters():
        p.requires_grad = False
    return model


def randomize_llm(model, g):
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            norm = "norm" in name
            p.copy_(0.1 * r + (1 if norm and name.endswith("weight") else 0) if p.ndim < 2 else r * (0.6 if "embed" in name else p.shape[1] ** -0.5))


def only_queries(model):
    """As Blip2OPT.__init__ leaves the Q-Former."""
    model.Qformer.cls = None
    model.Qformer.bert.embeddings.word_embeddings = model.Qformer.bert.embeddings.position_embeddings = None
    for layer in model.Qformer.bert.encoder.layer:
        layer.output = layer.intermediate = None
    del model.vision_proj, model.text_proj, model.itm_head, model.temp


class Second:
    def __init__(self, c, keys, special):
        """The parameters are as the constructors leave them."""
        self.c, self.keys, self.special = c, keys, special
        self.model = build(c)
        only_queries(self.model)
        self.llm = language_model(keys, special)
        self.proj = torch.nn.Linear(c["hidden"], self.llm.get_input_embeddings().weight.shape[1])
        self.prefix, self.proj_name = ("opt_model", "opt_proj") if keys["model_type"] == "opt" else ("llm_model", "llm_proj")
        self.tensors = {}

    @classmethod
    def random(cls, family, seed):
        special = SPECIAL.get(family, dict(bos=1, pad=0, eos=2))
        torch.manual_seed(seed)  # for the projection, which begins as torch makes it
        new = cls(SIZES, FAMILIES[family], special)
        new.g = torch.Generator().manual_seed(seed)
        randomize(new.model, new.g)
        randomize_llm(new.llm, new.g)
        return new

    def precision(self):
        """Within it everything is computed that has a gradient."""
        return contextlib.nullcontext()

    def backward(self, y):
        """Returns what gradients outside parameters are to be divided by."""
        y.backward()
        return 1.0

    def put(self, name, value):
        self.tensors[name] = value.detach().clone().contiguous()

    def trained(self):
        yield from ((n, p) for n, p in self.model.named_parameters() if not n.startswith("visual_encoder."))
        yield from ((f"{self.proj_name}.{n}", p) for n, p in self.proj.named_parameters())

    def weights(self):
        for name, p in list(self.model.named_parameters()) + [(n, p) for n, p in self.trained() if n.startswith(self.proj_name)]:
            self.put(f"weights.{name}", p)
        for name, p in self.llm.named_parameters():
            self.put(f"weights.{self.prefix}.{name}", p)

    def inputs(self, image):
        tokens = self.model.ln_vision(self.model.visual_encoder(image))
        mask = torch.ones(tokens.shape[:-1], dtype=torch.long)
        queries = self.model.query_tokens.expand(len(image), -1, -1)
        hidden = self.model.Qformer.bert(query_embeds=queries, encoder_hidden_states=tokens, encoder_attention_mask=mask, return_dict=True).last_hidden_state
        return tokens, hidden, self.proj(hidden)

    def batch(self, prompt_length):
        c, (bos, pad, eos) = self.c, self.special.values()
        image = torch.randn(3, 3, c["image_size"], c["image_size"], generator=self.g)
        prompt = [bos] + torch.randint(8, 61, (max(prompt_length - 1, 0),), generator=self.g).tolist()
        lengths = [c["max_txt_len"], len(prompt) + 1, len(prompt) + 3]  # the first is cut: it has no end
        rows = [prompt + torch.randint(8, 61, (n - len(prompt),), generator=self.g).tolist() for n in lengths]
        rows = [r if len(r) == c["max_txt_len"] else r[:-1] + [eos] for r in rows]
        ids = torch.tensor([r + [pad] * (max(lengths) - len(r)) for r in rows])
        mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
        return dict(image=image, input_ids=ids, attention_mask=mask)

    def forward(self, prompt_length, image, input_ids, attention_mask, labels=None):
        """Blip2OPT.forward, and what is on its way."""
        with self.precision():
            tokens, hidden, x = self.inputs(image)
            x.retain_grad()
            labels = input_ids.masked_fill(attention_mask == 0, -100)
            labels[:, :prompt_length] = -100
            ones = torch.ones(x.shape[:2], dtype=torch.long)
            out = self.llm(inputs_embeds=torch.cat([x, self.llm.get_input_embeddings()(input_ids)], 1), attention_mask=torch.cat([ones, attention_mask], 1),
                           labels=torch.cat([-100 * ones, labels], 1), return_dict=True)
        return out.loss, labels, dict(image_embeds=tokens, query_hidden=hidden, llm_inputs=x, logits=out.logits, loss=out.loss)

    def step(self, prompt_length, batch):
        loss, labels, seen = self.forward(prompt_length, **batch)
        scale = self.backward(loss)
        self.weights()
        for name, value in dict(batch, labels=labels).items():
            self.put(f"inputs.{name}", value)
        for name, value in dict(seen, grad_llm_inputs=seen["llm_inputs"].grad / scale).items():
            self.put(f"outputs.{name}", value)
        for name, p in self.trained():
            self.put(f"grads.{name}", p.grad)
        return dict(prompt_length=prompt_length, special=self.special)

    def train(self, prompt_length, batches, run, steps):
        """LAVIS's runner: its parameter groups (runner_base.py) and its schedule."""
        from lavis.common.optims import LinearWarmupCosineLRScheduler
        self.weights()
        trained = [(n, p) for n, p in self.trained() if p.requires_grad]
        plain = lambda name, p: p.ndim < 2 or "bias" in name or "ln" in name or "bn" in name
        groups = [dict(params=[p for n, p in trained if plain(n, p) == bare], weight_decay=0 if bare else run["weight_decay"]) for bare in (False, True)]
        opt = torch.optim.AdamW(groups, lr=run["init_lr"], betas=tuple(run["betas"]), eps=run["eps"])
        schedule = LinearWarmupCosineLRScheduler(opt, max_epoch=run["max_epoch"], min_lr=run["min_lr"], init_lr=run["init_lr"],
                                                 warmup_steps=run["warmup_steps"], warmup_start_lr=run["warmup_lr"])
        losses, lrs = [], []
        for step in range(steps):
            schedule.step(cur_epoch=step // run["steps_per_epoch"], cur_step=step % run["steps_per_epoch"])
            loss, _, _ = self.forward(prompt_length, **batches[step % len(batches)])
            self.backward(loss)
            opt.step()
            opt.zero_grad()
            losses.append(float(loss.detach()))
            lrs.append(opt.param_groups[0]["lr"])
        for k, batch in enumerate(batches):
            for name, value in batch.items():
                self.put(f"inputs.{k}.{name}", value)
        self.put("outputs.losses", torch.tensor(losses))
        self.put("outputs.lr", torch.tensor(lrs, dtype=torch.float64))
        for name, p in trained:
            self.put(f"after.{name}", p)
        return dict(prompt_length=prompt_length, special=self.special, run=run)

    @torch.no_grad()
    def generate(self):
        """As LAVIS's last commit asks transformers; prompts of different lengths, padded on the left."""
        c, (bos, pad, eos) = self.c, self.special.values()
        image = torch.randn(2, 3, c["image_size"], c["image_size"], generator=self.g)
        prompts = [[bos], [bos] + torch.randint(8, 61, (2,), generator=self.g).tolist()]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        _, _, x = self.inputs(image)
        found = []
        for run in RUNS:  # each image alone: newer positions skip the padding, and so does this
            rows = []
            for i, p in enumerate(prompts):
                embeds = torch.cat([x[i:i + 1], self.llm.get_input_embeddings()(torch.tensor([p]))], 1)
                rows += self.llm.generate(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long), do_sample=False,
                                          bos_token_id=bos, pad_token_id=pad, eos_token_id=eos, **run).tolist()
            longest = max(map(len, rows))
            found.append(torch.tensor([r + [pad] * (longest - len(r)) for r in rows]))
        self.weights()
        for name, value in dict(image=image, prompt_ids=ids, prompt_mask=mask).items():
            self.put(f"inputs.{name}", value)
        for k, ids in enumerate(found):
            self.put(f"outputs.ids.{k}", ids)
        return dict(runs=RUNS, profile="lavis-head", **self.special)

    def two_texts(self):
        c, (bos, pad, eos) = self.c, self.special.values()
        image = torch.randn(2, 3, c["image_size"], c["image_size"], generator=self.g)
        lengths = [c["max_txt_len"], 5]
        rows = [[bos] + torch.randint(8, 61, (n - 2,), generator=self.g).tolist() + [eos] for n in lengths]
        ids = torch.tensor([r + [pad] * (max(lengths) - len(r)) for r in rows])
        mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
        return dict(image=image, input_ids=ids, attention_mask=mask)

    def explain(self, image, input_ids, attention_mask):
        """Attention of the queries to the image and the gradient, with respect to it, of the log-probability of each token that the language
        model may say behind the image and the tokens before it, by LAVIS's own hooks (Qformer.py: save_attention, get_attention_map,
        get_attn_gradients). The gradient comes through the projected queries."""
        cross = {k: layer.crossattention.self for k, layer in enumerate(self.model.Qformer.bert.encoder.layer) if layer.has_cross_attention}
        for attention in cross.values():
            attention.save_attention = True
        embeds = self.llm.get_input_embeddings()
        for i, (ids, mask) in enumerate(zip(input_ids, attention_mask)):
            row = ids[mask > 0].tolist()
            for t, id in enumerate(row):
                with self.precision():
                    _, _, x = self.inputs(image[i:i + 1])
                    logits = self.llm(inputs_embeds=torch.cat([x, embeds(torch.tensor([row], dtype=torch.long))], 1), return_dict=True).logits
                    value = torch.log_softmax(logits[0, x.shape[1] + t - 1], dim=-1)[id]
                scale = self.backward(value)
                self.put(f"outputs.{i}.token.{t}.value", value.reshape(1))
                for k, attention in cross.items():
                    self.put(f"outputs.{i}.token.{t}.attention.{k}", attention.get_attention_map()[0])
                    self.put(f"outputs.{i}.token.{t}.gradient.{k}", attention.get_attn_gradients()[0] / scale)
        self.weights()
        for name, value in dict(image=image, input_ids=input_ids, attention_mask=attention_mask).items():
            self.put(f"inputs.{name}", value)
        return dict(prompt_length=0, special=self.special)

    @torch.no_grad()
    def logits_along(self, image, prompt_ids, prompt_mask, texts):
        """The logits of every token of the texts behind images and prompts; the same number of texts for each image."""
        with self.precision():
            _, _, x = self.inputs(image)
            embeds, found = self.llm.get_input_embeddings(), []
            for i, text in enumerate(texts):
                b = i * len(image) // len(texts)
                ids = prompt_ids[b][prompt_mask[b] > 0].tolist() + text[:-1]
                out = self.llm(inputs_embeds=torch.cat([x[b:b + 1], embeds(torch.tensor([ids]))], 1), return_dict=True).logits
                found.append(out[0, -len(text):])
        return found

    def save(self, kind, family, out, meta):
        from safetensors.torch import save_file
        path = os.path.join(out, f"{kind}-{family}-small.safetensors")
        meta = dict(meta, kind=kind, config=self.c, llm=self.keys, recorded_with=f"torch {torch.__version__}")
        save_file(self.tensors, path, {k: json.dumps(v) for k, v in meta.items()})
        print(f"{path}: {os.path.getsize(path) / 1e3:.0f} kB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=".")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    for i, (family, prompt) in enumerate([("opt", 0), ("opt_post", 3), ("gpt_neox", 0), ("llama", 2)]):
        second = Second.random(family, args.seed + i)
        second.save("stage2", family, args.out, second.step(prompt, second.batch(prompt)))
    for i, family in enumerate(["opt", "gpt_neox"]):
        second = Second.random(family, args.seed + 10 + i)
        second.save("stage2_generate", family, args.out, second.generate())
    for i, family in enumerate(["opt", "gpt_neox", "llama"]):
        second = Second.random(family, args.seed + 20 + i)
        second.save("stage2_explain", family, args.out, second.explain(**second.two_texts()))
    for i, (family, prompt) in enumerate([("opt", 0), ("llama", 2)]):
        second = Second.random(family, args.seed + 30 + i)
        second.save("stage2_train", family, args.out, second.train(prompt, [second.batch(prompt) for _ in range(2)], RUN, STEPS))


if __name__ == "__main__":
    main()
