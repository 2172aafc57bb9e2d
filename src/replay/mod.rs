//! The replayer: drives the handlers from the log.
//!
//! [`planner`] decides and does nothing; [`runner`] does what it decides.

pub mod planner;
pub mod runner;
pub mod tally;
