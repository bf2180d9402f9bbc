//! Points in time as people say them. All of them are UTC.

use std::time::Duration;

use anyhow::Context as _;
use manifest::Timestamp;

const DAY: Duration = Duration::from_hours(24);
const WEEKDAYS: [&str; 7] = ["thursday", "friday", "saturday", "sunday", "monday", "tuesday", "wednesday"];

/// Understands `now`, `2h ago`, `yesterday 14:00`, `tuesday noon`, `2026-11-24`, `2026-11-24 12:00`,
/// and RFC 3339.
pub(crate) fn parse(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    let understood = understand(&text.trim().to_lowercase(), now);
    understood.or_else(|| text.parse().ok()).with_context(|| {
        format!(
            "{text:?} is not a time: try \"tuesday noon\", \"yesterday 14:00\", \"2h ago\", \"2026-11-24 12:00\" \
             or 2026-11-24T12:00:00Z (all UTC)"
        )
    })
}

fn understand(text: &str, now: Timestamp) -> Option<Timestamp> {
    if text == "now" {
        return Some(now);
    }
    if let Some(amount) = text.strip_suffix(" ago") {
        let split = amount.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, unit) = amount.split_at(split);
        let seconds = match unit.trim() {
            "s" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return None,
        };
        return Some(now.minus(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?)));
    }
    if text == "last week" {
        return Some(now.minus(DAY * 7));
    }
    let text = text.strip_prefix("last ").unwrap_or(text);
    let (day, time) = text.split_once(' ').unwrap_or((text, "midnight"));
    let today = Timestamp::from_millis(now.as_secs() / 86_400 * 86_400_000);
    let midnight = match day {
        "today" => today,
        "yesterday" => today.minus(DAY),
        _ => match WEEKDAYS.iter().position(|name| *name == day || name[..3] == *day) {
            Some(wanted) => {
                let weekday = today.as_secs() / 86_400 % 7; // 1970-01-01 was a Thursday
                let back = (weekday + 7 - wanted as u64) % 7;
                today.minus(DAY * u32::try_from(back).ok()?)
            }
            None => format!("{day}T00:00:00Z").parse().ok()?,
        },
    };
    let since = time_of_day(time)?;
    let moment = midnight.plus(since);
    // "Tuesday noon" on a Tuesday morning is last week's.
    let is_weekday = WEEKDAYS.iter().any(|name| *name == day || name[..3] == *day);
    Some(if is_weekday && moment > now { moment.minus(DAY * 7) } else { moment })
}

fn time_of_day(text: &str) -> Option<Duration> {
    match text.strip_prefix("at ").unwrap_or(text) {
        "midnight" => Some(Duration::ZERO),
        "noon" => Some(Duration::from_hours(12)),
        text => {
            let mut parts = text.split(':');
            let mut part =
                |limit| parts.next().map_or(Some(0), |part| part.parse().ok().filter(|n| *n < limit));
            let (hours, minutes, seconds) = (part(24)?, part(60)?, part(60)?);
            let plain = parts.next().is_none() && text.contains(':');
            plain.then(|| Duration::from_secs(hours * 3600 + minutes * 60 + seconds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_say_is_understood() {
        let now: Timestamp = "2026-11-24T10:30:00Z".parse().unwrap(); // a Tuesday
        for (said, meant) in [
            ("now", "2026-11-24T10:30:00Z"),
            ("2h ago", "2026-11-24T08:30:00Z"),
            ("3 days ago", "2026-11-21T10:30:00Z"),
            ("1 minute ago", "2026-11-24T10:29:00Z"),
            ("last week", "2026-11-17T10:30:00Z"),
            ("today", "2026-11-24T00:00:00Z"),
            ("yesterday 14:05", "2026-11-23T14:05:00Z"),
            ("Tuesday noon", "2026-11-17T12:00:00Z"),
            ("tuesday 09:00", "2026-11-24T09:00:00Z"),
            ("last wed at noon", "2026-11-18T12:00:00Z"),
            ("2026-11-01", "2026-11-01T00:00:00Z"),
            ("2026-11-01 12:30:15", "2026-11-01T12:30:15Z"),
            ("2026-11-01T12:00:00+01:00", "2026-11-01T11:00:00Z"),
        ] {
            assert_eq!(parse(said, now).unwrap().to_string(), meant, "{said}");
        }
        for nonsense in
            ["", "soon", "25:00", "tuesday 25:00", "99999999999999999999w ago", "2026-13-01", "5x ago"]
        {
            assert!(parse(nonsense, now).unwrap_err().to_string().contains("is not a time"), "{nonsense}");
        }
    }
}
