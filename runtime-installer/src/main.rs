//! `runtime-installer`: results on stdout, logs on stderr. Exit codes: 0 done, 1 refused, 2 broken.

mod options;

use std::{io::Write as _, path::Path, process::ExitCode};

use options::{Command, Options, Output};
use runtime_bundle::{BundleFile, Mode, Role, RuntimePath, Source};
use runtime_installer::{
    check,
    containerd::{activate::ActivationError, restart},
    fetch::{Fetcher, Http},
    install::{self, Outcome, Refused},
};

/// Largest file that `fetch` takes, in bytes.
const MOST_FETCHED: u64 = 1 << 30;

fn main() -> ExitCode {
    let options: Options = program::parse(None);
    if let Command::OnNode { process, words } = &options.command {
        let error = restart::become_on_node(*process, words);
        let _ = writeln!(std::io::stderr(), "{error}");
        return ExitCode::from(2);
    }
    options.log.init();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            let refused = error.downcast_ref::<Refused>().is_some()
                || matches!(error.downcast_ref(), Some(ActivationError::RolledBack { .. }));
            ExitCode::from(if refused { 1 } else { 2 })
        }
    }
}

fn run(options: &Options) -> anyhow::Result<ExitCode> {
    match &options.command {
        Command::Install { platform, source, retry } => {
            let bundle = install::read_bundle(&source.config_dir)?;
            let fetcher = Fetcher {
                folder: source.config_dir.clone(),
                http: Http::new(&source.http(&options.host()))?,
            };
            let outcome = install::install(&options.site()?, &bundle, *platform, &fetcher, *retry)?;
            report(
                options,
                &outcome,
                if outcome.files_changed || outcome.config_changed {
                    "installed"
                } else {
                    "is installed already"
                },
            )
        }
        Command::Uninstall { handler, force } => {
            let outcome = install::uninstall(&options.site()?, handler, *force)?;
            report(
                options,
                &outcome,
                if outcome.files_changed || outcome.config_changed { "removed" } else { "was not there" },
            )
        }
        Command::Check { platform } => {
            let (host, hints) = (options.node()?, options.hints()?);
            let report = check::check(&host, &hints, options.restart_command.as_deref(), *platform);
            print(options, &report.text(), &report)?;
            Ok(ExitCode::from(if report.ready { 0 } else { 1 }))
        }
        Command::Name { platform, source } => {
            let bundle = install::read_bundle(&source.config_dir)?;
            let fetcher = Fetcher {
                folder: source.config_dir.clone(),
                http: Http::new(&source.http(&options.host()))?,
            };
            let name = install::handler(&bundle, *platform, &fetcher)?.to_string();
            print(options, &format!("{name}\n"), &serde_json::json!({ "handler": name }))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Fetch { from, to, source } => {
            let fetcher = Fetcher { folder: ".".into(), http: Http::new(&source.http(&options.host()))? };
            fetch_one(&fetcher, from, to)?;
            print(options, "", &serde_json::json!({ "file": to }))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Wait => wait(),
        Command::OnNode { .. } => Ok(ExitCode::SUCCESS),
    }
}

fn fetch_one(fetcher: &Fetcher, from: &Source, to: &Path) -> anyhow::Result<()> {
    let Source::Oci { path: Some(path), .. } = from else {
        return Err(Refused(
            "only oci://REGISTRY/REPOSITORY@sha256:HEX#FILE names one file by its digest".into(),
        )
        .into());
    };
    let file = BundleFile {
        path: RuntimePath::relative(path).map_err(|error| Refused(error.to_string()))?,
        source: from.clone(),
        integrity: None,
        mode: Mode::EXECUTABLE,
        max_bytes: MOST_FETCHED,
        unpack: false,
        role: Role::Other,
    };
    fetcher.fetch(&file, to).map_err(|error| match error.is_refusal() {
        true => Refused(error.to_string()).into(),
        false => error.into(),
    })
}

fn report(options: &Options, outcome: &Outcome, what: &str) -> anyhow::Result<ExitCode> {
    let Outcome { handler, directory, config, .. } = outcome;
    let text = format!("{handler} {what}: files in {directory}, entry in {}\n", config.display());
    print(options, &text, outcome)?;
    Ok(ExitCode::SUCCESS)
}

/// A closed pipe is not an error.
fn print(options: &Options, text: &str, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let _ = match options.output {
        Output::Text => stdout.write_all(text.as_bytes()),
        Output::Json => writeln!(stdout, "{}", serde_json::to_string_pretty(value)?),
    };
    Ok(())
}

/// Does nothing until it is told to stop: a DaemonSet's pod needs a container that stays.
fn wait() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        Ok(ExitCode::SUCCESS)
    })
}
