#!/usr/bin/env python3
"""Runs in an installed LAVIS what `qformer convert MODEL --to lavis` prints, and compares every number.

    qformer convert --random full --out full
    qformer convert full --to lavis --out lavis.pth > load_it.py
    python tests/lavis/load.py load_it.py lavis.pth                # or lavis.safetensors in both lines

(Packages: as record.py says.) LAVIS's own `load_model("blip2", "pretrain")` runs, offline: a BERT of random numbers stands where
bert-base-uncased would be downloaded, the image encoder has one block, and the released BLIP-2 is not fetched. Everything else is
LAVIS: Blip2Qformer, its configuration, its resized embeddings, load_state_dict. Also prints how LAVIS begins what BERT does not have.
"""
import importlib.abc
import importlib.machinery
import os
import sys
import tempfile
import unittest.mock


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Video, data set and other libraries that LAVIS's own files import, this does not use, and nobody installed."""

    def find_spec(self, name, path, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        stubbed = isinstance(sys.modules.get(name.rpartition(".")[0]), unittest.mock.MagicMock)
        if stubbed or frame.f_globals.get("__name__", "").split(".")[0] == "lavis" and not name.startswith("lavis"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = unittest.mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module):
        pass


def offline(folder):
    """LAVIS with nothing to download; the current folder becomes one with a `bert-base-uncased`."""
    import transformers
    os.chdir(folder)
    config = transformers.BertConfig()
    transformers.BertForMaskedLM(config).save_pretrained("bert-base-uncased")
    with open("bert-base-uncased/vocab.txt", "w") as f:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        f.writelines(f"{t}\n" for t in special + [f"t{i}" for i in range(config.vocab_size - len(special))])
    sys.meta_path.append(Absent())
    import lavis.models.blip2_models.blip2 as blip2
    from lavis.models.base_model import BaseModel
    from lavis.models.eva_vit import VisionTransformer
    blip2.create_eva_vit_g = lambda *_: VisionTransformer(
        img_size=224, patch_size=14, embed_dim=1408, depth=1, num_heads=16, mlp_ratio=4.3637, qkv_bias=True, use_mean_pooling=False)
    BaseModel.load_checkpoint_from_config = lambda self, cfg, **_: starts(self)


def starts(model):
    state = model.state_dict()
    layer = "Qformer.bert.encoder.layer.0.crossattention"
    names = [f"{n}.{part}" for n in ("vision_proj", "text_proj", "itm_head", f"{layer}.self.key", f"{layer}.output.dense")
             for part in ("weight", "bias")]
    print("LAVIS begins with: smallest, largest, deviation, deviation * sqrt(3)")
    for name in names + ["query_tokens"]:
        t = state[name].double()
        print(f"  {name}: {t.min():.5f} {t.max():.5f} {t.std(correction=0):.5f} {t.std(correction=0) * 3 ** 0.5:.5f}")
    t = state["Qformer.bert.embeddings.word_embeddings.weight"][-1].double()
    print(f"  [DEC]: {t.min():.5f} {t.max():.5f} {t.std(correction=0):.5f}; its bias {state['Qformer.cls.predictions.bias'][-1]}")


def main():
    snippet, file = (os.path.abspath(p) for p in sys.argv[1:3])
    text = open(snippet).read().replace(sys.argv[2], file)
    with tempfile.TemporaryDirectory() as folder:
        offline(folder)
        names = {}
        exec(compile(text, snippet, "exec"), names)
    import torch
    from safetensors.torch import load_file
    wanted = load_file(file) if file.endswith(".safetensors") else torch.load(file, weights_only=True)["model"]
    state = names["model"].state_dict()
    for name, tensor in wanted.items():
        found = state[name]
        if found.dtype != tensor.dtype or found.shape != tensor.shape or found.numpy().tobytes() != tensor.numpy().tobytes():
            sys.exit(f"load.py: {name} differs: {found.dtype} {list(found.shape)} in LAVIS, {tensor.dtype} {list(tensor.shape)} in the file")
    left = [n for n in state if n not in wanted and not n.startswith("visual_encoder.")]
    if left:
        sys.exit(f"load.py: {len(left)} parameters are not in the file: {left[0]}")
    print(f"LAVIS holds all {len(wanted)} tensors of {os.path.basename(file)}, bit for bit; the rest of its state, "
          f"{len(state) - len(wanted)} tensors, is the image encoder")


main()
