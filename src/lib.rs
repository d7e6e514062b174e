//! BLIP-2's Q-Former: trained, captioning and searching in Japanese, and equal to LAVIS number by number.
//!
//! The rooms, from the ground up; imports only go down (`tests/house.rs` holds them to it):
//!
//! | room | what is in it |
//! |---|---|
//! | [`error`] | the one error: operation, argument, expected, got, what to change |

pub mod commands;
pub mod device;
pub mod error;
pub mod model;
pub mod nn;
pub mod ops;
pub mod parity;
pub mod tensor;
pub mod train;

pub use error::{Error, Kind, Result};
