"""Drives a Coordinator through its APIs; `drive.py STEP CONFIG.json`. Exits with a traceback when
something is not as the protocol says."""

import subprocess
import sys

from contrast import *

USER = "/edgelesssys.contrast.userapi.UserAPI/"
MESH = "/meshapi.MeshAPI/"
Code = grpc.StatusCode

config = json.load(open(sys.argv[2]))
directory = config["directory"]
path = lambda name: os.path.join(directory, name)
manifest_bytes = open(path("manifest.json"), "rb").read()
manifest = json.loads(manifest_bytes)
policies = [open(path("policies/" + name), "rb").read() for name in ("coordinator", "web")]
machine = Machine(path("machine"))
load = lambda name: serialization.load_pem_private_key(open(path(name), "rb").read(), None)
owner, seedshare_owner = load("workload-owner.pem"), load("seedshare-owner.pem")
COORDINATOR, WEB = (sha256(policy) for policy in policies)


def user(key=None):
    connection = AttestedTls(config["user"], key)
    assert connection.verify_server(manifest) == COORDINATOR
    return connection.channel()


def remember(**values):
    known = recall() if os.path.exists(path("python.json")) else {}
    json.dump({**known, **values}, open(path("python.json"), "w"))


def recall():
    return json.load(open(path("python.json")))


def first():
    channel = user()
    for service in (USER, "/userapi.UserAPI/"):
        refused(Code.FAILED_PRECONDITION, "no manifest configured", channel, service + "GetManifests")
    recover = message((1, os.urandom(64)), (2, os.urandom(32)))
    refused(Code.FAILED_PRECONDITION, "no manifest configured", user(seedshare_owner), USER + "Recover", recover)
    set_manifest = USER + "SetManifest"
    for bad in (b"null", b"", b"[]", b"{}", b'{"Policies":{}}'):
        refused(Code.INVALID_ARGUMENT, "manifest is not valid", channel, set_manifest, message((1, bad)))
    wrong = {**manifest, "Policies": {WEB.hex(): {"SANs": [7]}}}
    text = f"Policies.{WEB.hex()}.SANs[0]"
    refused(Code.INVALID_ARGUMENT, text, channel, set_manifest, message((1, json.dumps(wrong))))
    refused(Code.INTERNAL, "lacks the document of policy", channel, set_manifest, message((1, manifest_bytes)))
    bad_key = {**manifest, "SeedshareOwnerPubKeys": ["00"]}
    bad_key = message((1, json.dumps(bad_key)), (2, policies))
    refused(Code.INVALID_ARGUMENT, "SeedshareOwnerPubKeys[0]", channel, set_manifest, bad_key)

    # Workloads wait: the handshake itself is refused.
    try:
        AttestedTls(config["mesh"], ec.generate_private_key(ec.SECP256R1()), lambda data: machine.evidence(data, WEB))
        raise AssertionError("the mesh API accepted a connection without a manifest")
    except SSL.Error:
        pass

    answer = call(channel, set_manifest, message((1, manifest_bytes), (2, policies)))
    document = fields(one(answer, 3))
    salt, shares = one(document, 2), [fields(share) for share in document[1]]
    assert [one(share, 1).decode() for share in shares] == manifest["SeedshareOwnerPubKeys"]
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"seedshare")
    seed = seedshare_owner.decrypt(one(shares[0], 2), oaep)
    assert (len(seed), len(salt)) == (64, 32)
    root = x509.load_pem_x509_certificate(one(answer, 1))
    root_key = p384_from(derive(seed, salt, "ROOT CA SEED")).public_key()
    assert spki(root.public_key()) == spki(root_key), "the root CA's key is derived from the seed"
    history(channel, [manifest_bytes], seed, salt)
    remember(seed=b64(seed), salt=b64(salt), manifests=[b64(manifest_bytes)])


def history(channel, expected, seed, salt):
    answer = call(channel, USER + "GetManifests", b"")
    assert answer[1] == expected, "every manifest, byte for byte, oldest first"
    assert sorted(set(answer[2])) == sorted(policies)
    latest = fields(one(answer, 5))
    assert one(latest, 1) == transition_of(expected)
    public = p384_from(derive(seed, salt, "TRANSACTION SIGNING SECRET")).public_key()
    verify_transition(public, one(latest, 1), one(latest, 2))
    again = fields(one(call(channel, USER + "GetManifests", b""), 5))
    assert again == latest, "one signature is kept for each transition: others compare its bytes"
    return one(latest, 1)


def update():
    known = recall()
    seed, salt = unb64(known["seed"]), unb64(known["salt"])
    manifests = [unb64(known["manifests"][0])]
    next_bytes = json.dumps({**manifest, "MinimumAPIVersion": "v1"}).encode()
    request = lambda previous=b"", signature=b"", body=next_bytes: message(
        (1, body), (2, policies), (3, previous), (4, signature)
    )
    set_manifest = USER + "SetManifest"
    refused(Code.PERMISSION_DENIED, "needs the key or the signature", user(), set_manifest, request())
    stranger = ec.generate_private_key(ec.SECP384R1())
    refused(Code.PERMISSION_DENIED, "is not a workload owner", user(stranger), set_manifest, request())
    refused(Code.FAILED_PRECONDITION, "history moved on", user(owner), set_manifest, request(os.urandom(32)))
    refused(Code.INVALID_ARGUMENT, "", user(owner), set_manifest, request(b"short"))
    others = json.dumps({**manifest, "SeedshareOwnerPubKeys": []}).encode()
    refused(Code.PERMISSION_DENIED, "seedshare owners", user(owner), set_manifest, request(body=others))
    latest = transition_of(manifests)
    answer = call(user(owner), set_manifest, request(latest))
    assert 3 not in answer, "seed shares are for the first manifest only"
    manifests.append(next_bytes)

    # By a detached signature, over the 64 hex digits of the transition; the connection has no key.
    again = manifest_bytes + b"\n"
    transition = transition_of(manifests + [again]).hex().encode()
    bad = owner.sign(transition[::-1], ec.ECDSA(hashes.SHA256()))
    refused(Code.PERMISSION_DENIED, "signature", user(), set_manifest, request(signature=bad, body=again))
    good = owner.sign(transition, ec.ECDSA(hashes.SHA256()))
    call(user(), set_manifest, request(signature=good, body=again))
    manifests.append(again)
    history(user(), manifests, seed, salt)
    refused(Code.FAILED_PRECONDITION, "already recovered", user(seedshare_owner), USER + "Recover",
            message((1, seed), (2, salt)))
    remember(manifests=[b64(item) for item in manifests])


def workload(host_data, evidence=None, key=None):
    key = key or ec.generate_private_key(ec.SECP256R1())
    made = evidence or (lambda data: machine.evidence(data, host_data))
    connection = AttestedTls(config["mesh"], key, made)
    connection.verify_server(manifest)
    return key, connection.channel()


def check_leaf(chain, mesh_ca, root_ca, key, seed, salt, secret):
    leaf, intermediate = x509.load_pem_x509_certificates(chain)
    mesh, root = x509.load_pem_x509_certificate(mesh_ca), x509.load_pem_x509_certificate(root_ca)
    for child, parent in ((leaf, mesh), (leaf, intermediate), (intermediate, root), (mesh, mesh), (root, root)):
        child.verify_directly_issued_by(parent)
    assert spki(leaf.public_key()) == spki(key.public_key())
    common_name = lambda certificate: certificate.subject.rfc4514_string()
    assert [common_name(c) for c in (leaf, intermediate, mesh, root)] == [
        "CN=web", "CN=system:coordinator:intermediate", "CN=system:coordinator:intermediate",
        "CN=system:coordinator:root",
    ]
    value = lambda oid: leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    assert value("2.5.29.17").get_values_for_type(x509.DNSName) == ["web"]
    assert value("1.3.9901.3.1").value == b"\x04\x03web"
    assert value("1.3.9901.2.1.23").value == b"\x04\x20" + WEB, "HOSTDATA as a claim"
    pods = derive(seed, salt, "POD STATE SECRET")
    assert secret == derive(pods, salt, "WORKLOAD SECRET ID: web")
    return leaf


def mesh():
    known = recall()
    seed, salt = unb64(known["seed"]), unb64(known["salt"])
    for service in (MESH, "/edgelesssys.contrast.meshapi.MeshAPI/"):
        key, channel = workload(WEB)
        answer = call(channel, service + "NewMeshCert", b"")
        leaf = check_leaf(one(answer, 2), one(answer, 1), one(answer, 3), key, seed, salt, one(answer, 4))
    year = leaf.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    assert 364 < year.days + 1 < 367
    refused(Code.PERMISSION_DENIED, "role coordinator", channel, MESH + "Recover")

    # Another key by certification request; one that its key did not sign is refused.
    other = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(other, hashes.SHA256())
    csr = csr.public_bytes(serialization.Encoding.DER)
    answer = call(channel, MESH + "NewMeshCert", message((1000, csr)))
    check_leaf(one(answer, 2), one(answer, 1), one(answer, 3), other, seed, salt, one(answer, 4))
    forged = csr[:-1] + bytes([csr[-1] ^ 1])
    refused(Code.INVALID_ARGUMENT, "certification request", channel, MESH + "NewMeshCert", message((1000, forged)))

    # Evidence of a policy that nobody allowed, of another connection, over garbage, none, and two of it.
    _, channel = workload(os.urandom(32))
    refused(Code.PERMISSION_DENIED, "is not in the current manifest", channel, MESH + "NewMeshCert")
    seen = []
    workload(WEB, lambda data: seen.append(machine.evidence(data, WEB)) or seen[0])
    _, channel = workload(WEB, lambda _: seen[0])
    refused(Code.PERMISSION_DENIED, "report data", channel, MESH + "NewMeshCert")
    _, channel = workload(WEB, lambda _: os.urandom(2000))
    refused(Code.PERMISSION_DENIED, "", channel, MESH + "NewMeshCert")
    _, channel = workload(WEB, lambda _: [])
    refused(Code.PERMISSION_DENIED, "no evidence", channel, MESH + "NewMeshCert")
    two = lambda data: [(SNP, machine.evidence(data, WEB)), ("1.3.9901.2.3", b"{}")]
    try:
        _, channel = workload(WEB, two)
        call(channel, MESH + "NewMeshCert", b"", 5)
        raise AssertionError("a certificate with two kinds of evidence was accepted")
    except (SSL.Error, grpc.RpcError) as error:
        if isinstance(error, grpc.RpcError):
            assert error.code() in (Code.UNAVAILABLE, Code.INTERNAL), error

    # A Coordinator gets the secrets.
    _, channel = workload(COORDINATOR)
    answer = call(channel, MESH + "Recover", b"")
    assert (one(answer, 1), one(answer, 2)) == (seed, salt)
    key = one(answer, 3)
    assert key.startswith(b"-----BEGIN EC PRIVATE KEY-----")
    mesh_key = serialization.load_pem_private_key(key, None).public_key()
    current = call(channel, MESH + "NewMeshCert", b"")
    assert spki(mesh_key) == spki(x509.load_pem_x509_certificate(one(current, 1)).public_key())
    assert one(answer, 4) == unb64(known["manifests"][-1])


def attested(path_, version):
    nonce = os.urandom(32)
    status, answer = post(config["http"], path_, {"nonce": b64(nonce)})
    assert status == 200, answer
    manifests = [unb64(item) for item in answer["manifests"]]
    root, mesh_ca = unb64(answer["root_ca"]), unb64(answer["mesh_ca"])
    parts = [nonce, transition_of(manifests), sha256(root), sha256(mesh_ca)]
    if version:
        parts.append(sha256(request(config["http"], "GET", "/capabilities")[1]))
    assert answer["attestation_type"] == [1, 3, 9901, 2, 1]
    document = unb64(answer["raw_attestation_doc"])
    assert verify_evidence(document, sha256(*parts) + bytes(32), manifest) == COORDINATOR
    return manifests


def web_api():
    known = recall()
    seed, salt = unb64(known["seed"]), unb64(known["salt"])
    http_ = config["http"]
    assert attested("/v1/attest", 1) == attested("/attest", 0) == [unb64(item) for item in known["manifests"]]
    status, capabilities = request(http_, "GET", "/capabilities")
    assert status == 200 and capabilities.startswith(b'{"apiVersions":["v1"]') and capabilities.endswith(b"}\n")
    assert json.loads(request(http_, "GET", "/v1/status")[1])["status"] == "ready"

    def fails(status, code, *args, **more):
        found = request(http_, *args, **more)
        assert found[0] == status, found
        if code:
            body = json.loads(found[1])
            assert (body["code"], body["status_code"]) == (code, status), body
            assert body["version"] and body["error"]

    json_type = {"Content-Type": "application/json; charset=utf-8"}
    fails(405, "invalid_argument", "GET", "/attest")
    fails(415, "invalid_argument", "POST", "/attest", "{}", {"Content-Type": "text/plain"})
    fails(400, "invalid_argument", "POST", "/attest", "{}", {"Content-Type": ";"})
    fails(400, "invalid_argument", "POST", "/attest", '{"nonce":"AAAA"}', json_type)
    fails(400, "invalid_argument", "POST", "/attest", "nonsense", json_type)
    fails(413, "invalid_argument", "POST", "/attest", " " * 1025, json_type)
    body = {"manifest": b64(manifest_bytes), "policies": [b64(policy) for policy in policies]}
    fails(403, "invalid_signature", "POST", "/v1/manifest", json.dumps(body))
    fails(400, "invalid_argument", "POST", "/v1/manifest", json.dumps({**body, "signatures": ["", ""]}))
    fails(400, "invalid_argument", "POST", "/v1/manifest", json.dumps({**body, "manifest": b64(b"null")}))
    fails(400, "invalid_argument", "POST", "/v1/recover", json.dumps({"encapsulated_key": "", "ciphertext": ""}))
    fails(404, "invalid_argument", "GET", "/nothing")

    # The version gate: this manifest demands v2, so v1 and the oldest form are closed.
    def put(changed):
        manifests = recall()["manifests"]
        text = json.dumps(changed).encode()
        transition = transition_of([unb64(item) for item in manifests] + [text]).hex().encode()
        signature = owner.sign(transition, ec.ECDSA(hashes.SHA256()))
        remember(manifests=manifests + [b64(text)])
        return text, signature

    text, signature = put({**manifest, "MinimumAPIVersion": "v1"})
    status, answer = post(http_, "/v1/manifest", {**body, "manifest": b64(text), "signatures": [b64(signature)]})
    assert status == 200 and "seed_shares_doc" not in answer, answer
    fails(403, "api_version_too_old", "POST", "/attest", json.dumps({"nonce": b64(os.urandom(32))}))
    attested("/v1/attest", 1)
    status, answer = post(http_, "/v1/manifest", {**body, "manifest": b64(text), "signatures": [b64(signature)]})
    assert (status, answer["code"]) == (403, "invalid_signature"), "the signature served one change"

    # A mesh certificate: a nonce, evidence over it, an answer that only this workload can open.
    key, hpke = ec.generate_private_key(ec.SECP256R1()), x25519.X25519PrivateKey.generate()
    status, answer = post(http_, "/v1/mesh-cert", {})
    assert (status, answer["code"]) == (401, "nonce_required")
    nonce, public = unb64(answer["nonce"]), raw(hpke.public_key())
    spki_ = spki(key.public_key())
    data = hashlib.sha512(labelled(b"contrast mesh-cert v2", spki_, public, nonce)).digest()
    signed = labelled(b"contrast mesh-cert request v2", spki_, public, nonce)
    ask = {
        "nonce": b64(nonce), "raw_attestation_doc": b64(machine.evidence(data, WEB)),
        "attestation_type": [1, 3, 9901, 2, 1], "public_key": b64(spki_),
        "hpke_public_key": b64(public), "signature": b64(key.sign(signed, ec.ECDSA(hashes.SHA256()))),
    }

    def denied(why, **changed):
        status, answer = post(http_, "/v1/mesh-cert", {**ask, **changed})
        assert (status, answer["code"]) == (403, "permission_denied"), (status, answer)
        assert why in answer["error"], answer

    def signs(key_, hpke_key, label=b"contrast mesh-cert request v2"):
        return b64(key_.sign(labelled(label, spki_, hpke_key, nonce), ec.ECDSA(hashes.SHA256())))

    thief = raw(x25519.X25519PrivateKey.generate().public_key())
    denied("not by the certificate's key", hpke_public_key=b64(thief))
    denied("not by the certificate's key", signature="")
    denied("not by the certificate's key", signature=signs(ec.generate_private_key(ec.SECP256R1()), public))
    denied("not by the certificate's key", signature=signs(key, public, b"contrast mesh-cert v2"))
    # Signed by the key itself, but the evidence is for another HPKE key; and in the form of attested TLS.
    denied("report data", hpke_public_key=b64(thief), signature=signs(key, thief))
    old = hashlib.sha512(spki_ + sha256(public, nonce)).digest()
    denied("report data", raw_attestation_doc=b64(machine.evidence(old, WEB)))
    status, answer = post(http_, "/v1/mesh-cert", ask)
    assert status == 200, answer
    opened = hpke_open(hpke, unb64(answer["encapsulated_key"]), b"contrast mesh-cert v2", unb64(answer["ciphertext"]))
    inner = json.loads(opened)
    assert inner.pop("vouchers") == []
    inner = {name: unb64(value) for name, value in inner.items()}
    check_leaf(inner["cert_chain"], inner["mesh_ca"], inner["root_ca"], key, seed, salt, inner["workload_secret"])
    status, answer = post(http_, "/v1/mesh-cert", ask)
    assert status == 401, "the same nonce again"
    remember(checkpoint=json.loads(request(http_, "GET", "/v1/checkpoint")[1])["checkpoint"])


def purposes():
    """Evidence of every door at every other one. Only what was made for a door is taken there."""
    http_, mesh_ = config["http"], config["mesh"]
    hpke = x25519.X25519PrivateKey.generate()
    challenge = lambda: unb64(post(http_, "/v1/mesh-cert", {})[1]["nonce"])
    nonce, public = challenge(), raw(hpke.public_key())
    chosen = sha256(public, nonce)  # what /v1/mesh-cert once took for the nonce of a connection

    # A workload is led to a false Coordinator, and makes evidence over what that chose; so do the real one's ports.
    false = FalseCoordinator(chosen)
    program = subprocess.run(
        [config["initializer"], "--once", "--coordinator", false.address, "--policy-hash", WEB.hex(),
         "--simulated-machine", path("machine"), "--directory", path("led")], capture_output=True, timeout=60,
    )
    assert program.returncode != 0 and false.certificate is not None, program.stderr
    assert not os.path.exists(path("led/secrets")), "it took something from a false Coordinator"
    made = {"a workload's connection": (spki(false.certificate.public_key()), evidence_in(false.certificate))}
    for name in ("user", "mesh"):
        alpn = [b"atls:v1:nonce:" + chosen.hex().encode(), b"h2"]
        key = ec.generate_private_key(ec.SECP256R1())
        tls = AttestedTls(config[name], key, lambda data: machine.evidence(data, WEB), alpn)
        certificate = tls.connection.get_peer_certificate().to_cryptography()
        made[f"the {name} port"] = (spki(certificate.public_key()), evidence_in(certificate))
    own = ec.generate_private_key(ec.SECP256R1())
    for route in ("/attest", "/v1/attest", "/v1/attest-key"):
        status, answer = post(http_, route, {"nonce": b64(nonce)})
        assert status == 200, (route, answer)
        made[route] = (spki(own.public_key()), unb64(answer["raw_attestation_doc"]))

    def to_http(key_, document, signer):
        signed = labelled(b"contrast mesh-cert request v2", key_, public, nonce)
        return post(http_, "/v1/mesh-cert", {
            "nonce": b64(nonce), "raw_attestation_doc": b64(document), "attestation_type": [1, 3, 9901, 2, 1],
            "public_key": b64(key_), "hpke_public_key": b64(public),
            "signature": b64(signer.sign(signed, ec.ECDSA(hashes.SHA256()))),
        })

    for name, (key_, document) in made.items():
        # The key of a connection is not at hand; evidence is tried with a key that is, too.
        for attempt in (key_, spki(own.public_key())):
            status, answer = to_http(attempt, document, own)
            assert (status, answer["code"]) == (403, "permission_denied"), (name, status, answer)
        tls = AttestedTls(mesh_, own, lambda data: document)
        refused(Code.PERMISSION_DENIED, "report data", tls.channel(), MESH + "NewMeshCert")
        tls = AttestedTls(mesh_, own, lambda data: document)
        refused(Code.PERMISSION_DENIED, "report data", tls.channel(), MESH + "Recover")
    # And what is made for a door is taken there.
    for_http = machine.evidence(
        hashlib.sha512(labelled(b"contrast mesh-cert v2", spki(own.public_key()), public, nonce)).digest(), WEB)
    tls = AttestedTls(mesh_, own, lambda data: for_http)
    refused(Code.PERMISSION_DENIED, "report data", tls.channel(), MESH + "NewMeshCert")
    assert to_http(spki(own.public_key()), for_http, own)[0] == 200
    tls = AttestedTls(mesh_, own, lambda data: machine.evidence(data, WEB))
    assert one(call(tls.channel(), MESH + "NewMeshCert", b""), 2)


def sealed(recipient, key, seed, salt, checkpoint=""):
    encapsulated, seal = hpke_seal(recipient, b"contrast recover v2")
    signed = labelled(b"contrast recover v2", recipient, encapsulated, salt, seed, checkpoint.encode())
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    inner = {
        "seed": b64(seed), "salt": b64(salt), "public_key": b64(pkcs1(key.public_key())),
        "signature": b64(key.sign(signed, pss, hashes.SHA256())),
        "checkpoint": checkpoint,
    }
    return {"encapsulated_key": b64(encapsulated), "ciphertext": b64(seal(json.dumps(inner).encode()))}


def rollback():
    """The storage is the one of before an update. Whoever asks the owner's own client is told by it; here the seed is
    sent all the same, as through a proxy that repeats an answer of before. The Coordinator itself refuses it."""
    document = json.load(open(path("seedshares.json")))
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"seedshare")
    seed = seedshare_owner.decrypt(bytes.fromhex(document["SeedShares"][0]["EncryptedSeed"]), oaep)
    salt = bytes.fromhex(document["Salt"])
    note = open(path("checkpoint.note")).read().split("\n\n", 1)[1]
    text = "does not extend the checkpoint that you verified"
    ask = message((1, seed), (2, salt), (1000, note))
    refused(Code.FAILED_PRECONDITION, text, user(seedshare_owner), USER + "Recover", ask)
    recipient = unb64(json.loads(request(config["http"], "GET", "/capabilities")[1])["hpkePublicKey"])
    status, answer = post(config["http"], "/v1/recover", sealed(recipient, seedshare_owner, seed, salt, note))
    assert (status, answer["code"]) == (412, "manifest_conflict") and text in answer["error"], answer
    assert json.loads(request(config["http"], "GET", "/v1/status")[1])["status"] == "coordinator is in recovery mode"


def recovery():
    known = recall()
    seed, salt = unb64(known["seed"]), unb64(known["salt"])
    text, ask = "coordinator is in recovery mode", message((1, seed), (2, salt))
    refused(Code.FAILED_PRECONDITION, text, user(), USER + "GetManifests")
    refused(Code.FAILED_PRECONDITION, text, user(owner), USER + "SetManifest", message((1, manifest_bytes), (2, policies)))
    status, answer = post(config["http"], "/v1/attest", {"nonce": b64(os.urandom(32))})
    assert (status, answer["code"]) == (412, "needs_recovery")
    refused(Code.PERMISSION_DENIED, "", user(), USER + "Recover", ask)
    stranger = rsa.generate_private_key(65537, 2048)
    refused(Code.PERMISSION_DENIED, "is not a seedshare owner", user(stranger), USER + "Recover", ask)
    bad = message((1, seed[:31]), (2, salt))
    refused(Code.INVALID_ARGUMENT, "", user(seedshare_owner), USER + "Recover", bad)
    refused(Code.INVALID_ARGUMENT, "", user(seedshare_owner), USER + "Recover", message((1, seed), (2, salt[1:])))
    wrong = message((1, os.urandom(64)), (2, salt))
    refused(Code.UNKNOWN, "does not belong to this history", user(seedshare_owner), USER + "Recover", wrong)

    # Through HTTP: sealed to a key that evidence vouches for, signed inside.
    nonce = os.urandom(32)
    status, answer = post(config["http"], "/v1/attest-key", {"nonce": b64(nonce)})
    capabilities = unb64(answer["capabilities"])
    expected = hashlib.sha512(labelled(
        b"contrast coordinator standing v1", nonce, capabilities, answer["state"].encode(), unb64(answer["signed_head"]),
        unb64(answer["seed_shares"]),
    )).digest()
    assert answer["state"] == text and len(unb64(answer["seed_shares"])) == 32 and unb64(answer["signed_head"])
    assert verify_evidence(unb64(answer["raw_attestation_doc"]), expected, manifest) == COORDINATOR
    recipient = unb64(json.loads(capabilities)["hpkePublicKey"])

    status, answer = post(config["http"], "/v1/recover", sealed(recipient, stranger, seed, salt))
    assert (status, answer["code"]) == (403, "permission_denied"), answer
    status, answer = post(config["http"], "/v1/recover", sealed(recipient, seedshare_owner, os.urandom(64), salt))
    assert (status, answer["code"]) == (400, "invalid_argument"), answer
    # The checkpoint of another log, and then that of this one, as it was before the restart.
    foreign = known["checkpoint"].replace("contrast/", "contrast/0", 1)
    status, answer = post(config["http"], "/v1/recover", sealed(recipient, seedshare_owner, seed, salt, foreign))
    assert (status, answer["code"]) == (412, "manifest_conflict"), answer
    status, answer = post(
        config["http"], "/v1/recover", sealed(recipient, seedshare_owner, seed, salt, known["checkpoint"]))
    assert status == 200 and answer["recovered"], answer
    refused(Code.FAILED_PRECONDITION, "coordinator is already recovered", user(seedshare_owner), USER + "Recover", ask)
    history(user(), [unb64(item) for item in known["manifests"]], seed, salt)


def handshakes():
    """Hellos that are not attested TLS of this version, and what is refused by name in the log."""
    for alpn in ([b"h2"], [b"atls:v2:nonce:" + b"00" * 32, b"h2"], [b"atls:v1:nonce:zz", b"h2"],
                 [b"atls:v1:nonce:" + b"00" * 31, b"h2"], [b"atls:v1:nonce:" + b"00" * 32]):
        try:
            AttestedTls(config["user"], alpn=alpn)
        except (SSL.Error, AssertionError):
            continue
        raise AssertionError(f"{alpn} was accepted")


def transit():
    import hvac

    url = "https://" + config["transit"]
    files = (path("pods/web/tls-config/certChain.pem"), path("pods/web/tls-config/key.pem"))
    session = {"cert": files, "verify": path("pods/web/tls-config/mesh-ca.pem")}
    # The mesh CA names services, not addresses; hvac's own checks go on against the name.
    import requests
    from requests.adapters import HTTPAdapter

    class Named(HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            super().init_poolmanager(*args, **kwargs, assert_hostname="coordinator", server_hostname="coordinator")

    http_session = requests.Session()
    http_session.mount("https://", Named())
    http_session.cert, http_session.verify, http_session.trust_env = files, session["verify"], False
    client = hvac.Client(url=url, token="ignored", session=http_session, verify=session["verify"], cert=files)
    engine = client.secrets.transit
    sealed = engine.encrypt_data(name="web", plaintext=b64(b"hello"), associated_data=b64(b"context"), key_version=1)
    ciphertext = sealed["data"]["ciphertext"]
    assert ciphertext.startswith("vault:v1:")
    opened = engine.decrypt_data(name="web", ciphertext=ciphertext, associated_data=b64(b"context"))
    assert unb64(opened["data"]["plaintext"]) == b"hello"

    # The key is the one of the specification: derived here, without the Coordinator.
    known = recall()
    seed, salt = unb64(known["seed"]), unb64(known["salt"])
    key = derive(derive(seed, salt, "POD STATE SECRET"), salt, "WORKLOAD SECRET ID: 1_web")[:32]
    raw_ = unb64(ciphertext.split(":")[2])
    assert AESGCM(key).decrypt(raw_[:12], raw_[12:], b"context") == b"hello"

    batch = [{"plaintext": b64(bytes([number]))} for number in range(50)]
    results = engine.encrypt_data(name="web", plaintext="", batch_input=batch)["data"]["batch_results"]
    again = [{"ciphertext": result["ciphertext"]} for result in results]
    plain = engine.decrypt_data(name="web", ciphertext="", batch_input=again)["data"]["batch_results"]
    assert [unb64(item["plaintext"]) for item in plain] == [bytes([number]) for number in range(50)]
    rewrapped = engine.rewrap_data(name="web", ciphertext=again[0]["ciphertext"], key_version=3)
    assert rewrapped["data"]["ciphertext"].startswith("vault:v3:")
    assert client.sys.is_initialized() and not client.sys.is_sealed()

    def refuses(error, work):
        try:
            work()
        except error as found:
            return str(found)
        raise AssertionError(f"expected {error}")

    text = refuses(hvac.exceptions.Forbidden, lambda: engine.encrypt_data(name="db", plaintext=b64(b"x")))
    assert "permission denied" in text, text
    refuses(hvac.exceptions.InvalidRequest, lambda: engine.decrypt_data(name="web", ciphertext="vault:v1:YQ=="))
    refuses(hvac.exceptions.InvalidRequest, lambda: engine.decrypt_data(name="web", ciphertext=ciphertext))
    refuses(hvac.exceptions.InvalidPath, lambda: client.adapter.get("/v1/transit/keys/web"))

    # OpenBao's and Vault's auto-unseal: PUT, a token header, no content type; it reads data.ciphertext and
    # splits it at colons.
    unseal = lambda operation, body: http_session.put(
        f"{url}/v1/transit/{operation}/web", data=json.dumps(body), headers={"X-Vault-Token": "t"}
    ).json()["data"]
    wrapped = unseal("encrypt", {"plaintext": b64(b"root key")})["ciphertext"]
    assert len(wrapped.split(":")) == 3
    assert unb64(unseal("decrypt", {"ciphertext": wrapped})["plaintext"]) == b"root key"

    # Without a certificate, or with one of nobody we know, there is no connection.
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    with open(path("stranger.pem"), "wb") as file:
        file.write(certificate_for(key).public_bytes(pem))
        file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    for cert in (None, path("stranger.pem")):
        stranger = requests.Session()
        stranger.mount("https://", Named())
        stranger.verify, stranger.cert, stranger.trust_env = session["verify"], cert, False
        refuses((requests.exceptions.SSLError, requests.exceptions.ConnectionError),
                lambda: stranger.get(url + "/v1/sys/health").json())


STEPS = {
    "first": first, "update": update, "mesh": mesh, "http": web_api, "purposes": purposes, "rollback": rollback, "recovery": recovery,
    "handshakes": handshakes, "transit": transit,
}
STEPS[sys.argv[1]]()
# Threads of gRPC channels would keep the process for a while.
sys.stdout.flush()
os._exit(0)
