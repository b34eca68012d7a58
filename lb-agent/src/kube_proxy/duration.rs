//! Durations as Go writes them (`1h30m`, `250ms`). The grammar is `kube_core::Duration`'s; that parser panics on what
//! overflows and on signs inside, so those are refused before it sees them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration of zero or more, or less than zero: kube-proxy's validation has to name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Default)]
pub struct GoDuration {
    /// Without its sign.
    pub length: Duration,
    /// True for less than zero.
    pub is_negative: bool,
}

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration such as 30s, 1h30m or 250ms{reason}")]
pub struct DurationError {
    text: String,
    reason: String,
}

/// Hours of 12 digits fit into the seconds of a [`Duration`], a few times over.
const DIGITS_MAX: usize = 12;
const LENGTH_MAX: usize = 64;

impl GoDuration {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self { length: Duration::from_secs(seconds), is_negative: false }
    }

    /// True for 0, from either side.
    pub const fn is_zero(self) -> bool {
        self.length.is_zero()
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let error = |reason: &str| DurationError { text: text.to_owned(), reason: reason.to_owned() };
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let starts_well = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        let ends_well = unsigned == "0" || unsigned.ends_with(char::is_alphabetic);
        if !starts_well || !ends_well || unsigned.contains(['+', '-']) {
            return Err(error(""));
        }
        let longest = unsigned.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or_default();
        if longest > DIGITS_MAX || unsigned.len() > LENGTH_MAX {
            return Err(error(": too long"));
        }
        let parsed: kube::core::Duration = text.parse().map_err(|reason| error(&format!(": {reason}")))?;
        Ok(Self { length: parsed.into(), is_negative: text.starts_with('-') })
    }
}

impl fmt::Display for GoDuration {
    /// As Go prints it, but for what is longer than an hour: `5400s`, which Go reads as `1h30m0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_negative { "-" } else { "" };
        write!(f, "{sign}{:?}", self.length)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_is_read_the_same() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("1478s", 1_478_000_000_000),
            ("5.0s", 5_000_000_000),
            ("5.6s", 5_600_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("1.004s", 1_004_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12µs", 12_000),
            ("12μs", 12_000),
            ("13ms", 13_000_000),
            ("15m", 900_000_000_000),
            ("16h", 57_600_000_000_000),
            ("3h30m", 12_600_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("24h0m0s", 86_400_000_000_000),
        ] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!((parsed.length.as_nanos(), parsed.is_negative), (nanoseconds, false), "{text}");
        }
        let negative: GoDuration = "-1m30s".parse().unwrap();
        assert_eq!((negative.length.as_secs(), negative.is_negative), (90, true));
    }

    #[test]
    fn what_go_refuses_is_refused_and_named() {
        for text in [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "5s-3s",
            "--5s",
            "1 s",
            " 1s",
            "1s ",
            "1e3s",
            "9999999999999999h",
            "inf",
            "NaNs",
            "1h1",
        ] {
            let error = text.parse::<GoDuration>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not a duration")), "{error}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for text in ["0s", "-1s", "1h30m", "250ms", "1.5s", "1ns"] {
            let parsed: GoDuration = text.parse().unwrap();
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }
}
