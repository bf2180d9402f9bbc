//! AMD SEV-SNP launch digest of a QEMU guest with a measured direct boot.

use std::path::Path;

use manifest::Measurement;
use sev::measurement::{
    snp::{SnpMeasurementArgs, snp_calc_launch_digest},
    vcpu_types::CpuType,
    vmsa::{GuestFeatures, VMMType},
};

use crate::MeasureError;

/// What a guest starts from.
#[derive(Debug, Clone)]
pub struct SnpLaunch<'a> {
    /// OVMF with the SEV metadata.
    pub firmware: &'a Path,
    /// The kernel, if it is passed to the VM directly; then its hash, the initrd's and the command line's
    /// are put into the firmware's table.
    pub kernel: Option<&'a Path>,
    /// The initial file system.
    pub initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub command_line: Option<&'a str>,
    /// Number of virtual processors: each has a measured page.
    pub vcpus: u32,
    /// QEMU's name of the processor model, such as `EPYC-Milan`.
    pub cpu_model: &'a str,
    /// `SEV_FEATURES` of the VMSA: bit 0 SNP active; newer kernels set bit 5 (debug swap) as well.
    pub guest_features: u64,
}

/// QEMU's processor models, whose CPUID signature is in the measured page.
pub const CPU_MODELS: [&str; 19] = [
    "EPYC",
    "EPYC-v1",
    "EPYC-v2",
    "EPYC-IBPB",
    "EPYC-v3",
    "EPYC-v4",
    "EPYC-Rome",
    "EPYC-Rome-v1",
    "EPYC-Rome-v2",
    "EPYC-Rome-v3",
    "EPYC-Milan",
    "EPYC-Milan-v1",
    "EPYC-Milan-v2",
    "EPYC-Genoa",
    "EPYC-Genoa-v1",
    "EPYC-Turin",
    "EPYC-Turin-v1",
    "EPYC-Turin-v2",
    "EPYC-v5",
];

fn cpu_type(model: &str) -> Result<CpuType, MeasureError> {
    Ok(match model {
        "EPYC" => CpuType::Epyc,
        "EPYC-v1" => CpuType::EpycV1,
        "EPYC-v2" => CpuType::EpycV2,
        "EPYC-IBPB" => CpuType::EpycIBPB,
        "EPYC-v3" => CpuType::EpycV3,
        // One signature for both.
        "EPYC-v4" | "EPYC-v5" => CpuType::EpycV4,
        "EPYC-Rome" => CpuType::EpycRome,
        "EPYC-Rome-v1" => CpuType::EpycRomeV1,
        "EPYC-Rome-v2" => CpuType::EpycRomeV2,
        "EPYC-Rome-v3" => CpuType::EpycRomeV3,
        "EPYC-Milan" => CpuType::EpycMilan,
        "EPYC-Milan-v1" => CpuType::EpycMilanV1,
        "EPYC-Milan-v2" => CpuType::EpycMilanV2,
        "EPYC-Genoa" => CpuType::EpycGenoa,
        "EPYC-Genoa-v1" => CpuType::EpycGenoaV1,
        "EPYC-Turin" => CpuType::EpycTurin,
        "EPYC-Turin-v1" => CpuType::EpycTurinV1,
        "EPYC-Turin-v2" => CpuType::EpycTurinV2,
        other => return Err(MeasureError::CpuModel(other.to_owned())),
    })
}

/// The launch digest that the report of such a guest will have.
pub fn snp_launch_digest(launch: &SnpLaunch<'_>) -> Result<Measurement, MeasureError> {
    let args = arguments(launch)?;
    digest(args)
}

fn arguments<'a>(launch: &SnpLaunch<'a>) -> Result<SnpMeasurementArgs<'a>, MeasureError> {
    Ok(SnpMeasurementArgs {
        vcpus: launch.vcpus,
        vcpu_type: cpu_type(launch.cpu_model)?,
        ovmf_file: launch.firmware.to_owned(),
        guest_features: GuestFeatures(launch.guest_features),
        kernel_file: launch.kernel.map(Path::to_owned),
        initrd_file: launch.initrd.map(Path::to_owned),
        append: launch.command_line,
        ovmf_hash_str: None,
        vmm_type: Some(VMMType::QEMU),
    })
}

fn digest(args: SnpMeasurementArgs<'_>) -> Result<Measurement, MeasureError> {
    let digest = snp_calc_launch_digest(args).map_err(|error| MeasureError::Library(error.to_string()))?;
    let bytes: Vec<u8> = digest.try_into().map_err(|_| MeasureError::Library("no digest".into()))?;
    Measurement::try_from(bytes.as_slice()).map_err(|error| MeasureError::Library(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firmware() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/ovmf_AmdSev_suffix.bin")
    }

    fn launch<'a>(firmware: &'a Path, features: u64) -> SnpLaunch<'a> {
        SnpLaunch {
            firmware,
            kernel: Some(Path::new("/dev/null")),
            initrd: Some(Path::new("/dev/null")),
            command_line: Some("console=ttyS0 loglevel=7"),
            vcpus: 1,
            cpu_model: "EPYC-v4",
            guest_features: features,
        }
    }

    #[test]
    fn digests_that_sev_snp_measure_and_sev_publish() {
        let firmware = firmware();
        let digest = |features| snp_launch_digest(&launch(&firmware, features)).unwrap().to_string();
        assert_eq!(
            digest(0x1),
            "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"
        );
        assert_eq!(
            digest(0x21),
            "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"
        );
        let plain = |features| SnpLaunch {
            kernel: None,
            initrd: None,
            command_line: None,
            ..launch(&firmware, features)
        };
        assert_eq!(
            snp_launch_digest(&plain(0x1)).unwrap().to_string(),
            "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"
        );
        let four = SnpLaunch { vcpus: 4, initrd: None, command_line: None, ..launch(&firmware, 0x1) };
        assert_eq!(
            snp_launch_digest(&four).unwrap().to_string(),
            "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"
        );
        let other = firmware.with_file_name("ovmf_OvmfX64_suffix.bin");
        assert_eq!(
            snp_launch_digest(&SnpLaunch { firmware: &other, ..plain(0x1) }).unwrap().to_string(),
            "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005"
        );
        // The whole firmware replaced by its published hash, without a command line.
        let hash = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74";
        let mut args = arguments(&SnpLaunch { command_line: None, ..launch(&firmware, 0x21) }).unwrap();
        args.ovmf_hash_str = Some(hash);
        assert_eq!(
            digest_of(args),
            "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"
        );
    }

    fn digest_of(args: SnpMeasurementArgs<'_>) -> String {
        digest(args).unwrap().to_string()
    }

    #[test]
    fn everything_that_is_measured_changes_the_digest() {
        let firmware = firmware();
        let base = launch(&firmware, 1);
        let mut seen = vec![snp_launch_digest(&base).unwrap()];
        for other in [
            SnpLaunch { vcpus: 2, ..base.clone() },
            SnpLaunch { cpu_model: "EPYC-Genoa", ..base.clone() },
            SnpLaunch { command_line: Some("console=ttyS0 loglevel=8"), ..base.clone() },
            SnpLaunch { kernel: Some(&firmware), ..base.clone() },
            SnpLaunch { initrd: Some(&firmware), ..base.clone() },
        ] {
            let digest = snp_launch_digest(&other).unwrap();
            assert!(!seen.contains(&digest), "{other:?}");
            seen.push(digest);
        }
        let unknown = snp_launch_digest(&SnpLaunch { cpu_model: "EPYC-Naples", ..base }).unwrap_err();
        assert!(unknown.to_string().contains("EPYC-Milan"), "{unknown}");
    }
}
