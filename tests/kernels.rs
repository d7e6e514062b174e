//! The emulator that runs CUDA kernels on the CPU: `planted` proves that it and its checker find mistakes, `house` holds the
//! kernels' sources to rules that no compiler knows. What kernels compute is tested where they are launched: `tests/ops.rs`.
#![cfg(feature = "host-kernels")]

#[path = "kernels/house.rs"]
mod house;
#[path = "kernels/place.rs"]
mod place;
#[path = "kernels/planted.rs"]
mod planted;
