//! The real binary, from outside.

mod canonical;
mod intake;
mod support;
