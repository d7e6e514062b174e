//! Files of weights: honest ones read bit for bit, hostile ones refused, names mapped, training started.

#[path = "weights/corpus.rs"]
mod corpus;
#[path = "weights/craft.rs"]
mod craft;
#[path = "weights/damage.rs"]
mod damage;
#[path = "weights/hostile_pytorch.rs"]
mod hostile_pytorch;
#[path = "weights/hostile_safetensors.rs"]
mod hostile_safetensors;
#[path = "weights/meter.rs"]
mod meter;
#[path = "weights/objects.rs"]
mod objects;
#[path = "weights/read.rs"]
mod read;
#[path = "weights/shards.rs"]
mod shards;
#[path = "weights/shared.rs"]
mod shared;
#[path = "weights/start.rs"]
mod start;
#[path = "weights/wrapped.rs"]
mod wrapped;

#[global_allocator]
static COUNTING: meter::Counting = meter::Counting;
