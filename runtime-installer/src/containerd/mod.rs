//! Making containerd know a handler, whoever packaged it, and making it forget it again.

pub mod activate;
pub mod cri;
pub mod imports;
pub mod patch;
pub mod restart;
pub mod target;
