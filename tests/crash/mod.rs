//! The crash campaign: the real binary on media that fail. Each class of failure has a file; the defects that
//! each must notice are in `defects.rs`.
//!
//! Short by default, longer with `tests/run --full`. What needs root (mounting) is left out for others, and
//! says so; with `CI` set it fails instead.

mod clocks;
mod defects;
mod disk;
mod faults;
mod images;
mod kill;
mod model;
mod power;
mod rot;
mod trace;
