"""Trains small tokenizers of every kind and records what the Python packages make of texts.

    pip install sentencepiece==0.2.3 tokenizers==0.23.3 protobuf
    python tests/text/record_llm.py OUT [--texts 2000] [--pieces 2000]     # the large run, on official rules
    python tests/text/record_llm.py tests/text/llm --small                 # the cases in the repository

Then compare: `qformer parity --tokenizer OUT/NAME.model OUT/NAME.model.jsonl` (or .json), or all of a folder, with the
ids of NAME.ids.jsonl decoded, by `QFORMER_TOKENIZERS=OUT cargo test --test text llm`.
Lines: {"text", "normalized", "ids", "decoded"}; ids without special tokens, except for NAME-template.json.
"""

import argparse
import json
import pathlib
import random

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
HARD = [
    "", " ", "  ", "\t", "\n", "\r\n", "\u3000", "\u00a0", "a", "犬", "▁", "▁▁犬", "犬 ▁猫", " 犬 ", "  犬  猫  ", "犬\n猫",
    "犬\t\t猫", "a\u0000b", "\u0000", "\ufffd", "\ufeff犬", "か\u3099", "ﾊﾞﾝﾄﾞ", "ｶﾞｷﾞｸﾞ", "ﾊ\u3099", "㍍", "㈱犬", "①②③", "Ⅻ",
    "ﷺ", "ﬁancé", "e\u0301", "İstanbul", "ẞ", "ΑΣ ς", "Ａｂｃ１２３", "ｈｅｌｌｏ　ｗｏｒｌｄ", "①ﾊﾟﾝ", "👨‍👩‍👧‍👦", "🐕🐈", "🏳️‍🌈",
    "\U0001F1EF\U0001F1F5", "𠮷野家", "葛\U000E0100飾", "한국어", "한국어", "العربية", "ไทย", "\u200b犬\u200d猫",
    "\u202e逆", "a" * 64, "犬" * 40, "ああ" * 20, "<s>x</s>", "<unk>", "<0x41>", "<pad>", "<img>", "<img><img>犬", "x<img> y",
    " <img> ", "<cap>", "犬 猫犬 猫", "犬  猫", "ﾊﾞ", "[CLS]犬[SEP]", "https://example.com/?q=犬&x=1", "1234567890", "3.14", "1,000円",
    "don't we'll I'm", "DON'T", "foo_bar", "C++", "…―〜～ー-−", "「犬」『猫』", "犬!!??", "\x7f\x01\x1b", "\u2028\u2029",
    "<|endoftext|>", "<|endoftext|> 犬 <|endoftext|>", "  <|endoftext|>", "aaaa aaaa", "の の の", "abcABC", "ÀÉÎõü", "ǆ", "ſ", "K", "абв", "<img>犬", "aaaaaa", "犬猫",
    "\u1100\u1161\u11a8", "\u0915\u094d\u0937", "x̧̌", "a\u0315\u0300b", "\u0344", "ガ゛", "゛", "ﾞ", "ﾊﾟﾞ", "\ud7a3", "\U0010FFFF",
]
WHO = "犬 猫 男性 女の子 シェフ キリンの親子 二人の子供 青い鳥 スーツ姿の人 馬 トラック 赤い傘 Ａさん サーファー".split()
WHERE = "海岸 草原 キッチン 線路の脇 公園のベンチ 雪山 テーブルの上 ビルの前 café 駅のﾎｰﾑ 二階 Tokyo".split()
WHAT = "走っている 眠っている ピザを食べている サーフボードを持っている 写真を撮っている 凧を揚げている 座って本を読んでいる is running 3頭います".split()
END = ["。", "", "！", "、そばに猫がいる。", " and a cat.", "（昼）", "…"]


def texts(count, seed):
    random_ = random.Random(seed)
    pick = random_.choice
    yield from HARD
    alphabet = "".join(HARD) + "".join(WHO + WHERE + WHAT)
    if count > 1000:
        # Sums beyond the place where sentencepiece starts to count anew.
        yield "".join(pick(alphabet) for _ in range(60000)).replace("\0", "")
        yield "a" * 20000
    for i in range(count - len(HARD)):
        if i % 3 == 2:
            yield "".join(pick(alphabet) for _ in range(random_.randrange(1, 40)))
        else:
            yield f"{pick(WHO)}が{pick(WHERE)}で{pick(WHAT)}{pick(END)}"


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def corpus(out):
    path = out / "corpus.txt"
    lines = [t.replace("\n", " ").replace("\0", " ") for t in texts(6000, 1) if t.strip()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


RULES = {"ﾊﾞ": "バ", "ﾊ": "ハ", "か\u3099": "が", "Ａ": "A", "１": "1", "\u3000": " ", "\t": " ", "\n": " ", "①": "1", "㍍": "メートル",
         "\u200b": "", "ẞ": "ss"}


def rules(out, table=RULES):
    path = out / "rules.tsv"
    code = lambda text: " ".join(f"{ord(c):X}" for c in text)
    path.write_text("".join(f"{code(a)}\t{code(b)}\n" for a, b in table.items()))
    return str(path)


def sentencepieces(out, pieces, small):
    """Name -> options of the trainer, and a change of the trained model."""
    own = dict(normalization_rule_tsv=rules(out))
    official = (lambda name: own) if small else (lambda name: dict(normalization_rule_name=name))
    symbols = dict(user_defined_symbols=["<img>", "犬 猫", "ﾊﾞ", "aaaa", "aa"], control_symbols=["<cap>"])
    return {
        "unigram-nfkc": (dict(model_type="unigram", **official("nfkc")), None),
        "unigram-bytes-symbols": (dict(model_type="unigram", byte_fallback=True, character_coverage=0.98, **symbols, **official("nmt_nfkc")), own_scores),
        "unigram-steep": (dict(model_type="unigram", normalization_rule_name="identity"), steep),
        "unigram-suffix": (dict(model_type="unigram", treat_whitespace_as_suffix=True, split_by_whitespace=False, allow_whitespace_only_pieces=True, remove_extra_whitespaces=False, normalization_rule_name="identity"), None),
        "unigram-ties-unused": (dict(model_type="unigram", unk_surface="?", unk_piece="[UNK]", pad_id=3, **official("nfkc_cf")), ties),
        "bpe-llama": (dict(model_type="bpe", byte_fallback=True, split_digits=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, normalization_rule_name="identity", character_coverage=0.99), None),
        "bpe-symbols": (dict(model_type="bpe", **symbols, **official("nmt_nfkc_cf")), beyond_symbols),
        "bpe-unused": (dict(model_type="bpe", add_dummy_prefix=False, **official("nfkc")), unused),
        "char": (dict(model_type="char", **symbols, **official("nmt_nfkc")), unused_characters),
        "word": (dict(model_type="word", hard_vocab_limit=False, **official("nfkc_cf")), None),
        "denormalized": (dict(model_type="unigram", normalization_rule_name="identity", denormalization_rule_tsv=rules(out)), None),
    }


def ties(model):
    """Scores of whole numbers, so that many ways are equal; pieces without use, some of one character among them."""
    random_ = random.Random(5)
    for i, piece in enumerate(model.pieces):
        if piece.type == 1:
            piece.score = -random_.randrange(1, 20)
            if i % 4 == 0:
                piece.type = 5
    # аб and в are better than an unknown а and бв, but would not be if an unknown character cost as much as a known one.
    put(model, {"аб": -19, "в": -19, "бв": -12, "а": None, "б": None, "абв": None})


def put(model, scores):
    """Sets the scores of pieces, new ones too; None: without use."""
    known = {piece.piece: piece for piece in model.pieces}
    for text, score in scores.items():
        piece = known.get(text)
        if piece is None:
            if score is None:
                continue
            piece = model.pieces.add(piece=text)
        piece.type = 5 if score is None else 1
        piece.score = score or 0


def beyond_symbols(model):
    """Pieces that hold a user-defined symbol and more: they are never made."""
    put(model, {"<img>犬": -0.5, "aa犬": -0.25})


def steep(model):
    """Scores so low that sums are soon counted anew, and so close that their rounding decides."""
    random_ = random.Random(6)
    for piece in model.pieces:
        if piece.type == 1:
            piece.score = -20000 * len(piece.piece) - random_.randrange(8) * 0.004
    put(model, {"a": -20000.004, "aa": -40000, "aaa": -60000.02, "あ": -20000.01, "ああ": -40000.02, "あああ": -60000.004})


def own_scores(model):
    """Scores of user-defined symbols that nobody may read."""
    for piece in model.pieces:
        if piece.type == 4:
            piece.score = -50


def unused(model):
    for i, piece in enumerate(model.pieces):
        if piece.type == 1 and i % 5 == 0 and len(piece.piece) > 1:
            piece.type = 5


def unused_characters(model):
    for piece in model.pieces[20::5]:
        piece.type = 5 if piece.type == 1 else piece.type


def record_sentencepiece(out, options, size, small):
    for name, (extra, change) in sentencepieces(out, size, small).items():
        prefix = str(out / name)
        common = dict(input=str(out / "corpus.txt"), model_prefix=prefix, vocab_size=size, minloglevel=2, num_threads=1)
        if extra["model_type"] in ("char", "word"):
            common["vocab_size"] = min(size, 400)
        if extra.get("byte_fallback"):
            common["vocab_size"] = size + 256
        common["hard_vocab_limit"] = False
        spm.SentencePieceTrainer.train(**{**common, **extra})
        (out / f"{name}.vocab").unlink()
        path = out / f"{name}.model"
        model = pb.ModelProto.FromString(path.read_bytes())
        # Where it was trained is nobody's business.
        model.trainer_spec.input[:] = []
        model.trainer_spec.model_prefix = name
        model.normalizer_spec.normalization_rule_tsv = ""
        model.denormalizer_spec.normalization_rule_tsv = ""
        if not model.denormalizer_spec.precompiled_charsmap:
            model.ClearField("denormalizer_spec")
        if change:
            change(model)
        path.write_bytes(model.SerializeToString())
        sp = spm.SentencePieceProcessor(model_file=str(path))
        lines = []
        for text in texts(options.texts, 2):
            ids = sp.encode(text)
            lines.append(dict(text=text, normalized=sp.normalize(text), ids=ids, decoded=sp.decode(ids)))
        write(out / f"{name}.model.jsonl", lines)
        # Ids that no text gives.
        random_ = random.Random(3)
        drawn = [[random_.randrange(sp.get_piece_size()) for _ in range(random_.randrange(1, 12))] for _ in range(12 if small else 500)]
        write(out / f"{name}.ids.jsonl", [dict(ids=ids, decoded=sp.decode(ids)) for ids in drawn])
        print(f"{name}: {sp.get_piece_size()} pieces, {len(lines)} texts")


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def jsons(size):
    """Tokenizers as GPT-2 and OPT, Qwen, Llama 3, Llama 2, and llm-jp have them."""
    special = [AddedToken("<|endoftext|>", special=True), AddedToken("<cap>", normalized=False, special=False, lstrip=True)]
    gpt2 = Tokenizer(models.BPE())
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = lambda **more: trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special[:1], show_progress=False, **more)
    yield "bytes-gpt2", gpt2, bpe(initial_alphabet=alphabet), special

    for name, normalizer, ignore in (("bytes-qwen", normalizers.NFC(), False), ("bytes-llama3-template", None, True)):
        t = Tokenizer(models.BPE(ignore_merges=ignore))
        if normalizer:
            t.normalizer = normalizer
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        yield name, t, bpe(initial_alphabet=alphabet), special

    t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    yield "bpe-llama2", t, trainers.BpeTrainer(vocab_size=size + 300, special_tokens=pieces[:3] + pieces[3:], show_progress=False, limit_alphabet=400, max_token_length=16), special

    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    yield "unigram-nfkc", t, trainers.UnigramTrainer(vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False), special


def byte_fallback(unigram, size):
    """llm-jp's form: a Unigram with the 256 bytes among its pieces."""
    state = json.loads(unigram.to_str())
    state["model"]["vocab"] += [[f"<0x{b:02X}>", -20.0] for b in range(256)]
    # A third of the single characters go, so that bytes are needed.
    state["model"]["vocab"] = [v for i, v in enumerate(state["model"]["vocab"]) if not (len(v[0]) == 1 and i % 3 == 0 and v[0] != "▁")]
    state["model"]["byte_fallback"] = True
    state["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, state["decoder"], {"type": "Fuse"}]}
    return Tokenizer.from_str(json.dumps(state))


def record_json(out, options, size):
    made = {}
    for name, tokenizer, trainer, special in jsons(size):
        tokenizer.train([str(out / "corpus.txt")], trainer)
        tokenizer.add_tokens(special[1:])
        tokenizer.add_special_tokens(special[:1])
        if name.endswith("template"):
            first = tokenizer.token_to_id("<|endoftext|>")
            tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", first)])
        made[name] = tokenizer
    made["unigram-bytes"] = byte_fallback(made["unigram-nfkc"], size)
    for name, tokenizer in made.items():
        tokenizer.save(str(out / f"{name}.json"), pretty=False)
        lines = []
        for text in texts(options.texts, 4):
            ids = tokenizer.encode(text, add_special_tokens=name.endswith("template")).ids
            normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
            lines.append(dict(text=text, normalized=normalized, ids=ids, decoded=tokenizer.decode(ids)))
        write(out / f"{name}.json.jsonl", lines)
        print(f"{name}: {tokenizer.get_vocab_size()} tokens, {len(lines)} texts")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--pieces", type=int, default=2000)
    parser.add_argument("--small", action="store_true", help="few texts and pieces, and rules of a few lines")
    options = parser.parse_args()
    if options.small:
        options.texts, options.pieces = len(HARD) + 16, 320
    options.out.mkdir(parents=True, exist_ok=True)
    corpus(options.out)
    record_sentencepiece(options.out, options, options.pieces, options.small)
    record_json(options.out, options, options.pieces)
    (options.out / "corpus.txt").unlink()
    (options.out / "rules.tsv").unlink()


if __name__ == "__main__":
    main()
