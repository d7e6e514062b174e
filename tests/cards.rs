//! Other people's GPUs: what is said where they are missing, small, busy, old or lost; what fits on which; how runs end there.
//! `docs/gpu.md` lists the situations and the test of each.

mod cards {
    #[cfg(feature = "host-kernels")]
    mod endings;
    #[cfg(feature = "host-kernels")]
    mod kernels;
    mod named;
    mod sizes;
    mod table;
}
#[path = "train/world.rs"]
#[allow(dead_code)]
mod world;
