//! Where a certificate's event is, by serial number. A hint: whoever follows it checks the event.

use manifest::SerialNumber;

use crate::{Event, EventStore, Fact, StoreError, StreamId};

/// Entry of the index for an event, if it has one: name and place.
pub(crate) fn serial_entry(event: &Event, stream: StreamId, sequence: u64) -> Option<(Vec<u8>, Vec<u8>)> {
    let Fact::CertificateIssued { serial, .. } = &event.fact else { return None };
    Some((name(serial), format!("{stream} {sequence}").into_bytes()))
}

/// Where the index says the event of this certificate is.
pub(crate) fn lookup<S: EventStore>(
    store: &S,
    serial: &SerialNumber,
) -> Result<Option<(StreamId, u64)>, StoreError> {
    let place = store.get_derived(&name(serial))?;
    Ok(place.and_then(|place| {
        let text = String::from_utf8(place).ok()?;
        let (stream, sequence) = text.split_once(' ')?;
        Some((stream.parse().ok()?, sequence.parse().ok()?))
    }))
}

fn name(serial: &SerialNumber) -> Vec<u8> {
    format!("serial/{serial}").into_bytes()
}
