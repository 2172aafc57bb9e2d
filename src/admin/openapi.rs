//! The API's own description.

/// What `GET /api/v1/openapi.json` answers. Tests hold it against the routes.
pub const DOCUMENT: &str = include_str!("openapi.json");
