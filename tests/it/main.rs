//! The real binary, from outside.

mod intake;
mod support;
