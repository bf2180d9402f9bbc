"""A client of a Coordinator, written from the protocol's description alone: it shares no code with the
Rust programs, so that one mistake cannot hide on both sides.

Section numbers are those of the control plane's interoperability specification.
"""

import base64
import datetime
import hashlib
import hmac
import http.client
import json
import os
import select
import socket
import tempfile
import threading
import time

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

SNP = "1.3.9901.2.1"


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def labelled(label, *parts):
    """What our own protocols hash or sign: a label, a zero byte, and each part after its length."""
    return label + b"\0" + b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def spki(public):
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pkcs1(public):
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)


# Protocol buffers, as much as is needed.


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def message(*fields):
    """Encodes (number, value) pairs: int, bool, bytes, str, or a list of bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, list):
            for item in value:
                out += varint(number << 3 | 2) + varint(len(item)) + item
        elif isinstance(value, (bytes, str)):
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(number << 3) + varint(int(value))
    return out


def fields(data):
    """Decodes a message into {number: [values]}."""
    found, at = {}, 0

    def number():
        nonlocal at
        result = shift = 0
        while True:
            byte = data[at]
            at += 1
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            value = number()
        elif tag & 7 == 2:
            length = number()
            value, at = data[at : at + length], at + length
            assert len(value) == length
        else:
            raise ValueError(f"wire type {tag & 7}")
        found.setdefault(tag >> 3, []).append(value)
    return found


def one(found, number, default=b""):
    return found.get(number, [default])[-1]


# Evidence: the report of AMD SEV-SNP, signed by a simulated chip.


class Machine:
    def __init__(self, directory):
        read = lambda name: open(os.path.join(directory, name), "rb").read()
        self.ark, self.ask, self.vcek, self.crl = (read(f"{name}.der") for name in ("ark", "ask", "vcek", "crl"))
        self.key = serialization.load_der_private_key(read("vcek.p8"), None)
        certificate = x509.load_der_x509_certificate(self.vcek)
        hwid = x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4")
        self.chip = certificate.extensions.get_extension_for_oid(hwid).value.value

    def evidence(self, report_data, host_data):
        tcb = bytes([1, 1, 0, 0, 0, 0, 1, 1])
        report = bytearray(1184)

        def put(at, data):
            report[at : at + len(data)] = data

        put(0x00, (3).to_bytes(4, "little"))
        put(0x08, (0x30000).to_bytes(8, "little"))
        put(0x34, (1).to_bytes(4, "little"))
        put(0x40, (1).to_bytes(8, "little"))
        put(0x50, report_data)
        measurement = hashlib.sha384(b"contrast simulated guest, version 1").digest()
        put(0x90, measurement)
        put(0xC0, host_data)
        for at in (0x38, 0x180, 0x1E0, 0x1F0):
            put(at, tcb)
        put(0x188, bytes([0x19, 1, 1]))
        put(0x1A0, self.chip)
        r, s = utils.decode_dss_signature(self.key.sign(bytes(report[:0x2A0]), ec.ECDSA(hashes.SHA384())))
        put(0x2A0, r.to_bytes(72, "little"))
        put(0x2E8, s.to_bytes(72, "little"))
        number = int.from_bytes(tcb, "little")
        encoded = message(
            (1, 3), (2, 0), (3, 0x30000), (4, bytes(16)), (5, bytes(16)), (6, 0), (7, 1), (8, number), (9, 1),
            (11, report_data), (12, measurement), (13, host_data), (14, bytes(48)), (15, bytes(48)),
            (16, bytes(32)), (17, bytes(32)), (18, number), (19, self.chip), (20, number), (27, number),
            (28, bytes(report[0x2A0:0x4A0])), (29, 0x00A00F11),
        )
        # A map entry in protobuf is a message of key and value.
        crl = message((1, b"00569ee4-e480-4fba-bbf4-45b629901180"), (2, self.crl))
        chain = message((1, self.vcek), (2, self.ask), (3, self.ark), (7, crl))
        return message((1, encoded), (2, chain), (3, message((1, 1))))


def verify_evidence(document, report_data, manifest):
    """Judges evidence by a manifest with simulated roots; gives HOSTDATA."""
    outer = fields(document)
    report, chain = fields(one(outer, 1)), fields(one(outer, 2))
    raw = bytearray(1184)

    def put(at, data):
        raw[at : at + len(data)] = data

    for at, size, number in [
        (0x00, 4, 1), (0x04, 4, 2), (0x08, 8, 3), (0x30, 4, 6), (0x34, 4, 7), (0x38, 8, 8), (0x40, 8, 9),
        (0x48, 4, 10), (0x180, 8, 18), (0x1E0, 8, 20), (0x1F0, 8, 27), (0x1F8, 8, 30), (0x200, 8, 31),
    ]:
        put(at, one(report, number, 0).to_bytes(size, "little"))
    for at, number in [
        (0x10, 4), (0x20, 5), (0x50, 11), (0x90, 12), (0xC0, 13), (0xE0, 14), (0x110, 15), (0x140, 16),
        (0x160, 17), (0x1A0, 19), (0x2A0, 28),
    ]:
        put(at, one(report, number))
    eax = one(report, 29, 0)
    put(0x188, bytes([(eax >> 8 & 15) + (eax >> 20 & 255), (eax >> 4 & 15) | (eax >> 16 & 15) << 4, eax & 15]))

    ark, ask, vcek = (x509.load_der_x509_certificate(one(chain, number)) for number in (3, 2, 1))
    roots = manifest["ReferenceValues"]["simulatedRoots"]
    assert hashlib.sha256(one(chain, 3)).hexdigest() in roots, "a root that the manifest does not list"
    for child, parent in ((ark, ark), (ask, ark), (vcek, ask)):
        parent.public_key().verify(
            child.signature, child.tbs_certificate_bytes,
            padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384(),
        )
    r, s = (int.from_bytes(raw[at : at + 48], "little") for at in (0x2A0, 0x2E8))
    vcek.public_key().verify(utils.encode_dss_signature(r, s), bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384()))
    assert bytes(raw[0x50:0x90]) == report_data, "evidence of something else"
    assert bytes(raw[0x90:0xC0]).hex() == manifest["ReferenceValues"]["snp"][0]["TrustedMeasurement"]
    return bytes(raw[0xC0:0xE0])


# Attested TLS (section 2).


def certificate_for(key, document=None):
    now = datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Contrast")])
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=2)).not_valid_after(now + datetime.timedelta(hours=2))
    )
    if document is not None:
        for oid, value in document:
            builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), False)
    return builder.sign(key, hashes.SHA256())


class AttestedTls:
    """One connection. `evidence(report_data)` gives what this side's certificate shall carry."""

    def __init__(self, address, key=None, evidence=None, alpn=None):
        self.nonce = os.urandom(32)
        self.server_nonce = None
        host, port = address.rsplit(":", 1)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_NONE)
        context.set_alpn_protos(alpn or [b"atls:v1:nonce:" + self.nonce.hex().encode(), b"h2"])
        self.key = key

        def info(connection, where, _):
            # The server's nonce is the one name in its CertificateRequest, so the certificate that answers it
            # can only be made now.
            names = connection.get_client_ca_list()
            if self.server_nonce is not None or not names:
                return
            assert len(names) == 1, "exactly one name"
            self.server_nonce = base64.b64decode(names[0].CN, validate=True)
            assert len(self.server_nonce) == 32
            if key is not None:
                document = None
                if evidence is not None:
                    data = hashlib.sha512(spki(key.public_key()) + self.server_nonce).digest()
                    document = evidence(data)
                    if isinstance(document, bytes):
                        document = [(SNP, document)]
                connection.use_certificate(certificate_for(key, document))
                connection.use_privatekey(key)

        context.set_info_callback(info)
        raw = socket.create_connection((host, int(port)), timeout=20)
        raw.settimeout(None)
        self.connection = SSL.Connection(context, raw)
        self.connection.set_connect_state()
        self.connection.do_handshake()
        assert self.connection.get_protocol_version_name() == "TLSv1.3"
        assert self.connection.get_alpn_proto_negotiated() == b"h2", "the nonce entry is never selected"
        assert self.server_nonce is not None, "a server that sends no nonce breaks its clients"

    def verify_server(self, manifest):
        """Gives the server's HOSTDATA."""
        certificate = self.connection.get_peer_certificate().to_cryptography()
        certificate.verify_directly_issued_by(certificate)
        extensions = [e for e in certificate.extensions if e.oid.dotted_string.startswith("1.3.9901.2.")]
        assert len(extensions) == 1 and not extensions[0].critical
        data = hashlib.sha512(spki(certificate.public_key()) + self.nonce).digest()
        return verify_evidence(extensions[0].value.value, data, manifest)

    def channel(self):
        """A gRPC channel through this connection: grpcio itself cannot speak attested TLS."""
        path = os.path.join(tempfile.mkdtemp(), "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        threading.Thread(target=self._relay, args=(listener,), daemon=True).start()
        options = [("grpc.default_authority", "coordinator"), ("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
        return grpc.insecure_channel(f"unix:{path}", options)

    def _relay(self, listener):
        local, _ = listener.accept()
        remote = self.connection
        remote.setblocking(False)
        local.setblocking(False)
        to_remote = b""
        while True:
            try:
                data = remote.recv(65536)
                local.setblocking(True)
                local.sendall(data)
                local.setblocking(False)
                continue
            except SSL.WantReadError:
                pass
            except (SSL.ZeroReturnError, SSL.SysCallError, SSL.Error, OSError):
                local.close()
                return
            try:
                if not to_remote:
                    to_remote = local.recv(65536)
                    if not to_remote:
                        return
                to_remote = to_remote[remote.send(to_remote) :]
                continue
            except (BlockingIOError, SSL.WantWriteError, SSL.WantReadError):
                pass
            except (SSL.SysCallError, OSError):
                return
            select.select([remote, local], [remote] if to_remote else [], [], 5)


class FalseCoordinator:
    """A server of attested TLS that chooses its own nonce, and keeps the evidence that a client makes over it."""

    def __init__(self, nonce):
        self.nonce, self.certificate = nonce, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while self.certificate is None:
            raw_, _ = self.listener.accept()
            context = SSL.Context(SSL.TLS_SERVER_METHOD)
            key = ec.generate_private_key(ec.SECP256R1())
            context.use_certificate(certificate_for(key))
            context.use_privatekey(key)
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, b64(self.nonce))])
            authority = (
                x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
                .serial_number(1).not_valid_before(datetime.datetime(2020, 1, 1))
                .not_valid_after(datetime.datetime(2099, 1, 1)).sign(key, hashes.SHA256())
            )
            context.add_client_ca(authority)
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
            context.set_alpn_select_callback(lambda _, offered: b"h2")
            connection = SSL.Connection(context, raw_)
            connection.set_accept_state()
            try:
                connection.do_handshake()
                self.certificate = connection.get_peer_certificate().to_cryptography()
            except SSL.Error:
                pass
            raw_.close()


def evidence_in(certificate):
    return [e for e in certificate.extensions if e.oid.dotted_string.startswith("1.3.9901.2.")][0].value.value


def call(channel, path, request, deadline=30):
    method = channel.unary_unary(path, request_serializer=lambda b: b, response_deserializer=lambda b: b)
    return fields(method(request, timeout=deadline))


def refused(code, text, channel, path, request=b""):
    try:
        call(channel, path, request)
    except grpc.RpcError as error:
        found = (error.code(), error.details())
        assert found[0] == code, f"{path}: expected {code} {text!r}, got {found}"
        assert text in found[1], f"{path}: expected {text!r}, got {found}"
        return
    raise AssertionError(f"{path} was not refused with {code}")


# Keys (section 5).


def derive(secret, salt, label):
    return HKDF(hashes.SHA256(), len(secret), salt, label.encode()).derive(secret)


def p384_from(secret):
    k, v = bytes(32), b"\x01" * 32
    mac = lambda key, data: hmac.new(key, data, "sha256").digest()
    for round_number in (b"\0", b"\1"):
        k = mac(k, v + round_number + secret + b"det ECDSA key gen P-384")
        v = mac(k, v)
    out = b""
    for _ in range(2):
        v = mac(k, v)
        out += v
    return ec.derive_private_key(int.from_bytes(out[:48], "big"), ec.SECP384R1())


def transition_of(manifests):
    latest = bytes(32)
    for manifest in manifests:
        latest = sha256(sha256(manifest), latest)
    return latest


def verify_transition(public, transition, signature):
    public.verify(signature, transition, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


# HPKE in base mode with X25519, HKDF-SHA256, AES-256-GCM (RFC 9180).

SUITE = b"HPKE" + bytes([0, 0x20, 0, 1, 0, 2])
KEM = b"KEM" + bytes([0, 0x20])


def extract(salt, suite, label, secret):
    return hmac.new(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256").digest()


def expand(key, suite, label, info, length):
    info = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return HKDFExpand(hashes.SHA256(), length, info).derive(key)


def schedule(shared, info):
    context = b"\0" + extract(b"", SUITE, b"psk_id_hash", b"") + extract(b"", SUITE, b"info_hash", info)
    secret = extract(shared, SUITE, b"secret", b"")
    return AESGCM(expand(secret, SUITE, b"key", context, 32)), expand(secret, SUITE, b"base_nonce", context, 12)


def kem(dh, encapsulated, recipient):
    return expand(extract(b"", KEM, b"eae_prk", dh), KEM, b"shared_secret", encapsulated + recipient, 32)


def raw(public):
    return public.public_bytes_raw()


def hpke_seal(recipient, info):
    """Gives the encapsulated key and a function that seals one message."""
    ephemeral = x25519.X25519PrivateKey.generate()
    encapsulated = raw(ephemeral.public_key())
    dh = ephemeral.exchange(x25519.X25519PublicKey.from_public_bytes(recipient))
    cipher, nonce = schedule(kem(dh, encapsulated, recipient), info)
    return encapsulated, lambda plain: cipher.encrypt(nonce, plain, b"")


def hpke_open(private, encapsulated, info, ciphertext):
    dh = private.exchange(x25519.X25519PublicKey.from_public_bytes(encapsulated))
    cipher, nonce = schedule(kem(dh, encapsulated, raw(private.public_key())), info)
    return cipher.decrypt(nonce, ciphertext, b"")


# HTTP.


def request(address, method, path, body=None, headers=None):
    host, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    default = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, body, default if headers is None else headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def post(address, path, body, headers=None):
    status, answer = request(address, "POST", path, json.dumps(body), headers)
    return status, json.loads(answer)


def b64(data):
    return base64.b64encode(data).decode()


def unb64(text):
    return base64.b64decode(text, validate=True)
