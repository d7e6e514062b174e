//! Models of strangers: the tokenizer's files are regular ones in the model's folder, or links to such; nothing else is opened.

use qformer::text::Tokenizer;
use std::os::unix::fs::symlink;
use std::path::Path;

const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n犬\n";

const MECAB: &str = r#"{"word_tokenizer_type": "mecab"}"#;

fn folder(settings: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.txt"), VOCABULARY).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
    dir
}

/// The exit code and the message of a refusal.
fn refused(folder: &Path) -> (u8, String) {
    match Tokenizer::open(folder) {
        Ok(_) => panic!("{} was opened", folder.display()),
        Err(e) => (e.exit_code(), e.to_string()),
    }
}

fn pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_dictionary_lies_in_the_models_folder() {
    for name in ["/dev/zero", "../dictionary.zst", "a/../../b", "/etc/passwd", ".", "", "a\\u0000b", "//x"] {
        let dir = folder(&format!(
            r#"{{"word_tokenizer_type": "mecab", "mecab_kwargs": {{"mecab_dic": "{name}"}}}}"#
        ));
        let (code, message) = refused(dir.path());
        assert!(code == 3 && message.contains("mecab_dic"), "{name}: {message}");
    }
    let dir = folder(r#"{"word_tokenizer_type": "mecab", "mecab_kwargs": {"mecab_dic": "dictionary.zst"}}"#);
    let file = dir.path().join("dictionary.zst");
    assert!(refused(dir.path()).1.contains("qformer dictionary"));
    pipe(&file);
    assert!(refused(dir.path()).1.contains("a regular file"));
    std::fs::remove_file(&file).unwrap();
    symlink("/dev/zero", &file).unwrap();
    assert!(refused(dir.path()).1.contains("a regular file"));
}

#[test]
fn vocabulary_and_settings_are_regular_files_or_links_to_such() {
    for name in ["vocab.txt", "tokenizer_config.json"] {
        let dir = folder(MECAB);
        let (path, kept) = (dir.path().join(name), dir.path().join("blob"));
        // As in the cache of Hugging Face's hub: a link to the file.
        std::fs::rename(&path, &kept).unwrap();
        symlink("blob", &path).unwrap();
        assert_eq!(Tokenizer::open(dir.path()).unwrap().len(), 7);
        for target in ["/dev/zero", "/dev/null", "."] {
            std::fs::remove_file(&path).unwrap();
            symlink(target, &path).unwrap();
            let (code, message) = refused(dir.path());
            assert!(code == 3 && message.contains("a regular file") && message.contains(name), "{message}");
        }
        std::fs::remove_file(&path).unwrap();
        pipe(&path);
        assert!(refused(dir.path()).1.contains("a regular file"));
        std::fs::remove_file(&path).unwrap();
        symlink("gone", &path).unwrap();
        assert_eq!(refused(dir.path()).0, 3, "a link to nothing is not the same as no file");
    }
}

/// A vocabulary that the user names may come from a pipe; none is read without end.
#[test]
fn a_vocabulary_has_a_limit() {
    let message = Tokenizer::open_vocabulary(Path::new("/dev/zero")).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("at most 67108864 bytes"), "{message}");
    let dir = folder(MECAB);
    let path = dir.path().join("pipe");
    pipe(&path);
    let writer = path.clone();
    let thread = std::thread::spawn(move || std::fs::write(writer, VOCABULARY).unwrap());
    assert_eq!(Tokenizer::open_vocabulary(&path).unwrap().len(), 7);
    thread.join().unwrap();
}
