//! Examples of every command, as somebody would type them. They are broken into lines that paste.

/// Longest line that is shown, in columns.
const WIDTH: usize = 78;

/// Command, without the program's name, and its examples.
pub(super) const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "dev",
        &[
            "contrast dev",
            "contrast dev ./my-deployment --keep",
            "contrast dev --platform tdx",
            "contrast dev --output json > report.json",
        ],
    ),
    (
        "generate",
        &[
            "contrast generate --reference-values Metal-QEMU-SNP ./deployment",
            "contrast generate --reference-values Metal-QEMU-TDX --dry-run ./deployment",
            "kubectl kustomize . | contrast generate --reference-values Metal-QEMU-SNP - | kubectl apply -f -",
            "helm install shop ./chart --post-renderer contrast",
            "contrast generate --reference-values Metal-QEMU-SNP --images ./images --offline ./deployment",
            "contrast generate --reference-values Metal-QEMU-SNP --runtime-bundle ./bundle ./deployment",
        ],
    ),
    (
        "policy test",
        &[
            "contrast policy test web.yml --request requests.jsonl",
            "contrast policy test policies/4c1b….toml --kind ExecProcessRequest --request exec.json",
        ],
    ),
    ("policy explain", &["contrast policy explain ./deployment"]),
    ("policy diff", &["contrast policy diff policies/OLD.toml ./deployment/web.yml"]),
    ("policy settings", &["contrast policy settings > settings.json"]),
    (
        "set",
        &[
            "contrast set -c coordinator.example:1313 ./deployment",
            "contrast set -c coordinator.example:1313 --dry-run ./deployment",
            "contrast set -c https://coordinator.example -m manifest.json --policies ./policies",
            "contrast set -c coordinator.example:1313 --signature signature.der",
        ],
    ),
    (
        "verify",
        &[
            "contrast verify -c coordinator.example:1313",
            "contrast verify -c https://coordinator.example -m manifest.json",
        ],
    ),
    (
        "vouch",
        &[
            "contrast vouch -c coordinator.example:1313 --workload-owner-key workload-owner.pem",
            "contrast vouch -c coordinator.example:1313 --prepare root.txt",
            "contrast vouch -c coordinator.example:1313 --signature root.der --public-key owner.pub.der",
        ],
    ),
    (
        "recover",
        &[
            "contrast recover -c coordinator.example:1313",
            "contrast recover -c https://coordinator.example --seedshare-owner-key seedshare-owner.pem",
        ],
    ),
    (
        "sign",
        &[
            "contrast sign -m manifest.json --workload-owner-key workload-owner.pem",
            "contrast sign -m manifest.json --prepare --out transition.hex",
        ],
    ),
    (
        "proposals propose",
        &[
            "contrast proposals propose -c coordinator.example:1313 --next next.json --workload-owner-key anna.pem",
        ],
    ),
    ("proposals list", &["contrast proposals list -c coordinator.example:1313"]),
    (
        "proposals show",
        &[
            "contrast proposals show 3fa2 -c coordinator.example:1313",
            "contrast proposals show 3fa2 -c coordinator.example:1313 --save ./proposal",
        ],
    ),
    (
        "proposals approve",
        &["contrast proposals approve 3fa2 -c coordinator.example:1313 --workload-owner-key ben.pem"],
    ),
    ("proposals withdraw", &["contrast proposals withdraw 3fa2 -c coordinator.example:1313"]),
    (
        "history list",
        &[
            "contrast history list -c coordinator.example:1313",
            "contrast history list --export audit.jsonl --output json",
        ],
    ),
    (
        "history show",
        &[
            "contrast history show latest -c coordinator.example:1313",
            "contrast history show 3 --policies --state-dir ./copy-of-state",
        ],
    ),
    ("history diff", &["contrast history diff 3 latest -c coordinator.example:1313"]),
    (
        "history at",
        &[
            "contrast history at \"tuesday noon\" -c coordinator.example:1313",
            "contrast history at 2026-11-24T12:00:00Z --export audit.jsonl",
        ],
    ),
    ("history grep", &["contrast history grep privileged --export audit.jsonl"]),
    (
        "history verify",
        &[
            "contrast history verify -c coordinator.example:1313 --auditor-key auditor.pem",
            "contrast history verify --state-dir ./copy-of-state",
        ],
    ),
    (
        "audit export",
        &[
            "contrast audit export -c coordinator.example:1313 --auditor-key auditor.pem --out audit.jsonl",
            "contrast audit export -c coordinator.example:1313 --out audit.jsonl --resume",
            "contrast audit export --state-dir ./copy --since \"7 days ago\" --kind AttestationRefused --format ocsf",
        ],
    ),
    ("audit verify", &["contrast audit verify audit.jsonl"]),
    (
        "audit prove",
        &[
            "contrast audit prove 4fb2... -c coordinator.example:1313 --auditor-key auditor.pem --out proof.json",
        ],
    ),
    ("audit check-proof", &["contrast audit check-proof proof.json"]),
    (
        "audit watch",
        &[
            "contrast audit watch -c coordinator.example:1313 --auditor-key auditor.pem --position siem.position",
        ],
    ),
    ("audit checkpoint", &["contrast audit checkpoint -c coordinator.example:1313"]),
    (
        "explain",
        &[
            "kubectl logs web-0 -c contrast-initializer | contrast explain -",
            "kubectl logs web-0 -c contrast-initializer | contrast explain - --deployed ./deployment",
            "contrast explain report.bin -m manifest.json --endorsement vcek.der",
            "contrast explain audit.jsonl --serial 4f1c...",
        ],
    ),
    (
        "inspect",
        &[
            "contrast inspect report.bin",
            "contrast inspect /contrast/tls-config/certChain.pem",
            "contrast inspect crl-Milan.der --output json",
        ],
    ),
    ("endorsements fetch", &["contrast endorsements fetch report.bin quote.bin"]),
    ("endorsements refresh", &["contrast endorsements refresh"]),
    ("endorsements export", &["contrast endorsements export bundle.json"]),
    (
        "endorsements import",
        &["contrast endorsements import bundle.json --endorsement-cache /var/lib/contrast/endorsements"],
    ),
    ("endorsements status", &["contrast endorsements status"]),
    (
        "runtime measure",
        &[
            "contrast runtime measure ./bundle",
            "contrast runtime measure ./bundle --output json > measurements.json",
            "contrast runtime measure ./bundle --files /opt/edgeless/contrast-cc-metal-qemu-snp-0a1b2c3d",
        ],
    ),
    (
        "runtime resources",
        &[
            "contrast runtime resources Metal-QEMU-SNP --bundle contrast-node-install.json --image ghcr.io/me/installer@sha256:... > runtime.yml",
            "contrast runtime resources Metal-QEMU-SNP --bundle contrast-node-install.json --image ghcr.io/me/installer@sha256:... --uninstall | kubectl apply -f -",
            "contrast runtime resources Metal-QEMU-SNP --bundle contrast-node-install.json --image ghcr.io/me/installer@sha256:... --form helm-values > values.yaml",
        ],
    ),
    (
        "coordinator",
        &[
            "contrast coordinator --image ghcr.io/me/coordinator@sha256:... --runtime contrast-cc-metal-qemu-snp-8da615a6 --storage 10Gi > coordinator.yml",
            "contrast coordinator --image ghcr.io/me/coordinator@sha256:... --runtime contrast-cc-metal-qemu-snp-8da615a6 --replicas 3 --etcd-endpoints https://etcd-0.etcd:2379,https://etcd-1.etcd:2379 --etcd-tls-secret etcd-client-tls --etcd-user-secret etcd-user --storage 10Gi --discovery endpoints",
            "contrast coordinator --image ghcr.io/me/coordinator@sha256:... --runtime contrast-cc-metal-qemu-snp-8da615a6 --storage 10Gi --env CONTRAST_METRICS=1",
        ],
    ),
    ("status", &["contrast status -c coordinator-0.example:1313 -c coordinator-1.example:1313"]),
    (
        "store migrate",
        &[
            "contrast store migrate --state-dir ./state --etcd-endpoints http://127.0.0.1:2379",
            "contrast store migrate --back --state-dir ./new --etcd-endpoints http://127.0.0.1:2379",
        ],
    ),
    ("version", &["contrast version"]),
    ("completion", &["contrast completion bash > /etc/bash_completion.d/contrast"]),
];

/// The lines of an example, each but the last with a backslash at its end.
pub(super) fn lines(example: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    // What stands in quotes stays on one line.
    let mut rest = example;
    while !rest.is_empty() {
        let mut in_quotes = false;
        let end = rest.find(|c| {
            in_quotes ^= c == '"' || c == '\'';
            c == ' ' && !in_quotes
        });
        let (word, more) = end.map_or((rest, ""), |end| (&rest[..end], rest[end..].trim_start()));
        rest = more;
        let indent = if lines.len() > 1 { 4 } else { 2 };
        let Some(last) = lines.last_mut() else { continue };
        // Room for the backslash.
        if !last.is_empty() && indent + last.chars().count() + 1 + word.chars().count() + 2 > WIDTH {
            last.push_str(" \\");
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    let indent = |(number, line): (usize, String)| {
        if number == 0 { format!("  {line}") } else { format!("    {line}") }
    };
    lines.into_iter().enumerate().map(indent).collect()
}
