"""LAVIS's own Blip2Qformer in any size, its parameters random or from a checkpoint: what record.py and autocast.py run."""
import functools
import importlib.util
import math
import os
import sys
import types

import torch

PAD, CLS, SEP = 0, 2, 3


@functools.cache
def import_lavis():
    """LAVIS's three model files without its package initialisers, which want every data set and video library installed."""
    spec = importlib.util.find_spec("lavis")
    if spec is None:
        sys.exit("record.py: LAVIS is not installed: run the pip commands that `record.py --help` begins with")
    root = os.path.dirname(spec.origin)
    for name in ("lavis", "lavis.common", "lavis.models", "lavis.models.blip2_models", "lavis.models.blip_models"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(root, *name.split(".")[1:])]
        sys.modules[name] = package
    import lavis.models.base_model as base
    sys.modules["lavis.models"].BaseModel = base.BaseModel  # the registry asks for it there
    from lavis.models.blip2_models import Qformer, blip2, blip2_qformer
    from lavis.models import eva_vit
    return blip2_qformer, blip2, Qformer, eva_vit


class Encoding(dict):
    """What a tokenizer returns."""
    __getattr__ = dict.__getitem__

    def to(self, device):
        return self


class Ids:
    """Stands in for the tokenizer: a 'text' is a list of ids from [CLS] to [SEP]."""
    pad_token_id, sep_token_id = PAD, SEP

    def __init__(self, vocab):
        self.bos_token_id = vocab - 1

    def __call__(self, texts, padding=True, truncation=False, max_length=None, return_tensors="pt"):
        width = max_length if padding == "max_length" else max(map(len, texts))
        if max(map(len, texts)) > width:
            raise ValueError(f"a text is longer than {width} tokens")
        ids = torch.tensor([t + [PAD] * (width - len(t)) for t in texts])
        mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts])
        return Encoding(input_ids=ids, attention_mask=mask)


def build(c):
    """LAVIS's Blip2Qformer with the sizes of c; its own constructor knows only two sizes and downloads their weights."""
    blip2_qformer, blip2, Qformer, eva_vit = import_lavis()
    model = blip2_qformer.Blip2Qformer.__new__(blip2_qformer.Blip2Qformer)
    torch.nn.Module.__init__(model)
    model.tokenizer, model.max_txt_len = Ids(c["vocab"]), c["max_txt_len"]
    ratio = c["vit_mlp"] / c["vit_width"]
    while int(c["vit_width"] * ratio) < c["vit_mlp"]:  # the quotient may be a rounding below
        ratio = math.nextafter(ratio, math.inf)
    model.visual_encoder = eva_vit.VisionTransformer(
        img_size=c["image_size"], patch_size=c["patch_size"], use_mean_pooling=False, embed_dim=c["vit_width"], depth=c["vit_depth"],
        num_heads=c["vit_heads"], mlp_ratio=ratio, qkv_bias=True, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6))
    for p in model.visual_encoder.parameters():
        p.requires_grad = False
    model.ln_vision = blip2.LayerNorm(c["vit_width"])
    bert = Qformer.BertConfig(vocab_size=c["vocab"], hidden_size=c["hidden"], num_hidden_layers=c["layers"], num_attention_heads=c["heads"],
                              intermediate_size=c["ffn"], max_position_embeddings=c["max_pos"], pad_token_id=PAD)
    bert.encoder_width, bert.add_cross_attention = c["vit_width"], True
    bert.cross_attention_freq, bert.query_length = c["cross_freq"], c["num_query"]
    model.Qformer = Qformer.BertLMHeadModel(bert)
    model.query_tokens = torch.nn.Parameter(torch.zeros(1, c["num_query"], c["hidden"]))
    model.vision_proj, model.text_proj = (torch.nn.Linear(c["hidden"], c["embed_dim"]) for _ in range(2))
    model.itm_head = torch.nn.Linear(c["hidden"], 2)
    model.temp = torch.nn.Parameter(0.07 * torch.ones([]))
    return model.eval()


def randomize(model, g, small=False):
    """Every parameter takes part visibly: no zero biases, no unit norms, logits of a few units. `small`: what every norm of the image
    encoder and the first of the Q-Former see is near their eps."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if name == "temp":
                p.fill_(0.07)
            elif "norm" in name.lower() or "ln_vision" in name:
                p.copy_(0.1 * r + (1 if name.endswith("weight") else 0))
            elif "word_embeddings" in name:
                p.copy_(2 * r / math.sqrt(p.shape[1]))
            elif "embed" in name or "token" in name:
                p.copy_(0.5 * r)
            elif p.ndim < 2:
                p.copy_(0.1 * r)
            else:
                p.copy_(r / math.sqrt(p[0].numel()))
            stream = name.startswith("visual_encoder.") and ("proj" in name or "fc2" in name)
            if small and (stream or "embed" in name and "norm" not in name.lower() or "token" in name):
                p *= 0.004


def read_checkpoint(path):
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("model", state) if isinstance(state, dict) else sys.exit(f"record.py: {path}: expected a state dict, got {type(state)}")


def load_state(checkpoint, vit):
    state = dict(read_checkpoint(checkpoint))
    if vit:
        for name, value in read_checkpoint(vit).items():
            state.setdefault(name if name.startswith("visual_encoder.") else "visual_encoder." + name, value)
    if "visual_encoder.pos_embed" not in state:
        sys.exit(f"record.py: {checkpoint} holds no image encoder, as LAVIS saves it: give its file with --vit (eva_vit_g.pth)")
    return state


def sizes_of(state):
    """The configuration a state dict was saved with; head counts are guessed (64 a head, 88 in EVA ViT-g)."""
    count = lambda prefix: 1 + max(int(n[len(prefix):].split(".")[0]) for n in state if n.startswith(prefix))
    shape = lambda name: list(state[name].shape)
    layer, block = "Qformer.bert.encoder.layer.", "visual_encoder.blocks."
    cross = [i for i in range(count(layer)) if f"{layer}{i}.crossattention.self.key.weight" in state]
    _, queries, hidden = shape("query_tokens")
    width, patch = shape("visual_encoder.patch_embed.proj.weight")[::3]
    vocab, max_pos = (shape(f"Qformer.bert.embeddings.{n}_embeddings.weight")[0] for n in ("word", "position"))
    depth = count(block)
    return dict(image_size=round(math.sqrt(shape("visual_encoder.pos_embed")[1] - 1)) * patch, patch_size=patch, vit_width=width,
                vit_depth=39 if (width, depth) == (1408, 40) else depth,  # LAVIS leaves EVA's last block out
                vit_heads=width // (88 if width % 88 == 0 else 64), vit_mlp=shape(block + "0.mlp.fc1.weight")[0], hidden=hidden,
                layers=count(layer), heads=max(1, hidden // 64), ffn=shape(layer + "0.intermediate.dense.weight")[0], num_query=queries,
                cross_freq=cross[1] if len(cross) > 1 else count(layer), vocab=vocab, max_txt_len=32,
                embed_dim=shape("vision_proj.weight")[0], max_pos=max_pos)


def fill(model, state):
    wanted = dict(model.named_parameters())
    missing = [n for n in wanted if n not in state]
    if missing:
        sys.exit(f"record.py: the checkpoint lacks {len(missing)} tensors, {missing[0]} first")
    with torch.no_grad():
        for name, p in wanted.items():
            if p.shape != state[name].shape:
                sys.exit(f"record.py: {name}: expected {list(p.shape)}, got {list(state[name].shape)}; correct the sizes with --set")
            p.copy_(state[name].float())
