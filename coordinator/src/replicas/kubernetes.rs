//! The endpoints of a Kubernetes service, asked of the API server with the pod's own service account.
//!
//! Source: Kubernetes API reference, `EndpointSlice` of `discovery.k8s.io/v1`. The API server belongs to the
//! host, so it is no more trusted than DNS: it can hide peers, not invent any.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};
use program::KubernetesApi;
use serde::Deserialize;

const ANSWER: Duration = Duration::from_secs(3);
/// Name of the port where workloads and peers connect.
const PORT: &str = "meshapi";

/// Where to ask, and about which service.
pub(super) struct Service {
    api: KubernetesApi,
    path: String,
}

#[derive(Deserialize)]
struct Slices {
    items: Vec<Slice>,
}

#[derive(Deserialize)]
struct Slice {
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct Endpoint {
    addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    port: Option<u16>,
}

impl Service {
    /// `service` is `NAMESPACE/NAME`, or `NAME` in the pod's own namespace; `api` the address of the API
    /// server, without which the pod's environment says it; `credentials` the directory with `token`,
    /// `ca.crt` and `namespace`.
    pub(super) fn new(service: &str, api: Option<&str>, credentials: &Path) -> anyhow::Result<Self> {
        let is_label = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let (namespace, name) = match service.split_once('/') {
            Some((namespace, name)) => (namespace.to_owned(), name),
            None => {
                let path = credentials.join("namespace");
                let namespace = std::fs::read_to_string(&path).with_context(|| {
                    format!("--peers-service {service:?} names no namespace, and {}", path.display())
                })?;
                (namespace.trim_end().to_owned(), service)
            }
        };
        if !is_label(&namespace) || !is_label(name) {
            bail!("--peers-service {service:?} in namespace {namespace:?} is not [NAMESPACE/]NAME");
        }
        let address = match api {
            Some(api) => api.to_owned(),
            None => KubernetesApi::address_in_pod().context(
                "--peers-service: KUBERNETES_SERVICE_HOST is not set, so this is no pod; give --kubernetes-api",
            )?,
        };
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices\
             ?labelSelector=kubernetes.io%2Fservice-name%3D{name}"
        );
        Ok(Self { api: KubernetesApi::new(&address, credentials, ANSWER), path })
    }

    /// Addresses of the service's endpoints, ready or not. Blocks.
    pub(super) fn endpoints(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let slices: Slices = serde_json::from_slice(&self.api.get(&self.path)?)?;
        Ok(slices.items.iter().flat_map(addresses).collect())
    }
}

fn addresses(slice: &Slice) -> Vec<SocketAddr> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT));
    let only = ports.first().filter(|_| ports.len() == 1);
    let Some(port) = named.or(only).and_then(|port| port.port) else { return Vec::new() };
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    endpoints.iter().flat_map(|endpoint| &endpoint.addresses).map(|ip| SocketAddr::new(*ip, port)).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        sync::Arc,
    };

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// An API server for so many requests; gives what it was asked.
    fn api_server(
        directory: &Path,
        answers: Vec<&'static str>,
    ) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let (ca_key, mut ca) = (KeyPair::generate().unwrap(), CertificateParams::default());
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(directory.join("ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        std::fs::write(directory.join("token"), "of-the-pod\n").unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &Issuer::from_params(&ca, ca_key)).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = Arc::new(config);
        let serve = move |answer: &str| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::Stream::new(&mut tls, &mut stream);
            let (mut asked, mut buffer) = (Vec::new(), [0; 4096]);
            while !asked.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(count @ 1..) => asked.extend_from_slice(&buffer[..count]),
                    _ => return String::from_utf8(asked).unwrap(),
                }
            }
            let _ = stream.write_all(answer.as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
            String::from_utf8(asked).unwrap()
        };
        (url, std::thread::spawn(move || answers.into_iter().map(serve).collect()))
    }

    #[test]
    fn endpoints_are_read_with_the_pods_account_and_other_answers_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let json = r#"{"kind":"EndpointSliceList","items":[
            {"addressType":"IPv4","ports":[{"name":"userapi","port":1313},{"name":"meshapi","port":7777}],
             "endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true}},{"addresses":["10.0.0.2"]}]},
            {"addressType":"IPv6","ports":[{"port":7778}],"endpoints":[{"addresses":["fd00::1"]}]},
            {"ports":null,"endpoints":null}]}"#;
        let ok = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len()).leak();
        let forbidden = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
        let broken = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]";
        let (url, server) = api_server(directory.path(), vec![ok, forbidden, broken]);
        let service = Service::new("apps/coordinator", Some(&url), directory.path()).unwrap();
        let found: Vec<String> = service.endpoints().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:7777", "10.0.0.2:7777", "[fd00::1]:7778"]);
        assert!(format!("{:#}", service.endpoints().unwrap_err()).contains("403"));
        service.endpoints().unwrap_err();
        let asked = &server.join().unwrap()[0];
        assert!(
            asked.starts_with("GET /apis/discovery.k8s.io/v1/namespaces/apps/endpointslices?labelSelector=")
        );
        assert!(asked.to_ascii_lowercase().contains("authorization: bearer of-the-pod\r\n"), "{asked}");

        // A server of another authority is not asked.
        let other = tempfile::tempdir().unwrap();
        let (url, server) = api_server(other.path(), vec![ok]);
        let service = Service::new("apps/coordinator", Some(&url), directory.path()).unwrap();
        service.endpoints().unwrap_err();
        assert_eq!(server.join().unwrap(), [""]);
        let new = |service: &str| Service::new(service, Some(&url), directory.path());
        let error = new("coordinator").err().unwrap();
        assert!(format!("{error:#}").contains("names no namespace"), "{error:#}");
        std::fs::write(directory.path().join("namespace"), "shop\n").unwrap();
        assert!(new("coordinator").unwrap().path.contains("/namespaces/shop/endpointslices?"));
        for bad in ["", "apps/", "/coordinator", "a/b/c", "apps/Coordinator", "apps/x?y"] {
            assert!(new(bad).is_err(), "{bad}");
        }
        std::fs::write(directory.path().join("namespace"), "../kube-system").unwrap();
        assert!(new("coordinator").is_err());
    }
}
