//! A flag of `run` with its values, wherever it comes from: the command line's language is the only one, files are
//! translated into it.

use std::fmt;

/// One flag with what it is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its long name, without dashes in front.
    pub flag: String,
    /// Its values: one, or those of a list; for a switch `true` or `false`.
    pub values: Vec<String>,
}

impl Setting {
    /// A flag with one value.
    pub fn new(flag: &str, value: impl fmt::Display) -> Self {
        Self { flag: flag.to_owned(), values: vec![value.to_string()] }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}={}", self.flag, self.values.join(","))
    }
}
