//! The operations: one file each, with the maths, the check of the arguments, forward and backward: the CPU's loops are
//! the definition; where the tensors are on a GPU, the kernel of the same name in `kernels/` computes it. What several
//! check is in `check`, what they need to launch kernels in `gpu`; nothing else is shared.
//!
//! Letters: R rows, C columns, N/K of a matmul, H heads, D head size, V vocabulary, B images, Q queries.

mod adamw;
mod add;
mod attend_rows;
mod attention;
mod check;
mod cross_entropy;
mod drop_path;
mod dropout;
mod embedding;
mod gelu;
mod gelu_tanh;
mod gpu;
mod l2_normalize;
mod layer_norm;
mod linear;
mod max_similarity;
mod mean_rows;
mod patch_embed;
mod recompute;
mod relu;
mod rms_norm;
mod rotary;
mod rows;
mod sample_negatives;
mod scale;
mod segments;
mod silu_mul;
mod top_k;

pub use crate::device::attention::Segment;
pub use adamw::{AdamWStep, AdamWTables, Parameter, Squares, adamw, gradient_norm};
pub use add::add;
pub use attend_rows::{Lists, attend_rows};
pub use attention::{Grouped, Heads, attention, grouped_attention};
pub use cross_entropy::{Right, Targets, cross_entropy, cross_entropy_of, head_loss, right, right_of};
pub use drop_path::drop_path;
pub use dropout::dropout;
pub use embedding::{embedding, embedding_sum};
pub use gelu::gelu;
pub use gelu_tanh::gelu_tanh;
pub use l2_normalize::l2_normalize;
pub use layer_norm::{layer_norm, layer_norm_as, normalize_rows, normalize_rows_as, residual_norm};
pub use linear::{Cache, Gelu, Normed, Options, Weight, linear, linear_of_norm};
pub use max_similarity::{best_queries, max_similarity, max_similarity_of};
pub use mean_rows::mean_rows;
pub use patch_embed::{patch_embed, pixel_planes};
pub use recompute::recompute;
pub use relu::relu;
pub use rms_norm::rms_norm;
pub use rotary::{Rotary, rotary};
pub use rows::{concat_rows, gather_rows, put_rows, transpose, with_room};
pub use sample_negatives::{negative_weights, sample_negatives, sample_negatives_twice};
pub use scale::{divide, scale};
pub use segments::Segments;
pub use silu_mul::silu_mul;
pub use top_k::top_k;
