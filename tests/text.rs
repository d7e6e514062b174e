//! Text: equal to transformers' BertJapaneseTokenizer, to sentencepiece and to tokenizers, and no file that ends the
//! program.

#[path = "text/commands.rs"]
mod commands;
#[path = "text/dictionary.rs"]
mod dictionary;
#[path = "text/hostile_llm.rs"]
mod hostile_llm;
#[cfg(feature = "tokenizer-json")]
#[path = "text/llm.rs"]
mod llm;
#[cfg(feature = "tokenizer-json")]
#[path = "text/oracle.rs"]
mod oracle;
#[path = "text/recorded.rs"]
mod recorded;
#[path = "text/strangers.rs"]
mod strangers;
#[path = "text/vocabulary.rs"]
mod vocabulary;
