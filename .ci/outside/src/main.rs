//! Trains, captions and searches with the library alone.

use qformer::data::Image;
use qformer::model::{GenerateOptions, Images};
use qformer::pretrained::{Pretrained, pictures};
use qformer::search::{Index, Query, Rank, search};
use qformer::train::{StepLine, Training};
use std::path::{Path, PathBuf};

fn main() -> qformer::Result<()> {
    let training = Training::from_yaml("train.yaml").path("out", "run").set("epochs", 3);
    let outcome = training.run(&mut |step: &StepLine| println!("{} {:.3}", step.step, step.loss))?;

    let model = Pretrained::open(&outcome.model)?;
    let seen = pictures::see(&model, &Image::File("dog.jpg".into()))?;
    let images = Images::stack(&pictures::look(&model, &[&seen])?)?;
    let captions = model.caption(&images, &GenerateOptions::default(), &[seen.identity])?;
    println!("{}", captions[0][0].text);

    let all = [PathBuf::from("dog.jpg")];
    let index = Index::build(Path::new("index"), (&model, &outcome.model), &all, |path, why| {
        println!("{}: {why}", path.display());
    })?;
    let ranked = search(&model, &index, &Query::of_text(&model, "二匹の犬")?, (32, Rank::ItmPlusItc), 10)?;
    println!("{}", index.picture(ranked.found[0].picture).path);
    Ok(())
}
