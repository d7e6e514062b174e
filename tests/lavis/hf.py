#!/usr/bin/env python3
"""Opens in transformers what `qformer convert MODEL --to hf` wrote, and compares what it computes with this crate.

    qformer convert --random heads --out model
    qformer convert model --to hf --out hf
    qformer features --model model --mode image picture.png --out image.safetensors
    qformer features --model model --mode text --text 犬が走る --out text.safetensors
    python tests/lavis/hf.py hf --image picture.png image.safetensors --text 犬が走る text.safetensors

Packages: torch, transformers (tried with 4.57.6 and 5.24.0), fugashi, ipadic, pillow. Every weight must be taken by
Blip2ForImageTextRetrieval, none may be missing, and features must agree: to 1e-3 of a feature's length of 1, which is what transformers'
other eps in the last norm of the image encoder (1e-6 for LAVIS's 1e-5) and a resampling of its own leave; of texts to 1e-5.
"""
import argparse

import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, Blip2ForImageTextRetrieval, Blip2Processor


def worst(found, expected):
    return (found.double() - expected.double()).norm(dim=-1).max().item()


def opened(kind, folder):
    """The model of a folder, and the names of its file, every tensor of which it took as it is."""
    model, said = kind.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not said[what], (what, sorted(said[what])[:5])
    model = model.float().eval()
    state = model.state_dict()
    with safe_open(f"{folder}/model.safetensors", "pt") as f:
        names = set(f.keys())
        for name in names:
            assert torch.equal(state[name].cpu(), f.get_tensor(name).float()), name
    return model, names


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder")
    options.add_argument("--image", nargs=2, metavar=("PICTURE", "FEATURES"))
    options.add_argument("--text", nargs=2, metavar=("TEXT", "FEATURES"))
    args = options.parse_args()
    model, names = opened(Blip2ForImageTextRetrieval, args.folder)
    left = [n for n in model.state_dict() if n not in names and not n.endswith("position_ids")]
    assert not left, left
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    dec = tokenizer.convert_tokens_to_ids("[DEC]")
    assert dec == model.config.qformer_config.vocab_size - 1 and tokenizer.bos_token == "[DEC]", dec
    processor = Blip2Processor.from_pretrained(args.folder)
    print(f"transformers {transformers.__version__}: {len(names)} tensors taken, none missing; [DEC] is token {dec} of {type(tokenizer).__name__}")

    picture = Image.open(args.image[0]) if args.image else Image.new("RGB", (40, 30), (200, 30, 60))
    text = args.text[0] if args.text else "犬"
    inputs = processor(images=picture, text=[text], return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, use_image_text_matching_head=False)
        match = model(**inputs, use_image_text_matching_head=True).logits_per_image
    assert out.logits_per_image.isfinite().all() and match.isfinite().all()
    if args.image:
        expected = load_file(args.image[1])["image_embeds_proj"]
        difference = worst(out.image_embeds, expected)
        print(f"image features: {list(out.image_embeds.shape)}, furthest {difference:.1e}")
        assert difference < 1e-3, difference
    if args.text:
        expected = load_file(args.text[1])
        ids = inputs["input_ids"]
        assert ids.shape[1] == int(expected["text_mask"].sum()), "another number of tokens"
        difference = worst(out.text_embeds, expected["text_embeds_proj"][:, 0])
        print(f"text features: tokens {ids[0].tolist()}, furthest {difference:.1e}")
        assert difference < 1e-5, difference


if __name__ == "__main__":
    main()
