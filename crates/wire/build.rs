//! Compiles the .proto files without protoc: protox reads them, prost writes the types.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/userapi.proto",
        "proto/meshapi.proto",
        "proto/history.proto",
        "proto/proposals.proto",
        "proto/replica.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Secrets must not reach a log through a derived Debug.
        .skip_debug([
            ".meshapi.NewMeshCertResponse",
            ".meshapi.RecoverResponse",
            ".contrast.replica.v1.JoinResponse",
            ".edgelesssys.contrast.userapi.RecoverRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
