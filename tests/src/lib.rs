//! What the tests are made of: packets, program runs, scripts, namespaces and a test API server. The cases are in
//! `tests/tests/`.

pub mod api_server;
pub mod changes;
