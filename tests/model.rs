//! The whole objective on a tiny model, in f64: the gradient of every parameter against differences, which parameters
//! are reached, how negatives are drawn, and the scores of retrieval.

#[path = "model/accumulation.rs"]
mod accumulation;
#[path = "model/chunks.rs"]
mod chunks;
#[path = "model/gradients.rs"]
mod gradients;
#[path = "model/negatives.rs"]
mod negatives;
#[path = "model/objective.rs"]
mod objective;
#[path = "model/parameters.rs"]
mod parameters;
#[path = "model/scores.rs"]
mod scores;
mod tiny;
