//! The catalogue: (to be built)
