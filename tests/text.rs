//! Japanese text: equal to transformers' BertJapaneseTokenizer, and no file that ends the program.

#[path = "text/commands.rs"]
mod commands;
#[path = "text/dictionary.rs"]
mod dictionary;
#[path = "text/recorded.rs"]
mod recorded;
#[path = "text/vocabulary.rs"]
mod vocabulary;
