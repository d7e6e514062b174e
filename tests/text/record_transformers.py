"""Records what transformers' BertJapaneseTokenizer makes of texts, as lines that `qformer parity --vocab` reads.

    python -m venv venv && venv/bin/pip install transformers==4.30.2 fugashi==1.5.2 ipadic==1.0.0
    venv/bin/python record_transformers.py                             # the files of this folder again
    venv/bin/python record_transformers.py VOCAB TEXTS OUT.jsonl       # your vocab.txt, your texts (one a line)

Python 3.11 (Unicode 14). In OUT each text stands twice: as it is, and cleaned as a caption and cut to 32.
"""

import json
import random
import re
import shutil
import sys
import tempfile
import unicodedata
from pathlib import Path

from transformers import BertJapaneseTokenizer

HERE = Path(__file__).parent


def tokenizer(vocab, subwords="wordpiece"):
    # From a folder, as a model's: only then are special tokens found inside of texts.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(vocab, Path(folder) / "vocab.txt")
        t = BertJapaneseTokenizer.from_pretrained(
            folder, word_tokenizer_type="mecab", subword_tokenizer_type=subwords
        )
    t.add_special_tokens({"bos_token": "[DEC]"})  # as LAVIS does it
    return t


def pre_caption(caption, max_words=50):
    """lavis.processors.blip_processors.BlipCaptionProcessor.pre_caption of LAVIS 1.0.2."""
    caption = re.sub(r"([.!\"()*#:;~])", " ", caption.lower())
    caption = re.sub(r"\s{2,}", " ", caption)
    caption = caption.rstrip("\n")
    caption = caption.strip(" ")
    caption_words = caption.split(" ")
    if len(caption_words) > max_words:
        caption = " ".join(caption_words[:max_words])
    return caption


def plain_line(t, text):
    ids = t(text).input_ids
    return {
        "text": text,
        "words": t.word_tokenizer.tokenize(text),
        "tokens": t.tokenize(text),
        "ids": ids,
        "decoded": t.decode(ids, skip_special_tokens=True),
    }


def caption_line(t, text):
    pre = pre_caption(text)
    cut = t(pre, truncation=True, max_length=32, padding="max_length")
    return {"text": text, "pre": pre, "ids": t(pre).input_ids, "ids32": cut.input_ids, "mask32": cut.attention_mask}


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


# ---- the texts of this folder --------------------------------------------------------------------------------

CAPTIONS = """
赤い屋根の家の前に白い自転車がとめてある。
駅のホームで電車を待つ人々
女性がキッチンでケーキにクリームをぬっている
雪山をスノーボードで滑り降りる男の人
テーブルの上のお皿にピザがのっています。
象の親子が水浴びをしている所
信号待ちをしている黄色いタクシー
野球選手がバットを大きく振っている瞬間
ベッドの上で眠る三毛猫と子猫
空港に止まっている大きな旅客機
夕焼けの海辺を犬と散歩する老夫婦
洗面所に置かれた歯ブラシとコップ
牧場で草を食べる羊たちの群れ
スーツ姿の男性が携帯電話で話している
公園のベンチに座ってアイスを食べる子供
冷蔵庫の扉に貼られたたくさんの磁石
時計台のある古い建物の写真
波に乗るサーファーと、それを見守る人
キリンが木の葉を食べようと首を伸ばしている
「止まれ」の標識が立つ交差点
ノートパソコンとマウスが置かれた机
二階建ての赤いバスが橋を渡っている
ブロッコリーと人参の入った弁当箱
テニスコートでサーブを打とうとする選手
縞馬が二頭、サバンナに立っている
ソファーでくつろぐ家族とクリスマスツリー
赤ちゃんがぬいぐるみを抱きしめて笑っている
屋台に並んだ色とりどりの果物
窓辺に置かれた花瓶とチューリップ
空に浮かぶ三つの凧を見上げる少年
""".split("\n")[1:-1]

HARD = [
    "犬が走る🐕💨",
    "👨‍👩‍👧‍👦と👍🏽と🇯🇵",
    "❤️と❤",
    "ﾊﾝｶｸｶﾅのｹﾞｰﾑを遊ぶ",
    "ﾊﾟｿｺﾝﾃﾞｽ｡｢ﾎﾝﾄ｣､･ｰ",
    "か\u3099き\u3099と\u304b\u309aとハ\u309aン",
    "cafe\u0301とé",
    "A\u030a\u0301B",
    "\u0301始まり",
    "①②③㈱㌔㍻㎏",
    "ﬁﬂ½²℃№",
    "ＦＵＬＬ　ＷＩＤＴＨ　１２３",
    "制御\x01文字\x02と\x1bエスケープ",
    "ゼロ幅\u200bスペース\u200d\ufeff終わり",
    "犬\x00猫",
    "\x00",
    "犬[SEP]\x00猫[SEP]鳥",
    "行\n改行\r\n復帰\r終",
    "タブ\tと\x0b縦\x0c頁\x1c区\x1d切\x1eり\x1f字",
    "次\x85行\u2028線\u2029段\u00a0空",
    "全角　空白　　二つ",
    " 先頭と末尾 ",
    "　全角の先頭",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "x" * 130 + " 短い",
    "ア" * 100,
    "ア" * 101,
    "あ" * 150,
    "漢" * 40,
    "9" * 26 + "個",
    "1,234.5円",
    "http://example.com/a?b=c&d=é#f",
    "user@example.org から",
    "It's a dog, isn't it? I'm, we've, you're !",
    "he said ' hi ' . ok",
    "don 't",
    "[CLS]犬[SEP]",
    "犬 [MASK] 猫",
    "犬　[MASK]　猫",
    "[PAD][PAD]",
    "[pad] [Cls] [DEC]",
    "［ＣＬＳ］犬",
    "[DEC]犬が[DEC",
    "[[SEP]]",
    "[SEP",
    "SEP]",
    "x[UNK]y",
    " [SEP] \n[SEP]\x1f犬",
    "[MASK]" * 5,
    "##犬",
    "犬##猫",
    "##",
    "#",
    "한국어와 中文与日本語",
    "ไทยภาษา",
    "عربي עברית",
    "Ünïcödé Straße ŒUVRE",
    "İstanbul ΑΣ ΣΑΣ",
    "㐀𠀋𠮷野家で𩸽を食べる",
    "髙島屋と﨑と神\ufe00",
    "齟齬鬱蒼麒麟",
    "々〻〆〇ヶヵ",
    "うゐのおくやまけふこえて",
    "ヷヸヹヺヴァイオリン",
    "ー〜～－—―‐-",
    "。。。、、、！！！？？？",
    "…‥・･",
    "「」『』【】〈〉《》〔〕",
    "“”‘’''\"\"`´",
    "２０２４年０５月０６日（月）",
    "令和元年と平成31年",
    "すもももももももものうち",
    "東京都京都府",
    "外国人参政権",
    "此れは古い言葉なり候",
    "Tシャツを着た3人のJK",
    "iPhone15ProMaxとUSB-C",
    "DOG犬Dog猫dog",
    "",
    " ",
    "\n",
    "　",
    "\u200b",
    "\ue000私用\uf8ff",
    "\U000e0041\U0001f3f4",
    "終わり。\u3000\n",
]

NOISY_CAPTIONS = [
    "A  Dog.Runs!",
    "犬\u3000猫",
    "犬\u3000\u3000猫",
    "a\tb\t\tc",
    " \n犬\n",
    "犬 \n",
    "犬\n",
    "\n犬",
    "犬。（猫）！",
    "...",
    "~!\"()*#:;.",
    "ΑΣ",
    "İ",
    " ".join(["x"] * 60),
    " ".join(f"w{i}" for i in range(50)),
    " ".join(f"w{i}" for i in range(51)),
    "長い説明 " * 30,
    "犬" + "と猫" * 40,
    "\x1c\x1d犬\x85\x85猫",
    "*犬*:猫;(鳥)",
]

# The inputs of transformers' own tests of BertJapaneseTokenizer (tests/models/bert_japanese), Apache License 2.0.
OF_TRANSFORMERS = [
    "こんにちは、世界。 \nこんばんは、世界。",
    "こんにちは 、 世界 。 こんばんは 、 世界 。",
    "こんにちは、世界。\nこんばんは、世界。",
    " \tｱｯﾌﾟﾙストアでiPhone８ が  \n 発売された　。  ",
    "こんにちは",
    "こんばんは",
    "こんばんは こんばんにちは こんにちは",
    "ありがとう。",
    "まとめ記事。",
    "外国人参政権",
    "国境を越えて",
    "くぅ～(疲れました)。",
    "ありがとうございますm(_ _)m見つけるのが大変です。",
    "こんにちは、世界。\nこんばんは、㍻",
    "恵比寿ガーデンプレイス",
    "国立国会図書館",
    "すもももももももものうち",
]

POOLS = [
    "あいうえおかきくけこさしすせそたちつてとなにのはをがでもるれろんっゃ",
    "アイウカキコサシスタチツトナニノマミムラリルレンーッャュョ",
    "人犬猫赤青白黒大小上下山川海空花木車道路食飲見立座走飛男女子二三",
    "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789",
    "。、！？「」・…（） 　",
    "ｱｲｳｶﾞﾊﾟ①㍍é\u3099\u0301🐶✈️々ヶ𠮷\x07\u200b",
]


def random_texts(count):
    rng = random.Random(20240506)
    for _ in range(count):
        text = ""
        for _ in range(rng.randrange(1, 9)):
            pool = rng.choices(POOLS, weights=[6, 4, 4, 2, 2, 1])[0]
            text += "".join(rng.choice(pool) for _ in range(rng.randrange(1, 7)))
        yield text


def own_vocabulary(texts):
    """Special tokens, characters (some left out, for [UNK]), words, and odd entries."""
    from fugashi import GenericTagger
    import ipadic

    tagger = GenericTagger(ipadic.MECAB_ARGS)
    forms, words = set(), set()
    for text in texts:
        for word in tagger(unicodedata.normalize("NFKC", text).lower()):
            for piece in word.surface.split():
                forms |= {piece[0], *("##" + c for c in piece[1:])}
                words |= {piece[:n] for n in range(2, min(len(piece), 6) + 1)}
                words |= {"##" + piece[-n:] for n in range(2, min(len(piece), 4))}
    kept = [f for i, f in enumerate(sorted(forms)) if i % 11 != 5]
    words = [w for i, w in enumerate(sorted(words - forms)) if i % 3 != 1]
    odd = [f"a{'##' * n}" for n in range(1, 3)] + ["'", "n't", "'m", "##'s"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return special + list(dict.fromkeys(kept + words + odd))


def main():
    if len(sys.argv) == 4:
        t = tokenizer(sys.argv[1])
        texts = Path(sys.argv[2]).read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        return write(Path(sys.argv[3]), [f(t, text) for text in texts for f in (plain_line, caption_line)])
    if len(sys.argv) != 1:
        return sys.exit(__doc__)
    texts = CAPTIONS + HARD + OF_TRANSFORMERS + list(random_texts(150))
    vocab = HERE / "vocab.txt"
    with open(vocab, "w", encoding="utf-8", newline="\n") as file:
        file.write("".join(token + "\n" for token in own_vocabulary(CAPTIONS + HARD)))
    pieces, characters = tokenizer(vocab), tokenizer(vocab, "character")
    write(HERE / "wordpiece.jsonl", [plain_line(pieces, text) for text in texts])
    write(HERE / "captions.jsonl", [caption_line(pieces, text) for text in CAPTIONS + HARD + OF_TRANSFORMERS + NOISY_CAPTIONS])
    write(HERE / "character.jsonl", [plain_line(characters, text) for text in texts])


if __name__ == "__main__":
    main()
