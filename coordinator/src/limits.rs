//! How much each listener takes on at once.

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) handshakes: usize,
    pub(crate) handshakes_per_source: usize,
    pub(crate) connections: usize,
    pub(crate) connections_per_source: usize,
}
