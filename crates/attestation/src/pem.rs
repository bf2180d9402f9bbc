//! Certificates as hosts hand them out: DER, or the same in PEM, with or without words in front.

/// The first object of a PEM text in DER; anything else is left as it is, for its reader to judge.
pub fn to_der(bytes: Vec<u8>) -> Vec<u8> {
    // DER of a certificate begins with a sequence; JSON may contain PEM, but is none.
    if matches!(bytes.trim_ascii_start().first(), None | Some(0x30 | b'{')) {
        return bytes;
    }
    let first = x509_parser::pem::Pem::iter_from_buffer(&bytes).next();
    match first {
        Some(Ok(pem)) => pem.contents,
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_certificate_of_a_text_counts() {
        let block =
            |content: &str| format!("-----BEGIN CERTIFICATE-----\n{content}\n-----END CERTIFICATE-----\n");
        let chain = format!("Bag Attributes\n    name: VCEK\n{}{}", block("MAA="), block("MAE="));
        assert_eq!(to_der(chain.into_bytes()), [0x30, 0]);
        for other in [b"".as_slice(), b"0\0", b"{\n-----BEGIN CERTIFICATE-----\n", b"-----BEGIN X-----\n!!"] {
            assert_eq!(to_der(other.to_vec()), other);
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = to_der(bytes);
        }
    }
}
