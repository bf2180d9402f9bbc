//! The way to an address, with a deadline.

use std::{io, time::Duration};

use tokio::{net::TcpStream, time::timeout};

use crate::error::CallError;

/// host:port of an address whose port may be left out. An IPv6 address needs brackets, as in URLs.
pub fn with_port(address: &str, port: u16) -> String {
    let has_port = match address.rsplit_once(']') {
        Some((_, rest)) => rest.starts_with(':'),
        None => address.contains(':'),
    };
    if has_port { address.to_owned() } else { format!("{address}:{port}") }
}

/// Connects to host:port; one that does not answer at all is given up after `longest`.
pub async fn dial(address: &str, longest: Duration) -> Result<TcpStream, CallError> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?; // or the handshake waits 40 ms for a delayed acknowledgement
        Ok(stream)
    };
    let late = || Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {longest:?}")));
    let stream = timeout(longest, connecting).await.unwrap_or_else(|_| late());
    stream.map_err(|error| CallError::Unreachable { address: address.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_left_out_is_filled_in() {
        for (given, meant) in [
            ("coordinator.example", "coordinator.example:1313"),
            ("192.0.2.7", "192.0.2.7:1313"),
            ("coordinator.example:77", "coordinator.example:77"),
            ("[2001:db8::7]", "[2001:db8::7]:1313"),
            ("[2001:db8::7]:77", "[2001:db8::7]:77"),
        ] {
            assert_eq!(with_port(given, 1313), meant);
        }
    }
}
