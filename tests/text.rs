//! Japanese text: equal to transformers' BertJapaneseTokenizer, and no file that ends the program.

#[path = "text/recorded.rs"]
mod recorded;
