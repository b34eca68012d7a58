//! kube-proxy's own configuration file (`KubeProxyConfiguration`, v1alpha1), taken over as it is: what each field
//! becomes here, or why not. Called by `cli` for `run --kube-proxy-config` and `check --kube-proxy-config`.
//!
//! Pure: text in, settings of `lb-agent run` and reasons out. What must stay true: every field of the
//! file has a row in [`fields()`], and docs/migration.md shows the same rows.

mod decode;
mod duration;
mod fields;
mod types;
mod validate;

use std::fmt;

use serde::Serialize;

use crate::setting::Setting;

pub use decode::DecodeError;
pub use duration::{DurationError, GoDuration};
pub use fields::{Fate, Field, fields, markdown};
pub use validate::Invalid;

/// What the whole file becomes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Migration {
    /// One row per field, in the order of [`fields()`].
    pub rows: Vec<Row>,
    /// Fields the file has and kube-proxy does not know, or has twice (spec 10.1).
    pub warnings: Vec<String>,
}

/// What one field becomes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its path, as `conntrack.min`.
    pub field: String,
    /// Its value in the file; `None`: not set there.
    pub value: Option<serde_json::Value>,
    /// What is done with it.
    pub outcome: Outcome,
    /// The flags of `lb-agent run` that it becomes.
    pub flags: Vec<String>,
    /// How it differs, or why it is ignored or refused.
    pub note: String,
    #[serde(skip)]
    settings: Vec<Setting>,
}

/// What is done with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Does here what it did there.
    Kept,
    /// Has an effect that differs.
    Differs,
    /// Has no effect here.
    Ignored,
    /// Nobody could take this value.
    Refused,
}

impl Outcome {
    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Differs => "differs",
            Self::Ignored => "ignored",
            Self::Refused => "refused",
        }
    }
}

impl Migration {
    /// The flags of `lb-agent run` that do what the file said.
    pub fn settings(&self) -> Vec<Setting> {
        self.rows.iter().flat_map(|row| row.settings.clone()).collect()
    }

    /// The fields that nobody could take.
    pub fn refused(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.outcome == Outcome::Refused)
    }

    /// The fields that are set and not taken as they are.
    pub fn not_kept(&self) -> impl Iterator<Item = &Row> {
        let is_set = |row: &&Row| row.value.as_ref().is_some_and(|value| !is_empty(value));
        self.rows.iter().filter(is_set).filter(|row| row.outcome != Outcome::Kept)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.field, self.outcome.name(), self.note)
    }
}

/// True for what a file says only because whoever generated it writes every field.
fn is_empty(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "0s",
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(values) => values.iter().all(is_empty),
        Value::Object(values) => values.values().all(is_empty),
        Value::Bool(true) => false,
    }
}

/// What kube-proxy's file `text` becomes. A ConfigMap as kubeadm makes it (key `config.conf`) is taken too.
pub fn migrate(text: &str) -> Result<Migration, DecodeError> {
    let decoded = decode::decode(text)?;
    let invalid = validate::validate(&decoded.config);
    let rows = fields().iter().map(|field| row(field, &decoded, &invalid)).collect();
    Ok(Migration { rows, warnings: decoded.warnings })
}

fn row(field: &Field, decoded: &decode::Decoded, invalid: &[Invalid]) -> Row {
    let value = decoded.value.pointer(&format!("/{}", field.path.replace('.', "/"))).cloned();
    let fault = invalid.iter().find(|invalid| invalid.field == field.path);
    let settings = match fault {
        Some(_) => Vec::new(),
        None => (field.settings)(&decoded.config),
    };
    let outcome = match fault {
        Some(_) => Outcome::Refused,
        None => field.fate.outcome(),
    };
    Row {
        field: field.path.to_owned(),
        value: value.filter(|value| !value.is_null()),
        outcome,
        flags: settings.iter().map(ToString::to_string).collect(),
        note: fault.map_or(field.note, |fault| &fault.reason).to_owned(),
        settings,
    }
}

#[cfg(test)]
mod tests;
