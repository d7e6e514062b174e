//! The page's words in English and Japanese. English is written where it is used; here is its translation.

use crate::report::Words;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    English,
    Japanese,
}

pub fn of(language: Language) -> Words {
    match language {
        Language::English => |text| text,
        Language::Japanese => japanese,
    }
}

/// The better of the two for a browser's `Accept-Language`; English where neither is named.
pub fn accepted(header: &str) -> Language {
    let mut best = (0.0, Language::English);
    for part in header.split(',') {
        let mut pieces = part.trim().split(';');
        let tag = pieces.next().unwrap_or_default().to_ascii_lowercase();
        let weight = pieces.find_map(|p| p.trim().strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
        let language = match tag.split('-').next() {
            Some("ja") => Language::Japanese,
            Some("en") => Language::English,
            _ => continue,
        };
        if weight > best.0 {
            best = (weight, language);
        }
    }
    best.1
}

fn japanese(text: &'static str) -> &'static str {
    TABLE.iter().find(|(english, _)| *english == text).map_or(text, |(_, japanese)| japanese)
}

const TABLE: &[(&str, &str)] = &[
    ("Skip to the content", "本文へ移動"),
    ("Views", "表示"),
    ("Caption", "説明文"),
    ("Search", "検索"),
    ("Training", "学習"),
    ("Look", "注目箇所"),
    ("Language", "言語"),
    ("Theme", "配色"),
    ("as the system", "システムに合わせる"),
    ("light", "ライト"),
    ("dark", "ダーク"),
    (
        "Drop pictures here, paste them, or choose files",
        "画像をここにドロップ、貼り付け、またはファイルを選択",
    ),
    (
        "Drop a picture here, paste it, or choose a file",
        "画像をここにドロップ、貼り付け、またはファイルを選択",
    ),
    ("How captions are made", "生成の設定"),
    ("Captions of each picture", "画像ごとの説明文の数"),
    ("Beams", "ビーム数"),
    ("Draw at random instead of searching", "探索せずランダムに生成"),
    ("Most tokens", "最大トークン数"),
    ("Fewest tokens", "最小トークン数"),
    ("Seed", "シード"),
    ("Without spaces between words", "単語の間の空白なし"),
    ("Prompt: the text that the language model continues", "プロンプト（言語モデルが続きを書く文）"),
    ("A question about the pictures (empty: captions)", "画像についての質問（空欄なら説明文）"),
    ("What stands around the question, {}", "質問 {} の前後に置く文"),
    ("Question: {} Answer:", "質問: {} 答え:"),
    ("What the numbers say", "数値の意味"),
    (
        "log-probability: the sum over the caption's tokens of the logarithm of their probability; closer to 0 is surer",
        "対数確率: 説明文の各トークンの確率の対数の和。0 に近いほど確信が高い",
    ),
    (
        "itc: the largest cosine between the text and the picture's queries, from -1 to 1; fast, the first rank of a search",
        "itc: 文と画像のクエリとのコサイン類似度の最大値（-1〜1）。高速で、検索の最初の順位に使う",
    ),
    (
        "itm: the logit that text and picture belong together, after looking at both; above 0 the model leans to yes",
        "itm: 文と画像を一緒に見て、対応するかどうかを表すロジット。0 より大きければ対応する側",
    ),
    (
        "mean_cosine: how little the text changes what the queries see, from 0 to 1",
        "mean_cosine: 文を加えたときにクエリの表現がどれだけ変わらないか（0〜1）",
    ),
    ("log-probability", "対数確率"),
    ("Copy", "コピー"),
    ("Copied", "コピーしました"),
    ("Remove", "削除"),
    ("Working...", "計算中…"),
    ("The text to look for", "探す文"),
    ("Or a picture", "または画像"),
    ("Find", "探す"),
    ("Ranked by", "順位の基準"),
    ("Looked at again with the text", "文と一緒に見直す枚数"),
    ("Words", "単語"),
    ("not in the vocabulary", "語彙にない単語"),
    (
        "There is no index: start the server with --index FOLDER",
        "索引がありません。--index FOLDER を付けて起動してください",
    ),
    ("Nothing found", "見つかりませんでした"),
    ("pictures searched", "枚の画像を検索"),
    ("Previous", "前へ"),
    ("Next", "次へ"),
    ("Page", "ページ"),
    ("Close", "閉じる"),
    ("Open", "開く"),
    ("Captions", "説明文"),
    ("Similar pictures", "似た画像"),
    ("no longer there", "画像がありません"),
    ("Runs", "実行"),
    ("Smoothing", "平滑化"),
    ("Read again every few seconds", "数秒ごとに読み直す"),
    (
        "There is no run: start the server with --run DIR",
        "表示する学習がありません。--run DIR を付けて起動してください",
    ),
    ("The text (empty: the caption)", "文（空欄なら説明文）"),
    ("The map explains", "説明する数値"),
    ("the matching logit (itm)", "一致のロジット（itm）"),
    ("the contrastive similarity (itc)", "対照類似度（itc）"),
    ("a word of the text, by its place from 1", "文の単語（1 からの位置）"),
    ("Place of the word", "単語の位置"),
    ("Layer (empty: the last that looks at the picture)", "層（空欄なら画像を見る最後の層）"),
    ("Query (empty: the mean of all)", "クエリ（空欄なら全体の平均）"),
    ("Show", "表示する"),
    (
        "A map shows which parts of the picture a number rests on: the attention of the queries, weighed by how much the number gains by it",
        "数値が画像のどの部分に基づくかを示します。クエリの注意を、数値への寄与で重み付けしたものです",
    ),
    ("Token", "トークン"),
    ("This server asks for a token", "このサーバーにはトークンが必要です"),
    ("Send", "送信"),
    ("The server does not answer", "サーバーが応答しません"),
    ("model", "モデル"),
    // Charts.
    ("loss", "損失"),
    ("training", "学習"),
    ("validation", "検証"),
    ("the three losses", "三つの損失"),
    ("contrastive (itc)", "対照（itc）"),
    ("matching (itm)", "一致（itm）"),
    ("captioning (lm)", "生成（lm）"),
    ("accuracy: contrastive", "正解率: 対照"),
    ("text to image", "文から画像"),
    ("image to text", "画像から文"),
    ("recall@1 on validation, text to image", "検証での recall@1（文から画像）"),
    ("recall@1 on validation, image to text", "検証での recall@1（画像から文）"),
    ("accuracy: matching and captions", "正解率: 一致と生成"),
    ("matching", "一致"),
    ("next token", "次のトークン"),
    ("learning rate", "学習率"),
    ("temperature", "温度"),
    ("gradient norm", "勾配ノルム"),
    ("samples a second", "毎秒サンプル数"),
    ("share of time waiting for data", "データ待ち時間の割合"),
    ("chance, contrastive: ln B =", "偶然（対照） ln B ="),
    ("chance, matching:", "偶然（一致）:"),
    ("chance, captioning: ln V =", "偶然（生成） ln V ="),
    ("chance: 1/B =", "偶然 1/B ="),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_browsers_first_wish_counts() {
        for (header, language) in [
            ("", Language::English),
            ("ja", Language::Japanese),
            ("ja-JP,ja;q=0.9,en-US;q=0.8", Language::Japanese),
            ("en-US,en;q=0.9,ja;q=0.8", Language::English),
            ("fr;q=1,ja;q=0.4,en;q=0.6", Language::English),
            ("de,fr", Language::English),
            ("ja;q=x", Language::Japanese),
        ] {
            assert_eq!(accepted(header), language, "{header}");
        }
    }
}
