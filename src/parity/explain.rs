//! Cases of maps: the attention of the queries to an image and a number's gradient with respect to it, of every layer.

use super::case::Case;
use super::{CLOSE, Place, Report, Setup, set_up};
use crate::Result;
use crate::model::Number;
use crate::nn::Pass;

/// Numbers are recorded of every image with the text of its place: `match`, `similarity`, and the log-probability of each token
/// behind [CLS] of the first text (`token.T`); of stage 2, the log-probability of every token of every text.
pub fn explain(case: &Case, at: &Place, report: &mut Report) -> Result<()> {
    let Setup { model, params } = set_up(case, at, false, &[""])?;
    let image = case.tensor("inputs.image", at.dtype)?;
    let tokens = model.vit_tokens(&Pass::inference(&params), &image, |_, _| {})?;
    let texts = case.texts("inputs.input_ids", "inputs.attention_mask")?;
    let n = model.config.image_tokens();
    for (i, text) in texts.iter().enumerate() {
        let own = tokens.slice_rows(i * n..(i + 1) * n)?;
        let token = |t: usize| (format!("token.{t}"), Number::Tokens(t..t + 1));
        let mut numbers = Vec::new();
        if model.llm().is_some() {
            numbers.extend((0..text.len()).map(token));
        } else {
            numbers =
                vec![("match".to_owned(), Number::Match), ("similarity".to_owned(), Number::Similarity)];
            numbers.extend((1..text.len()).filter(|_| i == 0).map(token));
        }
        for (name, number) in numbers {
            let found = model.explain(&params, &own, text, &number)?;
            let mut compare = |what: &str, ours: &[f64]| -> Result<()> {
                let name = format!("outputs.{i}.{name}.{what}");
                report.close(&name, case.shape(&name)?, ours, &case.f64s(&name)?, CLOSE);
                Ok(())
            };
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            compare("value", &[found.value])?;
            for layer in &found.layers {
                compare(&format!("attention.{}", layer.layer), &wide(&layer.attention))?;
                compare(&format!("gradient.{}", layer.layer), &wide(&layer.gradient))?;
            }
        }
    }
    Ok(())
}
