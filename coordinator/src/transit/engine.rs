//! What is done with a request's body. Pure: bytes in, JSON out.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::refused::Refused;
use crate::{desk::TransitKeys, http::at_most};

/// Most items of one batch.
const MAX_BATCH: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Encrypt,
    Decrypt,
    /// Decrypt and encrypt again, under another version or with a fresh nonce.
    Rewrap,
}

/// A request, or one item of a batch. Fields of Vault's that mean nothing here are ignored, but those
/// that would change what is computed are refused.
#[derive(Debug, Default, Deserialize)]
struct Item {
    plaintext: Option<String>,
    ciphertext: Option<String>,
    associated_data: Option<String>,
    key_version: Option<u32>,
    /// Given back as it came.
    reference: Option<String>,
    context: Option<String>,
    nonce: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_BATCH>")]
    batch_input: Option<Vec<Item>>,
    /// Status of an answer in which some items failed; Vault's default is 400.
    partial_failure_response_code: Option<u16>,
    // The fields of a single item. They are repeated, because `flatten` would keep every field that it does not
    // know in memory, with a tree of values under it.
    plaintext: Option<String>,
    ciphertext: Option<String>,
    associated_data: Option<String>,
    key_version: Option<u32>,
    context: Option<String>,
    nonce: Option<String>,
}

impl Request {
    fn single(self) -> Item {
        let Self { plaintext, ciphertext, associated_data, key_version, context, nonce, .. } = self;
        Item { plaintext, ciphertext, associated_data, key_version, reference: None, context, nonce }
    }
}

/// Does one request with the keys of that name.
pub(super) fn run(
    keys: &TransitKeys,
    operation: Operation,
    body: &[u8],
) -> Result<(StatusCode, Value), Refused> {
    let mut request: Request = serde_json::from_slice(body)
        .map_err(|error| Refused::malformed(format!("the body is not the expected JSON: {error}")))?;
    let Some(items) = request.batch_input.take() else {
        return Ok((StatusCode::OK, one(keys, operation, &request.single())?.into()));
    };
    if items.is_empty() {
        return Err(Refused::malformed(format!("batch_input: expected 1 to {MAX_BATCH} items")));
    }
    let mut failed = 0;
    let mut result = |item: &Item| {
        let mut result = match one(keys, operation, item) {
            Ok(result) => result,
            Err(Refused(_, message)) => {
                failed += 1;
                Map::from_iter([("error".to_owned(), message.into())])
            }
        };
        if let Some(reference) = &item.reference {
            result.insert("reference".into(), reference.clone().into());
        }
        Value::Object(result)
    };
    let results: Vec<Value> = items.iter().map(&mut result).collect();
    let some_failed = request.partial_failure_response_code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = match failed {
        0 => StatusCode::OK,
        failed if failed < items.len() => some_failed.unwrap_or(StatusCode::BAD_REQUEST),
        _ => StatusCode::BAD_REQUEST,
    };
    Ok((status, json!({ "batch_results": results })))
}

fn one(keys: &TransitKeys, operation: Operation, item: &Item) -> Result<Map<String, Value>, Refused> {
    for (field, value) in [("context", &item.context), ("nonce", &item.nonce)] {
        if value.as_ref().is_some_and(|value| !value.is_empty()) {
            return Err(Refused::malformed(format!(
                "{field}: derived and convergent keys do not exist here"
            )));
        }
    }
    let associated_data = match &item.associated_data {
        Some(text) => decode("associated_data", text)?.to_vec(),
        None => Vec::new(),
    };
    let (version, answer) = match operation {
        Operation::Encrypt => {
            let plain = decode("plaintext", item.plaintext.as_deref().ok_or_else(|| missing("plaintext"))?)?;
            let version = item.key_version.unwrap_or_default();
            (version, encrypt(keys, version, &plain, &associated_data)?)
        }
        Operation::Decrypt => {
            let (_, plain) = decrypt(keys, item, &associated_data)?;
            return Ok(Map::from_iter([("plaintext".to_owned(), BASE64_STANDARD.encode(&*plain).into())]));
        }
        Operation::Rewrap => {
            let (version, plain) = decrypt(keys, item, &associated_data)?;
            let version = item.key_version.unwrap_or(version);
            (version, encrypt(keys, version, &plain, &associated_data)?)
        }
    };
    Ok(Map::from_iter([("ciphertext".to_owned(), answer.into()), ("key_version".to_owned(), version.into())]))
}

fn encrypt(
    keys: &TransitKeys,
    version: u32,
    plain: &[u8],
    associated_data: &[u8],
) -> Result<String, Refused> {
    let sealed = keys.seal(version, plain, associated_data)?;
    Ok(format!("vault:v{version}:{}", BASE64_STANDARD.encode(sealed)))
}

fn decrypt(
    keys: &TransitKeys,
    item: &Item,
    associated_data: &[u8],
) -> Result<(u32, Zeroizing<Vec<u8>>), Refused> {
    let text = item.ciphertext.as_deref().ok_or_else(|| missing("ciphertext"))?;
    let malformed = || Refused::malformed("invalid ciphertext: expected vault:v<version>:<base64>");
    let mut parts = text.splitn(3, ':').skip(1);
    let (version, sealed) = parts.next().zip(parts.next()).ok_or_else(malformed)?;
    let version: u32 =
        version.strip_prefix('v').and_then(|digits| digits.parse().ok()).ok_or_else(malformed)?;
    let sealed = decode("ciphertext", sealed)?;
    let plain = keys.open(version, &sealed, associated_data)?.ok_or_else(|| {
        Refused::malformed("invalid ciphertext: it was made with another key or other associated data")
    })?;
    Ok((version, plain))
}

fn missing(field: &str) -> Refused {
    Refused::malformed(format!("{field}: missing"))
}

fn decode(field: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let decoded = BASE64_STANDARD.decode(text).map(Zeroizing::new);
    decoded.map_err(|_| Refused::malformed(format!("{field}: expected standard base64 with padding")))
}

#[cfg(test)]
mod tests {
    use keys::{Salt, Seed, SeedEngine};

    use super::*;

    /// Seed and salt of the vectors of docs/spec/control-plane.md, section 5.5.
    fn engine() -> SeedEngine {
        let (seed, salt): (Vec<u8>, Vec<u8>) = ((0..64).collect(), (0..32).collect());
        SeedEngine::new(Seed::from_bytes(&seed).unwrap(), Salt::from_bytes(&salt).unwrap()).unwrap()
    }

    fn ask(operation: Operation, body: Value) -> Result<(StatusCode, Value), Refused> {
        run(&TransitKeys::of(engine(), "demo"), operation, body.to_string().as_bytes())
    }

    fn ciphertext(body: Value) -> String {
        ask(Operation::Encrypt, body).unwrap().1["ciphertext"].as_str().unwrap().to_owned()
    }

    #[test]
    fn versions_associated_data_and_rewrap() {
        let text = ciphertext(json!({ "plaintext": "aGVsbG8=", "associated_data": "YWFk" }));
        assert!(text.starts_with("vault:v0:"), "absent is version 0");
        let plain = |body| ask(Operation::Decrypt, body).map(|(_, data)| data["plaintext"].clone());
        assert_eq!(plain(json!({ "ciphertext": text, "associated_data": "YWFk" })), Ok("aGVsbG8=".into()));
        let refused = plain(json!({ "ciphertext": text })).unwrap_err();
        assert_eq!(refused.0, StatusCode::BAD_REQUEST);
        let other_version = text.replace("v0", "v1");
        assert!(plain(json!({ "ciphertext": other_version, "associated_data": "YWFk" })).is_err());

        let body = json!({ "ciphertext": text, "associated_data": "YWFk", "key_version": 7 });
        let again = ask(Operation::Rewrap, body).unwrap().1;
        assert_eq!(again["key_version"], 7);
        let body = json!({ "ciphertext": again["ciphertext"], "associated_data": "YWFk" });
        assert_eq!(plain(body), Ok("aGVsbG8=".into()));
    }

    #[test]
    fn wrong_requests_are_told_what_is_wrong() {
        let refusal = |operation, body: Value| ask(operation, body).unwrap_err().1;
        assert!(refusal(Operation::Encrypt, json!({})).contains("plaintext: missing"));
        assert!(
            refusal(Operation::Encrypt, json!({ "plaintext": "%" }))
                .contains("plaintext: expected standard base64")
        );
        assert!(
            refusal(Operation::Encrypt, json!({ "plaintext": "", "key_version": -1 }))
                .contains("expected JSON")
        );
        assert!(
            refusal(Operation::Encrypt, json!({ "plaintext": "", "context": "YQ==" })).contains("context")
        );
        // Shorter than a nonce crashes upstream.
        for text in ["vault:v1:", "vault:v1:YQ==", "vault:1:YQ==", "vault", "vault:v4294967296:YQ=="] {
            assert!(
                refusal(Operation::Decrypt, json!({ "ciphertext": text })).contains("invalid ciphertext"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_batch_is_counted_while_it_is_read() {
        let items = |count: usize| format!("{{\"batch_input\":[{}{{}}]}}", "{},".repeat(count - 1));
        let run = |body: String| run(&TransitKeys::of(engine(), "demo"), Operation::Encrypt, body.as_bytes());
        assert_eq!(run(items(MAX_BATCH)).unwrap().0, StatusCode::BAD_REQUEST, "no item has a plaintext");
        let Err(Refused(_, text)) = run(items(MAX_BATCH + 1)) else { panic!("answered") };
        assert!(text.contains("more than 10000 entries"), "{text}");
        // What stands under a name that means nothing here is passed over.
        assert_eq!(run(r#"{"plaintext":"","x":[{},[{}]]}"#.to_owned()).unwrap().0, StatusCode::OK);
    }

    #[test]
    fn a_batch_answers_each_item_and_says_which_failed() {
        let body = json!({ "batch_input": [
            { "plaintext": "aGVsbG8=", "reference": "first" }, { "plaintext": "!", "reference": "second" }
        ] });
        let (status, data) = ask(Operation::Encrypt, body.clone()).unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(data["batch_results"][0]["reference"], "first");
        assert!(data["batch_results"][0]["ciphertext"].is_string());
        assert!(data["batch_results"][1]["error"].as_str().unwrap().contains("plaintext"));
        let mut lenient = body;
        lenient["partial_failure_response_code"] = 200.into();
        assert_eq!(ask(Operation::Encrypt, lenient).unwrap().0, StatusCode::OK);
        assert!(ask(Operation::Encrypt, json!({ "batch_input": [] })).is_err());
    }
}
