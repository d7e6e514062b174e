//! Every operation against its definition and against finite differences; one file per operation in `tests/cases`.

mod cases {
    pub mod harness;

    mod adamw;
    mod add;
    mod attend_rows;
    mod attention;
    mod cross_entropy;
    mod drop_path;
    mod dropout;
    mod embedding;
    mod gelu;
    mod gelu_tanh;
    mod l2_normalize;
    mod layer_norm;
    mod linear;
    mod linear_gelu;
    mod linear_gelu_tanh;
    mod linear_half;
    mod linear_of_norm;
    mod max_similarity;
    mod mean_rows;
    mod norm_linear;
    mod patch_embed;
    mod real;
    mod recompute;
    mod relu;
    mod rms_norm;
    mod rotary;
    mod rows;
    mod sample_negatives;
    mod samples;
    mod scale;
    mod silu_mul;
    mod tape;
    mod top_k;
}
