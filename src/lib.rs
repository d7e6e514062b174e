//! BLIP-2's Q-Former: trained, captioning and searching in Japanese, and equal to LAVIS number by number.
//!
//! The rooms, from the ground up; imports only go down (`tests/house.rs` holds them to it):
//!
//! | room | what is in it |
//! |---|---|
//! | [`error`] | the one error: operation, argument, expected, got, what to change |
//! | [`files`] | files that are either whole or not there |
//! | [`train`] | checkpoints and signals: a run can be stopped, lost and gone on with |

pub mod commands;
pub mod error;
pub mod files;
pub mod train;

pub use error::{Error, Kind, Result};
