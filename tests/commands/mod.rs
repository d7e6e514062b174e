//! A tiny random model, pictures, and the program to run on them.
#![allow(dead_code)]

use qformer::model::llm::LlmConfig;
use qformer::model::{Config, Model};
use qformer::nn::{Params, Spec};
use qformer::pretrained::Pretrained;
use qformer::tensor::{DType, Tensor};
use qformer::text::llm::LlmTokenizer;
use qformer::text::{Settings, Tokenizer};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Words of the tiny model's vocabulary behind the special tokens; the rest is filled with numbers.
const WORDS: [&str; 24] = [
    "犬", "猫", "二", "匹", "の", "が", "赤い", "青い", "丸", "四角", "いる", "ある", "道路", "で", "走っ",
    "て", "人", "白い", "と", "を", "傘", "空", "海", "写真",
];

pub struct Place {
    pub dir: tempfile::TempDir,
}

/// Random numbers for a language model of this `config.json`: names, shapes, and what `bits` makes of the numbers.
pub fn language_model(config: &str, bits: fn(f32) -> [u8; 2]) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let (_, specs) =
        Model::with_llm(Config::tiny(), LlmConfig::from_json(config).unwrap(), 0, false).unwrap();
    let params = Params::random(specs, DType::F32, 5).unwrap();
    let own = |spec: &Spec| spec.name.strip_prefix("llm_model.").map(String::from);
    let numbers = |t: &Tensor| t.to_f32().unwrap().iter().flat_map(|x| bits(8.0 * x)).collect();
    params.iter().filter_map(|(_, s, t)| Some((own(s)?, s.shape.clone(), numbers(t)))).collect()
}

impl Place {
    /// A folder with `model`, a model of random weights drawn from `seed`.
    pub fn new(seed: u64) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        place.model("model", seed);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn model(&self, name: &str, seed: u64) {
        self.model_with(name, seed, |i| i.to_string());
    }

    /// The same, its vocabulary filled with other words.
    pub fn model_with(&self, name: &str, seed: u64, word: impl Fn(usize) -> String) {
        let config = Config { max_txt_len: 16, ..Config::tiny() };
        let mut vocabulary: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            .into_iter()
            .chain(WORDS)
            .map(str::to_owned)
            .collect();
        vocabulary.extend((vocabulary.len()..config.vocab - 1).map(word));
        let tokenizer = Tokenizer::new(vocabulary, Settings::default()).unwrap();
        let (model, specs) = Model::new(config, false).unwrap();
        // Wider than training begins, so that pictures differ by more than rounding.
        let mut params = Params::random(specs, DType::F32, seed).unwrap();
        let ids: Vec<_> = params.iter().filter(|(_, s, _)| s.shape.len() > 1).map(|(id, ..)| id).collect();
        for id in ids {
            params.get_mut(id).data_mut::<f32>().unwrap().iter_mut().for_each(|x| *x *= 8.0);
        }
        Pretrained::save(&self.path(name), &model, &params, &tokenizer, None).unwrap();
    }

    /// A Llama-shaped language model of random numbers with a tokenizer, in a folder as Hugging Face has it.
    pub fn language_model(&self, name: &str) {
        let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/llm/bpe-llama.model");
        self.write(&format!("{name}/tokenizer.model"), std::fs::read(&tokenizer).unwrap());
        let settings = r#"{"tokenizer_class":"LlamaTokenizer","bos_token":"<s>","eos_token":"</s>","unk_token":"<unk>","add_bos_token":true}"#;
        self.write(&format!("{name}/tokenizer_config.json"), settings);
        let vocab = LlmTokenizer::open_file(&tokenizer).unwrap().len();
        let config = format!(
            r#"{{"model_type":"llama","vocab_size":{vocab},"hidden_size":24,"num_hidden_layers":2,"num_attention_heads":4,
            "num_key_value_heads":2,"intermediate_size":40,"max_position_embeddings":64,"rms_norm_eps":1e-5}}"#
        );
        self.write(&format!("{name}/config.json"), &config);
        let all = language_model(&config, |x| half::bf16::from_f32(x).to_le_bytes());
        // Two shards and their index, as large models have them.
        let middle = all.len() / 2;
        let mut index = serde_json::Map::new();
        for (i, part) in [&all[..middle], &all[middle..]].into_iter().enumerate() {
            let file = format!("model-0000{}-of-00002.safetensors", i + 1);
            let views = part.iter().map(|(n, s, b)| {
                index.insert(n.clone(), file.clone().into());
                (
                    n.clone(),
                    safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, s.clone(), b).unwrap(),
                )
            });
            let views: Vec<_> = views.collect();
            safetensors::serialize_to_file(views, None, &self.path(&format!("{name}/{file}"))).unwrap();
        }
        let index = serde_json::json!({ "weight_map": index });
        self.write(&format!("{name}/model.safetensors.index.json"), index.to_string());
    }

    pub fn open(&self) -> Pretrained {
        Pretrained::open(&self.path("model")).unwrap()
    }

    /// A PNG whose pixels depend on the seed alone.
    pub fn picture(&self, name: &str, seed: u8) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let (w, h) = (20 + usize::from(seed % 7), 24);
        let pixel = |i: usize| {
            (i.wrapping_mul(2654435761 + usize::from(seed) * 7919) >> 7) as u8
                & if i % 3 == usize::from(seed) % 3 { 255 } else { 63 }
        };
        let rgb: Vec<u8> = (0..w * h * 3).map(pixel).collect();
        std::fs::write(path, qformer::vision::encode_png(w, h, &rgb).unwrap()).unwrap();
    }

    /// `n` pictures in a folder: p00.png, p01.png ...
    pub fn pictures(&self, folder: &str, n: u8) {
        (0..n).for_each(|i| self.picture(&format!("{folder}/p{i:02}.png"), i));
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
        command.current_dir(self.dir.path()).args(args).env("RAYON_NUM_THREADS", "2");
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        use std::io::Write;
        let mut command = self.command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Ran::of(child.wait_with_output().unwrap())
    }

    /// Runs what must succeed and returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
        ran.out
    }

    /// Runs what must fail with this exit code; returns its standard error.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, code, "{args:?}: {}{}", ran.out, ran.err);
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        ran.err
    }
}

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

pub fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Pictures that are none: what it is called and what is in it.
pub fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let png = qformer::vision::encode_png(8, 8, &[90; 192]).unwrap();
    vec![
        ("cut.png", png[..png.len() / 2].to_vec()),
        ("page.jpg", b"<!DOCTYPE html><html>404</html>".to_vec()),
        ("empty.jpg", Vec::new()),
        ("zeros.bmp", vec![0; 300]),
        ("header.jpg", vec![0xff, 0xd8, 0xff, 0xd9]),
    ]
}
