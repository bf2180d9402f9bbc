//! The older text format of Prometheus (version 0.0.4), for whoever does not ask for OpenMetrics. They differ in how a
//! family is called: here by the name of its samples.

/// Rewrites OpenMetrics text that this program made.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut rewritten = String::with_capacity(text.len());
    let mut help: Option<&str> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest); // its name follows from the type, on the next line
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.rsplit_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, text)) = help.take().and_then(|help| help.split_once(' ')) {
                rewritten.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            rewritten.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            rewritten.push_str(line);
            rewritten.push('\n');
        }
    }
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_called_as_their_samples_are() {
        let open = "# HELP a_coordinator The program.\n# TYPE a_coordinator info\na_coordinator_info{version=\"1\"} 1\n\
                    # HELP a_refused Connections refused.\n# TYPE a_refused counter\na_refused_total{why=\"# TYPE\"} 3\n\
                    # HELP a_age_seconds Age.\n# TYPE a_age_seconds gauge\n# UNIT a_age_seconds seconds\n\
                    a_age_seconds 0.5\n# EOF\n";
        let classic = "# HELP a_coordinator_info The program.\n# TYPE a_coordinator_info gauge\n\
                       a_coordinator_info{version=\"1\"} 1\n# HELP a_refused_total Connections refused.\n\
                       # TYPE a_refused_total counter\na_refused_total{why=\"# TYPE\"} 3\n\
                       # HELP a_age_seconds Age.\n# TYPE a_age_seconds gauge\na_age_seconds 0.5\n";
        assert_eq!(from_open_metrics(open), classic);
    }
}
