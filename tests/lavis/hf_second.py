#!/usr/bin/env python3
"""Opens in transformers a second stage that `qformer convert MODEL --to hf` wrote, and compares a caption with this crate's.

    qformer caption --model run/model picture.png --num-beams 1 --prompt TEXT --out captions.json
    qformer convert run/model --to hf --out hf
    python tests/lavis/hf_second.py hf picture.png captions.json --prompt TEXT

Packages: torch, torchvision, transformers (tried with 4.57.6 and 5.24.0), sentencepiece, tiktoken, protobuf, pillow. Every weight must be taken by
Blip2ForConditionalGeneration, none may be missing, and greedy decoding must give the caption: behind the prompt, which transformers repeats, and
but for characters that are no text, which tokenizers of other classes decode in other ways.
"""
import argparse
import json

import torch
import transformers
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from hf import opened


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder")
    options.add_argument("picture")
    options.add_argument("captions")
    options.add_argument("--prompt", default="")
    options.add_argument("--max-new-tokens", type=int, default=30)
    args = options.parse_args()
    model, names = opened(Blip2ForConditionalGeneration, args.folder)
    processor = Blip2Processor.from_pretrained(args.folder)
    print(f"transformers {transformers.__version__}: {len(names)} tensors taken, none missing; {type(processor.tokenizer).__name__}, image token {model.config.image_token_index}")
    token = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    assert token == model.config.image_token_index, (token, model.config.image_token_index)
    inputs = processor(images=Image.open(args.picture), text=args.prompt, return_tensors="pt")
    assert int((inputs["input_ids"] == token).sum()) == model.config.num_query_tokens
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=args.max_new_tokens, num_beams=1, do_sample=False)
    text = processor.batch_decode(ids, skip_special_tokens=True)[0]
    ours = json.load(open(args.captions))[0]["caption"]
    ours = ours if isinstance(ours, str) else ours[0]
    print(f"transformers: {text!r}\nqformer:      {ours!r}")
    readable = lambda t: "".join(c for c in t if c.isprintable() and c != "\ufffd")
    theirs, own = readable(text.strip().removeprefix(args.prompt)).strip(), readable(ours).strip()
    assert own and (theirs.startswith(own) or own.startswith(theirs)), "another caption"


if __name__ == "__main__":
    main()
